//! The listening socket: a long backlog, and a limit on how much of a response the kernel buffers.

use std::net::SocketAddr;
use std::time::Duration;

#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};

#[cfg(target_os = "linux")]
use super::stream::slowest;

/// How many connections may wait to be accepted; the kernel allows at most `net.core.somaxconn`.
const BACKLOG: u32 = 16_384;
/// The bounds of what is handed to the kernel before it can be sent.
#[cfg(target_os = "linux")]
const UNSENT: (u64, u64) = (4 * 1024, 128 * 1024);

/// Listens with a long backlog: a client that finds it full waits a second before its kernel tries again.
pub fn bind(address: SocketAddr, idle: Duration) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it.
    #[cfg(target_os = "linux")]
    SockRef::from(&socket).set_tcp_notsent_lowat(unsent(idle))?;
    #[cfg(not(target_os = "linux"))]
    let _ = idle;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How much unsent data of a response the kernel accepts, in bytes (`TCP_NOTSENT_LOWAT`, tcp(7)): half of
/// what the slowest peer takes in `idle`.
///
/// By default Linux accepts up to 4 MiB, and a peer on a slow link seems to take nothing for minutes. Data in
/// flight does not count, so a fast link with a long round trip is not slowed down.
#[cfg(target_os = "linux")]
fn unsent(idle: Duration) -> u32 {
    u32::try_from((slowest(idle) / 2).clamp(UNSENT.0, UNSENT.1)).unwrap_or(u32::MAX)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn who_takes_a_kibibyte_a_second_is_seen_to_take_it_before_the_time_is_over() {
        let idle = Duration::from_secs(60);
        let listener = bind("127.0.0.1:0".parse().unwrap(), idle).unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut far = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let near = listener.accept().await.unwrap().0;
        let near = near.into_std().unwrap();
        let set = TcpSocket::from_std_stream(near.try_clone().unwrap());
        assert_eq!(
            SockRef::from(&set).tcp_notsent_lowat().unwrap(),
            unsent(idle),
            "connections have it from the listener"
        );
        let near = TcpStream::from_std(near).unwrap();

        let piece = vec![0; 16 * 1024];
        let fill = || std::iter::from_fn(|| near.try_write(&piece).ok()).sum::<usize>() as u64;
        near.writable().await.unwrap();
        let unseen = fill();
        assert!(unseen < 512 * 1024, "{unseen} bytes wait in the kernel");
        for _ in 0..3 {
            let mut taken = vec![0; usize::try_from(slowest(idle)).unwrap()];
            let mut seen = 0;
            let served = async {
                let mut reading = std::pin::pin!(far.read_exact(&mut taken));
                loop {
                    tokio::select! {
                        read = &mut reading => return read.unwrap(),
                        room = near.writable() => {
                            room.unwrap();
                            seen += fill();
                        }
                    }
                }
            };
            tokio::time::timeout(LIMIT, served).await.expect("it was told that there is room");
            assert!(seen >= slowest(idle) / 2, "{seen} bytes were seen to be taken");
        }
    }

    #[test]
    fn what_the_kernel_keeps_back_is_less_than_the_slowest_peer_takes_in_time() {
        for seconds in [10, 60, 600, 3600] {
            let idle = Duration::from_secs(seconds);
            assert!(u64::from(unsent(idle)) < slowest(idle), "{seconds}");
        }
        assert_eq!(unsent(Duration::from_secs(60)), 30 * 1024);
        assert_eq!(unsent(Duration::from_secs(3600)), 128 * 1024);
    }
}
