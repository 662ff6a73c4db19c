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
use super::exchange::{Answers, Exchange};
use super::gate::{Bounds, Gate, Place};
use super::keep::Keeper;
use super::peer::Peer;
use super::refuse::{Why, answer, say};
use super::seats::Seat;
use super::stream::Connection;
use crate::metrics::{COUNTED, Running, Turned};

/// How long a client may take to send the head of a request.
const HEAD_WAIT: Duration = Duration::from_secs(30);
/// The largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;
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
        answers: Answers,
    ) -> Self {
        let (stopping, open) = (CancellationToken::new(), TaskTracker::new());
        let head_wait = bounds.idle.min(HEAD_WAIT);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(head_wait).max_buf_size(MAX_HEAD_BYTES);
        let server = Arc::new(Server {
            gate: Gate::new(bounds),
            keeper: Keeper::new(http, head_wait, stopping.clone()),
            tls: tls.map(TlsAcceptor::from),
            answers,
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
    answers: Answers,
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
            Ok(place) => {
                let entering = Box::pin(server.clone().enter(stream, source, place));
                drop(open.spawn(server.serve(entering)));
            }
            Err(full) => {
                if let Ok(permit) = self.refusing.clone().try_acquire_owned() {
                    open.spawn(server.refuse(stream, source, Why::Full(full), permit));
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, entering: impl Future<Output = Option<(Box<Admitted>, Arc<Peer>)>>) {
        let Some((stream, peer)) = entering.await else { return };
        let seat = peer.seat();
        tokio::select! {
            () = self.keep(stream, peer) => {}
            () = seat.given_up() => COUNTED.turned_away(Turned::Address),
        }
    }

    /// Brings it through the gate. `None` if that is where it ends.
    async fn enter(
        self: Arc<Self>,
        stream: TcpStream,
        source: SocketAddr,
        place: Place,
    ) -> Option<(Box<Admitted>, Arc<Peer>)> {
        // Whoever is refused has its seat until it has heard why: what is open is counted.
        let seat = place.seat();
        match self.wait_in_line(&stream, place).await {
            Ok(Some((open, peer))) => Some(self.admit(stream, open, peer)),
            Ok(None) => None,
            Err(why) => {
                Box::pin(self.turn_away(stream, source, why, seat)).await;
                None
            }
        }
    }

    async fn keep(&self, stream: Box<Admitted>, peer: Arc<Peer>) {
        let source = peer.source;
        let exchange = Arc::new(Exchange::new(self.answers.clone(), peer));
        let Some(tls) = &self.tls else {
            return self.keeper.keep(stream, exchange).await;
        };
        if let Some(stream) = Box::pin(self.handshake(tls, *stream, source)).await {
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

    /// Says why, in turn, to one that was in line. One whose seat is somebody else's does not wait for that.
    async fn turn_away(self: Arc<Self>, stream: TcpStream, source: SocketAddr, why: Why, seat: Arc<Seat>) {
        let refusing = self.refusing.clone();
        let permit = match why {
            Why::Displaced => refusing.try_acquire_owned().ok(),
            _ => tokio::select! {
                permit = refusing.acquire_owned() => permit.ok(),
                () = seat.given_up() => None,
            },
        };
        if let Some(permit) = permit {
            self.refuse(stream, source, why, permit).await;
        }
    }

    /// Waits in the line of the connection's address. `None` if its client sends nothing.
    async fn wait_in_line(&self, stream: &TcpStream, place: Place) -> Result<Option<(Running, Peer)>, Why> {
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

    fn admit(&self, stream: TcpStream, open: Running, peer: Peer) -> (Box<Admitted>, Arc<Peer>) {
        // Without it answers are only slower.
        let _ = stream.set_nodelay(true);
        let peer = Arc::new(peer);
        let stream = Arriving::new(stream, peer.arrival().clone(), peer.arrivals());
        (Box::new(Connection::new(stream, self.idle, (open, peer.clone()))), peer)
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
        type Entering = std::pin::Pin<Box<dyn Future<Output = Option<(Box<Admitted>, Arc<Peer>)>>>>;
        let bytes = size(|(server, entering): (Arc<Server>, Entering)| server.serve(entering));
        assert!(bytes <= 512, "{bytes} bytes");
        let enter =
            |(server, stream, source, place): (Arc<Server>, _, _, _)| server.enter(stream, source, place);
        let bytes = size(enter);
        assert!(bytes <= 1536, "one in line: {bytes} bytes");
    }
}
