//! The controller's life cycle: what it opens, in which order, and how it stops.

use std::fs::{File, TryLockError};
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::clock::{Clock, SystemClock};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::certificate::{Certificate, CertificateError};
use crate::config::{BlobsAt, ConfigError, ServerConfig};
use crate::core::retention::PLANS_KEPT_MS;
use crate::following::{Following, Setup, warn_of};
use crate::http::connection::exchange::Answers;
use crate::http::connection::gate::Bounds;
use crate::http::connection::listen::bind;
use crate::http::connection::serve::{REFUSING, Serving};
use crate::http::state::App;
use crate::http::{answers, watched_answers};
use crate::keyring::{self, Keyring, KeyringError};
use crate::rollout::driver;
use crate::roots::{Roots, RootsError};
use crate::services::{Pulse, Services};
use crate::settings::Settings;
use crate::signer::{OnlineKey, OnlineSigner};
use crate::store::blobs::{BlobError, Blobs};
use crate::store::shared::Ear;
use crate::store::{Failed, Store, StoreError};
use crate::threads;

/// The fewest worker threads, however few processors there are: a second one goes on where the first is held
/// up for a moment. That is no help where the first one is who waits for the kernel: whatever may hang has a
/// thread of its own.
const FEWEST_WORKERS: usize = 2;
/// How many connections may be open where metrics are served.
const WATCHERS: usize = 64;
/// How often expired rows are removed.
const SWEEP: Duration = Duration::from_secs(600);
/// How often the root folder is checked for a root that was not published here, and the certificate's files
/// for another one.
const LOOK: Duration = Duration::from_secs(10);
/// For how many of those the pulse goes on during one step: half an hour.
const MOST_BEATS: u32 = 180;
/// Open files that the controller needs besides the connections that it serves; docs/operators.md says so.
const OTHER_FILES: u64 = 512 + REFUSING as u64;

/// Why the controller does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error("cannot use the data folder {0}: {1}")]
    Data(PathBuf, std::io::Error),
    #[error(
        "another controller uses the data folder {0}: stop it, or name another folder as data in \
            controller.toml"
    )]
    Locked(PathBuf),
    #[error("cannot listen on {0}: {1}; write another address or port as listen in controller.toml")]
    Listen(SocketAddr, std::io::Error),
    #[error("cannot listen on {0}: {1}; write another address or port as metrics_listen in controller.toml")]
    ListenMetrics(SocketAddr, std::io::Error),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the server ended: {0}")]
    Serve(std::io::Error),
}

/// Adds the next key to the file `bearer_keys` of this configuration, for its controllers. Returns when it
/// begins to seal, in Unix milliseconds.
pub fn next_bearer_key(config: &Path) -> Result<i64, ServerError> {
    let loaded = ServerConfig::load(config)?;
    let file = loaded.bearer_keys.ok_or_else(|| ConfigError::Value {
        file: config.to_owned(),
        key: "bearer_keys",
        problem: "is missing: a controller that has its keys for itself replaces them by itself".into(),
    })?;
    Ok(keyring::add_next(&file, SystemClock::new().unix_seconds())?.saturating_mul(1000))
}

/// Serves until `shutdown` completes.
pub async fn run(config: &Path, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
    let server = Server::start(ServerConfig::load(config)?).await?;
    tokio::pin!(shutdown);
    let mut server = server;
    tokio::select! {
        () = &mut shutdown => {
            tracing::info!("stopping");
            server.stop().await
        }
        ended = server.serving.ended() => {
            let why = ended.err().map_or_else(|| "it was not asked to".to_owned(), |error| error.to_string());
            Err(ServerError::Serve(std::io::Error::other(why)))
        }
    }
}

