//! The server's configuration, `controller.toml`: read once, checked, and passed as a value.

mod blobs;
mod database;
mod private;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_protocol::api::MAX_POLL_SECONDS;
use muster_protocol::clock::UnixMillis;
use muster_protocol::keys::{KeyError, SecretKey, is_encrypted};
use muster_protocol::shown::without_types;
use serde::Deserialize;

pub use blobs::{BlobsAt, Credentials, Encryption, S3};
pub use database::{DatabaseSettings, PostgresSettings};
pub(crate) use private::require_private;

use crate::core::retention::Kept;

/// What is wrong with the configuration, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {file}: {error}; name the controller.toml that `muster init` wrote")]
    Read { file: PathBuf, error: std::io::Error },
    #[error("{file} is not a controller's configuration: {error}")]
    Format { file: PathBuf, error: String },
    #[error("{file}: {key} {problem}")]
    Value { file: PathBuf, key: &'static str, problem: String },
}

/// The checked configuration, with every path absolute or relative to the working directory.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    /// Where Prometheus scrapes, if anywhere: plain HTTP without authentication.
    pub metrics_listen: Option<SocketAddr>,
    /// Where machines and operators reach this controller.
    pub url: String,
    /// `muster.db`, unless the database is elsewhere, and by default the folder `blobs`.
    pub data: PathBuf,
    /// The files of the cache.
    pub blobs: BlobsAt,
    pub database: DatabaseSettings,
    /// The keys of bearers, if several controllers share them; otherwise they are in the data folder.
    pub bearer_keys: Option<PathBuf>,
    /// The folder of `1.root.json`, `2.root.json` …: all roots, or those that a shared database begins with.
    pub root: PathBuf,
    /// Signs timestamps, and nothing else.
    pub online_key: SecretKey,
    /// The online key's file.
    pub online_key_file: PathBuf,
    pub tls: Option<TlsFiles>,
    pub limits: Limits,
}

#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What one client may use of the server. The defaults suit a fleet of ten thousand machines behind one
/// address.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest archive that the cache accepts, in bytes.
    pub nar_bytes: u64,
    /// How long a request body or a response may stall, in seconds.
    pub idle_seconds: u64,
    /// How many connections may be open at once.
    pub connections: usize,
    /// How long machines wait in a long poll, in seconds.
    pub poll_seconds: u64,
    /// How long a timestamp is valid, in hours; it is signed again after half of that.
    pub timestamp_hours: u32,
    /// How many unauthenticated connections one address may have open; those of authenticated machines and
    /// operators are not counted.
    pub unproven_per_address: usize,
    /// How many unauthenticated requests of one address are handled at once, and how many of its new
    /// connections; 0 means no limit. Behind a proxy all connections start there.
    pub turns_per_address: usize,
    /// How many controllers serve the fleet. Each allows its part of the rates per second, so that together
    /// they allow what is written here.
    pub controllers: u32,
    /// How many requests per second one machine may send, with a burst of 12 seconds' worth; 0 means no
    /// limit.
    pub machine_per_second: u32,
    /// The same for its requests to the cache.
    pub cache_per_second: u32,
    /// The same for one operator.
    pub operator_per_second: u32,
    /// The same for unauthenticated requests of one address, with a burst of 100 seconds' worth. Behind a
    /// proxy all have its address.
    pub address_per_second: u32,
    /// How many KiB of events per second are stored for one machine, with a burst of 256 seconds' worth; 0
    /// means no limit.
    pub report_kib_per_second: u32,
    /// How many MiB of events are kept for one machine. Beyond that the oldest are removed; those that
    /// decided a generation are removed last.
    pub event_mib: u32,
    /// How many days events are kept.
    pub event_days: u32,
    /// How many generations are kept of one machine, the newest. The one that it is offered, runs, holds or
    /// is working on is always kept.
    pub generations: u32,
    /// How many days generations are kept, however many there are.
    pub generation_days: u32,
    /// How much memory all bodies together may take while they arrive, in MiB.
    pub body_memory_mib: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nar_bytes: 4 * 1024 * 1024 * 1024,
            idle_seconds: 60,
            connections: 32_768,
            poll_seconds: 55,
            timestamp_hours: 24,
            unproven_per_address: 4_000,
            turns_per_address: 2,
            controllers: 1,
            machine_per_second: 50,
            cache_per_second: 1_000,
            operator_per_second: 500,
            address_per_second: 200,
            report_kib_per_second: 16,
            event_mib: 16,
            event_days: 400,
            generations: 50,
            generation_days: 90,
            body_memory_mib: 256,
        }
    }
}

