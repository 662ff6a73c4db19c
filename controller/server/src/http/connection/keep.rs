//! Keeps a connection until it is closed: gives it to hyper while bytes move, and holds it here otherwise.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Response;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::exchange::{Exchange, Handed, Next, STAND_IN};

/// How much is read of a request before hyper gets it.
const FIRST: usize = 1024;
/// With more connections than this in hyper, all that wait are put aside: their buffers take 8 MiB.
const CROWD: usize = 512;

type Http1<S> = http1::Connection<TokioIo<Held<S>>, Handed>;

pub struct Keeper {
    http: http1::Builder,
    /// How long a client may take until its next request begins.
    head_wait: Duration,
    stopping: CancellationToken,
    /// How many connections hyper has, and how many are many.
    in_hyper: AtomicUsize,
    crowd: usize,
}

/// A connection that hyper has.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Keeper {
    pub fn new(http: http1::Builder, head_wait: Duration, stopping: CancellationToken) -> Self {
        Self { http, head_wait, stopping, in_hyper: AtomicUsize::new(0), crowd: CROWD }
    }

    /// Serves a connection until it is closed. What is soon over has a box: most of the time it waits for
    /// news.
    pub async fn keep<S>(&self, stream: Box<S>, exchange: Arc<Exchange>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut held = Held { ahead: Bytes::new(), stream };
        loop {
            if held.ahead.is_empty() && !Box::pin(self.begins(&mut held)).await {
                break;
            }
            let mut left = Box::pin(self.in_hyper(held, &exchange)).await;
            if let Some((aside, Next::Aside)) = left {
                held = aside;
                let Some(answer) = awaited(&mut held, &exchange).await else { return };
                exchange.answer_with(answer);
                held.ahead = joined(STAND_IN, &held.ahead);
                left = Box::pin(self.in_hyper(held, &exchange)).await;
            }
            let Some((rests, _)) = left else { return };
            held = rests;
        }
        // If it fails, the client is gone.
        let _ = held.stream.shutdown().await;
    }

    /// Whether another request begins in time.
    async fn begins<S: AsyncRead + Unpin>(&self, held: &mut Held<S>) -> bool {
        let begins = timeout(self.head_wait, poll_fn(|cx| held.poll_ahead(cx)));
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => false,
            begins = begins => begins.unwrap_or(false),
        }
    }

    /// Lets hyper have a connection. Returns it, unless it is closed by then.
    async fn in_hyper<S>(&self, held: Held<S>, exchange: &Arc<Exchange>) -> Option<(Held<S>, Next)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        exchange.anew();
        let mut http = self.http1(held, exchange);
        self.in_hyper.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.in_hyper);
        let mut stopping = pin!(self.stopping.cancelled());
        let (mut rests, mut stops) = (false, false);
        let next = poll_fn(|cx| {
            loop {
                // One that goes on must not be shut down.
                let polled = match rests {
                    true => http.poll_without_shutdown(cx),
                    false => Pin::new(&mut *http).poll(cx),
                };
                if let Poll::Ready(ended) = polled {
                    return Poll::Ready(ended.map(|()| rests.then_some(Next::Rest)));
                }
                match exchange.next(self.in_hyper.load(Ordering::Relaxed) > self.crowd) {
                    Next::Aside => return Poll::Ready(Ok(Some(Next::Aside))),
                    Next::Rest if !rests && !stops => rests = true,
                    _ if !stops && stopping.as_mut().poll(cx).is_ready() => stops = true,
                    _ => return Poll::Pending,
                }
                // Ends it once everything is written.
                Pin::new(&mut *http).graceful_shutdown();
            }
        });
        match next.await {
            Ok(Some(next)) => {
                let parts = http.into_parts();
                let Held { ahead, stream } = parts.io.into_inner();
                Some((Held { ahead: joined(&parts.read_buf, &ahead), stream }, next))
            }
            Ok(None) => None,
            Err(error) => {
                tracing::debug!("a connection ended: {error}");
                None
            }
        }
    }

    /// Boxed before any future holds it, since a future keeps room for what was moved out of it.
    fn http1<S>(&self, held: Held<S>, exchange: &Arc<Exchange>) -> Box<Http1<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Box::new(self.http.serve_connection(TokioIo::new(held), Handed(exchange.clone())))
    }
}

