//! Request bodies: each limited in size, none may stall or crawl, and all of them together use bounded
//! memory.

use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody as _};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::future::ready;
use futures_util::stream::once;
use futures_util::{FutureExt as _, StreamExt as _};
use muster_protocol::api::ProblemCode;
use muster_protocol::operator::MAX_REQUEST_BYTES;
use serde::de::DeserializeOwned;
use tokio::time::{Sleep, sleep};

use super::heavy;
use super::memory::Memory;
use super::payer::Payer;
use super::problem::{Refused, refuse};
use super::request_peer::away;
use super::state::App;

/// The largest body that is taken without a charge if it came with its request's head, in bytes: no more than
/// a connection's buffer.
const AT_ONCE: usize = 8 * 1024;
/// The slowest pace at which a client may send, in bytes per second, measured over each idle limit.
const SLOWEST: u64 = 1024;
/// How long a small body may take to arrive. A larger one gets another second for every [`PACE`] bytes.
const SMALL_WAIT: Duration = Duration::from_secs(30);
const PACE: usize = 64 * 1024;

/// A body that arrives in pieces.
pub struct Incoming {
    stream: BodyDataStream,
    left: u64,
    limit: u64,
    idle: Duration,
    stretch: Pin<Box<Sleep>>,
    in_stretch: u64,
}

impl Incoming {
    /// Refuses a body announced as too large before reading any of it.
    pub fn new(headers: &HeaderMap, body: Body, limit: u64, idle: Duration) -> Result<Self, Refused> {
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limit) {
            return Err(Refused::too_large(limit));
        }
        let stretch = Box::pin(sleep(idle));
        Ok(Self { stream: body.into_data_stream(), left: limit, limit, idle, stretch, in_stretch: 0 })
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Refused> {
        let piece = loop {
            tokio::select! {
                biased;
                piece = self.stream.next() => break piece,
                () = &mut self.stretch => {
                    if self.in_stretch < self.idle.as_secs().max(1) * SLOWEST {
                        return Err(self.too_slow());
                    }
                    (self.stretch, self.in_stretch) = (Box::pin(sleep(self.idle)), 0);
                }
            }
        };
        let Some(piece) = piece else { return Ok(None) };
        let piece = piece.map_err(|_| Refused::malformed("the body ended too early: repeat the request"))?;
        self.in_stretch += piece.len() as u64;
        self.left =
            self.left.checked_sub(piece.len() as u64).ok_or_else(|| Refused::too_large(self.limit))?;
        Ok(Some(piece))
    }

    fn too_slow(&self) -> Refused {
        let message = format!(
            "{} bytes arrived in {} s, which is too slow: repeat the request",
            self.in_stretch,
            self.idle.as_secs()
        );
        refuse(StatusCode::REQUEST_TIMEOUT, ProblemCode::Other, message)
    }
}

/// The whole of a small body that came together with its request's head. That takes no memory which the
/// connection had not taken already, so nobody is charged for it. Any other body is returned as it is.
pub fn at_once(body: Body) -> Result<Bytes, Body> {
    let size = body.size_hint().exact().and_then(|size| usize::try_from(size).ok());
    let Some(size) = size.filter(|size| (1..=AT_ONCE).contains(size)) else { return Err(body) };
    let mut stream = body.into_data_stream();
    match stream.next().now_or_never() {
        // Copied, so that the connection's buffer is free for what comes next.
        Some(Some(Ok(all))) if all.len() == size => Ok(Bytes::copy_from_slice(&all)),
        Some(Some(first)) => Err(Body::from_stream(once(ready(first)).chain(stream))),
        Some(None) => Err(Body::empty()),
        None => Err(Body::new(stream)),
    }
}

/// The whole body of a small request.
pub async fn small_body(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    payer: Payer,
) -> Result<Bytes, Refused> {
    whole(headers, body, limit, &app.memory, payer).await
}

