//! A fleet in a folder: keys, root, configuration, an operator who signs, and machines that enrol.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use muster_protocol::announce::Announcement;
use muster_protocol::api;
use muster_protocol::checkin::{CheckIn, CheckInReply, Health, Holds, Phase, Runs};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::enrol::{EnrolRequest, Enrolling, Secret, Token};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::{self, AddMachine, MachineView, Publication, RequestSignature};
use muster_protocol::random;
use muster_protocol::report::{Batch, Event, Stream};
use muster_protocol::session::{ExchangeSecret, Session};
use muster_protocol::target::{Action, Target};
use muster_protocol::tuf::repository::{RootSpec, sign_generation, sign_root};
use rustls::pki_types::CertificateDer;

use crate::client::{Answer, Connection};

const SYSTEM: &str = "x86_64-linux";
const DERIVATION: &str = "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-nixos-system-anvil-26.05.drv";
const OUTPUT: &str = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-nixos-system-anvil-26.05";
const DAY_SECONDS: i64 = 86_400;

/// What the operators and the controller hold.
pub struct Fleet {
    pub folder: PathBuf,
    pub id: Sha256,
    pub root: Vec<u8>,
    pub operator: SecretKey,
    /// The controller's certificate, where it speaks TLS.
    pub certificate: CertificateDer<'static>,
    pub clock: SystemClock,
}

impl Fleet {
    /// Writes the root, the online key and a certificate of a new fleet into `folder`.
    pub fn make(folder: &Path) -> Result<Self> {
        let clock = SystemClock::new();
        let (root_key, operator, online) =
            (SecretKey::generate()?, SecretKey::generate()?, SecretKey::generate()?);
        let spec = RootSpec {
            version: 1,
            epoch: Default::default(),
            expires: clock.unix_seconds() + 365 * DAY_SECONDS,
            root: (vec![root_key.public()], 1),
            operators: (vec![operator.public()], 1),
            online: vec![online.public()],
        };
        let root = sign_root(&spec, &[&root_key])?;
        std::fs::create_dir_all(folder.join("root"))?;
        std::fs::write(folder.join("root/1.root.json"), &root)?;
        private(&folder.join("online.pem"), online.to_pem()?.as_bytes())?;
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
        std::fs::write(folder.join("tls.crt"), made.cert.pem())?;
        private(&folder.join("tls.key"), made.signing_key.serialize_pem().as_bytes())?;
        let id = Sha256::of(&root);
        let certificate = made.cert.der().clone();
        Ok(Self { folder: folder.to_owned(), id, root, operator, certificate, clock })
    }

    /// Writes the configuration of a controller with a data folder of its own. Nothing limits what one
    /// machine or address may ask: a load stands for many. `settings` are further lines, before the tables.
    pub fn controller(&self, name: &str, listen: SocketAddr, tls: bool, settings: &str) -> Result<PathBuf> {
        let scheme = if tls { "https" } else { "http" };
        let files = if tls { "[tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n" } else { "" };
        let config = format!(
            "listen = \"{listen}\"\nurl = \"{scheme}://{listen}\"\ndata = \"{name}\"\nroot = \"root\"\n\
             online_key = \"online.pem\"\n{settings}\n{files}[limits]\nconnections = 32768\n\
             machine_per_second = 0\noperator_per_second = 0\naddress_per_second = 0\n\
             unproven_per_address = 32768\npoll_seconds = 55\n",
        );
        let file = self.folder.join(format!("{name}.toml"));
        std::fs::write(&file, config)?;
        Ok(file)
    }

