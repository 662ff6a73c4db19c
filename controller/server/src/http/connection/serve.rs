//! Accepts connections and serves them: each one is a small task until it is admitted.
//!
//! ```text
//! accepted ──► in line (unread) ──► TLS handshake ──► kept (`keep`) ──► closed
//!     │              │
//!     └── refused ◄──┘  an answer, then closed
//! ```
//!
//! A waiting machine is one connection here for almost a minute, thousands at a time. So futures that are
//! large, or that are over soon, have a box of their own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt as _;
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::arrival::Arriving;
use super::exchange::Exchange;
use super::gate::{Bounds, Gate, Place};
use super::keep::Keeper;
use super::peer::Peer;
use super::refuse::{Why, answer, say};
use super::stream::Connection;
use crate::metrics::{COUNTED, Running, Turned};

/// How long a client may take to send the head of a request.
const HEAD_WAIT: Duration = Duration::from_secs(30);
/// The largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long running requests may continue after the server is asked to stop.
const GRACE: Duration = Duration::from_secs(10);
/// How many connections may be refused with an answer at once, besides those that are served. Any more are
/// closed.
pub const REFUSING: usize = 512;
/// How long a refusal may take.
const REFUSING_WAIT: Duration = Duration::from_secs(5);
/// The pause when the system has no socket left.
const BREATH: Duration = Duration::from_millis(50);

/// An admitted connection, and what it counts as while it is open.
type Admitted = Connection<Arriving, (Running, Arc<Peer>)>;

/// Connections are being accepted and served.
pub struct Serving {
    stopping: CancellationToken,
    open: TaskTracker,
    accepting: JoinHandle<()>,
}

impl Serving {
    pub fn start(
        listener: TcpListener,
        bounds: Bounds,
        tls: Option<Arc<rustls::ServerConfig>>,
        router: Router,
    ) -> Self {
        let (stopping, open) = (CancellationToken::new(), TaskTracker::new());
        let head_wait = bounds.idle.min(HEAD_WAIT);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(head_wait).max_buf_size(MAX_HEAD_BYTES);
        let server = Arc::new(Server {
            gate: Gate::new(bounds),
            keeper: Keeper::new(http, head_wait, stopping.clone()),
            tls: tls.map(TlsAcceptor::from),
            router,
            idle: bounds.idle,
            head_wait,
            refusing: Arc::new(Semaphore::new(REFUSING)),
            stopping: stopping.clone(),
        });
        let accepting = tokio::spawn(server.accept(listener, open.clone()));
        Self { stopping, open, accepting }
    }

    /// Completes if it ends without being asked to.
    pub async fn ended(&mut self) -> Result<(), JoinError> {
        (&mut self.accepting).await
    }

    /// Accepts no more connections, and lets running requests finish.
    pub async fn stop(self) -> Result<(), JoinError> {
        self.stopping.cancel();
        let ended = self.accepting.await;
        self.open.close();
        if timeout(GRACE, self.open.wait()).await.is_err() {
            tracing::warn!(open = self.open.len(), "some requests did not end in time and are given up");
        }
        ended
    }
}

