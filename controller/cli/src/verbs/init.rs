//! `muster init`: the keys, the first root and the configuration of a new fleet.

mod holders;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{self, PublicKey, SecretKey};
use muster_protocol::tuf::metadata::Root;
use muster_protocol::tuf::repository::{RootSpec, add_signature, draft_root};
use zeroize::Zeroizing;

use self::holders::{Held, Holder, Place, Wanted};
use crate::api::{client, tls};
use crate::config;
use crate::keys::keyfile;
use crate::keys::signers::KeySource;
use crate::terminal::ask;
use crate::terminal::error::WithHint as _;

const DAY: i64 = 86_400;

#[derive(Debug, Args)]
pub struct Init {
    /// Where to put everything [default: muster in $XDG_CONFIG_HOME]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Where machines and operators will reach the controller; http on loopback alone
    #[arg(long, default_value = "http://127.0.0.1:8443")]
    url: String,
    /// Where the controller listens [default: the URL's port, on every address, or on loopback for http]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<std::net::SocketAddr>,
    /// A certificate and key in PEM for the controller; without them a certificate authority is made for this
    /// fleet
    #[arg(long, requires = "tls_key", value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    #[arg(long, requires = "tls_certificate", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// A key that you have already: ssh-agent, ssh-agent:KEY, or a file [default: a new one in
    /// keys/operator.pem]
    #[arg(long, value_name = "KEY")]
    operator_key: Option<KeySource>,
    /// Read the new passphrase from this file instead of asking
    #[arg(long, value_name = "FILE", conflicts_with = "plain_keys")]
    passphrase_file: Option<PathBuf>,
    /// A holder of the root, as NAME=KEY: new, ssh-agent, ssh-agent:KEY, a key file, a public key, or later;
    /// may be repeated [default: asked at a terminal; else one new key in keys/root.pem]
    #[arg(long = "root", value_name = "NAME=KEY")]
    roots: Vec<Holder>,
    /// How many root holders must sign [default: 1, or more than half of several]
    #[arg(long, value_name = "NUMBER", requires = "roots")]
    root_threshold: Option<u32>,
    /// Leave the operator's and the root key without a passphrase: for tests
    #[arg(long)]
    plain_keys: bool,
    /// How long the root is good, in days
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    root_days: u32,
}

impl Init {
    pub fn run(self) -> Result<()> {
        let folder = match &self.dir {
            Some(folder) => folder.clone(),
            None => config::default_folder()?,
        };
        if folder.exists() && !folder.is_dir() {
            return Err(anyhow!("{} is not a folder", folder.display())).hint("name another one with --dir");
        }
        if folder.exists() && fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(anyhow!("{} is there already and not empty", folder.display()))
                .hint("a fleet's keys are never overwritten: name another folder with --dir");
        }
        let url = client::parse_url(&self.url)?;
        let wanted = self.wanted()?;
        let passphrase = match self.plain_keys || !self.makes_keys(&url, wanted.as_ref()) {
            true => None,
            false => Some(keyfile::new_passphrase(self.passphrase_file.clone())?),
        };

