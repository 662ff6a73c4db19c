//! A rollout whose controller was stolen. Two canaries run the new system and soak for an hour; the third machine
//! waits for them. A thief with the controller's address and its key wants it to begin.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use muster_protocol::api;
use muster_protocol::checkin::CheckIn;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::{
    AskRollout, AttackView, BrakeView, MachineView, NewPlan, Request, RequestSignature, RolloutState,
    RolloutView, SetBrake, Wish,
};
use muster_protocol::plan::{
    Claim, Leave, MAX_LEAVE_SECONDS, MAX_PLAN_BYTES, MAX_STATEMENTS, MAX_STATEMENTS_BYTES, Place, Plan, Said,
    Statement, Statements, Voucher,
};
use muster_protocol::report::{Attack, EventKind};
use muster_protocol::signin::SignIn;
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::{sign_generation, sign_timestamp};
use muster_testbed::caller::{Answered, Caller, key_in};
use muster_testbed::fleet::{Fleet, PATIENCE, both};
use muster_testbed::printed;
use muster_testbed::programs;
use muster_testbed::stolen::{NEIGHBOUR, Stolen, Untouched, VICTIM};
use muster_testbed::thief::Answer;
use reqwest::Method;
use serde_json::{Value, json};

use crate::book::{Book, By};
use crate::siege::DAY;

const CANARIES: [&str; 2] = [VICTIM, "zinc"];
/// The machine that waits.
const LATER: &str = NEIGHBOUR;

struct Scene {
    stolen: Stolen,
    caller: Caller,
    operator: SecretKey,
    /// One who was an operator.
    removed: SecretKey,
    plan: Plan,
    place: Place,
    target: Target,
    /// What the canaries said of the plan so far: that they confirmed it.
    confirmed: Vec<Statement>,
    earlier: Earlier,
    /// The state that all machines must keep.
    before: Vec<Untouched>,
    stamps: Cell<u64>,
}

/// A rollout of the same systems before, in which the canaries soaked.
struct Earlier {
    plan: Vec<u8>,
    soaked: Vec<Statement>,
    leave: Leave,
}

/// What the thief answers instead of the controller; the rest passes.
#[derive(Default, Clone)]
struct Lies {
    leave: Option<Value>,
    statements: Option<Vec<u8>>,
    plan: Option<Vec<u8>>,
    /// Files of the waiting machine's repository, by the ends of their paths.
    files: BTreeMap<String, Vec<u8>>,
}

pub fn run(book: &mut Book) -> Result<()> {
    let mut scene = Scene::set()?;
    on_the_plan(&mut scene, book)?;
    on_the_proof(&scene, book)?;
    on_the_target(&scene, book)?;
    on_the_controller(&scene, book)?;
    scene.end(book)
}