/// The answer that a connection waits for outside of hyper. `None` if its client is gone.
async fn awaited<S: AsyncRead + Unpin>(held: &mut Held<S>, exchange: &Exchange) -> Option<Response<Body>> {
    let awaited = poll_fn(|cx| {
        if let Poll::Ready(answer) = exchange.poll_answer(cx) {
            return Poll::Ready(Some(answer));
        }
        // What it sends meanwhile is read once, and then it is no longer seen to leave.
        match held.ahead.is_empty() && held.poll_ahead(cx) == Poll::Ready(false) {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    });
    awaited.await
}

/// Both, in a buffer of their own: hyper's is large.
fn joined(first: &[u8], then: &[u8]) -> Bytes {
    if first.is_empty() && then.is_empty() { Bytes::new() } else { [first, then].concat().into() }
}

/// A connection, and what was read of it ahead.
struct Held<S> {
    ahead: Bytes,
    stream: Box<S>,
}

impl<S: AsyncRead + Unpin> Held<S> {
    /// Reads ahead; false at the end.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut room = [MaybeUninit::uninit(); FIRST];
        let mut read = ReadBuf::uninit(&mut room);
        let outcome = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read));
        self.ahead = Bytes::copy_from_slice(read.filled());
        Poll::Ready(outcome.is_ok() && !self.ahead.is_empty())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let most = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead.split_to(most));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
    use std::net::SocketAddr;

    use axum::Router;
    use axum::routing::{get, post};
    use hyper_util::rt::TokioTimer;
    use tokio::io::AsyncReadExt as _;

    use super::super::exchange::of_router;
    use super::super::gate::{Bounds, Gate};
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// What is answered to these bytes, which come in pieces of this size, until the connection is closed.
    async fn answered(crowd: usize, sent: &[u8], piece: usize) -> String {
        let slow = || async {
            tokio::task::yield_now().await;
            "slow"
        };
        let echo = |body: String| async {
            tokio::task::yield_now().await;
            body
        };
        let refuses = || async {
            tokio::task::yield_now().await;
            (axum::http::StatusCode::BAD_REQUEST, "unread")
        };
        let router = Router::new().route("/slow", get(slow)).route("/echo", post(echo));
        let router = router.route("/refuses", post(refuses));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).auto_date_header(false);
        let keeper = Keeper { crowd, ..Keeper::new(http, LIMIT, CancellationToken::new()) };
        let source = SocketAddr::from(([192, 0, 2, 1], 1));
        let gate = Gate::new(Bounds { connections: 64, unproven: 64, turns: 2, idle: LIMIT });
        let (_open, peer) = gate.place(source).unwrap().admitted().await;
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let exchange = Arc::new(Exchange::new(of_router(router), Arc::new(peer)));
        let kept = tokio::spawn(async move { keeper.keep(Box::new(near), exchange).await });
        for piece in sent.chunks(piece) {
            // It may be closed early.
            if far.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut all = String::new();
        timeout(LIMIT, far.read_to_string(&mut all)).await.expect("it is closed in the end").unwrap();
        drop(far);
        kept.await.unwrap();
        all
    }

    #[tokio::test]
    async fn the_answers_are_the_same_wherever_their_requests_waited() {
        let asked = "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n";
        let heads = "HEAD /slow HTTP/1.1\r\nhost: x\r\n\r\n";
        let posts = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nposts";
        let chunked = "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
                       3\r\nchu\r\n4\r\nnked\r\n0\r\n\r\n";
        let expects = "POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 7\r\n\r\n\
                       expects";
        let closes = "GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let old = "GET /slow HTTP/1.0\r\n\r\n";
        let broken = "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
                      x\r\nGET /slow HTTP/1.1\r\nhost: x\r\n\r\n";
        let whole = [asked, posts, heads, chunked, expects, asked, posts];
        for last in [closes, old, broken] {
            let sent = [whole.concat().as_str(), last].concat();
            let stayed = answered(usize::MAX, sent.as_bytes(), sent.len()).await;
            assert!(stayed.matches("HTTP/1.").count() >= 8, "{stayed}");
            for piece in [1, 7, 100, 1024, sent.len()] {
                for crowd in [0, usize::MAX] {
                    let aside = answered(crowd, sent.as_bytes(), piece).await;
                    assert_eq!(aside.replace(CONTINUE, ""), stayed.replace(CONTINUE, ""), "{crowd} {piece}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_nobody_reads_is_not_taken_for_a_request() {
        let body = "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n";
        let closes = "GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let length = body.len();
        let unread = format!("POST /refuses HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}");
        let sent = format!("{unread}{closes}");
        for crowd in [0, usize::MAX] {
            for piece in [1, 50, sent.len()] {
                let said = answered(crowd, sent.as_bytes(), piece).await;
                assert!(said.starts_with("HTTP/1.1 400 ") && said.matches("slow").count() <= 1, "{said}");
            }
        }
    }

    /// Said only to a client that has not sent its body yet.
    const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
}
