//! What a thief may substitute for metadata: replayed, frozen, forged, mixed, foreign, endless, broken.

use anyhow::{Context as _, Result, ensure};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::Publication;
use muster_protocol::report::Attack;
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::{RootSpec, sign_generation, sign_root, sign_timestamp, signed_bytes};
use muster_testbed::stolen::{NEIGHBOUR, VICTIM};
use muster_testbed::thief::{Answer, Thief};
use serde_json::Value;

use crate::book::{Book, By};
use crate::siege::{DAY, Laid, Siege};

/// Larger than any document may be, and small enough to be sent.
const ENDLESS: usize = 8 * 1024 * 1024;

fn laid<const N: usize>(files: [(&str, Vec<u8>); N]) -> Laid {
    files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

/// A whole generation, with a timestamp by the stolen online key.
fn lay(siege: &Siege, publication: &Publication) -> Result<Laid> {
    let number = publication.generation;
    let snapshot = publication.snapshot.clone().into_bytes();
    Ok(laid([
        ("timestamp.json", siege.stamp(&snapshot, DAY)?),
        (&format!("{number}.snapshot.json"), snapshot),
        (&format!("{number}.targets.json"), publication.targets.clone().into_bytes()),
        ("generation.json", publication.target.clone().into_bytes()),
    ]))
}

fn edited(bytes: &[u8], edit: impl FnOnce(&mut Value)) -> Result<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(bytes)?;
    edit(&mut value);
    Ok(serde_json::to_vec(&value)?)
}

fn key() -> Result<SecretKey> {
    Ok(SecretKey::generate()?)
}

/// What the thief would like to run: the system of generation 1 under the next number.
fn wish(siege: &Siege) -> Target {
    let evil =
        siege.stolen.fleet.history(VICTIM).map(|history| history.last().map(|e| e.published.target.clone()));
    let old = evil.ok().flatten().unwrap_or_else(|| siege.withheld.clone());
    Target { generation: siege.withheld.generation, ..old }
}

pub fn run(siege: &Siege, book: &mut Book) -> Result<()> {
    replayed(siege, book)?;
    forged(siege, book)?;
    mixed(siege, book)?;
    frozen_and_foreign(siege, book)?;
    endless_and_broken(siege, book)?;
    roots(siege, book)?;
    deceived(siege, book)
}

fn replayed(siege: &Siege, book: &mut Book) -> Result<()> {
    let f = |name: &str| siege.files[name].clone();
    let old = {
        let snapshot = f("2.snapshot.json");
        let version = 1_700_000_000;
        let ends = SystemClock::new().unix_seconds() + DAY;
        sign_timestamp(&VICTIM.parse()?, &snapshot, version, ends, &siege.online)?
    };
    let tried = siege.refuses(&[Attack::Rollback], laid([("timestamp.json", old)]));
    book.attack("an older timestamp", "a timestamp with a lower version than was seen", By::Agent, tried);

    // What operators sign when the controller hides generation 2 from them.
    let hidden = Target { generation: Generation::new(2)?, ..siege.withheld.clone() };
    let twin = sign_generation(&hidden, siege.expires(), &[&siege.operator])?;
    let tried = siege.refuses(&[Attack::MixAndMatch], lay(siege, &twin)?);
    book.attack(
        "a second generation of one number",
        "another generation 2, signed by operators to whom the first was hidden",
        By::Agent,
        tried,
    );

    let stamp = siege.stamp(&f("1.snapshot.json"), DAY)?;
    let tried = siege.refuses(&[Attack::Rollback], laid([("timestamp.json", stamp)]));
    book.attack(
        "an older generation",
        "generation 1 again, with a new timestamp of the stolen online key",
        By::Agent,
        tried,
    );

    let stamp = siege.stamp(&f("3.snapshot.json"), DAY)?;
    let files = laid([("timestamp.json", stamp), ("3.snapshot.json", f("1.snapshot.json"))]);
    let tried = siege.refuses(&[Attack::MixAndMatch], files);
    book.attack(
        "an older snapshot",
        "snapshot 1 in the place of the one that the timestamp pins",
        By::Agent,
        tried,
    );

    let stamp = siege.stamp(&f("3.snapshot.json"), DAY)?;
    let files = laid([("timestamp.json", stamp), ("3.targets.json", f("2.targets.json"))]);
    let tried = siege.refuses(&[Attack::MixAndMatch], files);
    book.attack("older targets", "targets 2 under snapshot 3", By::Agent, tried);
    Ok(())
}

