//! The door: so many connections at once, and so many of one address that proved nothing.

use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Request;
use axum_server::accept::Accept;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

use super::arrival::Arriving;
use super::parties::Parties;
use super::peer::Peer;
use super::stream::Connection;

/// A connection that was let in, and what it counts as while it is open.
type Admitted = Connection<Arriving, (OwnedSemaphorePermit, Arc<Peer>)>;

/// What one address may hold at most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub connections: usize,
    /// Connections of one address that have proved nothing yet. Those of machines and operators who have
    /// count for them.
    pub unproven: usize,
    /// How many of its requests are worked on at once, and how many of its new connections; 0 for any number.
    pub turns: usize,
    /// How long an answer may stand still.
    pub idle: Duration,
}

/// Lets in no more than so many connections at once.
#[derive(Debug, Clone)]
pub struct Gate {
    free: Arc<Semaphore>,
    parties: Parties,
    bounds: Bounds,
}

impl Gate {
    pub fn new(bounds: Bounds) -> Self {
        let free = Arc::new(Semaphore::new(bounds.connections.min(Semaphore::MAX_PERMITS)));
        Self { free, parties: Parties::new(bounds.unproven, bounds.turns), bounds }
    }

    fn admit(&self, stream: TcpStream) -> io::Result<(Admitted, Arc<Peer>)> {
        let refused = |why| io::Error::new(io::ErrorKind::ConnectionRefused, why);
        let permit = self.free.clone().try_acquire_owned().map_err(|_| refused("too many connections"))?;
        let address = stream.peer_addr()?.ip();
        let peer = Peer::admitted(address, self.parties.clone())
            .ok_or_else(|| refused("too many connections of one address that proved nothing"))?;
        stream.set_nodelay(true)?;
        let peer = Arc::new(peer);
        let stream = Arriving::new(stream, peer.arrival().clone(), peer.arrivals());
        Ok((Connection::new(stream, self.bounds.idle, (permit, peer.clone())), peer))
    }
}

impl<S> Accept<TcpStream, S> for Gate {
    type Stream = Admitted;
    type Service = OfPeer<S>;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.admit(stream).map(|(stream, peer)| (stream, OfPeer { service, peer })))
    }
}

/// A service whose requests carry the [`Peer`] that sent them.
#[derive(Debug, Clone)]
pub struct OfPeer<S> {
    service: S,
    peer: Arc<Peer>,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for OfPeer<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }
    fn call(&mut self, mut request: Request<B>) -> S::Future {
        self.peer.arrival().is_there();
        request.extensions_mut().insert(self.peer.clone());
        self.service.call(request)
    }
}