/// The whole body, which must arrive within a time that depends on its limit. `payer` is charged for it until
/// it is complete.
pub async fn whole(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    memory: &Memory,
    payer: Payer,
) -> Result<Bytes, Refused> {
    let wait = SMALL_WAIT + Duration::from_secs((limit / PACE) as u64);
    let read = async {
        let mut incoming = Incoming::new(headers, body, limit as u64, wait)?;
        let (mut bytes, mut held) = (Vec::new(), memory.nothing(payer));
        while let Some(piece) = incoming.next().await? {
            let needed = bytes.len() + piece.len();
            if needed > held.bytes() {
                // The charge is for what is allocated, so small pieces are charged at their real cost.
                let room = needed.max(2 * held.bytes()).min(limit.max(needed));
                held.grow_to(room)?;
                bytes.reserve_exact(room - bytes.len());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Bytes::from(bytes))
    };
    away(tokio::time::timeout(wait, read)).await.unwrap_or_else(|_| {
        let message = format!("the body did not arrive within {} s: repeat the request", wait.as_secs());
        Err(refuse(StatusCode::REQUEST_TIMEOUT, ProblemCode::Other, message))
    })
}

/// A type that a body can have.
pub trait Document: DeserializeOwned + Send {
    /// Its name for error messages, with an article.
    const WHAT: &'static str;
    /// The largest size, in bytes.
    const LIMIT: usize = MAX_REQUEST_BYTES;

    fn read(bytes: &Bytes) -> Result<Self, Refused> {
        json(Self::WHAT, bytes)
    }
}

/// No body is wanted, so none is read.
impl Document for () {
    const WHAT: &'static str = "nothing";

    fn read(_: &Bytes) -> Result<Self, Refused> {
        Ok(())
    }
}

/// Parses a document, or says in one sentence what is wrong with it.
pub fn json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Refused> {
    heavy::on(bytes.len(), || serde_json::from_slice(bytes)).map_err(|error| {
        let message = if error.is_data() {
            format!("this is not {what}: {error}")
        } else {
            format!("this is not JSON, so it is not {what}: {error}")
        };
        Refused::malformed(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rates::Neighbourhood;

    const STRANGER: Payer = Payer::Address(Neighbourhood::NOWHERE);

    fn drip(pieces: usize, size: usize, apart: Duration) -> Body {
        Body::from_stream(futures_util::stream::unfold(0, move |n| async move {
            tokio::time::sleep(apart).await;
            (n < pieces).then(|| (Ok::<_, std::io::Error>(Bytes::from(vec![0; size])), n + 1))
        }))
    }

    async fn read(body: Body, idle: Duration) -> Result<usize, Refused> {
        let mut incoming = Incoming::new(&HeaderMap::new(), body, 1 << 20, idle)?;
        let mut all = 0;
        while let Some(piece) = incoming.next().await? {
            all += piece.len();
        }
        Ok(all)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_crawls_is_given_up_and_one_that_is_only_slow_is_not() {
        let idle = Duration::from_secs(10);
        let error = read(drip(10_000, 1, Duration::from_secs(1)), idle).await.unwrap_err();
        assert_eq!(error.status, StatusCode::REQUEST_TIMEOUT);
        let error = read(drip(1, 1, Duration::from_secs(60)), idle).await.unwrap_err();
        assert_eq!(error.status, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(read(drip(100, 4096, Duration::from_secs(2)), idle).await.unwrap(), 100 * 4096);
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_body_has_half_a_minute_however_it_comes() {
        let memory = Memory::new(1 << 20);
        let body = drip(1000, 100, Duration::from_millis(100));
        let error = whole(&HeaderMap::new(), body, 60_000, &memory, STRANGER).await.unwrap_err();
        assert!(matches!(error.status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE));
        let body = drip(4, 100, Duration::from_secs(1));
        assert_eq!(whole(&HeaderMap::new(), body, 60_000, &memory, STRANGER).await.unwrap().len(), 400);
    }

    /// A body whose head announced its size.
    struct Announced(Body, u64);

    impl axum::body::HttpBody for Announced {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }
        fn size_hint(&self) -> hyper::body::SizeHint {
            hyper::body::SizeHint::with_exact(self.1)
        }
    }

    #[tokio::test]
    async fn a_small_body_that_is_there_is_taken_at_once_and_any_other_is_left_whole() {
        let text = Bytes::from("a check-in");
        assert_eq!(at_once(Body::from(text.clone())).unwrap(), text);
        let pieces = ["a che", "ck-in"].map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let announced = |body| Body::new(Announced(body, text.len() as u64));
        let large = Bytes::from(vec![b'x'; AT_ONCE + 1]);
        for (body, whole) in [
            (Body::empty(), Bytes::new()),
            (Body::from(large.clone()), large),
            (announced(Body::empty()), Bytes::new()),
            (announced(Body::from_stream(futures_util::stream::iter(pieces))), text.clone()),
            (announced(drip(1, text.len(), Duration::from_millis(1))), Bytes::from(vec![0; text.len()])),
        ] {
            let left = at_once(body).unwrap_err();
            assert_eq!(axum::body::to_bytes(left, usize::MAX).await.unwrap(), whole);
        }
    }

    #[tokio::test]
    async fn bodies_together_take_bounded_memory_and_give_it_back() {
        let memory = Memory::new(64 * 1024);
        let large = || Body::from(vec![0; 8 * 1024]);
        let read = async || whole(&HeaderMap::new(), large(), 1 << 20, &memory, STRANGER).await;
        assert!(read().await.is_ok());
        let mut held = memory.nothing(STRANGER);
        held.grow_to(1024).unwrap();
        let error = read().await.unwrap_err();
        assert_eq!((error.status, error.code), (StatusCode::SERVICE_UNAVAILABLE, ProblemCode::Busy));
        drop(held);
        assert!(read().await.is_ok());
    }

    #[tokio::test]
    async fn a_body_in_small_pieces_costs_its_bytes_and_not_its_pieces() {
        let memory = Memory::new(64 * 1024);
        let pieces =
            futures_util::stream::iter((0..4000).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(b"x"))));
        let read = whole(&HeaderMap::new(), Body::from_stream(pieces), 8 * 1024, &memory, STRANGER).await;
        assert_eq!(read.unwrap().len(), 4000);
    }
}
