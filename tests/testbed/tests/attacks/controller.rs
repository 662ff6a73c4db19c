//! Impostors of an operator, and what the controller refuses even from a real one.

use anyhow::{Result, ensure};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::draft::{Draft, Drafted, DraftedGeneration};
use muster_protocol::ids::{Generation, Sha256, nix_base32};
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::operator::{NewRoot, Publication};
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::{RootSpec, draft_generation, sign_generation, sign_root};
use muster_testbed::stolen::{NEIGHBOUR, VICTIM};
use reqwest::Method;

use crate::book::{Book, By};
use crate::identity::{refused, stolen_key};
use crate::siege::Siege;

pub fn run(siege: &Siege, book: &mut Book) -> Result<()> {
    requests(siege, book)?;
    publications(siege, book)?;
    roots_and_drafts(siege, book)?;
    cache(siege, book)
}

fn requests(siege: &Siege, book: &mut Book) -> Result<()> {
    let (get, path) = (Method::GET, api::OPERATOR_MACHINES);
    let unauthorised = ProblemCode::Unauthorised;
    let tried = siege.caller.get(path, None).and_then(|a| refused(siege, &a, 401, unauthorised));
    book.attack("an unsigned request", "the fleet's machines, asked for by anybody", By::Controller, tried);
    for (name, attempt, key) in [
        ("a stranger's request", "signed by a key that no root names", SecretKey::generate()?),
        ("a machine's request", "signed by an enrolled machine's key", stolen_key(siege, VICTIM)?),
        ("the online key's request", "signed by the key that lies on the controller", siege.online.clone()),
    ] {
        let tried = siege.caller.operate(&key, &get, path, Vec::new());
        book.attack(
            name,
            attempt,
            By::Controller,
            tried.and_then(|a| refused(siege, &a, 403, ProblemCode::Revoked)),
        );
    }
    let signature = siege.caller.signature(&siege.operator, &get, path, b"", 0)?;
    let send = |path: &str, signature: &str| {
        siege.caller.ask(&get, path, &[(api::OPERATOR_SIGNATURE, signature.to_owned())], Vec::new())
    };
    ensure!(send(path, &signature)?.is_good(), "an honest request");
    let tried = send(path, &signature).and_then(|a| refused(siege, &a, 409, ProblemCode::Sequence));
    book.attack("a replayed request", "an operator's own, a second time", By::Controller, tried);
    let signature = siege.caller.signature(&siege.operator, &get, path, b"", 0)?;
    let tried = send(&format!("{path}/{VICTIM}"), &signature)
        .and_then(|a| refused(siege, &a, 401, ProblemCode::BadSignature));
    book.attack("a redirected request", "an operator's signature on another path", By::Controller, tried);
    let revoke = format!("{path}/{VICTIM}/revoke");
    let signature = siege.caller.signature(&siege.operator, &get, &revoke, b"", 0)?;
    let tried = siege
        .caller
        .ask(&Method::POST, &revoke, &[(api::OPERATOR_SIGNATURE, signature)], Vec::new())
        .and_then(|a| refused(siege, &a, 401, ProblemCode::BadSignature));
    book.attack("a bent request", "a question's signature on a deed", By::Controller, tried);
    let signature = siege.caller.signature(&siege.operator, &get, path, b"", -3600)?;
    let tried = send(path, &signature).and_then(|a| refused(siege, &a, 401, unauthorised));
    book.attack("a stale request", "signed an hour ago", By::Controller, tried);
    Ok(())
}

pub fn publish(
    siege: &Siege,
    machine: &str,
    publication: &Publication,
) -> Result<muster_testbed::caller::Answered> {
    let path = format!("{}/generations", api::operator_machine(&machine.parse()?));
    siege.caller.operate(&siege.operator, &Method::POST, &path, serde_json::to_vec(publication)?)
}

fn next(siege: &Siege) -> Result<Target> {
    let target = siege.view(VICTIM)?.published.map(|published| published.target);
    let target = target.unwrap_or_else(|| siege.withheld.clone());
    Ok(Target { generation: target.generation.next()?, ..target })
}

