//! One connection: counted, known by whether its peer proved who it is, and ended when the peer takes too little of an
//! answer for too long.

use std::future::{Future, Ready, ready};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
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
/// The bounds of what is handed to the kernel before it can be sent.
const UNSENT: (u64, u64) = (4 * 1024, 128 * 1024);

/// What the slowest peer takes in that time.
fn slowest(idle: Duration) -> u64 {
    idle.as_secs().max(1) * SLOWEST
}

/// How much of an answer the kernel takes before it can be sent, in bytes (`TCP_NOTSENT_LOWAT`, tcp(7)): half of what the slowest
/// peer takes in `idle`.
///
/// Left alone Linux takes up to 4 MiB, and a peer on a slow link seems to take nothing for minutes. What is on its way does not
/// count, so a link that is fast and long is not held up.
pub fn unsent(idle: Duration) -> u32 {
    u32::try_from((slowest(idle) / 2).clamp(UNSENT.0, UNSENT.1)).unwrap_or(u32::MAX)
}

/// What one address may hold at most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub connections: usize,
    /// Connections of one address that have proved nothing yet. Those of machines and operators who have count for them.
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
    address_party: Arc<Party>,
    counts: Mutex<Counts>,
    arrival: Arc<Arrival>,
}

/// As whose a connection counts.
#[derive(Debug)]
enum Counts {
    /// Its address's: nobody is known to ask over it yet, or it is a proxy's, which hands on what many ask.
    Address {
        shared: bool,
        _held: Held,
    },
    One(Payer, Held),
}

/// What follows from what somebody proved.
pub struct Proved {
    pub party: Arc<Party>,
    /// Whether they hold no more than they may.
    pub within: bool,
    /// Counts as a connection of theirs as long as their request lasts, where the connection is a proxy's.
    pub request: Option<Held>,
}

impl Peer {
    /// None where its address holds too many already.
    fn admitted(address: IpAddr, parties: Parties) -> Option<Self> {
        let address_party = parties.of(&Payer::Address(Neighbourhood::of(address)));
        let counts = Mutex::new(Counts::Address { shared: false, _held: address_party.connection()? });
        Some(Self { address, parties, address_party, counts, arrival: Arc::default() })
    }

    /// Whose line its requests wait in, as far as is known.
    pub fn party(&self) -> Arc<Party> {
        match &*self.counts.lock().unwrap_or_else(PoisonError::into_inner) {
            Counts::One(_, held) => held.party().clone(),
            Counts::Address { .. } => self.address_party.clone(),
        }
    }

    /// Whatever holds connections as this machine holds them as somebody else from here on: another key is in force.
    pub fn forget(&self, who: &Payer) {
        self.parties.forget(who);
    }

    /// It is a machine or an operator: from here on its connection does not count against its address, but as theirs, until
    /// somebody else asks over it.
    pub fn proved(&self, who: &Payer) -> Proved {
        let party = self.parties.of(who);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *counts {
            Counts::One(known, _) if known == who => Proved { party, within: true, request: None },
            Counts::Address { shared: false, .. } => {
                let held = party.connection();
                let within = held.is_some();
                if let Some(held) = held {
                    *counts = Counts::One(who.clone(), held);
                }
                Proved { party, within, request: None }
            }
            // An operator who read with a key that they signed in, and signs something now, or the other way round.
            Counts::One(known, _) if known.is_same_person(who) => {
                let held = party.connection();
                let within = held.is_some();
                if let Some(held) = held {
                    *counts = Counts::One(who.clone(), held);
                }
                Proved { party, within, request: None }
            }
            Counts::One(_, first) => {
                let held = self.address_party.connection().or_else(|| first.party().connection());
                if let Some(_held) = held {
                    *counts = Counts::Address { shared: true, _held };
                }
                by_request(party)
            }
            Counts::Address { .. } => by_request(party),
        }
    }
}