struct Server {
    gate: Gate,
    keeper: Keeper,
    tls: Option<TlsAcceptor>,
    router: Router,
    idle: Duration,
    head_wait: Duration,
    refusing: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Server {
    async fn accept(self: Arc<Self>, listener: TcpListener, open: TaskTracker) {
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, source)) => self.take(stream, source, &open),
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        tracing::debug!("no connection can be accepted: {error}");
                        sleep(BREATH).await;
                    }
                }
            }
        }
        // The kernel has accepted these, and their clients wait for an answer.
        while let Some(Ok((stream, source))) = listener.accept().now_or_never() {
            self.take(stream, source, &open);
        }
    }

    fn take(self: &Arc<Self>, stream: TcpStream, source: SocketAddr, open: &TaskTracker) {
        let server = self.clone();
        match self.gate.place(source) {
            Ok(place) => drop(open.spawn(server.serve(stream, source, place))),
            Err(full) => {
                if let Ok(permit) = self.refusing.clone().try_acquire_owned() {
                    open.spawn(server.refuse(stream, source, Why::Full(full), permit));
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, source: SocketAddr, place: Place) {
        let (stream, peer) = match self.enter(&stream, place).await {
            Ok(Some((open, peer))) => self.admit(stream, open, peer),
            Ok(None) => return,
            Err(why) => {
                if let Some(permit) = self.may_refuse(why).await {
                    Box::pin(self.refuse(stream, source, why, permit)).await;
                }
                return;
            }
        };
        let seat = peer.seat();
        tokio::select! {
            () = self.keep(stream, peer) => {}
            () = seat.given_up() => COUNTED.turned_away(Turned::Address),
        }
    }

    async fn keep(&self, stream: Admitted, peer: Arc<Peer>) {
        let source = peer.source;
        let exchange = Arc::new(Exchange::new(self.router.clone(), peer));
        let Some(tls) = &self.tls else {
            return self.keeper.keep(Box::new(stream), exchange).await;
        };
        if let Some(stream) = Box::pin(self.handshake(tls, stream, source)).await {
            self.keeper.keep(stream, exchange).await;
        }
    }

    /// The time it may take includes the wait for a turn.
    async fn handshake(
        &self,
        tls: &TlsAcceptor,
        stream: Admitted,
        source: SocketAddr,
    ) -> Option<Box<TlsStream<Admitted>>> {
        match timeout(self.head_wait, tls.accept(stream)).await {
            Ok(Ok(stream)) => return Some(Box::new(stream)),
            Ok(Err(error)) => tracing::debug!(?source, "a connection was not established: {error}"),
            Err(_) => tracing::debug!(?source, "a TLS handshake took too long"),
        }
        None
    }

    /// Those who made room for others have none left, and do not wait for it.
    async fn may_refuse(&self, why: Why) -> Option<OwnedSemaphorePermit> {
        let refusing = self.refusing.clone();
        if why == Why::Displaced {
            refusing.try_acquire_owned().ok()
        } else {
            refusing.acquire_owned().await.ok()
        }
    }

    /// Waits in the line of the connection's address. `None` if its client sends nothing.
    async fn enter(&self, stream: &TcpStream, place: Place) -> Result<Option<(Running, Peer)>, Why> {
        let (mut spoke, seat) = (false, place.seat());
        let admitted = async {
            if stream.readable().await.is_err() {
                return None;
            }
            spoke = true;
            Some(place.admitted().await)
        };
        let entered = tokio::select! {
            entered = timeout(self.head_wait, admitted) => entered,
            () = self.stopping.cancelled() => return Err(Why::Stopping),
            () = seat.given_up() => {
                COUNTED.turned_away(Turned::Address);
                return if spoke { Err(Why::Displaced) } else { Ok(None) };
            }
        };
        match entered {
            Ok(admitted) => Ok(admitted),
            Err(_) if spoke => Err(Why::Late),
            Err(_) => Ok(None),
        }
    }

    fn admit(&self, stream: TcpStream, open: Running, peer: Peer) -> (Admitted, Arc<Peer>) {
        // Without it answers are only slower.
        let _ = stream.set_nodelay(true);
        let peer = Arc::new(peer);
        let stream = Arriving::new(stream, peer.arrival().clone(), peer.arrivals());
        (Connection::new(stream, self.idle, (open, peer.clone())), peer)
    }

    async fn refuse(
        self: Arc<Self>,
        stream: TcpStream,
        source: SocketAddr,
        why: Why,
        _refusing: OwnedSemaphorePermit,
    ) {
        let answer = answer(why, source);
        let refused = async {
            match &self.tls {
                None => say(stream, &answer).await,
                Some(tls) => {
                    // A handshake costs the same turn as that of a connection that is served.
                    let turns = self.gate.arrivals(source);
                    let stream = Arriving::new(stream, Arc::default(), turns);
                    say(tls.accept(stream).await?, &answer).await
                }
            }
        };
        match timeout(REFUSING_WAIT, refused).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(?source, "a connection was refused: {error}"),
            Err(_) => tracing::debug!(?source, "a refused connection did not close"),
        }
    }
}

/// Whether the next connection may be accepted all the same.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of what a function returns, in bytes.
    fn size<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_waits_is_small() {
        let serve =
            |(server, stream, source, place): (Arc<Server>, _, _, _)| server.serve(stream, source, place);
        let bytes = size(serve);
        assert!(bytes <= 3 * 1024, "{bytes} bytes");
    }
}
