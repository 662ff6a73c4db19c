//! Impostors of a machine: with a copied key, a neighbour's, a guessed bearer, or another machine's token.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Result, ensure};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::enrol::{EnrolRequest, Enrolling, Secret, Token};
use muster_protocol::ids::Generation;
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::{AddMachine, MachineView};
use muster_protocol::report::{Attack, Batch};
use muster_protocol::tuf::repository::{RootSpec, sign_root};
use muster_testbed::caller::{Answered, key_in};
use muster_testbed::fleet::said;
use muster_testbed::stolen::{NEIGHBOUR, VICTIM};
use muster_testbed::thief::Answer;
use reqwest::Method;

use crate::book::{Book, By};
use crate::siege::Siege;

pub fn run(siege: &Siege, book: &mut Book) -> Result<()> {
    check_ins(siege, book)?;
    rotations(siege, book)?;
    bearers(siege, book)?;
    tokens(siege, book)?;
    false_controller(siege, book)?;
    clones(siege, book)
}

/// Refused with this status and code, with both machines unchanged.
pub fn refused(siege: &Siege, answered: &Answered, status: u16, code: ProblemCode) -> Result<String> {
    ensure!(
        (answered.status, answered.code()) == (status, Some(code)),
        "wanted {status} {code:?}, got {}",
        answered.text()
    );
    siege.require_untouched()?;
    ensure!(siege.caller.get(api::FLEET, None)?.is_good(), "the controller answers no more");
    Ok(format!("refused with {status}"))
}

/// The key of an enrolled machine, as root on it could copy it.
pub fn stolen_key(siege: &Siege, name: &str) -> Result<SecretKey> {
    key_in(&siege.stolen.state(name).join("machine.pem"))
}

/// A check-in of a machine that was answered: another one has followed it.
fn last_check_in(siege: &Siege, name: &str) -> Result<CheckIn> {
    siege.stolen.thief.forget();
    siege.until("two check-ins that go by", || {
        siege.stolen.ask(name)?;
        let asked = siege.stolen.thief.asked();
        let mut its = asked.iter().rev().filter(|asked| asked.path == api::CHECKIN).filter_map(|asked| {
            serde_json::from_slice::<CheckIn>(&asked.body).ok().filter(|c| c.machine.as_str() == name)
        });
        Ok(its.nth(1))
    })
}

fn send(siege: &Siege, key: &SecretKey, check_in: &CheckIn) -> Result<Answered> {
    siege.caller.post_as(key, Context::CheckIn, api::CHECKIN, serde_json::to_vec(check_in)?)
}