impl Scene {
    fn set() -> Result<Self> {
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

    fn remember(&mut self) -> Result<()> {
        let all = CANARIES.into_iter().chain([LATER]);
        self.before = all.map(|name| self.stolen.untouched(name)).collect::<Result<_>>()?;
        Ok(())
    }

    fn require_untouched(&self) -> Result<()> {
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
    fn require_waiting(&self) -> Result<()> {
        let number = self.target.generation.get();
        let events = self.stolen.fleet.events(LATER, number)?;
        let began = events.iter().any(|kind| matches!(kind, EventKind::Activating { .. }));
        ensure!(!began, "{LATER} began: {events:?}");
        Ok(())
    }

    fn tell(&self, lies: Lies) {
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

    fn leave(&self) -> Value {
        json!({ "plan": self.place.plan, "seconds": 600 })
    }

    /// Leave, and these as the proof.
    fn proof(&self, statements: &[Statement]) -> Result<Lies> {
        let statements = serde_json::to_vec(&Statements { statements: statements.to_vec() })?;
        Ok(Lies { leave: Some(self.leave()), statements: Some(statements), ..Lies::default() })
    }

    /// That each canary soaked, as whoever has these keys can sign it.
    fn soaked(&self, keys: &[&SecretKey; 2]) -> Vec<Statement> {
        let signed = |(voucher, key): (&Voucher, &&SecretKey)| self.claim(voucher, key);
        self.plan.waves[0].vouchers.iter().zip(keys).map(signed).collect()
    }

    fn claim(&self, voucher: &Voucher, key: &SecretKey) -> Statement {
        let said = Said::Soaked;
        let claim = Claim { hash: self.place.plan, plan: &self.plan, voucher, said };
        Statement { machine: voucher.machine.clone(), said, signature: claim.sign(key) }
    }

    fn key_of(&self, name: &str) -> Result<SecretKey> {
        key_in(&self.stolen.state(name).join("machine.pem"))
    }

    /// In the order of the plan's vouchers.
    fn canaries_keys(&self) -> Result<[SecretKey; 2]> {
        let [first, second] = &self.plan.waves[0].vouchers[..] else { bail!("two vouch") };
        Ok([self.key_of(first.machine.as_str())?, self.key_of(second.machine.as_str())?])
    }

    /// The attacks that the waiting machine reported, newest first.
    fn reported(&self) -> Result<Vec<AttackView>> {
        let path = format!("{}/{LATER}/attacks?limit=200", api::OPERATOR_MACHINES);
        self.caller.operate(&self.operator, &Method::GET, &path, Vec::new())?.read()
    }

    /// Waits until the machine reports one of `attacks`, after `known` others.
    fn sees(&self, known: usize, attacks: &[Attack]) -> Result<AttackView> {
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
    fn refuses(&self, attacks: &[Attack], lies: Lies) -> Result<String> {
        self.part(attacks)?;
        let known = self.reported()?.len();
        self.tell(lies);
        self.stolen.ask(LATER)?;
        self.told(self.sees(known, attacks)?)
    }

    fn told(&self, seen: AttackView) -> Result<String> {
        self.require_untouched()?;
        Ok(format!("status and history: {}", seen.attack.as_str()))
    }

    /// An ongoing attack is reported once: between two of one kind there is another one.
    fn part(&self, attacks: &[Attack]) -> Result<()> {
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

    fn until<T>(&self, what: &str, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
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
    fn stamp(&self, machine: &str, snapshot: &[u8]) -> Result<Vec<u8>> {
        let now = SystemClock::new().unix_seconds();
        let version = u64::try_from(now)?.max(self.stamps.get() + 1);
        self.stamps.set(version);
        Ok(sign_timestamp(&machine.parse()?, snapshot, version, now + DAY, &self.stolen.online_key()?)?)
    }

    /// A file of a machine's repository, from the controller.
    fn file(&self, machine: &str, name: &str) -> Result<Vec<u8>> {
        let bearer = self.caller.session(&self.operator)?;
        let path = format!("{}/{name}", api::tuf_path(&machine.parse()?));
        let answered = self.caller.get(&path, Some(&bearer))?;
        ensure!(answered.is_good(), "{path}: {}", answered.text());
        Ok(answered.body)
    }

    /// What was refused is refused for what it is: with the right keys the same opens the gate. Then an honest
    /// rollout goes through.
    fn end(mut self, book: &mut Book) -> Result<()> {
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
        let clock = SystemClock::new();
        let last = i64::try_from(self.stamps.get())?;
        self.until("a later second", || Ok((clock.unix_seconds() > last).then_some(())))?;
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

fn publish(fleet: &Fleet, name: &str, soak: &str) -> Result<()> {
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

fn shown(fleet: &Fleet, name: &str) -> Result<RolloutView> {
    printed::read(&fleet.must(&["rollout", "show", name, "--json"])?)
}

fn wait(fleet: &Fleet, name: &str, wanted: impl Fn(&RolloutView) -> bool) -> Result<()> {
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

fn view(caller: &Caller, operator: &SecretKey, machine: &str) -> Result<MachineView> {
    let path = format!("{}/{machine}", api::OPERATOR_MACHINES);
    caller.operate(operator, &Method::GET, &path, Vec::new())?.read()
}

fn published(view: &MachineView) -> Result<Target> {
    Ok(view.published.clone().context("something was published")?.target)
}

/// A leave that the controller gave in the rollout of this plan.
fn given(stolen: &Stolen, plan: &Sha256) -> Result<Leave> {
    let seen = stolen.thief.seen().into_iter().filter(|answer| answer.path == api::CHECKIN);
    let mut leaves = seen.filter_map(|answer| {
        let reply: Value = serde_json::from_slice(&answer.body).ok()?;
        serde_json::from_value::<Leave>(reply["rollout"].clone()).ok()
    });
    leaves.find(|leave| leave.plan == *plan && leave.seconds > 0).context("a canary had leave")
}

/// What a canary said of this plan last, as it passed through.
fn said_by(stolen: &Stolen, name: &str, plan: &Sha256) -> Result<Statement> {
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

/// Other plans under the path of the one that operators signed.
fn on_the_plan(scene: &mut Scene, book: &mut Book) -> Result<()> {
    let thiefs = [SecretKey::generate()?.public(), SecretKey::generate()?.public()];
    let with = |change: &dyn Fn(&mut Plan)| -> Result<Vec<u8>> {
        let mut plan = scene.plan.clone();
        change(&mut plan);
        Ok(plan.to_bytes()?)
    };
    let keys = with(&|plan| {
        for (voucher, key) in plan.waves[0].vouchers.iter_mut().zip(thiefs) {
            voucher.key = key;
        }
    })?;
    let lower = with(&|plan| plan.waves[0].at_least = 1)?;
    let moved = with(&|plan| {
        let last = plan.waves.remove(1);
        plan.waves[0].members.extend(last.members);
    })?;
    let foreign = with(&|plan| plan.fleet = Sha256::of(b"another fleet"))?;
    let plans = [
        (
            "an earlier rollout's plan",
            "the plan before, under the path of this one",
            scene.earlier.plan.clone(),
        ),
        ("a plan with a thief's keys", "other keys named for the canaries", keys),
        ("a plan with a lower gate", "one canary instead of two", lower),
        ("a plan with everybody in the first wave", "the waiting machine made a canary", moved),
        ("another fleet's plan", "a plan of the same machines in another fleet", foreign),
    ];
    for (name, attempt, plan) in plans {
        book.attack(name, attempt, By::Agent, swapped(scene, plan, Attack::MixAndMatch));
    }
    let endless = vec![b' '; MAX_PLAN_BYTES as usize + 1];
    let tried = swapped(scene, endless, Attack::EndlessData);
    book.attack("a plan without end", "more bytes than any plan has", By::Agent, tried);

    scene.stolen.thief.behave();
    scene.stolen.ask(LATER)?;
    let file = scene.stolen.state(LATER).join("tuf/plan.json");
    scene.stolen.fleet.until(LATER, "the plan", |_| file.exists())?;
    scene.remember()?;
    book.control("the plan that was signed is taken");
    Ok(())
}

/// Serves this plan to a machine that has just been turned on: it reports anew what it refuses.
fn swapped(scene: &Scene, plan: Vec<u8>, attack: Attack) -> Result<String> {
    let machine = scene.stolen.fleet.machine(LATER);
    machine.stop(false)?;
    let known = scene.reported()?.len();
    scene.tell(Lies { plan: Some(plan), leave: Some(scene.leave()), ..Lies::default() });
    machine.start()?;
    scene.told(scene.sees(known, &[attack])?)
}

/// Leave that nothing proves.
fn on_the_proof(scene: &Scene, book: &mut Book) -> Result<()> {
    let (online, own) = (scene.stolen.online_key()?, scene.key_of(LATER)?);
    let [first, second] = scene.canaries_keys()?;
    let skipped = |lies: Lies| scene.refuses(&[Attack::SkippedWave], lies);
    let mut attack = |name: &str, attempt: &str, tried| book.attack(name, attempt, By::Agent, tried);

    // The honest controller has no statements yet.
    let lies = Lies { leave: Some(scene.leave()), ..Lies::default() };
    attack("leave without proof", "'switch now' before a canary has soaked", skipped(lies));
    let leave = json!({ "plan": scene.place.plan, "seconds": u64::MAX });
    let lies = Lies { leave: Some(leave), ..scene.proof(&[])? };
    attack("leave for years", &format!("more than {MAX_LEAVE_SECONDS} seconds, and no proof"), skipped(lies));
    attack(
        "the controller's word for a canary",
        "statements signed with the stolen online key",
        skipped(scene.proof(&scene.soaked(&[&online, &online]))?),
    );
    attack(
        "the waiting machine's word for a canary",
        "statements signed with its own key, stolen",
        skipped(scene.proof(&scene.soaked(&[&own, &own]))?),
    );
    let bent: Vec<Statement> =
        scene.confirmed.iter().map(|said| Statement { said: Said::Soaked, ..said.clone() }).collect();
    attack("a confirmation as a soak", "what canaries signed at once", skipped(scene.proof(&bent)?));
    attack("a confirmation", "the same as it was signed", skipped(scene.proof(&scene.confirmed)?));
    attack(
        "a word of an earlier rollout",
        "the canaries' own words about the same system",
        skipped(scene.proof(&scene.earlier.soaked)?),
    );
    let mut elsewhere = Vec::new();
    for (voucher, key) in scene.plan.waves[0].vouchers.iter().zip([&first, &second]) {
        let voucher = Voucher { output: scene.target.output.clone(), ..voucher.clone() };
        elsewhere.push(scene.claim(&voucher, key));
    }
    attack(
        "a word about another system",
        "the canaries' words, of another output",
        skipped(scene.proof(&elsewhere)?),
    );
    let one = scene.soaked(&[&first, &second]).swap_remove(0);
    attack(
        "one canary's word many times",
        "with one stolen canary's key, where two must have soaked",
        skipped(scene.proof(&vec![one.clone(); 64])?),
    );
    let name = scene.plan.waves[0].vouchers[1].machine.clone();
    let crossed = [one.clone(), Statement { machine: name, ..one.clone() }];
    attack("one canary's word for two", "under both names", skipped(scene.proof(&crossed)?));

    let many = vec![one.clone(); MAX_STATEMENTS + 1];
    let tried = scene.refuses(&[Attack::Malformed, Attack::EndlessData], scene.proof(&many)?);
    attack("more words than a gate has", "hundreds of statements to check", tried);
    let endless = vec![b' '; MAX_STATEMENTS_BYTES as usize + 1];
    let lies = Lies { statements: Some(endless), ..scene.proof(&[])? };
    attack(
        "words without end",
        "more bytes than any gate needs",
        scene.refuses(&[Attack::EndlessData], lies),
    );

    let tried = earlier_leave(scene);
    attack("leave of an earlier rollout", "what the controller said then, repeated", tried);
    Ok(())
}

/// Leave of another plan: the machine does not even ask for its proof.
fn earlier_leave(scene: &Scene) -> Result<String> {
    let leave = serde_json::to_value(&scene.earlier.leave)?;
    scene.tell(Lies {
        leave: Some(leave),
        ..scene.proof(&scene.soaked(&[&scene.operator, &scene.operator]))?
    });
    scene.stolen.ask(LATER)?;
    scene.stolen.thief.forget();
    let own = |body: &[u8]| {
        serde_json::from_slice::<CheckIn>(body).is_ok_and(|check_in| check_in.machine.as_str() == LATER)
    };
    scene.until("two check-ins", || {
        scene.stolen.ask(LATER)?;
        let asked = scene.stolen.thief.asked();
        Ok((asked.iter().filter(|asked| own(&asked.body)).count() >= 2).then_some(()))
    })?;
    let proof = scene.stolen.thief.asked().iter().any(|asked| asked.path.contains("/statements?"));
    ensure!(!proof, "the machine asked for the proof of it");
    scene.require_untouched()?;
    Ok("nothing: it waits on".to_owned())
}

/// Other targets than the one whose gate is closed.
fn on_the_target(scene: &Scene, book: &mut Book) -> Result<()> {
    let number = scene.target.generation.get();
    let snapshot = scene.file(VICTIM, &format!("{number}.snapshot.json"))?;
    let files = [
        ("timestamp.json", scene.stamp(VICTIM, &snapshot)?),
        ("snapshot.json", snapshot),
        ("targets.json", scene.file(VICTIM, &format!("{number}.targets.json"))?),
    ];
    let tried = scene.refuses(&[Attack::ForeignMachine], laid(files));
    book.attack("a canary's target for a later wave", "what may be switched to at once", By::Agent, tried);

    let snapshot = scene.file(LATER, "1.snapshot.json")?;
    let files = [("timestamp.json", scene.stamp(LATER, &snapshot)?), ("1.snapshot.json", snapshot)];
    let tried = scene.refuses(&[Attack::Rollback], laid(files));
    book.attack("an older target without a gate", "what was signed before the rollout", By::Agent, tried);

    let next = Target { generation: scene.target.generation.next()?, ..scene.target.clone() };
    let open = Target { rollout: None, requires: Vec::new(), ..next.clone() };
    let expires = SystemClock::new().unix_seconds() + 30 * DAY;
    let signed = sign_generation(&open, expires, &[&scene.stolen.online_key()?])?;
    let files = [
        ("timestamp.json", scene.stamp(LATER, signed.snapshot.as_bytes())?),
        ("snapshot.json", signed.snapshot.into_bytes()),
        ("targets.json", signed.targets.into_bytes()),
        ("generation.json", signed.target.into_bytes()),
    ];
    let tried = scene.refuses(&[Attack::ForgedSignature], laid(files));
    book.attack("a target without its gate", "signed with the stolen online key", By::Agent, tried);

    // Signed by an operator, and not published yet.
    let signed = sign_generation(&next, expires, &[&scene.operator])?;
    let targets = signed.targets.replace(&api::gated_name(&next.machine), &api::target_name(&next.machine));
    ensure!(targets != signed.targets, "its list is bent");
    let files = [
        ("timestamp.json", scene.stamp(LATER, signed.snapshot.as_bytes())?),
        ("snapshot.json", signed.snapshot.into_bytes()),
        ("targets.json", targets.into_bytes()),
        ("generation.json", signed.target.into_bytes()),
    ];
    let attacks = [Attack::EndlessData, Attack::MixAndMatch, Attack::ForgedSignature];
    let tried = scene.refuses(&attacks, laid(files));
    book.attack("a gated target under a plain name", "an operator's list, bent", By::Agent, tried);
    scene.stolen.thief.behave();
    Ok(())
}

fn laid<const N: usize>(files: [(&str, Vec<u8>); N]) -> Lies {
    let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    Lies { files, ..Lies::default() }
}

/// What only operators ask of a controller, asked with every key that is not theirs.
fn on_the_controller(scene: &Scene, book: &mut Book) -> Result<()> {
    let fleet = &scene.stolen.fleet;
    fleet.must(&["rollout", "pause", "later"])?;
    fleet.must(&["brake"])?;
    let lies = Lies { leave: Some(scene.leave()), ..Lies::default() };
    let tried = scene.refuses(&[Attack::SkippedWave], lies);
    book.attack("leave while it is paused", "'switch now', whatever operators said", By::Agent, tried);

    let session = SecretKey::generate()?;
    let now = SystemClock::new().unix_seconds();
    let signed_in = SignIn::make(&scene.operator, &scene.caller.fleet(), session.public(), now, 3600)?;
    let path = api::OPERATOR_ROLLOUTS;
    let read = asked(scene, (&session, Some(&signed_in)), (&Method::GET, path), Vec::new())?;
    ensure!(read.is_good(), "a key that was signed in reads: {}", read.text());
    let (online, machine) = (scene.stolen.online_key()?, scene.key_of(LATER)?);
    let keys = [
        ("the controller's key releases a rollout", &online, None),
        ("a machine releases its rollout", &machine, None),
        ("a former operator releases a rollout", &scene.removed, None),
        ("a key that was signed in releases a rollout", &session, Some(&signed_in)),
    ];
    let attempt = "a plan of its own, 'run and forgive', and the brake taken off";
    for (name, key, sign_in) in keys {
        book.attack(name, attempt, By::Controller, released(scene, key, sign_in));
    }
    Ok(())
}

/// A request signed by an operator, by someone posing as one, or by a key that one signed in.
fn asked(
    scene: &Scene,
    (key, sign_in): (&SecretKey, Option<&SignIn>),
    (method, path): (&Method, &str),
    body: Vec<u8>,
) -> Result<Answered> {
    let Some(sign_in) = sign_in else { return scene.caller.operate(key, method, path, body) };
    let request = Request { audience: &scene.caller.fleet(), method: method.as_str(), path, body: &body };
    let (now, nonce) = (SystemClock::new().unix_seconds(), muster_protocol::random::bytes()?);
    let signature = serde_json::to_string(&RequestSignature::make_reading(key, request, now, nonce)?)?;
    let headers = [(api::OPERATOR_SIGNATURE, signature), (api::OPERATOR_SIGN_IN, sign_in.to_string())];
    scene.caller.ask(method, path, &headers, body)
}

fn released(scene: &Scene, key: &SecretKey, sign_in: Option<&SignIn>) -> Result<String> {
    let list = || -> Result<Vec<RolloutView>> {
        let path = api::OPERATOR_ROLLOUTS;
        scene.caller.operate(&scene.operator, &Method::GET, path, Vec::new())?.read()
    };
    let before = list()?.len();
    let other = Plan { nonce: Sha256::of(b"a thief's"), ..scene.plan.clone() };
    let plan = NewPlan { plan: String::from_utf8(other.to_bytes()?)? };
    let wish = AskRollout { wish: Wish::Run, forgive: true, why: None };
    let requests = [
        (api::OPERATOR_PLANS.to_owned(), serde_json::to_vec(&plan)?),
        (api::operator_rollout(&scene.place.plan), serde_json::to_vec(&wish)?),
        (api::OPERATOR_BRAKE.to_owned(), serde_json::to_vec(&SetBrake { on: false, why: None })?),
    ];
    let mut statuses = Vec::new();
    for (path, body) in requests {
        let answered = asked(scene, (key, sign_in), (&Method::POST, &path), body)?;
        ensure!([401, 403].contains(&answered.status), "{path}: {}", answered.text());
        statuses.push(answered.status);
    }
    let path = api::OPERATOR_BRAKE;
    let brake: Option<BrakeView> =
        scene.caller.operate(&scene.operator, &Method::GET, path, Vec::new())?.read()?;
    ensure!(brake.is_some(), "the brake was taken off");
    let rollouts = list()?;
    ensure!(rollouts.len() == before, "a plan was stored");
    let state = rollouts.iter().find(|it| it.plan == scene.place.plan).map(|it| it.state);
    ensure!(state == Some(RolloutState::Paused), "the rollout is {state:?}");
    scene.require_untouched()?;
    statuses.dedup();
    Ok(format!("refused with {statuses:?}"))
}
