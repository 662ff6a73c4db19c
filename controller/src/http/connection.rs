//! One connection: counted, known by whether its peer proved who it is, and ended when the peer takes too little of an
//! answer for too long.

use std::future::{Future, Ready, ready};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Request;
use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tower::Service;

use super::arriving::{Arrival, Arriving};
use super::memory::Payer;
use super::parties::{Held, Parties, Party};
use super::rates::Neighbourhood;

/// The least that a peer must take of an answer, in bytes a second, once it makes the controller wait.
const SLOWEST: u64 = 1024;

/// What one address may hold at most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub connections: usize,
    /// Connections of one address that have proved nothing yet. Those of machines and operators who have count for them.
    pub unproven: usize,
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
        Self { free, parties: Parties::new(bounds.unproven), bounds }
    }

    fn admit(&self, stream: TcpStream) -> io::Result<(Connection<Arriving>, Arc<Peer>)> {
        let refused = |why| io::Error::new(io::ErrorKind::ConnectionRefused, why);
        let permit = self.free.clone().try_acquire_owned().map_err(|_| refused("too many connections"))?;
        let address = stream.peer_addr()?.ip();
        let peer = Peer::admitted(address, self.parties.clone())
            .ok_or_else(|| refused("too many connections of one address that proved nothing"))?;
        stream.set_nodelay(true)?;
        let peer = Arc::new(peer);
        let stream = Arriving::new(stream, peer.arrival.clone(), peer.address_party.arrivals.clone());
        Ok((Connection::new(stream, self.bounds.idle, Some((permit, peer.clone()))), peer))
    }
}

impl<S> Accept<TcpStream, S> for Gate {
    type Stream = Connection<Arriving>;
    type Service = OfPeer<S>;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.admit(stream).map(|(stream, peer)| (stream, OfPeer { service, peer })))
    }
}

/// Who is at the other end.
#[derive(Debug)]
pub struct Peer {
    pub address: IpAddr,
    parties: Parties,
    /// Counts against its address, until it is known whose connection it is.
    stranger: Mutex<Option<Held>>,
    address_party: Arc<Party>,
    known: OnceLock<(Payer, Held)>,
    /// A proxy hands on what many ask over one connection.
    shared: AtomicBool,
    arrival: Arc<Arrival>,
}

impl Peer {
    /// None where its address holds too many already.
    fn admitted(address: IpAddr, parties: Parties) -> Option<Self> {
        let party = parties.of(&Payer::Address(Neighbourhood::of(address)));
        let held = party.connection()?;
        let (stranger, known) = (Mutex::new(Some(held)), OnceLock::new());
        Some(Self {
            address,
            parties,
            stranger,
            address_party: party,
            known,
            shared: AtomicBool::new(false),
            arrival: Arc::default(),
        })
    }

    /// Whose line its requests wait in, as far as is known.
    pub fn party(&self) -> &Arc<Party> {
        match self.known.get() {
            Some((_, held)) if !self.shared.load(Ordering::Relaxed) => held.party(),
            _ => &self.address_party,
        }
    }

    /// It is a machine or an operator: from here on its connection does not count against its address, but as theirs.
    /// Gives the party, and whether it holds no more than it may.
    pub fn proved(&self, who: &Payer) -> (Arc<Party>, bool) {
        if let Some((known, held)) = self.known.get() {
            if known == who {
                return (held.party().clone(), true);
            }
            // It stays counted as the first one's, and nobody begins in the first one's line.
            self.shared.store(true, Ordering::Relaxed);
            return (self.parties.of(who), true);
        }
        let party = self.parties.of(who);
        let Some(held) = party.connection() else { return (party, false) };
        let _ = self.known.set((who.clone(), held));
        *self.stranger.lock().unwrap_or_else(PoisonError::into_inner) = None;
        (party, true)
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
        self.peer.arrival.is_there();
        request.extensions_mut().insert(self.peer.clone());
        self.service.call(request)
    }
}

