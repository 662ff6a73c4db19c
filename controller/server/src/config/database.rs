//! Which database: SQLite in the data folder, or PostgreSQL by a connection string.

use std::fmt;
use std::path::{Path, PathBuf};

use muster_protocol::api::is_loopback;
use zeroize::Zeroizing;

use super::private::require_private;

#[derive(Debug, Clone, Default)]
pub enum DatabaseSettings {
    /// `muster.db` in the data folder.
    #[default]
    Sqlite,
    Postgres(PostgresSettings),
}

/// The connection strings may contain passwords, so nothing prints them.
#[derive(Clone)]
pub struct PostgresSettings {
    pub url: Zeroizing<String>,
    /// Counts instead of a password in the connection strings.
    pub password: Option<Zeroizing<String>>,
    listen: Listen,
}

#[derive(Clone)]
enum Listen {
    /// At the same place.
    There,
    /// Past a pooler, which keeps no connection.
    At(Zeroizing<String>),
    /// Others are heard by asking alone.
    Nowhere,
}

impl DatabaseSettings {
    pub fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite)
    }
}

impl PostgresSettings {
    pub fn at(url: &str) -> Self {
        Self { url: Zeroizing::new(url.to_owned()), password: None, listen: Listen::There }
    }

    /// Where to listen for what other controllers say.
    pub fn listen_url(&self) -> Option<&str> {
        match &self.listen {
            Listen::There => Some(&self.url),
            Listen::At(url) => Some(url),
            Listen::Nowhere => None,
        }
    }
}

impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSettings").finish_non_exhaustive()
    }
}

/// The settings of `controller.toml` that are about the database.
pub(super) struct Written {
    pub database: Option<String>,
    /// The file of the password.
    pub password: Option<PathBuf>,
    pub listen: Option<String>,
}

/// What a connection string may say after its question mark: what libpq calls it.
const PARAMETERS: [&str; 11] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
];
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
/// A password is longer than this by mistake.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// The key that is wrong, and what to write instead.
pub(super) struct Wrong(pub &'static str, pub String);

/// Checks what is written in a configuration.
pub(super) struct Read<'a> {
    pub config: &'a Path,
    pub folder: &'a Path,
}

impl Read<'_> {
    pub(super) fn database(&self, written: Written) -> Result<DatabaseSettings, Wrong> {
        let Written { database, password, listen } = written;
        let Some(url) = database else {
            for (key, given) in
                [("database_password", password.is_some()), ("database_listen", listen.is_some())]
            {
                if given {
                    let problem = "belongs to database = \"postgres://…\", which is missing";
                    return Err(Wrong(key, problem.into()));
                }
            }
            return Ok(DatabaseSettings::Sqlite);
        };
        let url = Zeroizing::new(url);
        self.connection_string("database", &url)?;
        let listen = match listen {
            None => Listen::There,
            Some(none) if none == "none" => Listen::Nowhere,
            Some(url) => {
                let url = Zeroizing::new(url);
                self.connection_string("database_listen", &url)?;
                Listen::At(url)
            }
        };
        let password = password.map(|file| self.password(file)).transpose()?;
        Ok(DatabaseSettings::Postgres(PostgresSettings { url, password, listen }))
    }

    /// The text itself is never part of the complaint.
    fn connection_string(&self, key: &'static str, url: &str) -> Result<(), Wrong> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let Some(rest) = rest else {
            let problem = "must be \"postgres://USER@HOST:PORT/DATABASE?sslmode=verify-full\"; leave it out to \
                keep everything in muster.db in the data folder";
            return Err(Wrong(key, problem.into()));
        };
        let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let mut has_mode = false;
        let mut host = host_of(place);
        let mut has_password = place.split_once('@').is_some_and(|(user, _)| user.contains(':'));
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if !PARAMETERS.contains(&name) {
                let problem = format!(
                    "has a parameter after its '?' that muster does not know; it knows {}",
                    PARAMETERS.join(", ")
                );
                return Err(Wrong(key, problem));
            }
            if name == "sslmode" && !SSL_MODES.contains(&value) {
                let problem = format!("has a wrong sslmode: write one of {}", SSL_MODES.join(", "));
                return Err(Wrong(key, problem));
            }
            has_password |= name == "password";
            has_mode |= name == "sslmode";
            if matches!(name, "host" | "hostaddr") {
                host = value;
            }
        }
        // Without it, a server that offers no TLS, or somebody between, gets everything in the clear.
        if !has_mode && !is_here(host) {
            let problem = "names another host without saying how to encrypt: write ?sslmode=verify-full after \
                the database's name, or another mode on purpose";
            return Err(Wrong(key, problem.into()));
        }
        if has_password {
            // The text says which file, and what is in it that others must not read.
            require_private(self.config).map_err(|problem| {
                let problem = problem.strip_prefix("names ").unwrap_or(&problem);
                Wrong(key, format!("holds a password, so only the controller may read this file: {problem}"))
            })
        } else {
            Ok(())
        }
    }

    fn password(&self, file: PathBuf) -> Result<Zeroizing<String>, Wrong> {
        use std::io::Read as _;
        const KEY: &str = "database_password";
        let file = self.folder.join(file);
        require_private(&file).map_err(|problem| Wrong(KEY, problem))?;
        let unreadable = |error: std::io::Error| {
            Wrong(KEY, format!("names {}, which cannot be read: {error}", file.display()))
        };
        let mut text = Zeroizing::new(String::new());
        let opened = std::fs::File::open(&file).map_err(unreadable)?;
        opened.take(MAX_PASSWORD_BYTES).read_to_string(&mut text).map_err(unreadable)?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(Wrong(KEY, format!("names {}, which is empty", file.display())));
        }
        Ok(Zeroizing::new(password.to_owned()))
    }
}

