//! What only operators ask of a controller, asked with every key that is not theirs.

use anyhow::{Result, ensure};
use muster_protocol::api;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::{
    AskRollout, BrakeView, NewPlan, Request, RequestSignature, RolloutState, RolloutView, SetBrake, Wish,
};
use muster_protocol::plan::Plan;
use muster_protocol::report::Attack;
use muster_protocol::signin::SignIn;
use muster_testbed::caller::Answered;
use reqwest::Method;

use super::scene::{LATER, Lies, Scene};
use crate::book::{Book, By};

pub fn run(scene: &Scene, book: &mut Book) -> Result<()> {
    let fleet = &scene.stolen.fleet;
    fleet.must(&["rollout", "pause", "later"])?;
    fleet.must(&["brake"])?;
    let lies = Lies { leave: Some(scene.leave()), ..Lies::default() };
    let tried = scene.refuses_when_on(Attack::SkippedWave, lies);
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