/// A running controller.
pub struct Server {
    address: SocketAddr,
    /// Where metrics are served.
    metrics: Option<(SocketAddr, Serving)>,
    services: Arc<Services>,
    stopping: watch::Sender<bool>,
    serving: Serving,
    sweeping: JoinHandle<()>,
    rolling: JoinHandle<()>,
    following: Following,
    /// Held as long as the controller lives, so that no second controller uses the folder.
    _lock: File,
}

impl Server {
    pub async fn start(config: ServerConfig) -> Result<Self, ServerError> {
        Self::start_at(config, Arc::new(SystemClock::new())).await
    }

    /// Starts with the given clock.
    pub async fn start_at(config: ServerConfig, clock: Arc<dyn Clock>) -> Result<Self, ServerError> {
        let lock = open_data(&config.data)?;
        let (roots, store) = open_store(&config).await?;
        store.require_here(&config.data).await?;
        warn_of_end(&roots, clock.unix_seconds());
        let certificate = config.tls.as_ref().map(Certificate::open).transpose()?;
        let tls = certificate.as_ref().map(Certificate::config).transpose()?;
        let fleet = roots.current().fleet();
        let blobs = Blobs::open(&config.blobs)?;
        store.sweep(clock.unix_seconds()).await?;
        raise_file_limit(config.limits.connections);
        let (stopping, stops) = watch::channel(false);
        let services = Arc::new(Services {
            notify: store.notify().clone(),
            store,
            blobs,
            roots,
            online: OnlineKey::new(
                config.online_key_file.clone(),
                OnlineSigner::new(config.online_key.clone(), config.limits.timestamp_seconds()),
            ),
            keyring: match &config.bearer_keys {
                Some(file) => Keyring::shared(file, &fleet, clock.unix_seconds())?,
                None => Keyring::open(&config.data, &fleet, clock.unix_seconds())?,
            },
            certificate,
            settings: Settings::of(&config),
            clock,
            wakers: Default::default(),
            root_log: Default::default(),
            pulse: Default::default(),
            plans: Default::default(),
            collecting: Default::default(),
            limits: config.limits.clone(),
        });
        services.pulse.beat(&*services.clock);
        let app = Arc::new(App::new(services.clone(), config.data.clone(), stops));
        services.log_found_root().await?;
        let setup = Setup {
            has_shared_keys: config.bearer_keys.is_some(),
            has_bucket: matches!(config.blobs, BlobsAt::S3(_)),
        };
        warn_of(&setup, &services).await?;

        let listen = |error| ServerError::Listen(config.listen, error);
        let listener = bind(config.listen, config.limits.idle()).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let bounds = Bounds {
            connections: config.limits.connections,
            unproven: config.limits.unproven_per_address,
            turns: config.limits.turns_per_address,
            idle: config.limits.idle(),
        };
        let serving = Serving::start(listener, bounds, tls, answers(app.clone()));
        let metrics = config.metrics_listen.map(|address| {
            let (idle, answers) = (config.limits.idle(), watched_answers(app));
            serve_metrics(address, idle, answers)
        });
        let metrics = metrics.transpose()?;
        let sweeping = tokio::spawn(sweep(services.clone()));
        let rolling = tokio::spawn(driver::run(services.clone()));
        let following = Following::start(&services, Ear::of(&config.database)?);
        let blobs = services.blobs.clone();
        tokio::spawn(async move {
            if let Err(error) = blobs.check().await {
                tracing::warn!("machines and operators get no file of the cache yet: {error}");
            }
        });
        tracing::info!(
            fleet = services.roots.current().fleet().short(),
            url = config.url,
            "listening on {address}"
        );
        Ok(Self { address, metrics, services, stopping, serving, sweeping, rolling, following, _lock: lock })
    }

