//! A stream whose peer must keep reading the response at a minimum pace.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The slowest pace at which a peer may read a response once it blocks the controller, in bytes per second.
const SLOWEST: u64 = 1024;

/// What the slowest peer takes in that time.
pub fn slowest(idle: Duration) -> u64 {
    idle.as_secs().max(1) * SLOWEST
}

/// A stream whose writes may neither stall nor crawl. `counted` is held as long as it is open.
#[derive(Debug)]
pub struct Connection<T, C> {
    stream: T,
    idle: Duration,
    /// Since the peer first blocked the current write.
    waiting: Option<Waiting>,
    _counted: C,
}

#[derive(Debug)]
struct Waiting {
    until: Pin<Box<Sleep>>,
    taken: u64,
}

impl<T, C> Connection<T, C> {
    pub fn new(stream: T, idle: Duration, counted: C) -> Self {
        Self { stream, idle, waiting: None, _counted: counted }
    }

    /// What a peer must visibly take within one `idle` of blocking. Up to half of what it takes may not be
    /// visible yet.
    fn least(&self) -> u64 {
        slowest(self.idle) / 2
    }

    /// Records that the peer took this much.
    fn took(&mut self, bytes: usize) {
        let least = self.least();
        if let Some(waiting) = &mut self.waiting {
            waiting.taken += bytes as u64;
            if waiting.taken >= least {
                self.waiting = None;
            }
        }
    }

    /// Records that the peer blocks: an error once that has lasted too long.
    fn wait<R>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        let idle = self.idle;
        let waiting = self.waiting.get_or_insert_with(|| Waiting { until: Box::pin(sleep(idle)), taken: 0 });
        match waiting.until.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer reads the response too slowly",
            ))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn wrote(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(Ok(bytes)) => {
                self.took(bytes);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => self.wait(cx),
        }
    }

    /// Once everything is written, there is nothing to wait for.
    fn flushed(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        if outcome.is_ready() {
            self.waiting = None;
            return outcome;
        }
        self.wait(cx)
    }
}

impl<T: AsyncRead + Unpin, C: Unpin> AsyncRead for Connection<T, C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin, C: Unpin> AsyncWrite for Connection<T, C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(cx, outcome)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.flushed(cx, outcome)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.flushed(cx, outcome)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(cx, outcome)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_left_and_one_that_reads_is_served() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut connection = Connection::new(near, Duration::from_millis(20), ());
        let error = connection.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all.len()
        });
        let mut connection = Connection::new(connection.stream, Duration::from_secs(20), ());
        connection.write_all(&[0; 64]).await.unwrap();
        drop(connection);
        assert_eq!(reader.await.unwrap(), 8 + 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_an_answer_byte_by_byte_is_left_too() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut connection = Connection::new(near, Duration::from_secs(10), ());
        let crawl = tokio::spawn(async move {
            let mut taken = 0_u64;
            while far.read_u8().await.is_ok() {
                taken += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            taken
        });
        let error = connection.write_all(&vec![0; 100_000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(connection);
        assert!(crawl.await.unwrap() < 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_that_takes_enough_is_served_to_the_end() {
        let (near, mut far) = tokio::io::duplex(4096);
        let mut connection = Connection::new(near, Duration::from_secs(10), ());
        let reader = tokio::spawn(async move {
            let (mut taken, mut piece) = (0, vec![0; 4096]);
            while let Ok(bytes @ 1..) = far.read(&mut piece).await {
                taken += bytes;
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            taken
        });
        connection.write_all(&vec![0; 100_000]).await.unwrap();
        connection.flush().await.unwrap();
        drop(connection);
        assert_eq!(reader.await.unwrap(), 100_000);
    }
}
