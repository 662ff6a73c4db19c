//! A connection before its first request: a TLS handshake costs more than most requests, and proves nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// Whether the first request has arrived, and the turn of what preceded it.
#[derive(Debug, Default)]
pub struct Arrival {
    there: AtomicBool,
    line: Mutex<Line>,
}

/// A turn, or a place in the queue for one. Both are released together: a turn granted to a place that nobody
/// polls any more would be lost for as long as the connection lasts.
#[derive(Debug, Default)]
struct Line {
    turns: Option<PollSemaphore>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Arrival {
    pub fn is_there(&self) {
        if !self.there.swap(true, Ordering::Relaxed) {
            self.leave();
        }
    }

    fn leave(&self) {
        *self.line() = Line::default();
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes on incoming data when its address has a turn. The turn lasts until more data is wanted, which means
/// that the previous data has been processed.
#[derive(Debug)]
pub struct Arriving {
    stream: TcpStream,
    arrival: Arc<Arrival>,
}

impl Arriving {
    pub fn new(stream: TcpStream, arrival: Arc<Arrival>, turns: Arc<Semaphore>) -> Self {
        arrival.line().turns = Some(PollSemaphore::new(turns));
        Self { stream, arrival }
    }
}

impl AsyncRead for Arriving {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.arrival.there.load(Ordering::Relaxed) {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        self.arrival.line().turn = None;
        // A client that sends nothing does not wait for a turn.
        ready!(self.stream.poll_read_ready(cx))?;
        let turn = match &mut self.arrival.line().turns {
            Some(turns) => ready!(turns.poll_acquire(cx)),
            None => None,
        };
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.arrival.line().turn = turn;
        }
        read
    }
}

impl AsyncWrite for Arriving {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.arrival.leave();
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, far)
    }

    #[tokio::test]
    async fn what_comes_before_the_first_request_waits_for_a_turn_and_silence_takes_none() {
        let turns = Arc::new(Semaphore::new(1));
        let arriving = |near| {
            let arrival = Arc::new(Arrival::default());
            (arrival.clone(), Arriving::new(near, arrival, turns.clone()))
        };
        let ((near_one, mut far_one), (near_two, mut far_two), (near_three, _silent)) =
            (pair().await, pair().await, pair().await);
        let (one_arrived, mut one) = arriving(near_one);
        let (_, mut two) = arriving(near_two);
        let (_, mut three) = arriving(near_three);
        let silence = tokio::spawn(async move { three.read_u8().await });
        far_one.write_all(b"12").await.unwrap();
        assert_eq!(one.read_u8().await.unwrap(), b'1');
        far_two.write_all(b"3").await.unwrap();
        let waits = tokio::spawn(async move { two.read_u8().await.unwrap() });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished(), "the first one's bytes are being worked on");
        one_arrived.is_there();
        assert_eq!(waits.await.unwrap(), b'3');
        assert_eq!(one.read_u8().await.unwrap(), b'2', "a request takes no turn of this kind");
        silence.abort();
    }

    #[tokio::test]
    async fn a_request_that_is_there_leaves_no_place_in_the_line_behind() {
        let turns = Arc::new(Semaphore::new(1));
        let held = turns.clone().acquire_owned().await.unwrap();
        let (near, mut far) = pair().await;
        let arrival = Arc::new(Arrival::default());
        let mut arriving = Arriving::new(near, arrival.clone(), turns.clone());
        far.write_all(b"12").await.unwrap();
        let waits = tokio::spawn(async move {
            let byte = arriving.read_u8().await.unwrap();
            (byte, arriving)
        });
        // By now it has its place, or soon will; either way it wants more than its turn covers.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        arrival.is_there();
        drop(held);
        assert_eq!(turns.available_permits(), 1, "the turn is nobody's");
        waits.abort();
    }
}