    /// A request that the operator signed.
    pub fn signed(&self, method: &str, path: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>> {
        let request = operator::Request { audience: &self.id, method, path, body: &body };
        let signature = RequestSignature::make_with(
            &self.operator,
            request,
            self.clock.unix_seconds(),
            random::bytes()?,
        )?;
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let request = request.header(api::OPERATOR_SIGNATURE, serde_json::to_string(&signature)?);
        Ok(request.body(Full::new(body.into()))?)
    }

    /// Adds a machine and enrols it, over one connection.
    pub async fn enrol(&self, connection: &mut Connection, name: &str) -> Result<Machine> {
        let token = Token {
            url: "http://localhost".into(),
            machine: name.parse()?,
            class: Class::Nixos,
            fleet: self.id,
            root: self.id,
            root_version: 1,
            lowest_generation: Generation::FIRST,
            expires: self.clock.unix_seconds() + 3600,
            secret: Secret::generate()?,
            tls_ca: None,
        };
        let add = AddMachine {
            machine: token.machine.clone(),
            class: token.class,
            system: SYSTEM.parse()?,
            tags: BTreeSet::from(["lab".parse()?]),
            token: token.secret.token_id(),
            check_key: token.secret.check_key(),
            expires: token.expires,
            replace: false,
        };
        let request = self.signed("POST", api::OPERATOR_MACHINES, serde_json::to_vec(&add)?)?;
        connection.send(request).await?.good::<MachineView>()?;
        let key = SecretKey::generate()?;
        let enrolling =
            Enrolling { system: SYSTEM.parse()?, age: "age1example".into(), agent: "0.1.0".into() };
        let body = serde_json::to_vec(&EnrolRequest::make(&token, &key, enrolling))?;
        let answer = connection.send(post(api::ENROL, body)?).await?;
        answer.good::<serde_json::Value>()?;
        Ok(Machine {
            name: token.machine,
            key,
            seq: 0,
            fleet: self.id,
            bearer: String::new(),
            generation: None,
            in_session: false,
            at_work: false,
            asked: None,
            session: None,
        })
    }

    /// The next generation of a machine, signed for 90 days.
    pub fn generation(&self, machine: &MachineName, number: u64) -> Result<Publication> {
        let target = Target {
            rollout: None,
            machine: machine.clone(),
            class: Class::Nixos,
            generation: Generation::new(number)?,
            system: SYSTEM.parse()?,
            derivation: DERIVATION.parse()?,
            output: OUTPUT.parse()?,
            action: Action::Switch,
            deadline_seconds: 300,
            checks: vec![],
            trusted_nix_keys: vec![],
            policy: muster_protocol::policy::Policy::default(),
            requires: vec![],
            message: None,
            evaluation: Default::default(),
        };
        let ends = self.clock.unix_seconds() + 90 * DAY_SECONDS;
        Ok(sign_generation(&target, ends, &[&self.operator])?)
    }
}

/// An enrolled machine, as its agent remembers it.
pub struct Machine {
    pub name: MachineName,
    key: SecretKey,
    seq: u64,
    fleet: Sha256,
    pub bearer: String,
    /// The generation that it was last told of.
    pub generation: Option<Generation>,
    /// Whether it asks for a session and proves its check-ins by that, as agents do; otherwise it signs each.
    pub in_session: bool,
    /// Whether each of its check-ins says something new, as those of a machine at work do.
    pub at_work: bool,
    asked: Option<ExchangeSecret>,
    session: Option<Session>,
}

impl Machine {
    /// The next check-in, signed and announced as an agent does.
    pub fn checkin(&mut self, clock: &SystemClock) -> Result<Request<Full<Bytes>>> {
        self.seq += 1;
        if self.in_session && self.session.is_none() && self.asked.is_none() {
            self.asked = Some(ExchangeSecret::generate()?);
        }
        let checkin = CheckIn {
            understands: vec![],
            signing: None,
            vouch: None,
            awaits: None,
            audience: self.fleet,
            machine: self.name.clone(),
            class: Class::Nixos,
            system: SYSTEM.parse()?,
            boot_id: "5f8b5f0e-6c0e-4b0a-9a57-0f6b1f1d2a3c".into(),
            seq: self.seq,
            clock: clock.unix_ms(),
            agent: "0.1.0".into(),
            runs: Some(Runs {
                running: OUTPUT.parse()?,
                profile: Some(OUTPUT.parse()?),
                generation: self.generation,
            }),
            holds: Holds { root: 1, ..Holds::default() },
            phase: if self.at_work { Phase::Building } else { Phase::Idle },
            phase_generation: self.generation.filter(|_| self.at_work),
            note: self.at_work.then(|| format!("{} derivations are built", self.seq)),
            refused: None,
            health: Health { degraded: Some(vec![]), ..Health::default() },
            new_key: None,
            age: None,
            followed: vec![],
            shown: None,
            session: self.asked.as_ref().map(ExchangeSecret::public),
        };
        let body = serde_json::to_vec(&checkin)?;
        let request = Request::builder().method("POST").uri(api::CHECKIN).header("host", "localhost");
        if let Some(session) = self.session.as_ref().filter(|_| self.in_session) {
            let proof = session.prove(api::CHECKIN, &body).to_string();
            return Ok(request.header(api::MACHINE_SESSION, proof).body(Full::new(body.into()))?);
        }
        let announced = Announcement::make(&self.name, api::CHECKIN, &body, &self.key);
        let request = request
            .header(api::MACHINE_SIGNATURE, self.key.sign(Context::CheckIn, &body).hex())
            .header(api::MACHINE_ANNOUNCES, announced.to_string());
        Ok(request.body(Full::new(body.into()))?)
    }

    /// Takes the reply to its check-in.
    pub fn checked_in(&mut self, answer: &Answer) -> Result<()> {
        let reply: CheckInReply = answer.good()?;
        (self.bearer, self.generation) = (reply.bearer, reply.generation);
        if let Some(asked) = self.asked.take() {
            let offer = reply.session.context("the controller offers no session")?;
            self.session = Some(asked.accept(&offer).context("the controller's key is no good")?);
        }
        Ok(())
    }

    /// A batch of events, signed.
    pub fn report(&self, stream: Stream, events: &[Event]) -> Result<Request<Full<Bytes>>> {
        let oldest = events.first().map_or(1, |event| event.seq);
        let batch =
            Batch { machine: self.name.clone(), stream: Some(stream), oldest, events: events.to_vec() };
        let body = serde_json::to_vec(&batch)?;
        let announced = Announcement::make(&self.name, api::REPORTS, &body, &self.key);
        let request = Request::builder().method("POST").uri(api::REPORTS).header("host", "localhost");
        let request = request
            .header(api::MACHINE_SIGNATURE, self.key.sign(Context::Reports, &body).hex())
            .header(api::MACHINE_ANNOUNCES, announced.to_string());
        Ok(request.body(Full::new(body.into()))?)
    }

    /// A long poll for something newer than what it has.
    pub fn poll(&self, wait: u64) -> Result<Request<Full<Bytes>>> {
        self.get(&api::poll_path(&self.name, self.generation, wait))
    }

    /// The same, with the files of what is new.
    pub fn poll_files(&self, wait: u64) -> Result<Request<Full<Bytes>>> {
        self.get(&api::poll_files_path(&self.name, self.generation, wait, 1))
    }

    /// A request with its bearer.
    pub fn get(&self, path: &str) -> Result<Request<Full<Bytes>>> {
        let request = Request::builder().uri(path).header("host", "localhost");
        let request = request.header("authorization", format!("Bearer {}", self.bearer));
        Ok(request.body(Full::default())?)
    }
}

pub fn post(path: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>> {
    let request = Request::builder().method("POST").uri(path).header("host", "localhost");
    Ok(request.body(Full::new(body.into()))?)
}

fn private(file: &Path, contents: &[u8]) -> Result<()> {
    std::fs::write(file, contents)?;
    Ok(std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))?)
}