fn check_ins(siege: &Siege, book: &mut Book) -> Result<()> {
    let check_in = last_check_in(siege, VICTIM)?;
    let next = CheckIn { seq: check_in.seq + 1000, ..check_in };
    let (bad, unauthorised) = (ProblemCode::BadSignature, ProblemCode::Unauthorised);

    let body = serde_json::to_vec(&next)?;
    let tried = siege.caller.ask(&Method::POST, api::CHECKIN, &[], body.clone());
    let tried = tried.and_then(|answered| refused(siege, &answered, 401, unauthorised));
    book.attack("an unsigned check-in", "a machine's words without a signature", By::Controller, tried);

    let tried = send(siege, &SecretKey::generate()?, &next).and_then(|a| refused(siege, &a, 401, bad));
    book.attack("a forged check-in", "signed by a key that nobody enrolled", By::Controller, tried);

    let tried = send(siege, &stolen_key(siege, NEIGHBOUR)?, &next).and_then(|a| refused(siege, &a, 401, bad));
    book.attack("a neighbour's check-in", "signed by another enrolled machine", By::Controller, tried);

    let signature = stolen_key(siege, VICTIM)?.sign(Context::Reports, &body).hex();
    let tried = siege
        .caller
        .ask(&Method::POST, api::CHECKIN, &[(api::MACHINE_SIGNATURE, signature)], body)
        .and_then(|a| refused(siege, &a, 401, bad));
    book.attack(
        "a signature for something else",
        "a report's signature on a check-in",
        By::Controller,
        tried,
    );

    let elsewhere = CheckIn { audience: muster_protocol::ids::Sha256::of(b"another fleet"), ..next.clone() };
    let tried = send(siege, &stolen_key(siege, VICTIM)?, &elsewhere)
        .and_then(|a| refused(siege, &a, 403, unauthorised));
    book.attack(
        "another fleet's check-in",
        "the right machine, signed for another controller",
        By::Controller,
        tried,
    );

    let as_mac = CheckIn { class: Class::Darwin, ..next.clone() };
    let tried = send(siege, &stolen_key(siege, VICTIM)?, &as_mac)
        .and_then(|a| refused(siege, &a, 403, ProblemCode::WrongClass));
    book.attack("a changed class", "a NixOS host that says it is a Mac", By::Controller, tried);

    let batch = Batch { machine: VICTIM.parse()?, stream: None, oldest: 1, events: vec![] };
    let body = serde_json::to_vec(&batch)?;
    let tried = siege
        .caller
        .post_as(&stolen_key(siege, NEIGHBOUR)?, Context::Reports, api::REPORTS, body)
        .and_then(|a| refused(siege, &a, 401, bad));
    book.attack(
        "a neighbour's report",
        "events of the victim, reported by another machine",
        By::Controller,
        tried,
    );
    Ok(())
}

fn rotations(siege: &Siege, book: &mut Book) -> Result<()> {
    let new = SecretKey::generate()?;
    let check_in = last_check_in(siege, VICTIM)?;
    let check_in = CheckIn { seq: check_in.seq + 1000, new_key: Some(new.public()), ..check_in };
    let body = serde_json::to_vec(&check_in)?;
    let neighbour = stolen_key(siege, NEIGHBOUR)?;
    let mut rotate = |name: &str, attempt: &str, old: &SecretKey, by_new: Option<&SecretKey>| {
        let mut headers = vec![(api::MACHINE_SIGNATURE, old.sign(Context::CheckIn, &body).hex())];
        headers.extend(
            by_new.map(|key| (api::MACHINE_NEW_SIGNATURE, key.sign(Context::KeyRotation, &body).hex())),
        );
        let tried =
            siege.caller.ask(&Method::POST, api::CHECKIN, &headers, body.clone()).and_then(|answered| {
                ensure!(answered.status == 401, "{}", answered.text());
                let key = siege.view(VICTIM)?.key;
                ensure!(key == Some(stolen_key(siege, VICTIM)?.public()), "its key changed");
                siege.require_untouched()?;
                Ok("refused with 401; the key stays".to_owned())
            });
        book.attack(name, attempt, By::Controller, tried);
        Ok::<_, anyhow::Error>(())
    };
    rotate("a usurped key", "a new key that the old one did not sign", &neighbour, Some(&new))?;
    rotate(
        "a key that nobody holds",
        "a new key without a signature of its own",
        &stolen_key(siege, VICTIM)?,
        None,
    )?;
    Ok(())
}

