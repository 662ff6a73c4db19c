//! The rest of a body that was refused before it was read. A client that is still writing when its connection
//! closes may never see why, so a little more of it is read first.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use futures_util::StreamExt as _;
use hyper::body::{Frame, SizeHint};

/// How much of a refused body is still read, in bytes, and for how long.
const MOST: usize = 32 * 1024 * 1024;
const WAIT: Duration = Duration::from_secs(10);
/// A body of up to so many bytes is on its way whole before anybody can refuse it.
const SMALL: u64 = 16 * 1024;

/// What a handler left of the body.
pub struct Unread(Arc<Mutex<Option<Body>>>);

/// Has the rest of the request's body kept, unless it is small. A client that waits for `100 Continue` has
/// not written anything yet.
pub fn kept(request: Request) -> (Request, Option<Unread>) {
    let small = request.body().size_hint().exact().is_some_and(|size| size <= SMALL);
    if small || request.headers().contains_key(header::EXPECT) {
        return (request, None);
    }
    let rest = Arc::new(Mutex::new(None));
    let keeps = |body| Body::new(Keeps { body, rest: rest.clone() });
    (request.map(keeps), Some(Unread(rest)))
}

impl Unread {
    /// Reads what is left, within limits.
    pub async fn drain(self) {
        let left = self.0.lock().ok().and_then(|mut rest| rest.take());
        let Some(left) = left else { return };
        let drain = async {
            let mut stream = left.into_data_stream();
            let mut most = MOST;
            while let Some(Ok(piece)) = stream.next().await {
                most = most.saturating_sub(piece.len());
                if most == 0 {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(WAIT, drain).await;
    }
}

/// A body that, dropped before its end, leaves what is left.
struct Keeps {
    body: Body,
    rest: Arc<Mutex<Option<Body>>>,
}

impl HttpBody for Keeps {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Keeps {
    fn drop(&mut self) {
        if !self.body.is_end_stream()
            && let Ok(mut rest) = self.rest.lock()
        {
            *rest = Some(std::mem::take(&mut self.body));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const PIECE: usize = 64 * 1024;

    /// A body of so many pieces, and how many of them were read.
    fn body(pieces: usize) -> (Body, Arc<AtomicUsize>) {
        let read = Arc::new(AtomicUsize::new(0));
        let counts = read.clone();
        let pieces = (0..pieces).map(move |_| {
            counts.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from_static(&[0; PIECE]))
        });
        (Body::from_stream(futures_util::stream::iter(pieces)), read)
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_handler_left_is_read_within_limits() {
        for (pieces, wanted) in [(0, 0), (1, 1), (100, 100), (10_000, MOST / PIECE)] {
            let (body, read) = body(pieces);
            let (request, unread) = kept(Request::new(body));
            drop(request);
            unread.unwrap().drain().await;
            assert_eq!(read.load(Ordering::Relaxed), wanted);
        }
        let (all, read) = body(3);
        let (request, unread) = kept(Request::new(all));
        axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        unread.unwrap().drain().await;
        assert_eq!(read.load(Ordering::Relaxed), 3);
        // One that never ends is left after a while.
        let never = futures_util::stream::pending::<std::io::Result<Bytes>>();
        let (request, unread) = kept(Request::new(Body::from_stream(never)));
        drop(request);
        unread.unwrap().drain().await;
    }

    #[tokio::test]
    async fn neither_a_small_body_nor_one_that_waits_to_be_asked_for_is_kept() {
        assert!(kept(Request::new(Body::from("small"))).1.is_none());
        assert!(kept(Request::new(Body::empty())).1.is_none());
        let (large, _) = body(100);
        let waits = Request::builder().header(header::EXPECT, "100-continue").body(large).unwrap();
        assert!(kept(waits).1.is_none());
    }
}