        let parent =
            folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).with_context(|| format!("cannot make the folder {}", parent.display()))?;
        // Everything is made in a temporary folder and moved into place at once, so that half a fleet never
        // exists.
        let work = tempfile::Builder::new()
            .prefix(".muster-init-")
            .tempdir_in(parent)
            .with_context(|| format!("cannot make a folder in {}", parent.display()))?;
        let made = self.fill(work.path(), &url, wanted.as_ref(), passphrase.as_ref())?;
        if folder.exists() {
            fs::remove_dir(&folder).with_context(|| format!("cannot replace {}", folder.display()))?;
        }
        let work = work.keep();
        fs::rename(&work, &folder)
            .with_context(|| format!("cannot move {} to {}", work.display(), folder.display()))?;
        made.tell(&folder, self.plain_keys);
        Ok(())
    }

    /// Who is to hold the root, from the options or from whoever sits at the terminal; `None` for one new
    /// key.
    fn wanted(&self) -> Result<Option<Wanted>> {
        let count = u32::try_from(self.roots.len())?;
        if count > 0 {
            let threshold = self.root_threshold.unwrap_or(count / 2 + 1);
            if !(1..=count).contains(&threshold) {
                return Err(anyhow!("{threshold} of {count} root holders cannot sign"))
                    .hint(format!("give --root-threshold 1 to {count}, or name more holders with --root"));
            }
            return Ok(Some(Wanted { holders: self.roots.clone(), threshold }));
        }
        // Who writes a script gives options or has no terminal.
        let is_script = self.plain_keys || self.passphrase_file.is_some() || !ask::is_answered();
        if is_script {
            return Ok(None);
        }
        say!(
            "The root names who may sign. One key alone is lost or stolen easily, so two of three are proposed;"
        );
        say!("Enter accepts what is in brackets.");
        holders::asked(&mut ask::line).map(Some)
    }

    /// Whether a passphrase has anything to protect.
    fn makes_keys(&self, url: &reqwest::Url, wanted: Option<&Wanted>) -> bool {
        let root = wanted.is_none_or(|wanted| wanted.holders.iter().any(|holder| holder.place == Place::New));
        let ca = url.scheme() != "http" && self.tls_certificate.is_none();
        root || ca || self.operator_key.is_none()
    }

    fn fill(
        &self,
        folder: &Path,
        url: &reqwest::Url,
        wanted: Option<&Wanted>,
        passphrase: Option<&Zeroizing<String>>,
    ) -> Result<Made> {
        let online_key = SecretKey::generate()?;
        let operator = self.operator()?;
        let held = wanted.map_or_else(Held::alone, Held::of)?;
        if held.keys.iter().any(|key| key.is_same_signer(&operator.public())) {
            return Err(anyhow!("the operator's key is a root holder's too: a key holds one role"))
                .hint("take another key for --operator-key, or for that holder");
        }
        let root = self.first_root(&held, &operator, &online_key)?;
        let fleet = Sha256::of(&root);

        for sub in ["keys", "controller", "controller/root", "controller/tls"] {
            fs::create_dir(folder.join(sub))?;
        }
        let protect = |key: &SecretKey| match passphrase {
            Some(passphrase) => key.to_encrypted_pem(passphrase),
            None => key.to_pem(),
        };
        for (key, file, _) in &held.made {
            keyfile::write_private(&folder.join(file), &protect(key)?)?;
        }
        if let Operator::New(key) = &operator {
            keyfile::write_private(&folder.join("keys/operator.pem"), &protect(key)?)?;
        }
        keyfile::write_private(&folder.join("controller/online.pem"), &online_key.to_pem()?)?;
        fs::write(folder.join("root.json"), &root)?;
        fs::write(folder.join("controller/root/1.root.json"), &root)?;

        let (tls, own_ca) = self.fill_tls(folder, url, passphrase)?;
        let operator_key = operator.written();
        let operator = config::File {
            url: self.url.trim_end_matches('/').to_owned(),
            fleet,
            root: "root.json".into(),
            operator_key: operator_key.clone(),
            tls_ca: own_ca.then(|| "ca.pem".into()),
            flake: None,
            rollout: None,
            signature_days: 90,
            session_hours: config::default_session(),
        };
        fs::write(folder.join("muster.toml"), toml::to_string_pretty(&operator)?)?;
        let controller = ControllerFile {
            listen: self.listen_address(url),
            url: operator.url,
            data: "data".into(),
            root: "root".into(),
            online_key: "online.pem".into(),
            tls,
        };
        fs::write(folder.join("controller/controller.toml"), toml::to_string_pretty(&controller)?)?;
        Ok(Made { fleet, own_ca, operator_key, held })
    }

    /// Signs the first root with every key that is here.
    fn first_root(&self, held: &Held, operator: &Operator, online: &SecretKey) -> Result<Vec<u8>> {
        let expires = SystemClock::new().unix_seconds() + i64::from(self.root_days) * DAY;
        let spec = RootSpec {
            version: 1,
            epoch: Default::default(),
            expires,
            root: (held.keys.clone(), held.threshold),
            operators: (vec![operator.public()], 1),
            online: vec![online.public()],
        };
        let mut root = draft_root(&spec, &held.names)?;
        for signer in &held.signers {
            root = add_signature(&root, signer.as_ref())?;
        }
        // A root that no machine would read is not written.
        Root::parse_self_signed(root.as_bytes())?;
        Ok(root.into_bytes())
    }

    fn operator(&self) -> Result<Operator> {
        match &self.operator_key {
            None => Ok(Operator::New(SecretKey::generate()?)),
            Some(source) => {
                let source = match source {
                    // muster.toml resolves paths relative to itself.
                    KeySource::File(path) => KeySource::File(std::path::absolute(path)?),
                    agent => agent.clone(),
                };
                Ok(Operator::Given(source.open()?.public(), source))
            }
        }
    }

    /// The server's certificate: given, made, or none on loopback.
    fn fill_tls(
        &self,
        folder: &Path,
        url: &reqwest::Url,
        passphrase: Option<&Zeroizing<String>>,
    ) -> Result<(Option<TlsFile>, bool)> {
        let file = TlsFile { certificate: "tls/server.pem".into(), key: "tls/server-key.pem".into() };
        if url.scheme() == "http" {
            fs::remove_dir(folder.join("controller/tls"))?;
            return Ok((None, false));
        }
        let tls = folder.join("controller/tls");
        if let (Some(certificate), Some(key)) = (&self.tls_certificate, &self.tls_key) {
            let read = |path: &Path| {
                fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
            };
            let certificate_text = read(certificate)?;
            tls::certificate_der(certificate_text.as_bytes())
                .with_context(|| certificate.display().to_string())?;
            fs::write(tls.join("server.pem"), certificate_text)?;
            keyfile::write_private(&tls.join("server-key.pem"), &Zeroizing::new(read(key)?))?;
            return Ok((Some(file), false));
        }
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let made = tls::make(host)?;
        fs::write(folder.join("ca.pem"), &made.ca)?;
        // Includes the authority: a machine finds it there by the hash in its token.
        fs::write(tls.join("server.pem"), format!("{}{}", made.server, made.ca))?;
        keyfile::write_private(&tls.join("server-key.pem"), &made.server_key)?;
        let ca_key = match passphrase {
            Some(passphrase) => keys::encrypt_pkcs8(&made.ca_key, passphrase)?,
            None => tls::plain_pem(&made.ca_key)?,
        };
        keyfile::write_private(&folder.join("keys/ca-key.pem"), &ca_key)?;
        Ok((Some(file), true))
    }

    fn listen_address(&self, url: &reqwest::Url) -> std::net::SocketAddr {
        let port = url.port_or_known_default().unwrap_or(8443);
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let named = host.parse::<std::net::IpAddr>().ok();
        // In the URL's address family: a listener on 127.0.0.1 is not reached at ::1, nor the other way
        // round.
        let address = match (url.scheme(), named) {
            ("http", Some(address)) => address,
            ("http", None) => std::net::IpAddr::from([127, 0, 0, 1]),
            (_, Some(std::net::IpAddr::V4(_))) => std::net::IpAddr::from([0; 4]),
            _ => std::net::IpAddr::from([0; 16]),
        };
        self.listen.unwrap_or_else(|| (address, port).into())
    }
}