    /// The address it listens on, with its actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address that serves metrics, with its actual port.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|(address, _)| *address)
    }

    /// How many machines are waiting in a long poll.
    pub fn waiting_machines(&self) -> usize {
        self.services.wakers.len()
    }

    /// How many operators are waiting for changes.
    pub fn waiting_operators(&self) -> usize {
        self.services.notify.listeners()
    }

    /// Ends long polls at once, lets other requests finish, and closes the database.
    pub async fn stop(self) -> Result<(), ServerError> {
        self.stopping.send_replace(true);
        self.services.wakers.wake_all();
        let ended = self.serving.stop().await;
        if let Some((_, metrics)) = self.metrics {
            let _ = metrics.stop().await;
        }
        self.sweeping.abort();
        self.rolling.abort();
        self.following.stop();
        self.services.store.close().await;
        ended.map_err(|error| ServerError::Serve(std::io::Error::other(error)))
    }
}

/// How many worker threads there are. Long work has a thread of its own (`threads`), so more of them would
/// only wake each other: with twelve on one processor a check-in took an eighth more time.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).max(FEWEST_WORKERS)
}

/// Serves metrics; returns the address with its actual port.
fn serve_metrics(
    address: SocketAddr,
    idle: Duration,
    answers: Answers,
) -> Result<(SocketAddr, Serving), ServerError> {
    let failed = |error| ServerError::ListenMetrics(address, error);
    let listener = bind(address, idle).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!("metrics are at http://{address}/metrics");
    let bounds = Bounds { connections: WATCHERS, unproven: WATCHERS, turns: 0, idle };
    Ok((address, Serving::start(listener, bounds, None, answers)))
}

/// Removes what has expired and looks for new roots, for as long as the server lives.
async fn sweep(services: Arc<Services>) {
    let (mut since, mut looking) = (Duration::ZERO, None::<JoinHandle<()>>);
    loop {
        tokio::time::sleep(LOOK).await;
        since += LOOK;
        if let Err(error) = beating(&services.pulse, &*services.clock, services.log_found_root()).await {
            tracing::warn!("new roots cannot be looked for: {error}");
        }
        // A file may hang for ever, on a mount whose server is away. Whoever waits for it here could be the
        // one who hears of connections.
        if looking.as_ref().is_none_or(JoinHandle::is_finished)
            && let Some(certificate) = services.certificate.clone()
        {
            let now_s = services.now_s();
            looking = Some(tokio::task::spawn_blocking(move || certificate.look(now_s)));
        }
        if since >= SWEEP {
            since = Duration::ZERO;
            let renewed = threads::on(usize::MAX, || services.keyring.renew(services.clock.unix_seconds()));
            if let Err(error) = renewed {
                tracing::warn!("the keys of bearers could not be renewed: {error}");
            }
            forget(&services).await;
        }
    }
}

/// The pulse goes on while one step takes long, since each of its waits for the database has a limit of its
/// own; it stops if the step never ends.
async fn beating<T>(pulse: &Pulse, clock: &dyn Clock, step: impl Future<Output = T>) -> T {
    tokio::pin!(step);
    for _ in 0..MOST_BEATS {
        pulse.beat(clock);
        if let Ok(done) = tokio::time::timeout(LOOK, &mut step).await {
            pulse.beat(clock);
            return done;
        }
    }
    step.await
}

/// What is removed, in this order.
#[derive(Debug, Clone, Copy)]
enum Old {
    Bearers,
    Events,
    Attacks,
    Tokens,
    Generations,
    Plans,
    Entries,
}

impl Old {
    const ALL: [(Self, &str); 7] = [
        (Self::Bearers, "bearers"),
        (Self::Events, "events"),
        (Self::Attacks, "attacks"),
        (Self::Tokens, "tokens"),
        (Self::Generations, "generations"),
        (Self::Plans, "rollout plans"),
        (Self::Entries, "entries of the audit log"),
    ];

