//! The fleet of the attacks on a rollout, and what the thief does with it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use muster_protocol::api;
use muster_protocol::checkin::CheckIn;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::{AttackView, MachineView, Publication, RolloutState, RolloutView, SetBrake};
use muster_protocol::plan::{
    Claim, Leave, MAX_STATEMENTS_BYTES, Place, Plan, Said, Statement, Statements, Voucher,
};
use muster_protocol::report::{Attack, EventKind};
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::sign_timestamp;
use muster_testbed::caller::{Caller, key_in};
use muster_testbed::fleet::{Fleet, PATIENCE, both};
use muster_testbed::printed;
use muster_testbed::programs;
use muster_testbed::stolen::{NEIGHBOUR, Stolen, Untouched, VICTIM};
use muster_testbed::thief::Answer;
use reqwest::Method;
use serde_json::{Value, json};

use crate::book::Book;
use crate::siege::DAY;

pub const CANARIES: [&str; 2] = [VICTIM, "zinc"];
/// The machine that waits.
pub const LATER: &str = NEIGHBOUR;

pub struct Scene {
    pub stolen: Stolen,
    pub caller: Caller,
    pub operator: SecretKey,
    /// One who was an operator.
    pub removed: SecretKey,
    pub plan: Plan,
    pub place: Place,
    pub target: Target,
    /// What the canaries said of the plan so far: that they confirmed it.
    pub confirmed: Vec<Statement>,
    pub earlier: Earlier,
    /// The state that all machines must keep.
    pub before: Vec<Untouched>,
    pub stamps: Cell<u64>,
}

/// A rollout of the same systems before, in which the canaries soaked.
pub struct Earlier {
    pub plan: Vec<u8>,
    pub soaked: Vec<Statement>,
    pub leave: Leave,
}

/// What the thief answers instead of the controller; the rest passes.
#[derive(Default, Clone)]
pub struct Lies {
    pub leave: Option<Value>,
    pub statements: Option<Vec<u8>>,
    pub plan: Option<Vec<u8>>,
    /// Files of the waiting machine's repository, by the ends of their paths.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Scene {
    pub fn set() -> Result<Self> {
        let [host, mac] = both().try_into().map_err(|_| anyhow::anyhow!("there are two"))?;
        let second = (CANARIES[1], programs::host_system().replace("darwin", "linux"));
        let stolen = Stolen::with(&[host, second, mac])?;
        let fleet = &stolen.fleet;
        let file = fleet.folder().join("former.pem");
        let public = fleet.must(&["keys", "generate", &file.display().to_string(), "--plain"])?;
        fleet.must(&["keys", "add", "operator", public.trim(), "--name", "former", "--yes"])?;
        fleet.must(&["keys", "remove", "operator", "former", "--yes"])?;
        fleet.must(&["machines", "prove"])?;

        // The one that waits is away, so that it has the earlier rollout's system as little as its plan.
        fleet.machine(LATER).stop(false)?;
        fleet.fixture.say("greeting", "two")?;
        publish(fleet, "earlier", "1s")?;
        wait(fleet, "earlier", |view| view.waves[0].soaked == 2)?;
        let (caller, operator) =
            (stolen.caller()?, key_in(&fleet.config_folder().join("keys/operator.pem"))?);
        let bearer = caller.session(&operator)?;
        let target = published(&view(&caller, &operator, LATER)?)?;
        let place = target.rollout.context("it has a place")?;
        let path = api::statements_path(&place.plan, &LATER.parse()?, place.wave);
        let soaked = caller.get(&path, Some(&bearer))?.read::<Statements>()?.statements;
        ensure!(soaked.len() == 2, "both canaries soaked: {soaked:?}");
        let plan = caller.get(&api::plan_path(&place.plan), Some(&bearer))?.body;
        let earlier = Earlier { soaked, plan, leave: given(&stolen, &place.plan)? };

        publish(fleet, "later", "1h")?;
        wait(fleet, "later", |view| view.waves[0].confirmed == 2)?;
        let target = published(&view(&caller, &operator, LATER)?)?;
        let place = target.rollout.context("it has a place")?;
        let plan = caller.get(&api::plan_path(&place.plan), Some(&bearer))?.body;
        let plan = Plan::parse_named(&plan, place.plan)?;
        let said = |name: &&str| said_by(&stolen, name, &place.plan);
        let confirmed = CANARIES.iter().map(said).collect::<Result<_>>()?;
        ensure!(plan.waves[0].vouchers.len() == 2 && plan.waves[0].at_least == 2, "{plan:?}");
        let removed = key_in(&file)?;
        let (before, stamps) = (Vec::new(), Cell::new(0));
        let mut scene = Self {
            stolen,
            caller,
            operator,
            removed,
            plan,
            place,
            target,
            confirmed,
            earlier,
            before,
            stamps,
        };
        // It comes back, and gets its target, but no plan.
        scene.tell(Lies { plan: Some(Vec::new()), ..Lies::default() });
        scene.stolen.fleet.machine(LATER).start()?;
        // The plain target before it goes once the gated one is there.
        let [gated, plain] =
            ["gated.json", "generation.json"].map(|file| scene.stolen.state(LATER).join("tuf").join(file));
        scene.stolen.fleet.until(LATER, "the gated target", |_| gated.exists() && !plain.exists())?;
        scene.remember()?;
        Ok(scene)
    }

