//! The entrance: limits on all connections, and on unauthenticated ones per address.

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
use crate::metrics::{COUNTED, Turned};

/// An accepted connection, and what it counts as while it is open.
type Admitted = Connection<Arriving, (OwnedSemaphorePermit, Arc<Peer>)>;

/// The limits for one address.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub connections: usize,
    /// Unauthenticated connections of one address. Connections of authenticated machines and operators count
    /// for those.
    pub unproven: usize,
    /// How many of its requests and new connections are handled at once; 0 means no limit.
    pub turns: usize,
    /// How long a response may stall.
    pub idle: Duration,
}

/// Limits how many connections are open at once.
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
        let permit = self.free.clone().try_acquire_owned().map_err(|_| {
            COUNTED.turned_away(Turned::All);
            refused("too many connections")
        })?;
        let address = stream.peer_addr()?.ip();
        let peer = Peer::admitted(address, self.parties.clone()).ok_or_else(|| {
            COUNTED.turned_away(Turned::Address);
            refused("too many unauthenticated connections of one address")
        })?;
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