    async fn forget(self, services: &Services) -> Result<(), StoreError> {
        let (store, now, now_s) = (&services.store, services.now(), services.now_s());
        let oldest = now.saturating_sub(services.limits.event_age_ms());
        match self {
            Self::Bearers => store.sweep(now_s).await.map(drop),
            Self::Events => store.forget_events(oldest).await.map(drop),
            Self::Attacks => store.forget_attacks(oldest).await.map(drop),
            Self::Tokens => store.forget_tokens(now_s).await.map(drop),
            Self::Generations => {
                store.forget_generations(services.limits.generations_kept(now)).await.map(drop)
            }
            Self::Plans => {
                store.forget_plans(now.saturating_sub(PLANS_KEPT_MS)).await?;
                services.plans.forget();
                Ok(())
            }
            Self::Entries => store.forget_cut_entries().await.map(drop),
        }
    }
}

/// Removes what has expired or is older than it is kept. What fails is tried again with the next sweep, and
/// so is the rest while the database is away.
async fn forget(services: &Services) {
    for (old, what) in Old::ALL {
        if let Err(error) = beating(&services.pulse, &*services.clock, old.forget(services)).await {
            tracing::warn!("old {what} could not be removed: {error}");
            if error.is_away() {
                return;
            }
        }
    }
}

/// The roots name the fleet that the database belongs to; a shared database has the roots themselves.
async fn open_store(config: &ServerConfig) -> Result<(Roots, Store), ServerError> {
    let (mut roots, online) = (Roots::open(&config.root)?, config.online_key.public());
    if config.database.is_sqlite() {
        roots.require(&online)?;
    }
    let store = Store::open_in(&config.database, &config.data, &roots.current().fleet()).await?;
    if let Some(shared) = store.shared_roots() {
        roots = roots.share(shared, &online).await.map_err(|failed| match failed {
            Failed::Refused(error) => ServerError::Roots(error),
            Failed::Store(error) => ServerError::Store(error),
        })?;
    }
    Ok((roots, store))
}

/// Raises the limit of open files to what the connections need, if the system allows it.
fn raise_file_limit(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = (connections as u64).saturating_add(OTHER_FILES);
    let held = getrlimit(Resource::Nofile);
    if held.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let most = held.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: held.maximum });
    if raised.is_err() || most < wanted {
        tracing::warn!(
            wanted,
            most,
            "the system allows fewer open files than limits.connections needs: raise LimitNOFILE of the unit"
        );
    }
}

/// Once the root has expired, machines accept nothing new.
fn warn_of_end(roots: &Roots, now_s: i64) {
    let days = roots.current().newest().expires().saturating_sub(now_s).div_euclid(86_400);
    if days < 60 {
        tracing::warn!(days, "the root expires soon: have the root holders sign the next one");
    }
}

/// Creates the folder, readable only by us.
pub(crate) fn open_data(folder: &Path) -> Result<File, ServerError> {
    let failed = |error| ServerError::Data(folder.to_owned(), error);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let lock =
        File::options().create(true).write(true).truncate(false).open(folder.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(ServerError::Locked(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time awake as tokio counts it, which a test may pause.
    struct Paused(tokio::time::Instant);

    impl Clock for Paused {
        fn unix_ms(&self) -> i64 {
            0
        }
        fn awake(&self) -> Duration {
            self.0.elapsed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_pulse_goes_on_while_a_step_waits_for_the_database_and_stops_if_it_never_ends() {
        let (clock, pulse) = (Paused(tokio::time::Instant::now()), Pulse::default());
        let oldest = std::cell::Cell::new(Duration::ZERO);
        let step = async {
            for _ in 0..300 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                oldest.set(oldest.get().max(pulse.age(&clock)));
            }
        };
        beating(&pulse, &clock, step).await;
        assert!(oldest.get() <= LOOK, "{:?}", oldest.get());
        assert_eq!(pulse.age(&clock), Duration::ZERO);
        let never = beating(&pulse, &clock, std::future::pending::<()>());
        assert!(tokio::time::timeout(LOOK * MOST_BEATS + SWEEP, never).await.is_err());
        assert!(pulse.age(&clock) >= SWEEP);
    }
}