    pub fn remember(&mut self) -> Result<()> {
        let all = CANARIES.into_iter().chain([LATER]);
        self.before = all.map(|name| self.stolen.untouched(name)).collect::<Result<_>>()?;
        Ok(())
    }

    pub fn require_untouched(&self) -> Result<()> {
        for (name, before) in CANARIES.into_iter().chain([LATER]).zip(&self.before) {
            let now = self.stolen.untouched(name)?;
            ensure!(now.running == before.running, "{name} runs something else: {:?}", now.running);
            ensure!(now.profile == before.profile, "{name} will boot something else: {:?}", now.profile);
            ensure!(now.generation == before.generation, "{name} holds another generation or plan");
            let own = |other: &str| other == name || !now.floor.contains(other);
            ensure!(CANARIES.into_iter().chain([LATER]).all(own), "{name} keeps another machine's file");
            // A child that it has just forked looks like the agent itself.
            ensure!(!self.stolen.fleet.agent_pids(name).is_empty(), "{name} lost its agent");
        }
        Ok(())
    }

    /// That the machine never began, by what it reported.
    pub fn require_waiting(&self) -> Result<()> {
        let number = self.target.generation.get();
        let events = self.stolen.fleet.events(LATER, number)?;
        let began = events.iter().any(|kind| matches!(kind, EventKind::Activating { .. }));
        ensure!(!began, "{LATER} began: {events:?}");
        Ok(())
    }

    pub fn tell(&self, lies: Lies) {
        self.stolen.thief.bend(move |answer: &mut Answer| {
            let is_plan = answer.path.starts_with("/v1/plans/");
            let own = answer.path.split_once(&format!("/machines/{LATER}/tuf/")).map(|(_, file)| file);
            let told = if answer.path == api::CHECKIN {
                lies.leave.as_ref().and_then(|leave| {
                    let mut reply: Value = serde_json::from_slice(&answer.body).ok()?;
                    reply.as_object_mut()?.insert("rollout".into(), leave.clone());
                    Some(reply.to_string().into_bytes())
                })
            } else if is_plan && answer.path.contains("/statements?") {
                lies.statements.clone()
            } else if is_plan {
                lies.plan.clone()
            } else {
                own.and_then(|file| lies.files.iter().find(|(end, _)| file.ends_with(*end)))
                    .map(|(_, bytes)| bytes.clone())
            };
            if let Some(body) = told {
                (answer.status, answer.body) = (200, body);
            }
        });
    }

    pub fn leave(&self) -> Value {
        json!({ "plan": self.place.plan, "seconds": 600 })
    }

    /// Leave, and these as the proof.
    pub fn proof(&self, statements: &[Statement]) -> Result<Lies> {
        let statements = serde_json::to_vec(&Statements { statements: statements.to_vec() })?;
        Ok(Lies { leave: Some(self.leave()), statements: Some(statements), ..Lies::default() })
    }

    /// That each canary soaked, as whoever has these keys can sign it.
    pub fn soaked(&self, keys: &[&SecretKey; 2]) -> Vec<Statement> {
        let signed = |(voucher, key): (&Voucher, &&SecretKey)| self.claim(voucher, key);
        self.plan.waves[0].vouchers.iter().zip(keys).map(signed).collect()
    }

    pub fn claim(&self, voucher: &Voucher, key: &SecretKey) -> Statement {
        let said = Said::Soaked;
        let claim = Claim { hash: self.place.plan, plan: &self.plan, voucher, said };
        Statement { machine: voucher.machine.clone(), said, signature: claim.sign(key) }
    }

    pub fn key_of(&self, name: &str) -> Result<SecretKey> {
        key_in(&self.stolen.state(name).join("machine.pem"))
    }

    /// In the order of the plan's vouchers.
    pub fn canaries_keys(&self) -> Result<[SecretKey; 2]> {
        let [first, second] = &self.plan.waves[0].vouchers[..] else { bail!("two vouch") };
        Ok([self.key_of(first.machine.as_str())?, self.key_of(second.machine.as_str())?])
    }

