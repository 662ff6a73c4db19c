//! A fleet whose network and controller are in a thief's hands.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use muster_protocol::api;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::{AttackView, Condition, MachineView};
use muster_protocol::report::Attack;
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::sign_timestamp;
use muster_testbed::caller::{Caller, key_in};
use muster_testbed::fleet::{PATIENCE, both};
use muster_testbed::stolen::{NEIGHBOUR, Stolen, Untouched, VICTIM};
use muster_testbed::thief::Answer;
use reqwest::Method;

use crate::book::Book;
use crate::{cache, controller, flood, identity, metadata};

pub const DAY: i64 = 86_400;

pub struct Siege {
    pub stolen: Stolen,
    pub caller: Caller,
    pub operator: SecretKey,
    pub root: SecretKey,
    /// Everything that is on the controller.
    pub online: SecretKey,
    /// Files of the victim's repository by the last part of their path: generations 1 and 2, and the withheld
    /// 3.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The target of the withheld generation.
    pub withheld: Target,
    /// The state that both machines must keep.
    pub before: [Untouched; 2],
    stamps: std::cell::Cell<u64>,
}

/// The thief's replacements for files of the victim's repository, by the last part of their path.
pub type Laid = BTreeMap<String, Vec<u8>>;

pub fn run(book: &mut Book) -> Result<()> {
    let mut siege = Siege::lay()?;
    metadata::run(&siege, book)?;
    cache::run(&mut siege, book)?;
    identity::run(&siege, book)?;
    controller::run(&siege, book)?;
    flood::run(&siege, book)?;
    siege.raise(book)
}

impl Siege {
    /// Both machines run generation 2, the neighbour 3; the victim's generation 3 is published but withheld.
    fn lay() -> Result<Self> {
        let stolen = Stolen::new()?;
        let fleet = &stolen.fleet;
        fleet.fixture.say("greeting", "two")?;
        fleet.update(&[])?;
        for (name, _) in both() {
            fleet.settled(name, 2, Condition::UpToDate)?;
        }
        fleet.fixture.say("greeting", "the neighbour's")?;
        fleet.update(&[NEIGHBOUR])?;
        fleet.settled(NEIGHBOUR, 3, Condition::UpToDate)?;
        let keys = fleet.config_folder().join("keys");
        let (operator, root) = (key_in(&keys.join("operator.pem"))?, key_in(&keys.join("root.pem"))?);
        let online = stolen.online_key()?;
        let caller = stolen.caller()?;
        let mut siege = Self {
            before: [stolen.untouched(VICTIM)?, stolen.untouched(NEIGHBOUR)?],
            stolen,
            caller,
            operator,
            root,
            online,
            files: BTreeMap::new(),
            // Replaced below, once there is one.
            withheld: serde_json::from_value(serde_json::json!({
                "machine": VICTIM, "class": "nixos", "generation": 3, "system": "x86_64-linux",
                "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x.drv",
                "output": "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x",
            }))?,
            stamps: std::cell::Cell::new(0),
        };
        let held = siege.file("timestamp.json")?;
        siege.files.insert("held-timestamp.json".into(), held);
        siege.bend(Laid::new());
        siege.stolen.fleet.fixture.say("greeting", "three")?;
        siege.stolen.fleet.update(&[VICTIM])?;
        for number in 1..=3 {
            for role in ["targets", "snapshot"] {
                let name = format!("{number}.{role}.json");
                let bytes = siege.file(&name)?;
                siege.files.insert(name, bytes);
            }
        }
        let view = siege.view(VICTIM)?;
        siege.withheld = view.published.context("generation 3 was published")?.target;
        ensure!(siege.withheld.generation.get() == 3, "the next generation is 3");
        Ok(siege)
    }

    /// A file of the victim's repository, from the controller.
    fn file(&self, name: &str) -> Result<Vec<u8>> {
        let bearer = self.caller.session(&self.operator)?;
        let path = format!("{}/{name}", api::tuf_path(&VICTIM.parse()?));
        let answer = self.caller.get(&path, Some(&bearer))?;
        ensure!(answer.is_good(), "{path}: {}", answer.text());
        Ok(answer.body)
    }

    pub fn view(&self, machine: &str) -> Result<MachineView> {
        let path = format!("{}/{machine}", api::OPERATOR_MACHINES);
        self.caller.operate(&self.operator, &Method::GET, &path, Vec::new())?.read()
    }

    /// The attacks that a machine reported, newest first.
    pub fn reported_attacks(&self, machine: &str) -> Result<Vec<AttackView>> {
        let path = format!("{}/{machine}/attacks?limit=200", api::OPERATOR_MACHINES);
        self.caller.operate(&self.operator, &Method::GET, &path, Vec::new())?.read()
    }