/// What `muster serve` reads.
#[derive(Debug, serde::Serialize)]
struct ControllerFile {
    listen: std::net::SocketAddr,
    url: String,
    data: PathBuf,
    root: PathBuf,
    online_key: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsFile>,
}

#[derive(Debug, serde::Serialize)]
struct TlsFile {
    certificate: PathBuf,
    key: PathBuf,
}

/// The operator's key, made now or given.
enum Operator {
    New(SecretKey),
    Given(PublicKey, KeySource),
}

impl Operator {
    fn public(&self) -> PublicKey {
        match self {
            Self::New(key) => key.public(),
            Self::Given(key, _) => *key,
        }
    }
    /// As written to muster.toml.
    fn written(&self) -> String {
        match self {
            Self::New(_) => "keys/operator.pem".to_owned(),
            Self::Given(_, source) => source.to_string(),
        }
    }
}

struct Made {
    fleet: Sha256,
    own_ca: bool,
    operator_key: String,
    held: Held,
}

impl Made {
    fn tell(&self, folder: &Path, plain: bool) {
        let at = |name: &str| folder.join(name).display().to_string();
        say!("A new fleet, {}, in {}", self.fleet.short(), folder.display());
        say!();
        say!("Keep where:");
        let mut rows = Vec::new();
        for (_, file, name) in &self.held.made {
            let note = match name {
                None => "offline, in two places; it alone names operators anew".to_owned(),
                Some(name) => format!("with {name}, offline, and with nobody else; a root key"),
            };
            rows.push((file.as_str(), note));
        }
        let mut row = |file: &'static str, note: &str| rows.push((file, note.to_owned()));
        if self.own_ca {
            row("keys/ca-key.pem", "offline, beside it; it renews the controller's certificate");
        }
        let given = self.operator_key != "keys/operator.pem";
        if !given {
            row("keys/operator.pem", "with you, the operator; it signs what machines run");
        }
        row("muster.toml", "with every operator, with the root.json and ca.pem beside it; nothing secret");
        row("controller/", "on the controller; nothing in it can make a machine run anything");
        let width = rows.iter().map(|(name, _)| at(name).len()).max().unwrap_or_default();
        for (name, note) in rows {
            say!("  {:width$}  {note}", at(name));
        }
        if given {
            say!("What machines run is signed with {}, which stays where it is.", self.operator_key);
        }
        self.held.tell_rest(&at("muster.toml"));
        if plain {
            say!();
            say!("The keys have no passphrase: good for tests, not for a fleet.");
        }
        say!();
        say!("Next:");
        say!("  muster serve --config {}", at("controller/controller.toml"));
        say!(
            "  muster --config {} machines add NAME --class nixos|darwin --system SYSTEM",
            at("muster.toml")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        init: Init,
    }

    #[test]
    fn the_controller_listens_on_the_family_of_its_url() {
        for (url, wanted) in [
            ("http://[::1]:8443", "[::1]:8443"),
            ("http://127.0.0.1:9", "127.0.0.1:9"),
            ("http://127.1.2.3:9", "127.1.2.3:9"),
            ("http://localhost:9", "127.0.0.1:9"),
            ("https://192.0.2.1", "0.0.0.0:443"),
            ("https://[2001:db8::1]:9", "[::]:9"),
            ("https://muster.example", "[::]:443"),
        ] {
            let line = <Line as clap::Parser>::parse_from(["init"]);
            let listens = line.init.listen_address(&client::parse_url(url).unwrap());
            assert_eq!(listens.to_string(), wanted, "{url}");
        }
    }
}