    /// The attacks that the waiting machine reported, newest first.
    pub fn reported(&self) -> Result<Vec<AttackView>> {
        let path = format!("{}/{LATER}/attacks?limit=200", api::OPERATOR_MACHINES);
        self.caller.operate(&self.operator, &Method::GET, &path, Vec::new())?.read()
    }

    /// Waits until the machine reports one of `attacks`, after `known` others.
    pub fn sees(&self, known: usize, attacks: &[Attack]) -> Result<AttackView> {
        let mut last = None;
        let seen = self.until("a reported refusal", || {
            let reported = self.reported()?;
            let newer = reported.len().saturating_sub(known);
            last = reported.first().cloned();
            Ok(reported.into_iter().take(newer).find(|reported| attacks.contains(&reported.attack)))
        });
        seen.with_context(|| format!("the last that was refused: {last:?}"))
    }

    /// Tells these lies, and checks that the machine refuses them as one of `attacks`, and is untouched.
    pub fn refuses(&self, attacks: &[Attack], lies: Lies) -> Result<String> {
        self.part(attacks)?;
        let known = self.reported()?.len();
        self.tell(lies);
        self.stolen.ask(LATER)?;
        self.told(self.sees(known, attacks)?)
    }

    /// The same with a machine that has just been turned on: it reports whatever it refuses.
    pub fn refuses_when_on(&self, attack: Attack, lies: Lies) -> Result<String> {
        let machine = self.stolen.fleet.machine(LATER);
        machine.stop(false)?;
        let known = self.reported()?.len();
        self.tell(lies);
        machine.start()?;
        self.told(self.sees(known, &[attack])?)
    }

    fn told(&self, seen: AttackView) -> Result<String> {
        // Had it believed what it reports, it would be under way by its next check-in.
        self.stolen.ask(LATER)?;
        self.require_untouched()?;
        self.require_waiting()?;
        Ok(format!("status and history: {}", seen.attack.as_str()))
    }

    /// An ongoing attack is reported once: between two of one kind there is another one.
    pub fn part(&self, attacks: &[Attack]) -> Result<()> {
        let reported = self.reported()?;
        if !reported.first().is_some_and(|last| attacks.contains(&last.attack)) {
            return Ok(());
        }
        let (other, statements) = match attacks.contains(&Attack::Malformed) {
            true => (Attack::EndlessData, vec![b' '; MAX_STATEMENTS_BYTES as usize + 1]),
            false => (Attack::Malformed, b"a page in between".to_vec()),
        };
        self.tell(Lies { statements: Some(statements), ..self.proof(&[])? });
        self.stolen.ask(LATER)?;
        self.sees(reported.len(), &[other]).map(|_| ())
    }