fn forged(siege: &Siege, book: &mut Book) -> Result<()> {
    let f = |name: &str| siege.files[name].clone();
    let forged = [Attack::ForgedSignature];
    let stranger = key()?;
    let now = SystemClock::new().unix_seconds();
    let version = u64::try_from(now)? + 5;
    let stamp = sign_timestamp(&VICTIM.parse()?, &f("3.snapshot.json"), version, now + DAY, &stranger)?;
    let tried = siege.refuses(&forged, laid([("timestamp.json", stamp)]));
    book.attack("a forged timestamp", "signed by a key that no root names", By::Agent, tried);

    let unsigned = edited(&siege.stamp(&f("3.snapshot.json"), DAY)?, |value| {
        value["signatures"] = Value::Array(vec![])
    })?;
    let tried = siege.refuses(&forged, laid([("timestamp.json", unsigned)]));
    book.attack("an unsigned timestamp", "with no signature at all", By::Agent, tried);

    let bent = edited(&siege.stamp(&f("3.snapshot.json"), DAY)?, |value| {
        value["signed"]["expires"] = "2099-01-01T00:00:00Z".into();
    })?;
    let tried = siege.refuses(&forged, laid([("timestamp.json", bent)]));
    book.attack("a prolonged timestamp", "its end put off after it was signed", By::Agent, tried);

    let by_stranger = sign_generation(&wish(siege), siege.expires(), &[&stranger])?;
    let tried = siege.refuses(&forged, lay(siege, &by_stranger)?);
    book.attack("a stranger's generation", "a whole generation signed by an unknown key", By::Agent, tried);

    let by_online = sign_generation(&wish(siege), siege.expires(), &[&siege.online])?;
    let tried = siege.refuses(&forged, lay(siege, &by_online)?);
    book.attack(
        "the controller's own generation",
        "a whole generation signed by the stolen online key",
        By::Agent,
        tried,
    );

    let mut renamed = by_online.clone();
    let id = serde_json::from_slice::<Value>(&f("3.snapshot.json"))?["signatures"][0]["keyid"].clone();
    let snapshot = edited(by_online.snapshot.as_bytes(), |value| value["signatures"][0]["keyid"] = id)?;
    renamed.snapshot = String::from_utf8(snapshot)?;
    let tried = siege.refuses(&forged, lay(siege, &renamed)?);
    book.attack(
        "a borrowed key id",
        "the online key's signature under the operator's key id",
        By::Agent,
        tried,
    );

    let theirs: Value = serde_json::from_slice(&f("3.snapshot.json"))?;
    let mut copied = by_online;
    let snapshot =
        edited(copied.snapshot.as_bytes(), |value| value["signatures"] = theirs["signatures"].clone())?;
    copied.snapshot = String::from_utf8(snapshot)?;
    let tried = siege.refuses(&forged, lay(siege, &copied)?);
    book.attack(
        "a copied signature",
        "the operator's signature of generation 3 on another snapshot",
        By::Agent,
        tried,
    );

    let doubled = edited(&siege.stamp(&f("3.snapshot.json"), DAY)?, |value| {
        let first = value["signatures"][0].clone();
        value["signatures"] = Value::Array(vec![first.clone(), first]);
    })?;
    let tried = siege.refuses(&[Attack::Malformed], laid([("timestamp.json", doubled)]));
    book.attack("a doubled signature", "the same key id twice", By::Agent, tried);
    Ok(())
}