/// The controller publishes nothing that a machine would refuse, whoever sends it.
fn publications(siege: &Siege, book: &mut Book) -> Result<()> {
    let (target, expires) = (next(siege)?, siege.expires());
    let sign = |target: &Target, key: &SecretKey| sign_generation(target, expires, &[key]);
    let stranger = SecretKey::generate()?;
    let mac =
        siege.view(NEIGHBOUR)?.published.map(|published| published.target).unwrap_or_else(|| target.clone());
    let bent = {
        let good = sign(&target, &siege.operator)?;
        Publication { target: good.target.replace(target.output.hash_part(), mac.output.hash_part()), ..good }
    };
    let of_neighbour = Target { machine: NEIGHBOUR.parse()?, ..target.clone() };
    let as_mac = Target { machine: VICTIM.parse()?, generation: target.generation, ..mac };
    let other_cpu = Target { system: "aarch64-linux".parse()?, ..target.clone() };
    let ended = sign_generation(&target, siege.expires() - 60 * crate::siege::DAY, &[&siege.operator])?;
    for (name, attempt, publication, status, code) in [
        (
            "publishing a stranger's generation",
            "signed by a key that no root names",
            sign(&target, &stranger)?,
            422,
            ProblemCode::BadSignature,
        ),
        (
            "publishing the online key's generation",
            "signed by the controller's own key",
            sign(&target, &siege.online)?,
            422,
            ProblemCode::BadSignature,
        ),
        (
            "publishing a machine's generation",
            "signed by the machine that shall take it",
            sign(&target, &stolen_key(siege, VICTIM)?)?,
            422,
            ProblemCode::BadSignature,
        ),
        (
            "publishing another machine's generation",
            "the neighbour's, for the victim",
            sign(&of_neighbour, &siege.operator)?,
            422,
            ProblemCode::Malformed,
        ),
        (
            "publishing a Mac's generation",
            "of class darwin for a NixOS host",
            sign(&as_mac, &siege.operator)?,
            422,
            ProblemCode::WrongClass,
        ),
        (
            "publishing for another CPU",
            "a system that the machine cannot build",
            sign(&other_cpu, &siege.operator)?,
            422,
            ProblemCode::WrongClass,
        ),
        ("publishing a bent target", "another output than was signed", bent, 422, ProblemCode::Malformed),
        (
            "publishing an expired generation",
            "signed for a time that is over",
            ended,
            422,
            ProblemCode::Malformed,
        ),
        (
            "publishing a number again",
            "another generation 1",
            sign(&Target { generation: Generation::FIRST, ..target.clone() }, &siege.operator)?,
            409,
            ProblemCode::Conflict,
        ),
        (
            "publishing a number ahead",
            "a generation that leaves room for none between",
            sign(&Target { generation: Generation::new(1_000_000)?, ..target }, &siege.operator)?,
            409,
            ProblemCode::Conflict,
        ),
    ] {
        let tried = publish(siege, VICTIM, &publication).and_then(|a| refused(siege, &a, status, code));
        book.attack(name, attempt, By::Controller, tried);
    }
    Ok(())
}