    pub fn until<T>(&self, what: &str, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let clock = SystemClock::new();
        loop {
            if let Some(found) = found()? {
                return Ok(found);
            }
            ensure!(clock.awake() < PATIENCE, "{what} did not come about\n{}", self.stolen.fleet.logs(LATER));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// A timestamp by the stolen key, newer than all before it.
    pub fn stamp(&self, machine: &str, snapshot: &[u8]) -> Result<Vec<u8>> {
        let now = SystemClock::new().unix_seconds();
        let version = u64::try_from(now)?.max(self.stamps.get() + 1);
        self.stamps.set(version);
        Ok(sign_timestamp(&machine.parse()?, snapshot, version, now + DAY, &self.stolen.online_key()?)?)
    }

    /// Publishes it as an operator does, and waits until the waiting machine has taken it.
    pub fn publish(&self, signed: &Publication) -> Result<()> {
        self.stolen.thief.behave();
        // The thief's timestamps are ahead of the clock, and the controller's versions are the time.
        let (clock, last) = (SystemClock::new(), i64::try_from(self.stamps.get())?);
        self.until("a later second", || Ok((clock.unix_seconds() > last).then_some(())))?;
        let path = format!("{}/generations", api::operator_machine(&LATER.parse()?));
        let body = serde_json::to_vec(signed)?;
        let taken = self.caller.operate(&self.operator, &Method::POST, &path, body)?;
        ensure!(taken.is_good(), "{}", taken.text());
        self.until("the next target", || {
            self.stolen.ask(LATER)?;
            let view = view(&self.caller, &self.operator, LATER)?;
            Ok((view.holds.targets == signed.generation.get() && view.refused.is_none()).then_some(()))
        })
    }

    /// A file of a machine's repository, from the controller.
    pub fn file(&self, machine: &str, name: &str) -> Result<Vec<u8>> {
        let bearer = self.caller.session(&self.operator)?;
        let path = format!("{}/{name}", api::tuf_path(&machine.parse()?));
        let answered = self.caller.get(&path, Some(&bearer))?;
        ensure!(answered.is_good(), "{path}: {}", answered.text());
        Ok(answered.body)
    }

    /// Nothing was refused for its form: with the right keys the same opens the gate. Then an honest rollout
    /// goes through.
    pub fn end(mut self, book: &mut Book) -> Result<()> {
        self.require_waiting()?;
        let [first, second] = self.canaries_keys()?;
        self.tell(self.proof(&self.soaked(&[&first, &second]))?);
        self.stolen.ask(LATER)?;
        let greets = |words: &'static str| {
            move |machine: &muster_testbed::machine::Machine| machine.greeting().as_deref() == Some(words)
        };
        self.stolen.fleet.until(LATER, "its turn", greets("two"))?;
        book.control(
            "whoever has the keys of both canaries and the controller opens the second wave, though it was paused",
        );

        self.stolen.thief.behave();
        let off = serde_json::to_vec(&SetBrake { on: false, why: None })?;
        let taken = self.caller.operate(&self.operator, &Method::POST, api::OPERATOR_BRAKE, off)?;
        ensure!(taken.is_good(), "{}", taken.text());
        self.stolen.fleet.fixture.say("greeting", "three")?;
        publish(&self.stolen.fleet, "last", "1s")?;
        self.stolen.ask(LATER)?;
        wait(&self.stolen.fleet, "last", |view| view.state == RolloutState::Done)?;
        for name in CANARIES.into_iter().chain([LATER]) {
            self.stolen.fleet.until(name, "the honest rollout", greets("three"))?;
        }
        self.remember()?;
        self.require_untouched()?;
        book.control("an honest rollout of both waves goes through");
        Ok(())
    }
}

pub fn publish(fleet: &Fleet, name: &str, soak: &str) -> Result<()> {
    let file = fleet.folder().join(format!("{name}.toml"));
    let [first, second] = CANARIES;
    fs::write(
        &file,
        format!(
            "[[waves]]\nname = \"canaries\"\nmachines = [\"{first}\", \"{second}\"]\natLeast = 2\n\
             soak = \"{soak}\"\nmaxInFlight = 2\n[[waves]]\nname = \"rest\"\nsoak = \"1s\"\n"
        ),
    )?;
    let flake = format!("path:{}", fleet.fixture.flake().display());
    let file = file.display().to_string();
    fleet.must(&["update", "--yes", "--force", "--flake", &flake, "--rollout-file", &file])?;
    Ok(())
}

pub fn shown(fleet: &Fleet, name: &str) -> Result<RolloutView> {
    printed::read(&fleet.must(&["rollout", "show", name, "--json"])?)
}

pub fn wait(fleet: &Fleet, name: &str, wanted: impl Fn(&RolloutView) -> bool) -> Result<()> {
    let clock = SystemClock::new();
    loop {
        let view = shown(fleet, name)?;
        if wanted(&view) {
            return Ok(());
        }
        ensure!(clock.awake() < PATIENCE, "rollout {name} is at {view:?}\n{}", fleet.logs(LATER));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

pub fn view(caller: &Caller, operator: &SecretKey, machine: &str) -> Result<MachineView> {
    let path = format!("{}/{machine}", api::OPERATOR_MACHINES);
    caller.operate(operator, &Method::GET, &path, Vec::new())?.read()
}

pub fn published(view: &MachineView) -> Result<Target> {
    Ok(view.published.clone().context("something was published")?.target)
}

/// A leave that the controller gave in the rollout of this plan.
pub fn given(stolen: &Stolen, plan: &Sha256) -> Result<Leave> {
    let seen = stolen.thief.seen().into_iter().filter(|answer| answer.path == api::CHECKIN);
    let mut leaves = seen.filter_map(|answer| {
        let reply: Value = serde_json::from_slice(&answer.body).ok()?;
        serde_json::from_value::<Leave>(reply["rollout"].clone()).ok()
    });
    leaves.find(|leave| leave.plan == *plan && leave.seconds > 0).context("a canary had leave")
}

/// What a canary said of this plan last, as it passed through.
pub fn said_by(stolen: &Stolen, name: &str, plan: &Sha256) -> Result<Statement> {
    let asked = stolen.thief.asked().into_iter().rev().filter(|asked| asked.path == api::CHECKIN);
    let mut said = asked.filter_map(|asked| {
        let check_in: CheckIn = serde_json::from_slice(&asked.body).ok()?;
        let vouch = check_in.vouch.filter(|vouch| vouch.plan == *plan)?;
        (check_in.machine.as_str() == name).then_some(vouch)
    });
    let vouch = said.next().with_context(|| format!("{name} said nothing"))?;
    ensure!(vouch.said == Said::Confirmed, "{name} has {:?}", vouch.said);
    Ok(Statement { machine: name.parse()?, said: vouch.said, signature: vouch.signature })
}