impl Limits {
    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }
    /// The maximum age of an event, in milliseconds.
    pub fn event_age_ms(&self) -> i64 {
        i64::from(self.event_days) * 86_400_000
    }
    /// Which generations are kept of each machine.
    pub fn generations_kept(&self, now: UnixMillis) -> Kept {
        let since = now.saturating_sub(i64::from(self.generation_days) * 86_400_000);
        Kept { newest: self.generations, since }
    }
    /// The lifetime of a timestamp, in seconds.
    pub fn timestamp_seconds(&self) -> i64 {
        i64::from(self.timestamp_hours) * 3600
    }
}

/// The configuration as written in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: String,
    metrics_listen: Option<String>,
    url: String,
    data: PathBuf,
    blobs: Option<String>,
    s3: Option<blobs::Table>,
    root: PathBuf,
    online_key: PathBuf,
    bearer_keys: Option<PathBuf>,
    database: Option<String>,
    database_password: Option<PathBuf>,
    database_listen: Option<String>,
    tls: Option<TlsTable>,
    #[serde(default)]
    limits: Limits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsTable {
    certificate: PathBuf,
    key: PathBuf,
}

impl ServerConfig {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { file: path.to_owned(), error })?;
        let file: File = toml::from_str(&text).map_err(|mut error| {
            // What is wrong is shown with its line, and a line may have the database's password.
            if text.contains("postgres") {
                error.set_input(None);
            }
            ConfigError::Format { file: path.to_owned(), error: without_types(&error.to_string()) }
        })?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Check { path, folder }.check(file)
    }
}

/// Reads the online key from its file alone; the server does so while it runs.
pub fn read_online_key(file: &Path) -> Result<SecretKey, ConfigError> {
    Check { path: file, folder: PathBuf::new() }.online_key(file)
}

struct Check<'a> {
    path: &'a Path,
    folder: PathBuf,
}

