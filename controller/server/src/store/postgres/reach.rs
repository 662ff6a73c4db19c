//! Why there is no connection. The pool repeats a refused one until its limit and then says only that it took
//! too long, so the server is asked once beside it.

use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};
use sqlx::ConnectOptions as _;
use sqlx::Connection as _;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::store::error::StoreError;

/// A connection takes no longer than this: after it, the server is asked.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long an answer counts for others who wait.
const KEPT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Reach {
    options: PgConnectOptions,
    place: String,
    clock: SystemClock,
    last: Mutex<Option<(Duration, Found)>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// All connections of the pool are used.
    Answers,
    /// It may give one soon.
    Hesitates(String, &'static str),
    Away(String),
}

impl Reach {
    pub fn new(options: PgConnectOptions) -> Self {
        let place = format!("{}:{}", options.get_host(), options.get_port());
        Self { options, place, clock: SystemClock::new(), last: Mutex::default() }
    }

    pub fn place(&self) -> &str {
        &self.place
    }

    /// A connection that a pool makes, unless the server cannot be reached.
    pub async fn wait<T>(&self, made: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        tokio::pin!(made);
        if let Ok(done) = timeout(PATIENCE, &mut made).await {
            return done.map_err(|error| self.failed(error));
        }
        let found = tokio::select! {
            done = &mut made => return done.map_err(|error| self.failed(error)),
            found = self.found() => found,
        };
        let (why, advice) = match found {
            Found::Away(why) => return Err(self.away(why)),
            Found::Answers => return made.await.map_err(|error| self.failed(error)),
            Found::Hesitates(why, advice) => (why, advice),
        };
        made.await.map_err(|error| match error {
            sqlx::Error::PoolTimedOut => StoreError::Unreachable { place: self.place.clone(), why, advice },
            error => self.failed(error),
        })
    }

    fn away(&self, why: String) -> StoreError {
        let advice = "see that it runs, and database in controller.toml";
        StoreError::Unreachable { place: self.place.clone(), why, advice }
    }

    fn failed(&self, error: sqlx::Error) -> StoreError {
        match error {
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) => self.away(reason(&error)),
            error => error.into(),
        }
    }

    async fn found(&self) -> Found {
        let mut last = self.last.lock().await;
        if let Some((at, found)) = &*last
            && self.clock.awake().saturating_sub(*at) < KEPT
        {
            return found.clone();
        }
        let found = match timeout(ANSWER, self.options.connect()).await {
            Ok(Ok(connection)) => {
                let _ = timeout(ANSWER, connection.close()).await;
                Found::Answers
            }
            Ok(Err(error)) => {
                let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
                match &*code {
                    "53300" => Found::Hesitates(
                        reason(&error),
                        "a controller needs 17 connections, so raise max_connections or the role's limit",
                    ),
                    "57P03" => Found::Hesitates(reason(&error), "repeat in a moment"),
                    _ => Found::Away(reason(&error)),
                }
            }
            Err(_) => Found::Away(format!("no answer within {} s", ANSWER.as_secs())),
        };
        if let Found::Away(why) = &found
            && last.as_ref().is_none_or(|(_, before)| *before != found)
        {
            tracing::warn!("PostgreSQL at {} cannot be reached: {why}", self.place);
        }
        *last = Some((self.clock.awake(), found.clone()));
        found
    }
}

/// In the system's words, or the server's. Neither has the password.
fn reason(error: &sqlx::Error) -> String {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut, UnexpectedEof};
    match error {
        sqlx::Error::Io(error) => match error.kind() {
            kind @ (ConnectionRefused | ConnectionReset | ConnectionAborted | HostUnreachable
            | NetworkUnreachable | TimedOut) => kind.to_string(),
            UnexpectedEof => "the connection ended".into(),
            _ => error.to_string(),
        },
        sqlx::Error::Database(error) => error.message().to_owned(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use muster_protocol::ids::Sha256;

    use super::*;
    use crate::config::PostgresSettings;
    use crate::core::settings::Prints;
    use crate::store::postgres::{Listener, Postgres, listen_options};

    /// A port where nobody listens.
    fn nobody() -> (PostgresSettings, u16) {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        (PostgresSettings::at(&format!("postgres://muster:geheim@127.0.0.1:{port}/muster")), port)
    }

    /// As a load balancer or a pooler does whose server is away.
    #[tokio::test]
    async fn connections_that_are_ended_before_a_word_is_said_mean_that_it_is_away() {
        let before = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = before.local_addr().unwrap().port();
        std::thread::spawn(move || before.incoming().for_each(drop));
        for mode in ["disable", "prefer"] {
            let url = format!("postgres://muster:geheim@127.0.0.1:{port}/muster?sslmode={mode}");
            let opened =
                Postgres::open(&PostgresSettings::at(&url), &Sha256::of(b"fleet")).await.unwrap_err();
            assert!(opened.is_away() || matches!(opened, StoreError::Open(_)), "{mode}: {opened:?}");
            let asked = Postgres::lazily(&PostgresSettings::at(&url)).unwrap().begin().await.err().unwrap();
            assert!(asked.is_away(), "{mode}: {asked:?}");
        }
    }

    #[tokio::test]
    async fn a_database_that_is_down_is_told_as_such_with_its_place_long_before_the_pools_limit() {
        let (settings, port) = nobody();
        let clock = SystemClock::new();
        let opened = Postgres::open(&settings, &Sha256::of(b"fleet")).await.unwrap_err();
        let listener = Listener::new(listen_options(&settings).unwrap().unwrap());
        let heard = listener.listen(&mut |_| {}, &|| Prints::new(|_| None)).await.unwrap_err();
        assert!(clock.awake() < Duration::from_secs(8), "{:?}", clock.awake());
        for error in [opened, heard] {
            assert!(error.is_away());
            assert_eq!(
                error.to_string(),
                format!(
                    "PostgreSQL at 127.0.0.1:{port} cannot be reached (connection refused): see that it runs, \
                     and database in controller.toml"
                )
            );
        }
    }
}