fn mixed(siege: &Siege, book: &mut Book) -> Result<()> {
    let f = |name: &str| siege.files[name].clone();
    let mixed = [Attack::MixAndMatch];
    let stranger = key()?;
    let by_stranger = sign_generation(&wish(siege), siege.expires(), &[&stranger])?;
    let mut grafted = lay(siege, &by_stranger)?;
    let genuine = f("3.snapshot.json");
    grafted.insert("timestamp.json".into(), siege.stamp(&genuine, DAY)?);
    grafted.insert("3.snapshot.json".into(), genuine);
    let tried = siege.refuses(&mixed, grafted);
    book.attack("grafted targets", "a stranger's targets under the genuine snapshot 3", By::Agent, tried);

    let genuine = f("3.targets.json");
    let lengthened = [genuine.as_slice(), b" "].concat();
    let files =
        laid([("timestamp.json", siege.stamp(&f("3.snapshot.json"), DAY)?), ("3.targets.json", lengthened)]);
    let tried = siege.refuses(&[Attack::MixAndMatch, Attack::EndlessData], files);
    book.attack("lengthened targets", "one byte more than the snapshot pins", By::Agent, tried);
    Ok(())
}

fn frozen_and_foreign(siege: &Siege, book: &mut Book) -> Result<()> {
    let f = |name: &str| siege.files[name].clone();
    let stamp = siege.stamp(&f("3.snapshot.json"), -60)?;
    let tried = siege.refuses(&[Attack::Freeze], laid([("timestamp.json", stamp)]));
    book.attack("a frozen timestamp", "one that has expired", By::Agent, tried);

    let ended = SystemClock::new().unix_seconds() - 60;
    let expired = sign_generation(&siege.withheld, ended, &[&siege.operator])?;
    let tried = siege.refuses(&[Attack::Freeze], lay(siege, &expired)?);
    book.attack(
        "an expired generation",
        "genuine, and signed by the operator for a time that is over",
        By::Agent,
        tried,
    );

    let foreign = [Attack::ForeignMachine];
    let others = siege.stolen.recorded(NEIGHBOUR);
    let last = |ending: &str| {
        others.iter().rev().find(|answer| answer.path.ends_with(ending)).map(|answer| answer.body.clone())
    };
    let (Some(stamp), Some(snapshot), Some(targets), Some(target)) = (
        last("/timestamp.json"),
        last("/3.snapshot.json"),
        last("/3.targets.json"),
        last(".generation.json"),
    ) else {
        anyhow::bail!("the neighbour's files went by");
    };
    let files = laid([
        ("timestamp.json", stamp),
        ("3.snapshot.json", snapshot.clone()),
        ("3.targets.json", targets),
        ("generation.json", target),
    ]);
    let tried = siege.refuses(&foreign, files);
    book.attack("another machine's metadata", "everything genuine, and the neighbour's", By::Agent, tried);

    // A Mac's system under the host's name, signed by an operator whose key was also stolen.
    let mac = siege.view(NEIGHBOUR)?.published.context("the neighbour has a generation")?.target;
    let as_host = Target { machine: VICTIM.parse()?, generation: siege.withheld.generation, ..mac };
    let signed = sign_generation(&as_host, siege.expires(), &[&siege.operator])?;
    let tried = siege.refuses(&[Attack::WrongClass], lay(siege, &signed)?);
    book.attack(
        "another class",
        "a Mac's system for a NixOS host, signed by a stolen operator's key",
        By::Agent,
        tried,
    );

    let renamed = edited(&snapshot, |value| value["signed"]["x-muster-machine"] = VICTIM.into())?;
    let files = laid([("timestamp.json", siege.stamp(&renamed, DAY)?), ("3.snapshot.json", renamed)]);
    let tried = siege.refuses(&[Attack::ForgedSignature], files);
    book.attack(
        "a renamed snapshot",
        "the neighbour's, with the victim's name written over",
        By::Agent,
        tried,
    );
    Ok(())
}

