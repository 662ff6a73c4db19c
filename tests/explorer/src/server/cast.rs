//! Who takes part, the same in every run: keys, tokens, and what operators sign.

use std::collections::BTreeSet;

use muster_protocol::checkin::{CheckIn, Health, Holds, Phase};
use muster_protocol::enrol::{EnrolRequest, Enrolling, Secret, Token};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::{PublicKey, SecretKey, Signer};
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::AddMachine;
use muster_protocol::session::ExchangeKey;
use muster_protocol::target::{Action, Target};
use muster_protocol::tuf::metadata::Root;
use muster_protocol::tuf::repository::{RootSpec, sign_root};
use muster_server::core::seals::{SealKey, Seals};

/// When everything begins, in unix seconds.
pub const START_S: i64 = 1_800_000_000;
/// How long a timestamp is good.
pub const TIMESTAMP_SECONDS: i64 = 86_400;
const YEAR: i64 = 365 * 86_400;

/// The controller's own key; the operators' keys; one of nobody; those of machines, from here on.
pub const ONLINE: u8 = 0;
pub const OPERATORS: [u8; 2] = [1, 2];
pub const STRANGER: u8 = 3;
pub const MACHINES: u8 = 4;

/// Keys that are the same in every run: their seeds are 1, 2, 3 and so on, 32 times each.
const KEYS: [&str; 10] = [
    "MC4CAQAwBQYDK2VwBCIEIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB",
    "MC4CAQAwBQYDK2VwBCIEIAICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIC",
    "MC4CAQAwBQYDK2VwBCIEIAMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMD",
    "MC4CAQAwBQYDK2VwBCIEIAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE",
    "MC4CAQAwBQYDK2VwBCIEIAUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUF",
    "MC4CAQAwBQYDK2VwBCIEIAYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYG",
    "MC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH",
    "MC4CAQAwBQYDK2VwBCIEIAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI",
    "MC4CAQAwBQYDK2VwBCIEIAkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJ",
    "MC4CAQAwBQYDK2VwBCIEIAoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoK",
];

pub struct Cast {
    secrets: Vec<SecretKey>,
    pub fleet: Sha256,
    pub names: Vec<MachineName>,
    pub tokens: Vec<Token>,
    /// For each token what a machine with each key sends.
    enrolments: Vec<Vec<EnrolRequest>>,
    /// Two of two operators sign.
    pub root: Root,
    seals: Seals,
}

impl Cast {
    pub fn new() -> Option<Self> {
        let pem = |text: &&str| {
            let text = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
            SecretKey::from_pem(&text).ok()
        };
        let secrets: Vec<SecretKey> = KEYS.iter().map(pem).collect::<Option<_>>()?;
        let names: Vec<MachineName> = vec!["m0".parse().ok()?, "m1".parse().ok()?];
        let fleet = Sha256::of(b"fleet");
        let token = |(n, machine): (u8, &MachineName)| {
            Some(Token {
                url: "https://controller.example".to_owned(),
                machine: machine.clone(),
                class: Class::Nixos,
                fleet,
                root: fleet,
                root_version: 1,
                lowest_generation: Generation::FIRST,
                expires: START_S + 86_400,
                secret: Secret::try_from(Sha256::of(&[n]).to_string()).ok()?,
                tls_ca: None,
            })
        };
        let of = [&names[0], &names[0], &names[1], &names[1]];
        let tokens: Vec<Token> = (0..).zip(of).map(token).collect::<Option<_>>()?;
        let system = system(Class::Nixos)?;
        let enrolling = Enrolling { system, age: "age1example".to_owned(), agent: "1".to_owned() };
        let of_token = |token: &Token| {
            let machines = secrets.iter().skip(MACHINES.into());
            machines.map(|key| EnrolRequest::make(token, key, enrolling.clone())).collect()
        };
        let enrolments = tokens.iter().map(of_token).collect();
        let root = root(&secrets)?;
        let seals = Seals::new(SealKey::new(1, [1; 32]), Vec::new(), ExchangeKey::from_bytes([2; 32]));
        Some(Self { secrets, fleet, names, tokens, enrolments, root, seals })
    }

    pub fn key(&self, n: u8) -> PublicKey {
        self.secrets[usize::from(n)].public()
    }

    /// What bearers are sealed with.
    pub fn seals(&self) -> &Seals {
        &self.seals
    }

    pub fn secret(&self, n: u8) -> &SecretKey {
        &self.secrets[usize::from(n)]
    }

    pub fn enrolment(&self, token: u8, key: u8) -> &EnrolRequest {
        &self.enrolments[usize::from(token)][usize::from(key - MACHINES)]
    }

    /// What an operator sends to have a token.
    pub fn addition(&self, token: u8, class: Class, replace: bool) -> Option<AddMachine> {
        let Token { machine, expires, secret, .. } = &self.tokens[usize::from(token)];
        Some(AddMachine {
            machine: machine.clone(),
            class,
            system: system(class)?,
            tags: BTreeSet::new(),
            token: secret.token_id(),
            check_key: secret.check_key(),
            expires: *expires,
            replace,
        })
    }

    pub fn check_in(&self, machine: u8, seq: u64) -> Option<CheckIn> {
        Some(CheckIn {
            understands: vec![],
            signing: None,
            vouch: None,
            awaits: None,
            audience: self.fleet,
            machine: self.names[usize::from(machine)].clone(),
            class: Class::Nixos,
            system: system(Class::Nixos)?,
            boot_id: String::new(),
            seq,
            clock: START_S * 1000,
            agent: "1".to_owned(),
            runs: None,
            holds: Holds::default(),
            phase: Phase::Idle,
            phase_generation: None,
            note: None,
            refused: None,
            health: Health::default(),
            new_key: None,
            age: None,
            followed: vec![],
            shown: None,
            session: None,
        })
    }
}

pub fn system(class: Class) -> Option<System> {
    match class {
        Class::Nixos => "x86_64-linux".parse().ok(),
        Class::Darwin => "aarch64-darwin".parse().ok(),
    }
}

fn root(secrets: &[SecretKey]) -> Option<Root> {
    let operators = OPERATORS.map(|n| &secrets[usize::from(n)]);
    let keys: Vec<PublicKey> = operators.iter().map(|key| key.public()).collect();
    let spec = RootSpec {
        version: 1,
        epoch: Default::default(),
        expires: START_S + YEAR,
        root: (keys.clone(), 2),
        operators: (keys, 2),
        online: vec![secrets[usize::from(ONLINE)].public()],
    };
    let signers = operators.map(|key| key as &dyn Signer);
    Root::parse_self_signed(&sign_root(&spec, &signers).ok()?).ok()
}

pub fn target(machine: &MachineName, class: Class, generation: Generation, variant: u8) -> Option<Target> {
    Some(Target {
        rollout: None,
        machine: machine.clone(),
        class,
        generation,
        system: system(class)?,
        derivation: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv".parse().ok()?,
        output: "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().ok()?,
        action: Action::Switch,
        deadline_seconds: 60,
        checks: vec![],
        trusted_nix_keys: vec![],
        policy: Default::default(),
        requires: vec![],
        message: Some(variant.to_string()),
        evaluation: Default::default(),
    })
}