impl Check<'_> {
    fn check(&self, file: File) -> Result<ServerConfig, ConfigError> {
        let listen = self.address("listen", &file.listen, "8443")?;
        let metrics_listen = file
            .metrics_listen
            .map(|address| self.address("metrics_listen", &address, "9090"))
            .transpose()?;
        self.check_url(&file.url)?;
        if file.tls.is_none() && !listen.ip().is_loopback() {
            let problem = format!(
                "is missing, and listen = \"{listen}\" is open to others: write [tls] with certificate and \
                 key, or listen on 127.0.0.1"
            );
            return Err(self.wrong("tls", problem));
        }
        let root = self.folder.join(file.root);
        if !root.is_dir() {
            let problem =
                format!("names {}, which is not a folder; it must hold 1.root.json", root.display());
            return Err(self.wrong("root", problem));
        }
        self.check_limits(&file.limits)?;
        let tls = file.tls.map(|tls| self.tls(&tls)).transpose()?;
        let data = self.folder.join(file.data);
        let blobs = blobs::Read { folder: &self.folder }
            .blobs(file.blobs.as_deref(), file.s3, &data, file.limits.nar_bytes)
            .map_err(|blobs::Wrong(key, problem)| self.wrong(key, problem))?;
        let online_key_file = self.folder.join(file.online_key);
        let read = database::Read { config: self.path, folder: &self.folder };
        let written = database::Written {
            database: file.database,
            password: file.database_password,
            listen: file.database_listen,
        };
        let database =
            read.database(written).map_err(|database::Wrong(key, problem)| self.wrong(key, problem))?;
        Ok(ServerConfig {
            listen,
            metrics_listen,
            url: file.url,
            data,
            blobs,
            database,
            bearer_keys: file.bearer_keys.map(|file| self.folder.join(file)),
            root,
            online_key: self.online_key(&online_key_file)?,
            online_key_file,
            tls,
            limits: file.limits,
        })
    }

    fn address(&self, key: &'static str, text: &str, port: &str) -> Result<SocketAddr, ConfigError> {
        text.parse().map_err(|_| {
            let problem =
                format!("is '{text}': write an address and a port, \"127.0.0.1:{port}\" or \"[::]:{port}\"");
            self.wrong(key, problem)
        })
    }

    fn check_url(&self, url: &str) -> Result<(), ConfigError> {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        match rest {
            Some(rest) if !rest.is_empty() && !rest.starts_with('/') => Ok(()),
            _ => Err(self.wrong("url", format!("is '{url}': write https://HOST:PORT, as machines reach it"))),
        }
    }

    fn check_limits(&self, limits: &Limits) -> Result<(), ConfigError> {
        for (key, good, problem) in [
            ("limits.nar_bytes", limits.nar_bytes > 0, "must be at least 1"),
            ("limits.idle_seconds", (1..=3600).contains(&limits.idle_seconds), "must be from 1 to 3600"),
            ("limits.connections", limits.connections > 0, "must be at least 1"),
            (
                "limits.poll_seconds",
                (1..=MAX_POLL_SECONDS).contains(&limits.poll_seconds),
                "must be from 1 to 600",
            ),
            (
                "limits.timestamp_hours",
                (1..=8760).contains(&limits.timestamp_hours),
                "must be from 1 to 8760",
            ),
            ("limits.event_mib", (1..=65_536).contains(&limits.event_mib), "must be from 1 to 65536"),
            ("limits.event_days", (1..=36_500).contains(&limits.event_days), "must be from 1 to 36500"),
            ("limits.generations", (2..=100_000).contains(&limits.generations), "must be from 2 to 100000"),
            (
                "limits.generation_days",
                (1..=36_500).contains(&limits.generation_days),
                "must be from 1 to 36500",
            ),
            ("limits.controllers", (1..=1000).contains(&limits.controllers), "must be from 1 to 1000"),
            ("limits.unproven_per_address", limits.unproven_per_address > 0, "must be at least 1"),
            // The largest draft must fit.
            (
                "limits.body_memory_mib",
                (64..=65_536).contains(&limits.body_memory_mib),
                "must be from 64 to 65536",
            ),
        ] {
            if !good {
                return Err(self.wrong(key, problem.into()));
            }
        }
        Ok(())
    }

    fn tls(&self, table: &TlsTable) -> Result<TlsFiles, ConfigError> {
        let files =
            TlsFiles { certificate: self.folder.join(&table.certificate), key: self.folder.join(&table.key) };
        self.private_file("tls.key", &files.key)?;
        Ok(files)
    }

    fn online_key(&self, path: &Path) -> Result<SecretKey, ConfigError> {
        self.private_file("online_key", path)?;
        let text = std::fs::read_to_string(path).map(zeroize::Zeroizing::new).map_err(|error| {
            self.wrong("online_key", format!("names {}, which cannot be read: {error}", path.display()))
        })?;
        if is_encrypted(&text) {
            let problem = format!(
                "names {}, which needs a passphrase; the server starts unattended, so store the key without",
                path.display()
            );
            return Err(self.wrong("online_key", problem));
        }
        SecretKey::from_pem(&text)
            .map_err(|error: KeyError| self.wrong("online_key", format!("names {}: {error}", path.display())))
    }

    fn private_file(&self, key: &'static str, path: &Path) -> Result<(), ConfigError> {
        private::require_private(path).map_err(|problem| self.wrong(key, problem))
    }

    fn wrong(&self, key: &'static str, problem: String) -> ConfigError {
        ConfigError::Value { file: self.path.to_owned(), key, problem }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    pub(super) struct Folder(tempfile::TempDir);

    impl Folder {
        pub fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("root")).unwrap();
            let key = SecretKey::generate().unwrap();
            std::fs::write(dir.path().join("online.pem"), key.to_pem().unwrap().as_bytes()).unwrap();
            let folder = Self(dir);
            folder.mode("online.pem", 0o600);
            folder
        }
        pub fn mode(&self, name: &str, mode: u32) {
            let path = self.0.path().join(name);
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        pub fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }
        pub fn load(&self, text: &str) -> Result<ServerConfig, ConfigError> {
            let path = self.0.path().join("controller.toml");
            std::fs::write(&path, text).unwrap();
            ServerConfig::load(&path)
        }
    }

    pub(super) const GOOD: &str = r#"
        listen = "127.0.0.1:8443"
        url = "http://127.0.0.1:8443"
        data = "data"
        root = "root"
        online_key = "online.pem"
    "#;

    #[test]
    fn a_good_file_is_read_with_paths_relative_to_it() {
        let folder = Folder::new();
        let config = folder.load(GOOD).unwrap();
        assert_eq!(config.data, folder.0.path().join("data"));
        assert_eq!(config.limits.poll_seconds, 55);
    }

    #[test]
    fn every_wrong_value_names_its_key_and_what_to_write() {
        let folder = Folder::new();
        for (from, to, want) in [
            ("127.0.0.1:8443\"\n        url", "here\"\n        url", "listen is 'here'"),
            ("listen = \"127.0.0.1:8443\"", "listen = \"0.0.0.0:8443\"", "tls is missing"),
            ("url =", "metrics_listen = \"9090\"\n        url =", "metrics_listen is '9090'"),
            ("url = \"http://127.0.0.1:8443\"", "url = \"muster\"", "url is 'muster'"),
            ("root = \"root\"", "root = \"nowhere\"", "root names"),
            ("online_key = \"online.pem\"", "online_key = \"none.pem\"", "online_key names"),
            ("data = \"data\"", "dada = \"data\"", "dada"),
            ("data = \"data\"", "", "data"),
            (
                "data = \"data\"",
                "data = \"data\"\nlimits.connections = -1",
                "expected a whole number from 0 on",
            ),
            (
                "root = \"root\"",
                "root = \"root\"\nlimits = {poll_seconds = 0}",
                "limits.poll_seconds must be",
            ),
        ] {
            let error = folder.load(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn a_bucket_is_read_with_its_settings_and_what_is_wrong_is_named() {
        let folder = Folder::new();
        let credentials = folder.0.path().join("s3.toml");
        std::fs::write(&credentials, "access_key_id = \"ID\"\nsecret_access_key = \"hidden\"\n").unwrap();
        folder.mode("s3.toml", 0o600);
        let s3 = |blobs: &str, table: &str| {
            let limits = "[limits]\nnar_bytes = 68719476736\n";
            folder
                .load(&format!("blobs = \"{blobs}\"\n{GOOD}{limits}[s3]\ncredentials = \"s3.toml\"\n{table}"))
        };
        let config = s3("s3://bucket/of/ours/", "endpoint = \"http://127.0.0.1:3900\"").unwrap();
        let BlobsAt::S3(found) = &config.blobs else { panic!("{:?}", config.blobs) };
        assert_eq!((found.bucket.as_str(), found.prefix.as_str()), ("bucket", "of/ours"));
        assert!(found.path_style && found.part_bytes as u64 * 10_000 >= 68_719_476_736);
        assert!(!format!("{config:?}").contains("hidden"));
        assert!(
            matches!(folder.load(GOOD).unwrap().blobs, BlobsAt::Folder(path) if path.ends_with("data/blobs"))
        );
        for (blobs, table, want) in [
            ("s3://b", "", "blobs is 's3://b'"),
            ("s3://bucket/../x", "", "blobs is"),
            ("gs://bucket", "", "s3 has settings"),
            ("s3://bucket", "endpoint = \"http://store.example\"", "http is only for a store on this host"),
            ("s3://bucket", "endpoint = \"https://store.example/path\"", "s3.endpoint is"),
            ("s3://bucket", "encryption = \"aws:kms\"", "s3.encryption must be"),
            ("s3://bucket", "region = \"eu central\"", "s3.region is 'eu central'"),
            ("s3://bucket", "region = \"\"", "s3.region is ''"),
            ("s3://bucket", "kms_key = \"a\\nb\"", "s3.kms_key is"),
            ("s3://bucket", "timeout_seconds = 0", "s3.timeout_seconds must be"),
            ("s3://bucket", "retries = 11", "s3.retries must be"),
        ] {
            let error = s3(blobs, table).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        folder.mode("s3.toml", 0o644);
        assert!(s3("s3://bucket", "").unwrap_err().to_string().contains("chmod 600"));
        std::fs::write(&credentials, "access_key_id = \"I D\"\nsecret_access_key = \"hidden\"\n").unwrap();
        folder.mode("s3.toml", 0o600);
        assert!(s3("s3://bucket", "").unwrap_err().to_string().contains("with a space"));
        std::fs::write(&credentials, "secret_access_key = hidden").unwrap();
        folder.mode("s3.toml", 0o600);
        let error = s3("s3://bucket", "").unwrap_err().to_string();
        assert!(error.contains("must have two lines") && !error.contains("hidden"), "{error}");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_the_chmod() {
        let folder = Folder::new();
        folder.mode("online.pem", 0o640);
        let error = folder.load(GOOD).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && error.contains("0640"), "{error}");
    }

    #[test]
    fn an_encrypted_online_key_is_refused() {
        let folder = Folder::new();
        let text = SecretKey::generate().unwrap().to_encrypted_pem("secret").unwrap();
        std::fs::write(folder.0.path().join("online.pem"), text.as_bytes()).unwrap();
        assert!(folder.load(GOOD).unwrap_err().to_string().contains("passphrase"));
    }
}