/// A stream whose writes may not stand still, nor crawl.
#[derive(Debug)]
pub struct Connection<T> {
    stream: T,
    idle: Duration,
    /// Since the peer first made us wait with what is being written now.
    waiting: Option<Waiting>,
    _counted: Option<(OwnedSemaphorePermit, Arc<Peer>)>,
}

#[derive(Debug)]
struct Waiting {
    until: Pin<Box<Sleep>>,
    taken: u64,
}

impl<T> Connection<T> {
    fn new(stream: T, idle: Duration, counted: Option<(OwnedSemaphorePermit, Arc<Peer>)>) -> Self {
        Self { stream, idle, waiting: None, _counted: counted }
    }

    /// What a peer must take within one `idle` that it makes us wait.
    fn least(&self) -> u64 {
        self.idle.as_secs().max(1) * SLOWEST
    }

    /// The peer took so much.
    fn took(&mut self, bytes: usize) {
        let least = self.least();
        if let Some(waiting) = &mut self.waiting {
            waiting.taken += bytes as u64;
            if waiting.taken >= least {
                self.waiting = None;
            }
        }
    }

    /// The peer makes us wait: an error once that has lasted for too long.
    fn wait<R>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        let idle = self.idle;
        let waiting = self.waiting.get_or_insert_with(|| Waiting { until: Box::pin(sleep(idle)), taken: 0 });
        match waiting.until.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer takes too little of the answer",
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

    /// Once everything is written there is nothing to wait for.
    fn flushed(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        if outcome.is_ready() {
            self.waiting = None;
            return outcome;
        }
        self.wait(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Connection<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
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
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_left_and_one_that_reads_is_served() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut connection = Connection::new(near, Duration::from_millis(20), None);
        let error = connection.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all.len()
        });
        let mut connection = Connection::new(connection.stream, Duration::from_secs(20), None);
        connection.write_all(&[0; 64]).await.unwrap();
        drop(connection);
        assert_eq!(reader.await.unwrap(), 8 + 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_an_answer_byte_by_byte_is_left_too() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut connection = Connection::new(near, Duration::from_secs(10), None);
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
        let mut connection = Connection::new(near, Duration::from_secs(10), None);
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

    #[test]
    fn only_peers_that_proved_nothing_count_against_their_address() {
        let parties = Parties::new(2);
        let from = |text: &str| Peer::admitted(text.parse().unwrap(), parties.clone());
        let machine = Payer::Machine("cinnabar".parse().unwrap());
        let (first, second) = (from("192.0.2.1").unwrap(), from("192.0.2.1").unwrap());
        assert!(from("192.0.2.1").is_none());
        let other = from("192.0.2.2").unwrap();
        assert!(first.proved(&machine).1 && first.proved(&machine).1);
        let third = from("192.0.2.1").unwrap();
        drop(first);
        assert!(from("192.0.2.1").is_none(), "what was proved is not counted down twice");
        drop((second, third, other));
        assert!(from("192.0.2.1").is_some());
    }

    #[test]
    fn connections_of_a_machine_are_counted_as_its_own_wherever_they_come_from() {
        let parties = Parties::new(1000);
        let machine = Payer::Machine("cinnabar".parse().unwrap());
        let from = |number: usize| {
            let address = if number.is_multiple_of(2) { "192.0.2.1" } else { "192.0.2.2" };
            Peer::admitted(address.parse().unwrap(), parties.clone()).unwrap()
        };
        let held: Vec<Peer> = (0..200).map(from).collect();
        let within = held.iter().filter(|peer| peer.proved(&machine).1).count();
        assert!((100..200).contains(&within), "{within}");
        let other = from(0);
        let begins = |peer: &Peer, who: &Payer| Arc::ptr_eq(peer.party(), &parties.of(who));
        let first = &held[0];
        assert!(begins(first, &machine));
        assert!(first.proved(&Payer::Machine("blackphos".parse().unwrap())).1);
        assert!(
            !begins(first, &machine),
            "what comes over a proxy's connection waits for no machine in particular"
        );
        assert!(other.proved(&Payer::Machine("stibnite".parse().unwrap())).1);
        drop(held);
        assert!(from(1).proved(&machine).1, "what is closed is given back");
    }
}
