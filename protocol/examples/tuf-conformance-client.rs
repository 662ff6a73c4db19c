//! The client that the official TUF conformance suite drives, over the same core that the agent ships.
//!
//! Its command line is the suite's: see CLIENT-CLI.md in theupdateframework/tuf-conformance.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::to_hex;
use muster_protocol::tuf::client::{Stored, Update};
use muster_protocol::tuf::metadata::Role;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Default)]
struct Arguments {
    metadata_dir: PathBuf,
    metadata_url: String,
    target_names: Vec<String>,
    target_base_url: String,
    target_dir: PathBuf,
    words: Vec<String>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            if !word.starts_with("--") {
                arguments.words.push(word);
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--metadata-dir" => arguments.metadata_dir = value.into(),
                "--metadata-url" => arguments.metadata_url = value,
                "--target-name" => arguments.target_names.push(value),
                "--target-base-url" => arguments.target_base_url = value,
                "--target-dir" => arguments.target_dir = value.into(),
                _ => return Err(format!("{word} is no option of this client").into()),
            }
        }
        Ok(arguments)
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tuf-conformance-client: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let words: Vec<&str> = arguments.words.iter().map(String::as_str).collect();
    match words[..] {
        ["init", root] => {
            std::fs::copy(root, arguments.metadata_dir.join(Role::Root.file()))?;
            Ok(())
        }
        ["refresh"] => Client::refresh(&arguments).map(|_| ()),
        ["download"] => {
            let mut client = Client::refresh(&arguments)?;
            arguments.target_names.iter().try_for_each(|name| client.download(name))
        }
        _ => Err("say init ROOT, refresh or download".into()),
    }
}

struct Client<'a> {
    arguments: &'a Arguments,
    web: ureq::Agent,
    update: Update,
}

impl<'a> Client<'a> {
    fn refresh(arguments: &'a Arguments) -> Outcome<Self> {
        let stored = |role: Role| std::fs::read(arguments.metadata_dir.join(role.file())).ok();
        let stored = Stored {
            root: stored(Role::Root).ok_or("there is no root.json: say init ROOT first")?,
            timestamp: stored(Role::Timestamp),
            snapshot: stored(Role::Snapshot),
            targets: stored(Role::Targets),
        };
        let update = Update::start(&stored, None, SystemClock::new().unix_seconds())?;
        let web = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .build()
            .into();
        let mut client = Self { arguments, web, update };
        client.follow()?;
        Ok(client)
    }

    /// Fetches what the core requests until it requests no more.
    fn follow(&mut self) -> Outcome<()> {
        while let Some(fetch) = self.update.next() {
            let bytes = self.get(&self.arguments.metadata_url, &quoted(&fetch.file), fetch.max_bytes)?;
            let saved = self.update.feed(bytes.as_deref())?;
            if let Some(save) = saved {
                write(&self.arguments.metadata_dir.join(save.file), &save.bytes)?;
            } else if let Some(bytes) = bytes.filter(|_| is_delegated(&fetch.file)) {
                let file = fetch.file.split_once('.').map_or(fetch.file.as_str(), |(_, file)| file);
                write(&self.arguments.metadata_dir.join(quoted(file)), &bytes)?;
            }
        }
        Ok(())
    }

    fn download(&mut self, name: &str) -> Outcome<()> {
        self.update.find(name)?;
        self.follow()?;
        let listed = self.update.listed(name).ok_or_else(|| format!("nobody lists '{name}'"))?.clone();
        let to = self.arguments.target_dir.join(name.replace('%', "%25").replace('/', "%2F"));
        if std::fs::read(&to).is_ok_and(|bytes| listed.require_bytes(name, &bytes).is_ok()) {
            return Ok(());
        }
        let sha256 = listed.hashes.sha256.map(|hash| hash.hex());
        let hash = sha256.or(listed.hashes.sha512.map(|hash| to_hex(&hash.0))).ok_or("it has no hash")?;
        let file = self.update.target_name(name, &hash);
        let bytes = self.get(&self.arguments.target_base_url, &file, listed.length)?;
        let bytes = bytes.ok_or_else(|| format!("'{file}' is missing"))?;
        listed.require_bytes(name, &bytes)?;
        write(&to, &bytes)
    }

    /// Reads at most one byte more than allowed, by which the core recognises endless data.
    fn get(&self, base: &str, file: &str, max_bytes: u64) -> Outcome<Option<Vec<u8>>> {
        let answer = self.web.get(format!("{}/{file}", base.trim_end_matches('/'))).call()?;
        match answer.status().as_u16() {
            200 => {}
            404 => return Ok(None),
            status => return Err(format!("'{file}': the server answers {status}").into()),
        }
        let mut bytes = Vec::new();
        answer.into_body().into_reader().take(max_bytes + 1).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

/// A file name as a single segment of a URL, which is also safe in a path.
fn quoted(name: &str) -> String {
    name.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// Whether a fetched file is a delegated role's; the core returns the top-level ones to be saved.
fn is_delegated(file: &str) -> bool {
    !Role::ALL.iter().any(|role| file == role.file() || file.ends_with(&format!(".{}", role.file())))
}

fn write(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let temporary = path.with_extension("part");
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)?;
    Ok(())
}