fn bearers(siege: &Siege, book: &mut Book) -> Result<()> {
    let path = format!("{}/timestamp.json", api::tuf_path(&VICTIM.parse()?));
    let unauthorised = ProblemCode::Unauthorised;
    let tried = siege.caller.get(&path, None).and_then(|a| refused(siege, &a, 401, unauthorised));
    book.attack(
        "reading without a bearer",
        "the victim's metadata, asked for by anybody",
        By::Controller,
        tried,
    );
    let tried =
        siege.caller.get(&path, Some(&"0".repeat(64))).and_then(|a| refused(siege, &a, 401, unauthorised));
    book.attack("a guessed bearer", "64 digits", By::Controller, tried);
    let bearer = bearer_of(siege, NEIGHBOUR)?;
    let tried = siege.caller.get(&path, Some(&bearer)).and_then(|a| refused(siege, &a, 403, unauthorised));
    book.attack(
        "a neighbour's bearer",
        "the victim's metadata, asked for by another machine",
        By::Controller,
        tried,
    );
    let poll = api::poll_path(&VICTIM.parse()?, None, 0);
    let tried = siege.caller.get(&poll, Some(&bearer)).and_then(|a| refused(siege, &a, 403, unauthorised));
    book.attack(
        "a neighbour's poll",
        "the victim's news, waited for by another machine",
        By::Controller,
        tried,
    );
    let tried = siege
        .caller
        .ask(
            &Method::PUT,
            &format!("/cache/{}.narinfo", "1".repeat(32)),
            &[("authorization", format!("Bearer {bearer}"))],
            b"StorePath: /nix/store/x\n".to_vec(),
        )
        .and_then(|a| refused(siege, &a, 403, unauthorised));
    book.attack(
        "a machine that uploads",
        "a file for the cache, with a machine's bearer",
        By::Controller,
        tried,
    );
    Ok(())
}

