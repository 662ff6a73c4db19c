//! An archive in transit: unpacked, within limits of memory, time and length.

use std::io;
use std::sync::Arc;

use async_compression::tokio::bufread::ZstdDecoder;
use async_compression::zstd::DParameter;
use axum::body::Body;
use axum::http::Method;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use muster_protocol::ids::{Sha256, nix_base32};
use muster_protocol::narinfo::NarFile;
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader};
use tokio_util::io::StreamReader;

use super::answers::{Stop, Trouble, altered, good, sent};
use super::state::{Archive, PIECE, Shared, lock};

/// The largest zstd window, as a power of two: 8 MiB, which every decoder supports (RFC 8878, 3.1.1.1.2). Nix
/// packs with 2 MiB, and fetches 25 archives at once.
const WINDOW: u32 = 23;

type Reader = Box<dyn AsyncRead + Send + Unpin>;

impl Shared {
    /// The archive's content. Small ones are verified before Nix gets any of it.
    pub(super) async fn unpacked(self: &Arc<Self>, nar: &NarFile, archive: Archive) -> Result<Body, Stop> {
        let asked = self.cache.ask(Method::GET, &archive.file.key())?;
        let answer = good(sent(asked, self.wait).await?, self.wait).await?;
        if answer.content_length().is_some_and(|length| length != archive.file_size) {
            let key = archive.file.key();
            return Err(altered(format!("the archive {key} has another length than was described")));
        }
        let pieces = Box::pin(answer.bytes_stream().map(|piece| piece.map_err(io::Error::other)));
        let packed = BufReader::new(StreamReader::new(pieces).take(archive.file_size));
        let reader: Reader = match archive.packed {
            true => {
                let mut decoder = ZstdDecoder::with_params(packed, &[DParameter::window_log_max(WINDOW)]);
                decoder.multiple_members(true);
                Box::new(decoder)
            }
            false => Box::new(packed),
        };
        let small = archive.size <= PIECE as u64;
        let mut pieces = Box::pin(exactly(Arc::clone(self), reader, archive.clone()));
        let first =
            pieces.try_next().await.map_err(|Broken(trouble)| Stop::For(trouble))?.unwrap_or_default();
        if small {
            pieces.try_next().await.map_err(|Broken(trouble)| Stop::For(trouble))?;
            if nix_base32(&Sha256::of(&first)) != nar.hash() {
                let Broken(trouble) = self.breaks_off(&archive, "has another content than was described");
                return Err(Stop::For(trouble));
            }
            return Ok(Body::from(first));
        }
        Ok(Body::from_stream(stream::iter([Ok(first)]).chain(pieces)))
    }

    /// If Nix asks again, it does not get this copy.
    fn breaks_off(&self, archive: &Archive, why: &str) -> Broken {
        for twins in lock(&self.described).archives.values_mut() {
            twins.retain(|known| known != archive);
        }
        self.broken(Trouble::Altered(format!("the archive {} {why}", archive.file.key())))
    }

    fn broken(&self, trouble: Trouble) -> Broken {
        self.note(trouble.clone());
        Broken(trouble)
    }
}

/// Why a connection to Nix is cut.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Broken(Trouble);

/// Exactly this many bytes; otherwise the connection is cut.
fn exactly(
    shared: Arc<Shared>,
    reader: Reader,
    archive: Archive,
) -> impl stream::Stream<Item = Result<Bytes, Broken>> + Send {
    let from = (reader, archive.size, shared, archive);
    stream::try_unfold(from, |(mut reader, left, shared, archive)| async move {
        let mut piece = vec![0; PIECE];
        let read = tokio::time::timeout(shared.wait, fill(&mut reader, &mut piece)).await;
        let away =
            |why: &str| shared.broken(Trouble::Away(format!("the archive {} {why}", archive.file.key())));
        let read = match read {
            Ok(Ok(read)) => read,
            Err(_) => {
                let wait = shared.wait.as_secs();
                return Err(away(&format!("comes too slowly: less than {PIECE} bytes within {wait} s")));
            }
            Ok(Err(error)) if error.get_ref().is_some_and(|cause| cause.is::<reqwest::Error>()) => {
                return Err(away("broke off on its way"));
            }
            Ok(Err(error)) => {
                return Err(shared.breaks_off(&archive, &format!("cannot be unpacked: {error}")));
            }
        };
        match (read as u64, left) {
            (0, 0) => Ok(None),
            (0, _) => Err(shared.breaks_off(&archive, "is shorter than was described")),
            (read, left) if read > left => Err(shared.breaks_off(&archive, "is longer than was described")),
            (more, left) => {
                piece.truncate(read);
                Ok(Some((Bytes::from(piece), (reader, left - more, shared, archive))))
            }
        }
    })
}

/// Fills the buffer, or reads to the end.
async fn fill(reader: &mut Reader, room: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < room.len() {
        match reader.read(&mut room[filled..]).await? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}
