//! The program under attack: `muster serve` in a process of its own, as shipped, and its operator.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_protocol::api;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::enrol::{EnrolRequest, Enrolling, Secret, Token};
use muster_protocol::ids::{Generation, MachineName, Sha256, nix_base32};
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::operator::{AddMachine, Publication, Request, RequestSignature, Session};
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::sign_generation;
use muster_testbed::caller::key_in;
use muster_testbed::fleet::{PATIENCE, free_port};
use muster_testbed::programs;
use reqwest::Method;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// The archive that is read without pause: large enough that no socket buffer holds it.
const ARCHIVE_BYTES: usize = 16 * 1024 * 1024;

pub struct Service {
    pub address: SocketAddr,
    pub scheme: &'static str,
    pub fleet: Sha256,
    pub operator: SecretKey,
    /// The certificate authority, if it uses TLS.
    pub ca: Option<PathBuf>,
    /// The path of a large archive in its cache.
    pub archive: String,
    pub client: reqwest::Client,
    folder: tempfile::TempDir,
    child: Child,
}

/// An enrolled machine, as far as its requests need it.
#[derive(Clone)]
pub struct Identity {
    pub name: MachineName,
    pub key: SecretKey,
    pub fleet: Sha256,
}

/// What it costs the controller's host.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub peak_kib: u64,
    pub disk_bytes: u64,
    pub cpu_ms: u64,
}

/// Trusts the fleet's own authority.
pub fn tls(ca: &Path) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// A client at one address of this host, which keeps its connections or not.
pub fn client(ca: Option<&Path>, from: [u8; 4], keeps: bool) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(20))
        .local_address(std::net::IpAddr::from(from))
        .pool_max_idle_per_host(if keeps { usize::MAX } else { 0 });
    if let Some(ca) = ca {
        builder = builder.tls_backend_preconfigured(tls(ca)?);
    }
    Ok(builder.build()?)
}

impl Service {
    pub async fn start(scheme: &'static str) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::Builder::new().prefix("muster-party.").tempdir()?;
        let place = folder.path().join("fleet");
        let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
        let muster = programs::find("muster")?;
        let made = Command::new(&muster)
            .args(["init", "--plain-keys", "--dir"])
            .arg(&place)
            .args(["--url", &format!("{scheme}://{address}"), "--listen", &address.to_string()])
            .stdin(Stdio::null())
            .output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let log = File::create(folder.path().join("log"))?;
        let child = Command::new(&muster)
            .args(["serve", "--config"])
            .arg(place.join("controller/controller.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let ca = (scheme == "https").then(|| place.join("ca.pem"));
        let mut service = Self {
            address,
            scheme,
            fleet: Sha256::of(&fs::read(place.join("controller/root/1.root.json"))?),
            operator: key_in(&place.join("keys/operator.pem"))?,
            client: client(ca.as_deref(), [127, 0, 0, 2], true)?,
            ca,
            archive: String::new(),
            folder,
            child,
        };
        let clock = SystemClock::new();
        while service.client.get(service.url(api::FLEET)).send().await.is_err() {
            ensure!(clock.awake() < PATIENCE, "the controller does not answer: {}", service.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        service.archive = service.upload().await?;
        Ok(service)
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The header of a request that the operator signs now.
    pub fn signature(&self, method: &str, path: &str, body: &[u8]) -> Result<String> {
        signature(&self.operator, &self.fleet, method, path, body)
    }

    pub async fn operate(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Vec<u8>> {
        let signature = self.signature(method.as_str(), path, &body)?;
        let request = self.client.request(method, self.url(path)).header(api::OPERATOR_SIGNATURE, signature);
        let response = request.body(body).send().await?;
        let (status, bytes) = (response.status(), response.bytes().await?.to_vec());
        ensure!(status.is_success(), "{path}: {status}: {}", String::from_utf8_lossy(&bytes));
        Ok(bytes)
    }

    /// An operator's bearer for the cache.
    pub async fn session(&self) -> Result<String> {
        let answer = self.operate(Method::POST, api::OPERATOR_SESSION, b"null".to_vec()).await?;
        Ok(serde_json::from_slice::<Session>(&answer)?.bearer)
    }

    async fn upload(&self) -> Result<String> {
        let archive = vec![b'n'; ARCHIVE_BYTES];
        let path = format!("{}/nar/{}.nar", api::CACHE, nix_base32(&Sha256::of(&archive)));
        let sent = self.client.put(self.url(&path)).bearer_auth(self.session().await?).body(archive);
        let answer = sent.send().await?;
        ensure!(answer.status().is_success(), "the archive: {}", answer.text().await?);
        Ok(path)
    }

    /// A machine with its first generation published.
    pub async fn enrol(&self, name: &str) -> Result<Identity> {
        let (name, class): (MachineName, _) = (name.parse()?, Class::Nixos);
        let expires = SystemClock::new().unix_seconds() + 3600;
        let token = Token {
            url: self.url(""),
            machine: name.clone(),
            class,
            fleet: self.fleet,
            root: self.fleet,
            root_version: 1,
            lowest_generation: Generation::FIRST,
            expires,
            secret: Secret::generate()?,
            tls_ca: None,
        };
        let add = AddMachine {
            machine: name.clone(),
            class,
            system: "x86_64-linux".parse()?,
            tags: Default::default(),
            token: token.secret.token_id(),
            check_key: token.secret.check_key(),
            expires,
            replace: false,
        };
        self.operate(Method::POST, api::OPERATOR_MACHINES, serde_json::to_vec(&add)?).await?;
        let key = SecretKey::generate()?;
        let enrolling =
            Enrolling { system: "x86_64-linux".parse()?, age: "age1example".into(), agent: "0.1.0".into() };
        let request = serde_json::to_vec(&EnrolRequest::make(&token, &key, enrolling))?;
        let answer = self.client.post(self.url(api::ENROL)).body(request).send().await?;
        ensure!(answer.status().is_success(), "{name} cannot enrol: {}", answer.text().await?);
        let target: Target = serde_json::from_value(serde_json::json!({
            "machine": name, "class": "nixos", "generation": 1, "system": "x86_64-linux",
            "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
            "output": "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system",
        }))?;
        let publication: Publication = sign_generation(&target, expires + 86_400, &[&self.operator])?;
        let path = format!("{}/generations", api::operator_machine(&name));
        self.operate(Method::POST, &path, serde_json::to_vec(&publication)?).await?;
        Ok(Identity { name, key, fleet: self.fleet })
    }

    pub fn is_up(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resets the peak values.
    pub fn forget_peak(&self) -> Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?)
    }

    pub fn cost(&self) -> Result<Cost> {
        let pid = self.child.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM is missing")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Fields 14 and 15 of proc(5), in hundredths of a second, counted from the end of the name.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        Ok(Cost {
            peak_kib: peak.trim().trim_end_matches(" kB").parse()?,
            disk_bytes: size(self.folder.path())?,
            cpu_ms: (ticks(11) + ticks(12)) * 10,
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The size of a folder, logs included.
fn size(folder: &Path) -> Result<u64> {
    let mut all = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // Temporary files come and go.
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        all += if meta.is_dir() { size(&path)? } else { meta.len() };
    }
    Ok(all)
}

/// The header of a request that `key` signs now.
pub fn signature(key: &SecretKey, fleet: &Sha256, method: &str, path: &str, body: &[u8]) -> Result<String> {
    let request = Request { audience: fleet, method, path, body };
    let at = SystemClock::new().unix_seconds();
    let signed = RequestSignature::make_with(key, request, at, muster_protocol::random::bytes()?)?;
    Ok(serde_json::to_string(&signed)?)
}