fn endless_and_broken(siege: &Siege, book: &mut Book) -> Result<()> {
    let f = |name: &str| siege.files[name].clone();
    let endless = [Attack::EndlessData];
    let tried = siege.refuses(&endless, laid([("timestamp.json", vec![b'{'; ENDLESS])]));
    book.attack("an endless timestamp", "megabytes where a kilobyte is allowed", By::Agent, tried);
    // One that the machine does not have yet, so that it fetches it.
    let unseen = sign_generation(&wish(siege), siege.expires(), &[&siege.online])?.snapshot.into_bytes();
    let stamp = siege.stamp(&unseen, DAY)?;
    let tried =
        siege.refuses(&endless, laid([("timestamp.json", stamp), ("3.snapshot.json", vec![b' '; ENDLESS])]));
    book.attack("an endless snapshot", "megabytes where some hundred bytes are pinned", By::Agent, tried);
    let tried = siege.refuses(&endless, laid([("2.root.json", vec![b' '; ENDLESS])]));
    book.attack("an endless root", "megabytes under the name of the next root", By::Agent, tried);

    let broken = [Attack::Malformed];
    let page = b"<html>Please log in to the hotel's network</html>".to_vec();
    let tried = siege.refuses(&broken, laid([("timestamp.json", page)]));
    book.attack("a page in the way", "HTML where metadata belongs", By::Agent, tried);
    let nested = "[".repeat(10_000).into_bytes();
    let tried = siege.refuses(&broken, laid([("timestamp.json", nested)]));
    book.attack("a nested document", "ten thousand brackets, to exhaust the stack", By::Agent, tried);
    let float =
        edited(&siege.stamp(&f("3.snapshot.json"), DAY)?, |value| value["signed"]["version"] = 1e300.into())?;
    let tried =
        siege.refuses(&[Attack::Malformed, Attack::ForgedSignature], laid([("timestamp.json", float)]));
    book.attack("an absurd version", "a floating-point number for a version", By::Agent, tried);
    Ok(())
}

fn root(siege: &Siege, version: u64, operators: &[&SecretKey], signers: &[&SecretKey]) -> Result<Vec<u8>> {
    let public = |keys: &[&SecretKey]| keys.iter().map(|key| key.public()).collect::<Vec<_>>();
    let spec = RootSpec {
        version,
        epoch: Default::default(),
        expires: siege.expires(),
        root: (public(signers), 1),
        operators: (public(operators), 1),
        online: vec![siege.online.public()],
    };
    let signers: Vec<&dyn muster_protocol::keys::Signer> = signers.iter().map(|key| *key as _).collect();
    Ok(sign_root(&spec, &signers)?)
}

/// A root with more keys than allowed, correctly signed.
pub fn crowded(root: &[u8], signer: &SecretKey) -> Result<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(root)?;
    value["signed"]["version"] = 2.into();
    for _ in 0..300 {
        let public = key()?.public().hex();
        let entry =
            serde_json::json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": public } });
        value["signed"]["keys"][Sha256::of(public.as_bytes()).hex()] = entry;
    }
    let signature = signer.sign_raw(&signed_bytes(&value.to_string())?);
    value["signatures"][0]["sig"] = signature.hex().into();
    Ok(serde_json::to_vec(&value)?)
}

fn roots(siege: &Siege, book: &mut Book) -> Result<()> {
    let thief = key()?;
    let forged = [Attack::ForgedSignature];
    let tried = siege.refuses(&forged, laid([("2.root.json", root(siege, 2, &[&thief], &[&thief])?)]));
    book.attack("a forged root", "the next root, signed by its own keys alone", By::Agent, tried);
    let own = root(siege, 2, &[&siege.online], &[&siege.online])?;
    let tried = siege.refuses(&forged, laid([("2.root.json", own)]));
    book.attack(
        "the controller's own root",
        "the next root, signed by the stolen online key",
        By::Agent,
        tried,
    );
    // Signed by the operator, who has another role.
    let own = root(siege, 2, &[&siege.operator], &[&siege.operator])?;
    let tried = siege.refuses(&forged, laid([("2.root.json", own)]));
    book.attack("an operator's root", "the next root, signed by an operator's key", By::Agent, tried);
    let first = std::fs::read(siege.stolen.fleet.controller_folder().join("root/1.root.json"))?;
    let tried =
        siege.refuses(&[Attack::Rollback, Attack::MixAndMatch], laid([("2.root.json", first.clone())]));
    book.attack("an older root", "root 1 under the name of root 2", By::Agent, tried);
    let tried = siege.refuses(&[Attack::Malformed], laid([("2.root.json", crowded(&first, &siege.root)?)]));
    book.attack(
        "a crowded root",
        "the next root with 300 keys, signed by the stolen root key",
        By::Agent,
        tried,
    );
    let mut weak = [0_u8; 32];
    weak[0] = 1;
    let text =
        String::from_utf8(first)?.replace(&siege.root.public().hex(), &muster_protocol::ids::to_hex(&weak));
    let tried = siege
        .refuses(&[Attack::Malformed, Attack::ForgedSignature], laid([("2.root.json", text.into_bytes())]));
    book.attack("a weak key", "a root whose key anybody can sign for", By::Agent, tried);
    Ok(())
}