fn roots_and_drafts(siege: &Siege, book: &mut Book) -> Result<()> {
    let stranger = SecretKey::generate()?;
    let root = |version: u64, holders: &[&SecretKey], operators: &[&SecretKey]| {
        let public = |keys: &[&SecretKey]| keys.iter().map(|key| key.public()).collect::<Vec<_>>();
        let spec = RootSpec {
            version,
            epoch: Default::default(),
            expires: siege.expires(),
            root: (public(holders), 1),
            operators: (public(operators), 1),
            online: vec![siege.online.public()],
        };
        let signers: Vec<&dyn muster_protocol::keys::Signer> = holders.iter().map(|key| *key as _).collect();
        Ok::<_, anyhow::Error>(NewRoot { root: String::from_utf8(sign_root(&spec, &signers)?)? })
    };
    let send = |key: &SecretKey, root: &NewRoot| {
        siege.caller.operate(key, &Method::POST, api::OPERATOR_ROOT, serde_json::to_vec(root)?)
    };
    let bad = ProblemCode::BadSignature;
    let tried =
        send(&stranger, &root(2, &[&stranger], &[&stranger])?).and_then(|a| refused(siege, &a, 422, bad));
    book.attack("publishing a forged root", "signed by its own keys alone", By::Controller, tried);
    let tried = send(&siege.operator, &root(2, &[&siege.operator], &[&siege.operator])?)
        .and_then(|a| refused(siege, &a, 422, bad));
    book.attack(
        "publishing an operator's root",
        "signed by an operator, to be rid of the others",
        By::Controller,
        tried,
    );
    let armed = root(2, &[&siege.root], &[&siege.operator, &siege.online])?;
    let tried = send(&siege.operator, &armed).and_then(|a| refused(siege, &a, 422, ProblemCode::Malformed));
    book.attack(
        "a root that arms the controller",
        "well signed, with the online key as an operator",
        By::Controller,
        tried,
    );
    let first = std::fs::read(siege.stolen.fleet.controller_folder().join("root/1.root.json"))?;
    let crowded = NewRoot { root: String::from_utf8(crate::metadata::crowded(&first, &siege.root)?)? };
    let tried = send(&siege.operator, &crowded).and_then(|a| refused(siege, &a, 422, ProblemCode::Malformed));
    book.attack("publishing a crowded root", "well signed, with 300 keys", By::Controller, tried);
    let tried = send(&siege.operator, &root(5, &[&siege.root], &[&siege.operator])?)
        .and_then(|a| refused(siege, &a, 409, ProblemCode::Conflict));
    book.attack("a skipped root", "version 5 after version 1", By::Controller, tried);

    let target = next(siege)?;
    let draft = Draft {
        fleet: siege.caller.fleet(),
        made_at: 0,
        made_by: stranger.public(),
        ends: i64::MAX,
        what: Drafted::Generations {
            generations: vec![DraftedGeneration {
                machine: VICTIM.parse()?,
                class: Class::Nixos,
                publication: draft_generation(&target, siege.expires())?,
            }],
        },
    };
    let keep = |key: &SecretKey, draft: &Draft| {
        siege.caller.operate(key, &Method::POST, api::OPERATOR_DRAFTS, serde_json::to_vec(draft)?)
    };
    let tried =
        keep(&stranger, &draft.sign(&stranger)?).and_then(|a| refused(siege, &a, 403, ProblemCode::Revoked));
    book.attack("a stranger's draft", "signed and sent by a key that no root names", By::Controller, tried);
    let tried = keep(&siege.operator, &draft.sign(&stranger)?).and_then(|a| refused(siege, &a, 422, bad));
    book.attack(
        "a draft that no operator signed",
        "handed in by one, for the others to sign",
        By::Controller,
        tried,
    );
    Ok(())
}

fn cache(siege: &Siege, book: &mut Book) -> Result<()> {
    let bearer = siege.caller.session(&siege.operator)?;
    let put = |path: &str, body: &[u8]| {
        siege.caller.ask(&Method::PUT, path, &[("authorization", format!("Bearer {bearer}"))], body.to_vec())
    };
    let name = format!("/cache/nar/{}.nar", nix_base32(&Sha256::of(b"one thing")));
    let tried = put(&name, b"another").and_then(|a| refused(siege, &a, 422, ProblemCode::Malformed));
    book.attack("a mislabelled upload", "an archive under another one's hash", By::Controller, tried);
    // A derivation that the cache has, with other contents.
    let held = siege
        .view(VICTIM)?
        .published
        .map(|p| p.target.derivation)
        .unwrap_or_else(|| siege.withheld.derivation.clone());
    let path = format!("/cache/{}.narinfo", held.hash_part());
    let text = String::from_utf8(siege.caller.get(&path, Some(&bearer))?.body)?;
    let other: String = text
        .lines()
        .map(|line| match line.starts_with("NarHash:") {
            true => format!("NarHash: sha256:{}\n", nix_base32(&Sha256::of(b"evil"))),
            false => format!("{line}\n"),
        })
        .collect();
    let tried = put(&path, other.as_bytes()).and_then(|a| refused(siege, &a, 409, ProblemCode::Conflict));
    book.attack("a replaced path", "another content for a path that the cache has", By::Controller, tried);
    let climbs =
        ["/cache/..%2f..%2fmuster.db", "/cache/nar/..%2f..%2fonline.pem", "/cache/%2e%2e/online.pem"];
    let tried = climbs.iter().try_fold(String::new(), |_, path| {
        let read = siege.caller.get(path, Some(&bearer))?;
        ensure!(read.status == 404 || read.status == 400, "{path}: {}", read.text());
        let written = put(path, b"x")?;
        ensure!(!written.is_good(), "{path}: {}", written.text());
        siege.require_untouched()?;
        Ok("refused with 404 and 422".to_owned())
    });
    book.attack(
        "a way out of the cache",
        "paths that climb to the controller's own files",
        By::Controller,
        tried,
    );
    Ok(())
}
