//! A rollout whose controller was stolen. Two canaries run the new system and soak for an hour; the third
//! machine waits for them. A thief with the controller's address and its key wants it to begin.

mod requests;
mod scene;

use anyhow::{Result, ensure};
use muster_protocol::api;
use muster_protocol::checkin::CheckIn;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::SecretKey;
use muster_protocol::plan::{
    MAX_LEAVE_SECONDS, MAX_PLAN_BYTES, MAX_STATEMENTS, MAX_STATEMENTS_BYTES, Plan, Said, Statement, Voucher,
};
use muster_protocol::report::Attack;
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::sign_generation;
use muster_testbed::stolen::VICTIM;
use serde_json::json;

use crate::book::{Book, By};
use crate::siege::DAY;
use scene::{LATER, Lies, Scene};

pub fn run(book: &mut Book) -> Result<()> {
    let mut scene = Scene::set()?;
    on_the_plan(&mut scene, book)?;
    on_the_proof(&scene, book)?;
    on_the_target(&mut scene, book)?;
    requests::run(&scene, book)?;
    scene.end(book)
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

/// Serves this plan, and gives leave.
fn swapped(scene: &Scene, plan: Vec<u8>, attack: Attack) -> Result<String> {
    scene.refuses_when_on(attack, Lies { plan: Some(plan), leave: Some(scene.leave()), ..Lies::default() })
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
    let own = |body: &[u8]| {
        serde_json::from_slice::<CheckIn>(body).is_ok_and(|check_in| check_in.machine.as_str() == LATER)
    };
    // The first check-ins may still bring what was said before.
    for _ in 0..2 {
        scene.stolen.thief.forget();
        scene.until("two check-ins", || {
            scene.stolen.ask(LATER)?;
            let asked = scene.stolen.thief.asked();
            Ok((asked.iter().filter(|asked| own(&asked.body)).count() >= 2).then_some(()))
        })?;
    }
    let proof = scene.stolen.thief.asked().iter().any(|asked| asked.path.contains("/statements?"));
    ensure!(!proof, "the machine asked for the proof of it");
    scene.require_untouched()?;
    Ok("nothing: it waits on".to_owned())
}

/// Other targets than the one whose gate is closed.
fn on_the_target(scene: &mut Scene, book: &mut Book) -> Result<()> {
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
        ("snapshot.json", signed.snapshot.clone().into_bytes()),
        ("targets.json", targets.into_bytes()),
        ("generation.json", signed.target.clone().into_bytes()),
    ];
    let tried = scene.refuses(&[Attack::EndlessData, Attack::MixAndMatch], laid(files));
    book.attack("a gated target under a plain name", "an operator's list, bent", By::Agent, tried);

    scene.require_waiting()?;
    scene.publish(&signed)?;
    scene.target = next;
    scene.remember()?;
    book.control("its target, signed anew and published, is taken and keeps its place");
    Ok(())
}

fn laid<const N: usize>(files: [(&str, Vec<u8>); N]) -> Lies {
    let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    Lies { files, ..Lies::default() }
}