/// The machine's current bearer.
fn bearer_of(siege: &Siege, name: &str) -> Result<String> {
    let own = format!("/machines/{name}/");
    siege.until("a request with its bearer", || {
        siege.stolen.ask(name)?;
        let asked = siege.stolen.thief.asked();
        let newest = asked.iter().rev().find(|asked| asked.path.contains(&own));
        let said = newest
            .and_then(|asked| asked.headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer "));
        Ok(said.map(str::to_owned))
    })
}

/// A token as `muster machines add` makes it, for a machine that does not exist.
fn token(siege: &Siege, name: &str) -> Result<Token> {
    let now = muster_protocol::clock::Clock::unix_seconds(&muster_protocol::clock::SystemClock::new());
    let token = Token {
        url: siege.stolen.thief.url.clone(),
        machine: name.parse()?,
        class: Class::Nixos,
        fleet: siege.caller.fleet(),
        root: siege.caller.fleet(),
        root_version: 1,
        lowest_generation: Generation::FIRST,
        expires: now + 600,
        secret: Secret::generate()?,
        tls_ca: None,
    };
    let add = AddMachine {
        machine: token.machine.clone(),
        class: token.class,
        system: "x86_64-linux".parse()?,
        tags: BTreeSet::new(),
        token: token.secret.token_id(),
        check_key: token.secret.check_key(),
        expires: token.expires,
        replace: false,
    };
    let added = siege.caller.operate(
        &siege.operator,
        &Method::POST,
        api::OPERATOR_MACHINES,
        serde_json::to_vec(&add)?,
    )?;
    ensure!(added.is_good(), "{}", added.text());
    Ok(token)
}

fn enrol(siege: &Siege, token: &Token, key: &SecretKey) -> Result<(EnrolRequest, Answered)> {
    let enrolling = Enrolling { system: "x86_64-linux".parse()?, age: "age1x".into(), agent: "x".into() };
    let request = EnrolRequest::make(token, key, enrolling);
    let answered = siege.caller.ask(&Method::POST, api::ENROL, &[], serde_json::to_vec(&request)?)?;
    Ok((request, answered))
}

fn tokens(siege: &Siege, book: &mut Book) -> Result<()> {
    let (ghost, other) = (token(siege, "ghost")?, token(siege, "other")?);
    let key = SecretKey::generate()?;

    let mut unknown = ghost.clone();
    unknown.secret = Secret::generate()?;
    let tried =
        enrol(siege, &unknown, &key).and_then(|(_, a)| refused(siege, &a, 404, ProblemCode::TokenUnknown));
    book.attack("a guessed token", "an enrolment with a secret of one's own", By::Controller, tried);

    let mut bent = other.clone();
    bent.machine = VICTIM.parse()?;
    let tried =
        enrol(siege, &bent, &key).and_then(|(_, a)| refused(siege, &a, 403, ProblemCode::Unauthorised));
    book.attack(
        "another machine's token",
        "a token for one machine, used as the victim",
        By::Controller,
        tried,
    );

    let (mut request, _) = enrol(siege, &unknown, &key)?;
    request.token = ghost.secret.token_id();
    let tried = siege
        .caller
        .ask(&Method::POST, api::ENROL, &[], serde_json::to_vec(&request)?)
        .and_then(|a| refused(siege, &a, 403, ProblemCode::BadSignature));
    book.attack("a token's name without its secret", "the public part, as it travels", By::Controller, tried);

    let tried = enrol(siege, &ghost, &stolen_key(siege, VICTIM)?)
        .and_then(|(_, a)| refused(siege, &a, 409, ProblemCode::Conflict));
    book.attack(
        "a second name for a key",
        "the victim's key enrolled as another machine",
        By::Controller,
        tried,
    );

    let (first, answered) = enrol(siege, &ghost, &key)?;
    ensure!(answered.is_good(), "{}", answered.text());
    let secret = String::from(ghost.secret.clone());
    ensure!(!serde_json::to_string(&first)?.contains(&secret), "the secret travelled");
    let tried = enrol(siege, &ghost, &SecretKey::generate()?)
        .and_then(|(_, a)| refused(siege, &a, 410, ProblemCode::TokenUsed));
    book.attack("a used token", "the same token with another key", By::Controller, tried);

    // The ghost is now a machine; it is revoked, and everything it has ends.
    let check_in =
        CheckIn { machine: ghost.machine.clone(), seq: 1, new_key: None, ..last_check_in(siege, VICTIM)? };
    let reply: CheckInReply = send(siege, &key, &check_in)?.read()?;
    let revoke = format!("{}/ghost/revoke", api::OPERATOR_MACHINES);
    let _: MachineView = siege.caller.operate(&siege.operator, &Method::POST, &revoke, Vec::new())?.read()?;
    let tried = siege
        .caller
        .get("/cache/nix-cache-info", Some(&reply.bearer))
        .and_then(|a| refused(siege, &a, 401, ProblemCode::Unauthorised));
    book.attack("a revoked machine's bearer", "an hour's bearer, minutes after", By::Controller, tried);
    let tried = send(siege, &key, &CheckIn { seq: 2, ..check_in })
        .and_then(|a| refused(siege, &a, 403, ProblemCode::Revoked));
    book.attack("a revoked machine's key", "its next check-in", By::Controller, tried);
    Ok(())
}

/// A controller with another root at enrolment: no trust on first use.
fn false_controller(siege: &Siege, book: &mut Book) -> Result<()> {
    let thief = &siege.stolen.thief;
    let token = token(siege, "newcomer")?;
    let key = SecretKey::generate()?;
    let spec = RootSpec {
        version: 1,
        epoch: Default::default(),
        expires: siege.expires(),
        root: (vec![key.public()], 1),
        operators: (vec![key.public()], 1),
        online: vec![siege.online.public()],
    };
    let root = sign_root(&spec, &[&key])?;
    thief.forget();
    thief.bend(move |answer: &mut Answer| {
        if answer.path == api::root_path(1) {
            answer.body = root.clone();
        }
    });
    // The victim's own program and folder, as a machine that was never enrolled.
    let machine = siege.stolen.fleet.machine(VICTIM);
    let state = siege.stolen.fleet.folder().join("newcomer");
    let config = fs::read_to_string(machine.configuration())?;
    let own = format!("state_dir = \"{}\"", machine.root.at("/var/lib/muster").display());
    ensure!(config.contains(&own), "the configuration names its folder");
    let file = siege.stolen.fleet.folder().join("newcomer.toml");
    fs::write(&file, config.replace(&own, &format!("state_dir = \"{}\"", state.display())))?;
    let on_paper = siege.stolen.fleet.folder().join("newcomer.token");
    fs::write(&on_paper, token.encode()?)?;
    let enrolled = std::process::Command::new(muster_testbed::programs::find("muster-agent")?)
        .arg("--config")
        .arg(&file)
        .args(["enrol", "-"])
        .stdin(fs::File::open(&on_paper)?)
        .output()?;
    let words = String::from_utf8_lossy(&enrolled.stderr).into_owned();
    let tried = (|| {
        ensure!(!enrolled.status.success(), "it enrolled: {}", said(&enrolled));
        ensure!(words.contains("do not trust this controller"), "{words}");
        ensure!(!thief.asked().iter().any(|asked| asked.path == api::ENROL), "it showed its keys");
        ensure!(!state.join("enrolment.json").exists(), "it is enrolled");
        siege.require_untouched()?;
        Ok("whoever enrols it: 'do not trust this controller'".to_owned())
    })();
    book.attack("a false root at enrolment", "another root than the token names", By::Agent, tried);
    thief.behave();
    Ok(())
}

fn clones(siege: &Siege, book: &mut Book) -> Result<()> {
    let acknowledge = || -> Result<()> {
        let path = format!("{}/{VICTIM}/acknowledge", api::OPERATOR_MACHINES);
        let _: MachineView =
            siege.caller.operate(&siege.operator, &Method::POST, &path, Vec::new())?.read()?;
        siege.until("the agent's own calm", || {
            siege.stolen.ask(VICTIM)?;
            Ok((siege.view(VICTIM)?.refused.is_none()).then_some(()))
        })?;
        ensure!(!siege.view(VICTIM)?.clone_alarm, "the alarm is ended");
        Ok(())
    };
    let key = stolen_key(siege, VICTIM)?;
    let alarm = |answered: &Answered| {
        refused(siege, answered, 409, ProblemCode::Sequence)?;
        let view = siege.view(VICTIM)?;
        ensure!(view.clone_alarm, "nobody was alarmed");
        let status = siege.stolen.fleet.must(&["status"])?;
        ensure!(status.contains("CLONE") && status.contains("Under attack: cinnabar"), "{status}");
        Ok("a clone alarm, until an operator ends it".to_owned())
    };
    let check_in = last_check_in(siege, VICTIM)?;
    let copy = CheckIn { boot_id: "a copy".into(), ..check_in.clone() };
    let tried = send(siege, &key, &copy).and_then(|answered| alarm(&answered));
    book.attack("a copied machine", "its key elsewhere, with a number that was used", By::Controller, tried);
    acknowledge()?;

    let old = CheckIn { seq: 1, ..check_in };
    let tried = send(siege, &key, &old).and_then(|answered| alarm(&answered));
    book.attack("a replayed check-in", "an old one, as it was signed", By::Controller, tried);
    acknowledge()?;

    // The copy is ahead: the machine itself is refused, and reports it.
    let known = siege.reported_attacks(VICTIM)?.len();
    let check_in = last_check_in(siege, VICTIM)?;
    let ahead = CheckIn { seq: check_in.seq + 10, boot_id: "a copy".into(), ..check_in };
    ensure!(send(siege, &key, &ahead)?.is_good(), "it holds the key");
    let tried = siege.until("the machine's own word", || {
        siege.stolen.ask(VICTIM)?;
        let reported = siege.reported_attacks(VICTIM)?;
        Ok((reported.len() > known && reported[0].attack == Attack::Clone).then_some(()))
    });
    let tried = tried.and_then(|()| {
        siege.require_untouched()?;
        ensure!(siege.view(VICTIM)?.clone_alarm, "nobody was alarmed");
        Ok("a clone alarm, and the machine tells it too".to_owned())
    });
    book.attack("a copy that is ahead", "its key elsewhere, with numbers yet to come", By::Controller, tried);
    acknowledge()
}