fn by_request(party: Arc<Party>) -> Proved {
    let request = party.connection();
    Proved { party, within: request.is_some(), request }
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

    /// What a peer must be seen to take within one `idle` that it makes us wait. Half of what it takes may not be seen yet.
    fn least(&self) -> u64 {
        slowest(self.idle) / 2
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
    use super::super::parties::TURNS;
    use super::*;
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpSocket;

    const LIMIT: Duration = Duration::from_secs(30);

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

    #[tokio::test]
    async fn who_takes_a_kibibyte_a_second_is_seen_to_take_it_before_the_time_is_over() {
        let idle = Duration::from_secs(60);
        let listener = crate::server::bind("127.0.0.1:0".parse().unwrap(), idle).unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut far = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let near = listener.accept().await.unwrap().0;
        let near = near.into_std().unwrap();
        let set = TcpSocket::from_std_stream(near.try_clone().unwrap());
        assert_eq!(
            SockRef::from(&set).tcp_notsent_lowat().unwrap(),
            unsent(idle),
            "connections have it from the listener"
        );
        let near = TcpStream::from_std(near).unwrap();

        let piece = vec![0; 16 * 1024];
        let fill = || std::iter::from_fn(|| near.try_write(&piece).ok()).sum::<usize>() as u64;
        near.writable().await.unwrap();
        let unseen = fill();
        assert!(unseen < 512 * 1024, "{unseen} bytes wait in the kernel");
        for _ in 0..3 {
            let mut taken = vec![0; usize::try_from(slowest(idle)).unwrap()];
            let mut seen = 0;
            let served = async {
                let mut reading = std::pin::pin!(far.read_exact(&mut taken));
                loop {
                    tokio::select! {
                        read = &mut reading => return read.unwrap(),
                        room = near.writable() => {
                            room.unwrap();
                            seen += fill();
                        }
                    }
                }
            };
            tokio::time::timeout(LIMIT, served).await.expect("it was told that there is room");
            assert!(seen >= slowest(idle) / 2, "{seen} bytes were seen to be taken");
        }
    }

    #[test]
    fn what_the_kernel_keeps_back_is_less_than_the_slowest_peer_takes_in_time() {
        for seconds in [10, 60, 600, 3600] {
            let idle = Duration::from_secs(seconds);
            assert!(u64::from(unsent(idle)) < slowest(idle), "{seconds}");
        }
        assert_eq!(unsent(Duration::from_secs(60)), 30 * 1024);
        assert_eq!(unsent(Duration::from_secs(3600)), 128 * 1024);
    }

    /// Peers of a controller that lets an address open so many connections.
    fn from(parties: &Parties, text: &str) -> Option<Peer> {
        Peer::admitted(text.parse().unwrap(), parties.clone())
    }
    fn machine(name: &str) -> Payer {
        Payer::Machine(name.parse().unwrap())
    }
    fn begins(peer: &Peer, parties: &Parties, who: &Payer) -> bool {
        Arc::ptr_eq(&peer.party(), &parties.of(who))
    }

    #[test]
    fn only_peers_that_proved_nothing_count_against_their_address() {
        let parties = Parties::new(2, TURNS);
        let from = |text| from(&parties, text);
        let machine = machine("cinnabar");
        let (first, second) = (from("192.0.2.1").unwrap(), from("192.0.2.1").unwrap());
        assert!(from("192.0.2.1").is_none());
        let other = from("192.0.2.2").unwrap();
        assert!(first.proved(&machine).within && first.proved(&machine).within);
        let third = from("192.0.2.1").unwrap();
        drop(first);
        assert!(from("192.0.2.1").is_none(), "what was proved is not counted down twice");
        drop((second, third, other));
        assert!(from("192.0.2.1").is_some());
    }

    #[test]
    fn connections_of_a_machine_are_counted_as_its_own_wherever_they_come_from() {
        let parties = Parties::new(1000, TURNS);
        let who = machine("cinnabar");
        let from = |number: usize| {
            let address = if number.is_multiple_of(2) { "192.0.2.1" } else { "192.0.2.2" };
            from(&parties, address).unwrap()
        };
        let held: Vec<Peer> = (0..200).map(from).collect();
        let within = held.iter().filter(|peer| peer.proved(&who).within).count();
        assert!((100..200).contains(&within), "{within}");
        let other = from(0);
        assert!(begins(&held[0], &parties, &who));
        assert!(other.proved(&machine("stibnite")).within);
        drop(held);
        assert!(from(1).proved(&who).within, "what is closed is given back");
    }

    #[test]
    fn a_proxys_connection_is_nobodys_once_a_second_one_asks_over_it() {
        let parties = Parties::new(1000, TURNS);
        let (who, next) = (machine("cinnabar"), machine("blackphos"));
        let address = Payer::Address(Neighbourhood::of("192.0.2.1".parse().unwrap()));
        let open = || from(&parties, "192.0.2.1").unwrap();
        let mut shared = Vec::new();
        // More than a machine may hold, each used by it first.
        for number in 0..300 {
            let peer = open();
            assert!(peer.proved(&who).within, "{number}");
            assert!(begins(&peer, &parties, &who));
            assert!(peer.proved(&next).within, "{number}");
            assert!(begins(&peer, &parties, &address), "nobody in particular");
            shared.push(peer);
        }
        // There each request counts while it lasts.
        let asking: Vec<Proved> = shared.iter().map(|peer| peer.proved(&who)).collect();
        let within = asking.iter().filter(|proved| proved.within).count();
        assert!((100..200).contains(&within), "{within}");
        assert!(shared[0].proved(&next).within);
        drop(asking);
        assert!(shared[0].proved(&who).within);
    }

    #[test]
    fn where_an_address_is_full_a_shared_connection_counts_as_the_first_ones() {
        let parties = Parties::new(1, TURNS);
        let (who, next) = (machine("cinnabar"), machine("blackphos"));
        let first = from(&parties, "192.0.2.1").unwrap();
        assert!(first.proved(&who).within);
        let stranger = from(&parties, "192.0.2.1").unwrap();
        assert!(first.proved(&next).within);
        drop(first);
        assert!(from(&parties, "192.0.2.1").is_none());
        drop(stranger);
        assert!(from(&parties, "192.0.2.1").is_some());
    }

    #[test]
    fn a_machine_without_a_known_connection_has_one_line_for_all_it_asks_at_once() {
        let parties = Parties::new(1000, TURNS);
        let shared = from(&parties, "192.0.2.1").unwrap();
        let (who, next) = (machine("cinnabar"), machine("blackphos"));
        let _ = (shared.proved(&next), shared.proved(&who));
        let pace = super::super::paced::Pace::new(shared.proved(&who).party);
        let again = shared.proved(&who).party;
        assert!(Arc::ptr_eq(&pace.party(), &again));
        let turns = Arc::downgrade(&again);
        drop(again);
        assert!(turns.upgrade().is_some(), "as long as one of its requests is answered");
    }
}
