//! hyper has a connection only while bytes move: a request arrives, or its answer is sent.
//!
//! ```text
//! at rest ──a request──► hyper ──answered──► at rest
//!                          │  ▲
//!           waits for news ▼  │ there is an answer
//!                         aside
//! ```
//!
//! Where hyper has many connections, a request is put aside whatever it waits for, such as the database: ten
//! thousand that come at once would leave holes in memory that stay for good.
//!
//! Machines wait by the thousand, each for almost a minute, and hyper's two buffers of 8 KiB are most of what
//! a connection costs. So a connection that waits is taken out of hyper. An answer is always written by
//! hyper: for one that was waited for, it gets a request of our own making, which stands for the one that it
//! has parsed before.
//!
//! Only what leaves no doubt is treated in this way: a request of HTTP/1.1 that says nothing about its
//! connection, whose body was read to its end. All others stay with hyper.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, Method, Request, Response, Version, header};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::body::{Frame, Incoming, SizeHint};
use tower::Service as _;

use super::peer::Peer;

/// A request whose answer is there already.
pub const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// What answers requests.
pub type Answers = Arc<dyn Fn(Request<Body>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// Answers with what this router says.
pub fn of_router(router: Router) -> Answers {
    // A router is always ready.
    let answer = |answered: Result<_, Infallible>| answered.unwrap_or_else(|never| match never {});
    Arc::new(move |request| Box::pin(router.clone().call(request).map(answer)))
}

/// The requests of one connection, one at a time.
pub struct Exchange {
    answers: Answers,
    peer: Arc<Peer>,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    asked: Asked,
    /// How many requests hyper has handed over since it got the connection.
    handed: usize,
    /// Whether the last one was answered and leaves nothing behind: the connection may rest.
    rests: bool,
}

#[derive(Default)]
enum Asked {
    #[default]
    Nothing,
    For(Underway),
    /// The answer to a request that waited for it outside of hyper.
    Due(Response<Body>),
}

/// A request that is being answered.
struct Underway {
    answer: BoxFuture<'static, Response<Body>>,
    /// Its answer may be sent by another hyper.
    moves: bool,
    /// The connection may be used again.
    lasts: bool,
    /// Whether its body was read to its end; `None` if it has none.
    body: Option<Arc<AtomicBool>>,
}

impl Underway {
    /// Whether all of it has arrived and was read.
    fn is_read(&self) -> bool {
        self.body.as_ref().is_none_or(|ended| ended.load(Ordering::Acquire))
    }
}

/// What is to be done with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It stays with hyper.
    Stay,
    /// Nothing is under way.
    Rest,
    /// Its request waits, and hyper has nothing to do meanwhile.
    Aside,
}

impl Exchange {
    pub fn new(answers: Answers, peer: Arc<Peer>) -> Self {
        Self { answers, peer, now: Mutex::default() }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another hyper has the connection from now on.
    pub fn anew(&self) {
        let mut now = self.now();
        (now.handed, now.rests) = (0, false);
    }

    fn ask(&self, request: Request<Incoming>) {
        let mut now = self.now();
        now.handed += 1;
        now.rests = false;
        if matches!(now.asked, Asked::Due(_)) {
            return;
        }
        self.peer.arrival().is_there();
        let lasts = request.version() == Version::HTTP_11 && is_silent(request.headers());
        let body = (!request.body().is_end_stream()).then(Arc::<AtomicBool>::default);
        // Nothing was written before, neither an answer nor that it may continue.
        let unwritten = now.handed == 1 && !request.headers().contains_key(header::EXPECT);
        // The answer to a HEAD has no body, which hyper must know.
        let moves = lasts && unwritten && matches!(*request.method(), Method::GET | Method::POST);
        let ended = body.clone();
        let mut request = request.map(|body| match ended {
            Some(ended) => Body::new(Watched { body, broken: false, ended }),
            None => Body::empty(),
        });
        request.extensions_mut().insert(self.peer.clone());
        let answer = (self.answers)(request);
        now.asked = Asked::For(Underway { answer, moves, lasts, body });
    }

    /// The answer to the request that is under way.
    pub fn poll_answer(&self, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        let (mut request, response) = match std::mem::take(&mut self.now().asked) {
            Asked::Nothing => return Poll::Pending,
            Asked::Due(response) => (None, Poll::Ready(response)),
            Asked::For(mut request) => {
                // Not while the lock is held: whatever answers may take its time.
                let polled = request.answer.as_mut().poll(cx);
                (Some(request), polled)
            }
        };
        let mut now = self.now();
        let Poll::Ready(response) = response else {
            now.asked = request.take().map_or(Asked::Nothing, Asked::For);
            return Poll::Pending;
        };
        let ends = |request: &Underway| request.lasts && request.is_read();
        now.rests = request.as_ref().is_none_or(ends) && is_silent(response.headers());
        Poll::Ready(response)
    }

    /// To be asked once hyper has nothing more to do for now; `crowded` if it has many connections.
    pub fn next(&self, crowded: bool) -> Next {
        let now = self.now();
        match &now.asked {
            Asked::For(request) if request.moves && request.is_read() && (crowded || self.peer.waits()) => {
                Next::Aside
            }
            Asked::Nothing if now.rests => Next::Rest,
            _ => Next::Stay,
        }
    }

    /// The next request that is handed over is answered with this.
    pub fn answer_with(&self, response: Response<Body>) {
        self.now().asked = Asked::Due(response);
    }
}

/// Whether nothing is said about the connection.
fn is_silent(headers: &HeaderMap) -> bool {
    let said = headers.get(header::CONNECTION);
    said.is_none_or(|said| said.as_bytes().eq_ignore_ascii_case(b"keep-alive"))
}

/// hyper's service: hands requests over.
pub struct Handed(pub Arc<Exchange>);

impl hyper::service::Service<Request<Incoming>> for Handed {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        self.0.ask(request);
        Answer(self.0.clone())
    }
}

/// The answer to the request that is under way.
pub struct Answer(Arc<Exchange>);

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_answer(cx).map(Ok)
    }
}

/// A body that tells when it was read to its end. One that is broken has none: nobody knows where the next
/// request begins.
struct Watched {
    body: Incoming,
    broken: bool,
    ended: Arc<AtomicBool>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.broken |= matches!(frame, Some(Err(_)));
        if !self.broken && (frame.is_none() || self.body.is_end_stream()) {
            self.ended.store(true, Ordering::Release);
        }
        Poll::Ready(frame)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