/// What an agent cannot distinguish from ordinary trouble; it accepts none of it.
fn deceived(siege: &Siege, book: &mut Book) -> Result<()> {
    let thief = &siege.stolen.thief;
    let asked = |what: &str, wanted: &'static str, times: usize| {
        thief.forget();
        siege.stolen.ask(VICTIM)?;
        siege.until(what, || {
            let count = thief.asked().iter().filter(|asked| asked.path.contains(wanted)).count();
            if count >= times {
                return Ok(Some(()));
            }
            siege.stolen.ask(VICTIM)?;
            Ok(None)
        })
    };

    let trap = Thief::start()?;
    let url = trap.url.clone();
    let held = siege.files["held-timestamp.json"].clone();
    thief.bend(move |answer: &mut Answer| {
        if answer.path.contains(&format!("/machines/{VICTIM}/tuf/")) {
            answer.status = 302;
            answer.location = Some(format!("{url}{}", answer.path));
            answer.body = held.clone();
        }
    });
    let tried = asked("a second try", "/tuf/", 2).and_then(|()| {
        ensure!(
            trap.asked().is_empty(),
            "it followed to {:?}",
            trap.asked().first().map(|asked| &asked.path)
        );
        siege.require_untouched()?;
        Ok("the log; its bearer went nowhere else".to_owned())
    });
    book.attack("a redirection", "metadata moved to another host, to catch the bearer", By::Agent, tried);

    let state = siege.stolen.state(VICTIM);
    let held = siege.files["held-timestamp.json"].clone();
    thief.bend(move |answer: &mut Answer| {
        if answer.path == muster_protocol::api::CHECKIN && answer.status == 200 {
            let mut reply: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            reply["bearer"] = "x\nmachine elsewhere login y password z".into();
            answer.body = serde_json::to_vec(&reply).unwrap_or_default();
        } else if answer.path.ends_with(&format!("{VICTIM}/tuf/timestamp.json")) {
            (answer.status, answer.body) = (200, held.clone());
        }
    });
    let tried = asked("a check-in", "/v1/checkin", 2).and_then(|()| {
        for file in std::fs::read_dir(&state)? {
            let bytes = std::fs::read(file?.path()).unwrap_or_default();
            ensure!(!String::from_utf8_lossy(&bytes).contains("machine elsewhere"), "it is kept");
        }
        siege.require_untouched()?;
        Ok("the log; nothing of it was kept".to_owned())
    });
    book.attack("a bearer with a line break", "a line of its own in a header or a file", By::Agent, tried);

    let held = siege.files["held-timestamp.json"].clone();
    thief.bend(move |answer: &mut Answer| {
        if answer.path.contains("/poll") || answer.path == muster_protocol::api::CHECKIN {
            let mut reply: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            reply["generation"] = Generation::new(999).map_or(Value::Null, |number| number.get().into());
            answer.body = serde_json::to_vec(&reply).unwrap_or_default();
        } else if answer.path.ends_with(&format!("{VICTIM}/tuf/timestamp.json")) {
            (answer.status, answer.body) = (200, held.clone());
        }
    });
    let tried = asked("a look at the promise", "/tuf/timestamp.json", 1).and_then(|()| {
        siege.require_untouched()?;
        Ok("nothing: it is a hint, and nothing followed".to_owned())
    });
    book.attack("an empty promise", "polls that speak of generation 999", By::Agent, tried);
    Ok(())
}