    pub fn until<T>(&self, what: &str, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let clock = SystemClock::new();
        loop {
            if let Some(found) = found()? {
                return Ok(found);
            }
            if clock.awake() > PATIENCE {
                let logs = self.stolen.fleet.logs(VICTIM);
                let lines: Vec<&str> = logs.lines().collect();
                bail!("{what} did not come about\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// A timestamp by the stolen key, newer than all before it.
    pub fn stamp(&self, snapshot: &[u8], expires_in: i64) -> Result<Vec<u8>> {
        let now = SystemClock::new().unix_seconds();
        let version = u64::try_from(now)?.max(self.stamps.get() + 1);
        self.stamps.set(version);
        Ok(sign_timestamp(&VICTIM.parse()?, snapshot, version, now + expires_in, &self.online)?)
    }

    /// Waits until the controller's next timestamp is newer than all those by the stolen key.
    pub fn outlast_stamps(&self) -> Result<()> {
        let clock = SystemClock::new();
        let last = i64::try_from(self.stamps.get())?;
        self.until("a later second", || Ok((clock.unix_seconds() > last).then_some(())))
    }

    /// Substitutes these files for the controller's, and otherwise withholds generation 3.
    pub fn bend(&self, laid: Laid) {
        let held = self.files["held-timestamp.json"].clone();
        self.stolen.thief.bend(move |answer: &mut Answer| {
            let Some((_, file)) = answer.path.split_once(&format!("/machines/{VICTIM}/tuf/")) else { return };
            let name = file.rsplit('/').next().unwrap_or_default();
            let wanted = if name.ends_with(".generation.json") { "generation.json" } else { name };
            if let Some(bytes) = laid.get(name).or_else(|| laid.get(wanted)) {
                (answer.status, answer.body) = (200, bytes.clone());
            } else if name == "timestamp.json" {
                (answer.status, answer.body) = (200, held.clone());
            }
        });
    }

    /// How many attacks the victim has reported so far.
    pub fn known(&self) -> Result<usize> {
        Ok(self.reported_attacks(VICTIM)?.len())
    }

    /// Serves these files to the victim, and checks that it refuses them as one of `attacks`, reports it, and
    /// is unchanged.
    pub fn refuses(&self, attacks: &[Attack], laid: Laid) -> Result<String> {
        self.part(attacks)?;
        let known = self.known()?;
        self.bend(laid);
        let words = self.sees(known, attacks)?;
        self.require_untouched()?;
        Ok(words)
    }

    /// An agent reports an ongoing attack once: this makes it report another first if it would not report
    /// `attacks`.
    pub fn part(&self, attacks: &[Attack]) -> Result<()> {
        if !self.view(VICTIM)?.refused.is_some_and(|refused| attacks.contains(&refused)) {
            return Ok(());
        }
        let (other, stamp) = if attacks.contains(&Attack::Malformed) {
            (Attack::Freeze, self.stamp(&self.files["3.snapshot.json"], -60)?)
        } else {
            (Attack::Malformed, b"not what was asked for".to_vec())
        };
        let known = self.known()?;
        self.bend([("timestamp.json".to_owned(), stamp)].into());
        self.stolen.ask(VICTIM)?;
        self.until("another attack between two of one kind", || {
            let reported = self.reported_attacks(VICTIM)?;
            Ok((reported.len() > known && reported[0].attack == other).then_some(()))
        })
    }

    /// Waits until the victim reports that it refuses one of `attacks`, after `known` others, and still runs
    /// the same.
    pub fn sees(&self, known: usize, attacks: &[Attack]) -> Result<String> {
        self.stolen.ask(VICTIM)?;
        let mut other = None;
        let reported = self.until("a reported refusal", || {
            let reported = self.reported_attacks(VICTIM)?;
            // There may be several reports if the first refusal lets another file be fetched.
            let Some(last) = (reported.len() > known).then(|| reported.into_iter().next()).flatten() else {
                return Ok(None);
            };
            if attacks.contains(&last.attack) {
                return Ok(Some(last));
            }
            // A machine that refused something tries again by itself: it may have been between two files when
            // these were substituted.
            other = Some(last);
            self.stolen.ask(VICTIM)?;
            Ok(None)
        });
        let reported = reported.with_context(|| match &other {
            Some(other) => format!("it was taken for {}: {}", other.attack.as_str(), other.detail),
            None => "nothing was refused".to_owned(),
        })?;
        // The event arrives before the check-in that shows the generation's outcome.
        self.until("the machine's word that it is under attack", || {
            Ok((self.view(VICTIM)?.condition == Condition::UnderAttack).then_some(()))
        })?;
        self.require_running()?;
        Ok(format!("status and history: {}", reported.attack.as_str()))
    }

    /// The same for an attack like the previous one, which is not reported again: the machine is asked, and
    /// the attack is ongoing.
    pub fn goes_on_refusing(&self, attack: Attack, file: &str) -> Result<String> {
        self.stolen.thief.forget();
        self.until("a second try", || {
            self.stolen.ask(VICTIM)?;
            let count = self.stolen.thief.asked().iter().filter(|asked| asked.path.contains(file)).count();
            Ok((count >= 2).then_some(()))
        })?;
        let view = self.view(VICTIM)?;
        let reported = view.attack.map(|reported| reported.attack).or(view.refused);
        ensure!(reported == Some(attack), "it was taken for {reported:?}");
        self.require_running()?;
        Ok(format!("status and history: {}", attack.as_str()))
    }

    /// Both machines are unchanged.
    pub fn require_untouched(&self) -> Result<()> {
        for (name, before) in [VICTIM, NEIGHBOUR].into_iter().zip(&self.before) {
            let now = self.stolen.untouched(name)?;
            ensure!(now.running == before.running, "{name} runs something else: {:?}", now.running);
            ensure!(now.profile == before.profile, "{name} will boot something else: {:?}", now.profile);
            ensure!(now.generation == before.generation, "{name} holds another generation");
            ensure!(!now.floor.contains(VICTIM) || name == VICTIM, "{name} keeps a file of {VICTIM}");
            ensure!(
                !now.floor.contains(NEIGHBOUR) || name == NEIGHBOUR,
                "{name} keeps a file of {NEIGHBOUR}"
            );
            ensure!(self.stolen.fleet.agent_pids(name).len() == 1, "{name} lost its agent");
        }
        Ok(())
    }

    /// An honest publication may change what a machine holds, but not what it runs.
    pub fn require_running(&self) -> Result<()> {
        for (name, before) in [VICTIM, NEIGHBOUR].into_iter().zip(&self.before) {
            let now = self.stolen.untouched(name)?;
            ensure!(now.running == before.running, "{name} runs something else: {:?}", now.running);
            ensure!(now.profile == before.profile, "{name} will boot something else: {:?}", now.profile);
            ensure!(self.stolen.fleet.agent_pids(name).len() == 1, "{name} lost its agent");
        }
        Ok(())
    }

    /// The victim settles on the newest generation, and the state of both machines is recorded.
    pub fn settles(&mut self, greeting: &str) -> Result<u64> {
        let number = self.view(VICTIM)?.published.context("something was published")?.target.generation.get();
        self.stolen.ask(VICTIM)?;
        self.stolen.fleet.settled(VICTIM, number, Condition::UpToDate)?;
        let machine = self.stolen.fleet.machine(VICTIM);
        ensure!(machine.greeting().as_deref() == Some(greeting), "it says {:?}", machine.greeting());
        self.before = [self.stolen.untouched(VICTIM)?, self.stolen.untouched(NEIGHBOUR)?];
        Ok(number)
    }

    /// The siege is over: both machines accept an honest update.
    fn raise(mut self, book: &mut Book) -> Result<()> {
        self.stolen.thief.behave();
        let words = self.stolen.fleet.must(&["history", VICTIM, "--attacks", "--limit", "200"])?;
        let kinds = [
            Attack::Rollback,
            Attack::Freeze,
            Attack::ForgedSignature,
            Attack::ForeignMachine,
            Attack::EndlessData,
            Attack::MixAndMatch,
            Attack::Malformed,
            Attack::WrongClass,
            Attack::WrongOutput,
            Attack::AlteredArchive,
            Attack::Clone,
        ];
        for kind in kinds {
            ensure!(words.contains(kind.as_str()), "nobody reads of '{}' in: {words}", kind.as_str());
        }
        self.stolen.fleet.fixture.say("greeting", "after the siege")?;
        self.stolen.fleet.update(&[])?;
        let number = self.settles("after the siege")?;
        let other = self.view(NEIGHBOUR)?.published.context("published")?.target.generation.get();
        self.stolen.fleet.settled(NEIGHBOUR, other, Condition::UpToDate)?;
        book.control(&format!("both machines take the next honest generation ({number} and {other})"));
        Ok(())
    }

    pub fn expires(&self) -> i64 {
        SystemClock::new().unix_seconds() + 30 * DAY
    }
}
