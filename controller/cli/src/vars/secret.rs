//! Secrets in plaintext: bytes in memory that are wiped when dropped, and reading them from a program.

use tokio::io::{AsyncRead, AsyncReadExt as _};
use zeroize::{Zeroize as _, Zeroizing};

pub type SecretBytes = Zeroizing<Vec<u8>>;

/// The largest value that is kept, in bytes.
pub const MAX_VALUE: usize = 4 * 1024 * 1024;

/// Reads to the end, or one byte more than `limit`. Growing the buffer leaves no copy behind.
pub async fn read_all(mut stream: impl AsyncRead + Unpin, limit: usize) -> std::io::Result<SecretBytes> {
    let mut bytes = SecretBytes::new(Vec::with_capacity(8 * 1024));
    let mut chunk = Zeroizing::new([0_u8; 8 * 1024]);
    loop {
        let read = stream.read(&mut chunk[..]).await?;
        if read == 0 || bytes.len() > limit {
            return Ok(bytes);
        }
        append(&mut bytes, &chunk[..read]);
    }
}

fn append(bytes: &mut SecretBytes, more: &[u8]) {
    let needed = bytes.len() + more.len();
    if needed > bytes.capacity() {
        // Growing in place would leave the old memory as it is.
        let mut larger = Vec::with_capacity(needed.max(bytes.capacity() * 2));
        larger.extend_from_slice(bytes);
        bytes.zeroize();
        **bytes = larger;
    }
    bytes.extend_from_slice(more);
}

/// Keeps this process, and the programs that it starts, from leaving memory in a core dump.
pub fn forbid_core_dumps() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // If lowering the limit is forbidden, there is nothing more to do.
    let _ = setrlimit(Resource::Core, none);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_is_read_up_to_the_limit() {
        let long = vec![7_u8; 100_000];
        assert_eq!(*read_all(&long[..], 200_000).await.unwrap(), long);
        let cut = read_all(&long[..], 50_000).await.unwrap();
        assert!(cut.len() > 50_000 && cut.len() < 70_000);
        assert!(read_all(&b""[..], 10).await.unwrap().is_empty());
    }
}