/// The host of what is between `postgres://` and the question mark.
fn host_of(place: &str) -> &str {
    let authority = place.split('/').next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// Whether nothing leaves this host: it is a loopback address, or the folder of a socket.
fn is_here(host: &str) -> bool {
    let socket = host.is_empty() || host.starts_with('/') || host.to_ascii_lowercase().starts_with("%2f");
    socket || is_loopback(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{Folder, GOOD};

    fn with(folder: &Folder, more: &str) -> Result<DatabaseSettings, String> {
        let text = format!("{GOOD}\n{more}");
        folder.load(&text).map(|config| config.database).map_err(|error| error.to_string())
    }

    const URL: &str = "postgres://muster@db.example:5432/muster?sslmode=verify-full";

    #[test]
    fn without_a_connection_string_it_is_sqlite_and_with_one_it_is_listened_to_there_or_elsewhere() {
        let folder = Folder::new();
        assert!(with(&folder, "").unwrap().is_sqlite());
        let listens = |more: &str| match with(&folder, &format!("database = \"{URL}\"\n{more}")).unwrap() {
            DatabaseSettings::Postgres(settings) => settings.listen_url().map(str::to_owned),
            DatabaseSettings::Sqlite => panic!("it is not SQLite"),
        };
        assert_eq!(listens("").as_deref(), Some(URL));
        assert_eq!(listens("database_listen = \"none\""), None);
        let direct = "postgres://muster@direct/muster?sslmode=require";
        assert_eq!(listens(&format!("database_listen = \"{direct}\"")).as_deref(), Some(direct));
    }

    #[test]
    fn every_wrong_setting_names_its_key_and_what_to_write_and_never_shows_a_password() {
        let folder = Folder::new();
        std::fs::write(folder.path("controller.toml"), "").unwrap();
        folder.mode("controller.toml", 0o600);
        for (more, want) in [
            ("database = \"mysql://u:geheim@h/d\"", "database must be \"postgres://USER@HOST"),
            ("database = \"postgres://u:geheim@h/d?sslmod=require\"", "that muster does not know"),
            ("database = \"postgres://u:geheim@h/d?sslmode=maybe\"", "write one of disable"),
            ("database = \"postgres://u@[::1]/d\"\ndatabase_listen = \"geheim\"", "database_listen must be"),
            (
                "database = \"postgres://u@/d?host=/run\"\ndatabase_password = \"none\"",
                "database_password names",
            ),
            ("database = \"postgres://u:geheim@h/d\"", "sslmode=verify-full"),
            ("database = \"postgres://u@127.0.0.1/d?host=h\"", "sslmode=verify-full"),
            ("database_password = \"online.pem\"", "which is missing"),
            ("database_listen = \"postgres://u:geheim@h/d\"", "which is missing"),
            ("database = \"postgres://u:geheim@h/d", "controller.toml"),
        ] {
            let error = with(&folder, more).unwrap_err();
            assert!(error.contains(want) && !error.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn a_password_is_read_from_a_private_file_or_stands_in_a_private_configuration() {
        let folder = Folder::new();
        std::fs::write(folder.path("password"), "geheim\n").unwrap();
        folder.mode("password", 0o644);
        let by_file = format!("database = \"{URL}\"\ndatabase_password = \"password\"");
        assert!(with(&folder, &by_file).unwrap_err().contains("chmod 600"));
        folder.mode("password", 0o600);
        let settings = with(&folder, &by_file).unwrap();
        assert!(!format!("{settings:?}").contains("geheim"));
        let DatabaseSettings::Postgres(settings) = settings else { panic!("it is not SQLite") };
        assert_eq!(settings.password.as_ref().map(|password| password.as_str()), Some("geheim"));

        let inside = "database = \"postgres://muster:geheim@db.example/muster?sslmode=require\"";
        folder.mode("controller.toml", 0o644);
        let error = with(&folder, inside).unwrap_err();
        assert!(error.contains("chmod 600") && !error.contains("geheim"), "{error}");
        assert!(error.contains("database holds a password"), "{error}");
        folder.mode("controller.toml", 0o600);
        assert!(with(&folder, inside).is_ok());
    }
}
