//! A fleet whose traffic passes through a thief, who also has the controller's folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use muster_protocol::ids::StorePath;
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::Condition;

use crate::caller::{Caller, key_in};
use crate::fleet::{Fleet, Wishes, both};
use crate::thief::{Answer, Thief};

/// The machine that is attacked most; the other one is its neighbour.
pub const VICTIM: &str = "cinnabar";
pub const NEIGHBOUR: &str = "stibnite";

pub struct Stolen {
    pub fleet: Fleet,
    pub thief: Thief,
}

/// What no attack may change about a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untouched {
    pub running: Option<StorePath>,
    pub profile: Option<StorePath>,
    /// The generation stored as verified, and its plan. (A snapshot signed by an operator may be newer: as
    /// TUF requires, it is stored before its targets are fetched.)
    pub generation: Vec<(String, Vec<u8>)>,
    /// Everything stored of timestamp and snapshot; an attack may make them newer, but never another
    /// machine's.
    pub floor: String,
}

impl Stolen {
    /// Both machines run generation 1.
    pub fn new() -> Result<Self> {
        Self::with(&both())
    }

    /// These machines run generation 1.
    pub fn with(machines: &[(&str, String)]) -> Result<Self> {
        let thief = Thief::start()?;
        let wishes = Wishes { url: Some(thief.url.clone()), ..Wishes::default() };
        let mut fleet = Fleet::prepare(machines, &wishes)?;
        thief.passes_on_to(&format!("http://{}", fleet.address));
        for (name, _) in machines {
            fleet.invite_and_enrol(name)?;
            fleet.machine(name).start()?;
        }
        fleet.fixture.say("greeting", "one")?;
        fleet.update(&[])?;
        for (name, _) in machines {
            fleet.settled(name, 1, Condition::UpToDate)?;
        }
        Ok(Self { fleet, thief })
    }

    /// A client of the controller itself.
    pub fn caller(&self) -> Result<Caller> {
        Caller::new(&self.fleet.address, &self.fleet.controller_folder().join("root/1.root.json"))
    }

    /// The only key on the controller.
    pub fn online_key(&self) -> Result<SecretKey> {
        key_in(&self.fleet.controller_folder().join("online.pem"))
    }

    /// The state folder of a machine.
    pub fn state(&self, name: &str) -> PathBuf {
        self.fleet.machine(name).root.at("/var/lib/muster")
    }

    /// Everything of a machine's repository that passed through, oldest first.
    pub fn recorded(&self, name: &str) -> Vec<Answer> {
        let of = format!("/machines/{name}/tuf/");
        self.thief
            .seen()
            .into_iter()
            .filter(|answer| answer.status == 200 && answer.path.contains(&of))
            .collect()
    }

    /// Makes the machine contact the controller now.
    pub fn ask(&self, name: &str) -> Result<()> {
        let asked = self.fleet.agent(name, &["check-now"])?;
        ensure!(asked.status.success(), "{name} cannot be asked: {}", crate::fleet::said(&asked));
        Ok(())
    }

    pub fn untouched(&self, name: &str) -> Result<Untouched> {
        let machine = self.fleet.machine(name);
        let tuf = self.state(name).join("tuf");
        let mut generation = Vec::new();
        for file in ["targets.json", "generation.json", "gated.json", "plan.json"] {
            if let Ok(bytes) = fs::read(tuf.join(file)) {
                generation.push((file.to_owned(), bytes));
            }
        }
        let floor =
            ["timestamp.json", "snapshot.json"].map(|file| fs::read(tuf.join(file)).unwrap_or_default());
        let floor = String::from_utf8_lossy(&floor.concat()).into_owned();
        Ok(Untouched { running: machine.running(), profile: machine.profile(), generation, floor })
    }
}

/// Copies a folder recursively.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()? {
            kind if kind.is_dir() => copy(&entry.path(), &target)?,
            kind if kind.is_file() => {
                fs::copy(entry.path(), target)?;
            }
            _ => {}
        }
    }
    Ok(())
}
