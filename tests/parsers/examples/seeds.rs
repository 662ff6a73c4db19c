//! Writes the `ok-…` documents of the seed corpora: what programs of this version send. Keys and times are
//! fixed, so they only change when a format does. Earlier ones are kept: they must still be accepted.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use base64::Engine as _;
use muster_fuzz::refresh::Event as LifeEvent;
use muster_fuzz::world::*;
use muster_fuzz::{TARGETS, keys, machines, operators, plans, replies};
use muster_protocol::audit::{Entry, Page, hash, origin};
use muster_protocol::checkin::{CheckIn, CheckInReply, Health, Holds, Phase, PollReply, Runs};
use muster_protocol::draft::{DRAFT_SECONDS, Draft, DraftKind, DraftView, Drafted, DraftedGeneration};
use muster_protocol::enrol::EnrolReply;
use muster_protocol::ids::{Sha256, StorePath};
use muster_protocol::keys::Signer as _;
use muster_protocol::machine::Class;
use muster_protocol::operator::{
    AddMachine, AttackView, Condition, FleetView, HistoryEntry, MachineView, NewRoot, Published,
    RequestSignature, RootTaken, Standing,
};
use muster_protocol::plan::{Claim, Leave, Said, Statement, Statements, Vouch};
use muster_protocol::report::{
    Accepted, Attack, Batch, ClosureChange, Event, EventKind, Progress, Reason, Summary,
    UpdateStep as Failing,
};
use muster_protocol::target::{HealthCheck, Probe};
use muster_protocol::tuf::repository::{RootSpec, draft_generation, draft_root, sign_root};
use muster_protocol::witness::AgeClaim;
use serde::Serialize;
use serde_json::{Value, json};

/// The only document that differs on each run.
const ENCRYPTED: &str = "encrypted";
const NAR: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";

fn main() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let entry = TARGETS.iter().find(|entry| entry.name == target).unwrap();
        assert!((entry.run)(bytes), "{target} refuses {name}");
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder).unwrap();
        // Where the format changed, the new document is stored next to the old one.
        for n in 1.. {
            let number = if n == 1 { String::new() } else { format!("-{n}") };
            let path = folder.join(format!("ok-{name}{number}"));
            match std::fs::read(&path) {
                Ok(held) if held != bytes && name != ENCRYPTED => {}
                Ok(_) => break,
                Err(_) => {
                    std::fs::write(path, bytes).unwrap();
                    break;
                }
            }
        }
    };
    metadata(&put);
    lives(&put);
    traffic(&put);
    drafts(&put);
    rest(&put);
    rollouts(&put);
}

fn rollouts(put: Put<'_>) {
    let plan = plans::plan(0);
    let bytes = plan.to_bytes().unwrap();
    put("plans", "plan", &bytes);
    let voucher = &plan.waves[0].vouchers[0];
    let claim = Claim { hash: Sha256::of(&bytes), plan: &plan, voucher, said: Said::Soaked };
    let (said, signature) = (claim.said, claim.sign(&key(0)));
    put("plans", "vouch", &json_of(&Vouch { plan: claim.hash, said, signature }));
    let statements = vec![Statement { machine: voucher.machine.clone(), said, signature }];
    put("plans", "statements", &json_of(&Statements { statements }));
    let why = Some("its turn comes later".to_owned());
    put("plans", "leave", &json_of(&Leave { plan: claim.hash, seconds: 0, why }));
    put("gates", "honest", &plans::honest());
}

/// An event and its parameters.
type Happening<'a> = (LifeEvent, &'a [u8]);
type Put<'a> = &'a dyn Fn(&str, &str, &[u8]);

fn json_of(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

fn metadata(put: Put<'_>) {
    let signed = |bytes: &[u8]| json_of(&serde_json::from_slice::<Value>(bytes).unwrap()["signed"]);
    let published = publication(OWN, 1, &[key(OPERATOR)]);
    let stamped = timestamp(OWN, published.snapshot.as_bytes(), 1000, &key(ONLINE)).unwrap();
    let second = RootSpec {
        version: 2,
        root: (vec![key(ROOT).public(), key(ROOT + 1).public()], 2),
        operators: (vec![key(OPERATOR).public(), key(OPERATOR + 1).public()], 2),
        ..root_spec()
    };
    put("tuf_root", "first", &root());
    put("tuf_root", "second", &sign_root(&second, &[&key(ROOT), &key(ROOT + 1)]).unwrap());
    let third = RootSpec {
        version: 2,
        root: (vec![Security(ROOT + 1).public(), key(ROOT).public()], 2),
        operators: (vec![Security(OPERATOR).public()], 1),
        ..root_spec()
    };
    put("tuf_root", "security-keys", &sign_root(&third, &[&key(ROOT), &Security(ROOT + 1)]).unwrap());
    let mut next: Value = serde_json::from_slice(&signed(&root())).unwrap();
    next["version"] = 2.into();
    put("tuf_root", "second-signed", &json_of(&next));
    put("tuf_timestamp", "whole", &stamped);
    put("tuf_timestamp", "signed", &signed(&stamped));
    put("tuf_snapshot", "whole", published.snapshot.as_bytes());
    put("tuf_snapshot", "signed", &signed(published.snapshot.as_bytes()));
    put("tuf_targets", "whole", published.targets.as_bytes());
    put("tuf_targets", "signed", &signed(published.targets.as_bytes()));
    let (id, public) = ("helper", key(STRANGER).public().hex());
    let delegating = json!({
        "_type": "targets", "spec_version": "1.0.0", "version": 1, "expires": "2030-01-01T00:00:00Z",
        "targets": {}, "delegations": {
            "keys": { id: { "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": public } } },
            "roles": [
                { "name": "helper", "keyids": [id], "threshold": 1, "terminating": false,
                  "paths": ["rel*/?.zip"] },
                { "name": "other", "keyids": [id], "threshold": 1, "terminating": true,
                  "path_hash_prefixes": ["", "8a"] },
            ],
        },
    });
    put("tuf_targets", "delegating", &json_of(&delegating));
    put("canonical_json", "targets", &signed(published.targets.as_bytes()));
    put(
        "canonical_json",
        "kinds",
        r#"{"b":[1,-2,true,null,18446744073709551615],"é":"\"\\\n\u0001"}"#.as_bytes(),
    );
    let mut full = target(OWN, 3);
    full.checks = vec![
        HealthCheck {
            name: "ssh".into(),
            probe: Probe::Tcp { address: "127.0.0.1:22".into() },
            timeout_seconds: 5,
            tries: 3,
        },
        HealthCheck {
            name: "web".into(),
            probe: Probe::Http { url: "http://127.0.0.1/".into() },
            timeout_seconds: 5,
            tries: 3,
        },
        HealthCheck {
            name: "data".into(),
            probe: Probe::Command { command: vec!["/bin/test".into(), "-d".into()] },
            timeout_seconds: 5,
            tries: 1,
        },
    ];
    full.trusted_nix_keys = vec!["builder:KioqKioqKioqKioqKioqKioqKioqKioqKioqKioqKio=".into()];
    full.message = Some("why".into());
    put("target", "full", &json_of(&full));
    put("target", "plain", published.target.as_bytes());
}

/// Scripts of whole lives: each ends well after something was refused.
fn lives(put: Put<'_>) {
    const END: u8 = 255;
    let life = |happenings: &[Happening<'_>]| -> Vec<u8> {
        let at = |event: LifeEvent| LifeEvent::ALL.iter().position(|other| *other as u8 == event as u8);
        let code = |event: LifeEvent| at(event).unwrap() as u8;
        happenings.iter().flat_map(|(event, how)| [&[code(*event)], *how].concat()).collect()
    };
    use LifeEvent::*;
    let (first, second): (Happening<'_>, Happening<'_>) = ((Publish, &[0, 10, 1]), (Publish, &[1, 20, 1]));
    let refresh: Happening<'_> = (Refresh, &[END]);
    put("tuf_refresh", "two-generations", &life(&[first, refresh, second, refresh]));
    put(
        "tuf_refresh",
        "rollback",
        &life(&[
            first,
            refresh,
            second,
            refresh,
            (Stamp, &[0, 30, 1]),
            refresh,
            (Stamp, &[0, 5, 1]),
            refresh,
        ]),
    );
    put("tuf_refresh", "foreign", &life(&[first, refresh, (Publish, &[6, 60, 5]), refresh, second, refresh]));
    put(
        "tuf_refresh",
        "crash",
        &life(&[first, (Refresh, &[0]), (Refresh, &[1]), second, (Refresh, &[1]), refresh]),
    );
    put(
        "tuf_refresh",
        "frozen",
        &life(&[first, refresh, (Time, &[8]), refresh, (Time, &[248]), second, refresh]),
    );
    put(
        "tuf_refresh",
        "forged",
        &life(&[first, (Alter, &[2, 0, 99, 64]), refresh, (Stamp, &[0, 50, 9]), refresh, first, refresh]),
    );
    // Root 2: both root keys, both operators and both online keys, thresholds 1 and 2, valid for 15 days.
    put(
        "tuf_refresh",
        "rotation",
        &life(&[
            first,
            refresh,
            (Root, &[0b11_1111, 0b1111_1001, 2, 0b11]),
            (Publish, &[1, 20, 3]),
            refresh,
            (Stamp, &[0, 40, 11]),
            refresh,
        ]),
    );
    put(
        "tuf_refresh",
        "raw",
        &life(&[
            first,
            refresh,
            (Raw, &[2, 4, b'{', b'"', b'a', b'"']),
            refresh,
            (Swap, &[0, 2]),
            refresh,
            (Drop, &[2]),
            second,
            refresh,
        ]),
    );
    let alterations: Vec<(LifeEvent, Vec<u8>)> =
        (0..16).map(|change| (Alter, vec![2, change, 30, 0b1_0000])).collect();
    let mut all = vec![first, refresh];
    for (step, how) in &alterations {
        all.extend([(*step, how.as_slice()), refresh]);
    }
    put("tuf_refresh", "every-change", &life(&all));
}

fn traffic(put: Put<'_>) {
    put("enrolment", "token", machines::token().encode().unwrap().as_bytes());
    put("enrolment", "request", &json_of(&machines::request()));
    put("enrolment", "reply", &json_of(&EnrolReply { machine: name(OWN) }));
    let path = |text: &str| -> StorePath { format!("/nix/store/{text}").parse().unwrap() };
    let system = path("1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system");
    let old = path("2c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system");
    let generation = target(OWN, 3).generation;
    let runs = Runs { running: system.clone(), profile: Some(old.clone()), generation: Some(generation) };
    let check_in = CheckIn {
        understands: vec![],
        signing: None,
        vouch: None,
        awaits: None,
        audience: Sha256::of(&root()),
        machine: name(OWN),
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        boot_id: "0d1f5a6e-0000-4000-8000-000000000000".into(),
        seq: 17,
        clock: NOW * 1000,
        agent: "0.1.0".into(),
        runs: Some(runs.clone()),
        holds: Holds { root: 1, timestamp: 1000, snapshot: 3, targets: 3, ..Holds::default() },
        phase: Phase::Confirmed,
        phase_generation: Some(generation),
        note: Some("waits".into()),
        refused: Some(Attack::Rollback),
        health: Health {
            degraded: Some(vec!["web.service".into()]),
            reboot: vec!["kernel".into()],
            reboot_waits: Some("someone is logged in".into()),
            waits_until: Some(NOW * 1000),
            ..Health::default()
        },
        new_key: None,
        age: None,
        followed: vec![],
        shown: None,
        session: None,
    };
    put("check_in", "check-in", &json_of(&check_in));
    let age = AgeClaim { recipient: "age1".into(), proof: Some(Sha256::of(b"proof")) };
    let rotating = CheckIn { new_key: Some(key(STRANGER).public()), age: Some(age), ..check_in.clone() };
    put("check_in", "rotation", &json_of(&rotating));
    let reply = CheckInReply {
        rollout: None,
        bearer: "c".repeat(64),
        bearer_expires_in: 3600,
        generation: Some(generation),
        poll_seconds: 55,
        reports_through: 41,
        rotate_key: false,
        requests: vec![],
        log: None,
        session: None,
    };
    put("check_in", "reply", &json_of(&reply));
    put(
        "check_in",
        "poll",
        &json_of(&PollReply { generation: Some(generation), check_in: false, files: None }),
    );
    put("check_in", "problem", br#"{"code":"bad-signature","message":"the signature does not fit"}"#);
    put("signed_requests", "request", &json_of(&replies::asked()));
    put("signed_requests", "announcement", replies::announced().to_string().as_bytes());
    let asking = CheckInReply { requests: vec![replies::asked()], ..reply };
    put("replies", "asking", &json_of(&asking));
    // The largest and the smallest numbers that JSON readers accept, in each field that has one.
    let (high, low) = (u64::MAX, i64::MIN);
    for (name, text) in [
        (
            "high",
            format!(
                r#"{{"bearer":"","bearer_expires_in":{high},"poll_seconds":{high},"reports_through":{high}}}"#
            ),
        ),
        ("none", r#"{"bearer":"","bearer_expires_in":0,"poll_seconds":0,"reports_through":0}"#.to_owned()),
        ("accepted-high", format!(r#"{{"through":{high}}}"#)),
        (
            "fleet-high",
            format!(r#"{{"fleet":"{0}","root_version":{high},"root":"{0}","version":""}}"#, "0".repeat(64)),
        ),
    ] {
        put("replies", name, text.as_bytes());
    }
    // These are refused, without harm.
    let refused = [
        ("generation-high", format!(r#"{{"generation":{high}}}"#)),
        ("generation-none", r#"{"generation":0}"#.to_owned()),
        ("generation-epoch", r#"{"generation":"16384.1"}"#.to_owned()),
        ("generation-cap", r#"{"generation":281474976710656}"#.to_owned()),
        ("through-low", format!(r#"{{"through":{low}}}"#)),
        ("through-real", r#"{"through":1e300}"#.to_owned()),
    ];
    for (name, text) in refused {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/replies");
        std::fs::create_dir_all(&corpus).unwrap();
        std::fs::write(corpus.join(name), text).unwrap();
    }

    let kinds = vec![
        EventKind::Enrolled { agent: "0.1.0".into() },
        EventKind::AgentStarted { agent: "0.1.0".into(), boot_id: "b".into() },
        EventKind::Verified,
        EventKind::Fetched { ms: 5 },
        EventKind::Built { output: system.clone(), ms: 5 },
        EventKind::Activating { old: old.clone(), new: system.clone() },
        EventKind::Activated { exit: 0, ms: 5 },
        EventKind::Confirmed { running: system.clone(), ms: 5, degraded: vec!["x.service".into()] },
        EventKind::RolledBack {
            running: old.clone(),
            reason: Reason::Deadline,
            detail: "é".into(),
            quarantined: true,
        },
        EventKind::Failed { step: Failing::Build, detail: "no".into(), quarantined: false },
        EventKind::NeedsHuman { detail: "look".into() },
        EventKind::Refused { attack: Attack::ForeignMachine, detail: "realgar".into() },
        EventKind::Drift { running: old, expected: system },
        EventKind::Deferred { why: "the window opens".into(), until: Some(NOW * 1000) },
        EventKind::Progress(Progress {
            step: Failing::Build,
            built: 1,
            to_build: 2,
            building: 1,
            copied: 3,
            to_copy: 4,
            bytes: 5,
            bytes_expected: 6,
            current: Some("hello-2.12".into()),
        }),
        EventKind::Summary(Box::new(Summary {
            build_ms: Some(5),
            closure: Some(ClosureChange {
                changed: vec!["hello 2.10 -> 2.12".into()],
                bytes: -5,
                ..ClosureChange::default()
            }),
            ..Summary::default()
        })),
        EventKind::HookFailed { hook: "after".into(), detail: "no".into() },
        EventKind::Rebooting { why: "kernel".into() },
        EventKind::Dropped { events: 78, since: 1_800_000_000_000, until: 1_800_000_100_000 },
    ];
    let numbered =
        |(n, kind)| Event { seq: n as u64 + 1, at: NOW * 1000, generation: Some(generation), kind };
    let events: Vec<_> = kinds.into_iter().enumerate().map(numbered).collect();
    put(
        "reports",
        "every-kind",
        &json_of(&Batch { machine: name(OWN), stream: None, oldest: 1, events: events.clone() }),
    );
    put("reports", "none", &json_of(&Batch { machine: name(OWN), stream: None, oldest: 14, events: vec![] }));
    put("reports", "accepted", &json_of(&Accepted { through: 13, stream: None }));

    let operator = key(OPERATOR).public();
    let published = Published {
        target: target(OWN, 3),
        at: NOW * 1000,
        by: operator,
        expires: NOW + DAY,
        signers: vec![operator],
    };
    put("operator", "publication", &json_of(&publication(OWN, 3, &[key(OPERATOR)])));
    put("operator", "foreign-publication", &json_of(&publication(FOREIGN, 3, &[key(OPERATOR)])));
    let added = AddMachine {
        machine: name(OWN),
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        tags: ["servers".parse().unwrap()].into(),
        token: machines::token().secret.token_id(),
        check_key: machines::token().secret.check_key(),
        expires: NOW + DAY,
        replace: true,
    };
    put("operator", "add-machine", &json_of(&added));
    let attack = AttackView {
        attack: Attack::AlteredArchive,
        detail: "hash mismatch".into(),
        generation: Some(generation),
        at: NOW * 1000,
        received_at: NOW * 1000,
        ended_at: None,
    };
    put("drafts", "attacks", &json_of(&vec![attack.clone()]));
    let view = MachineView {
        machine: name(OWN),
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        tags: added.tags,
        standing: Standing::Enrolled,
        condition: Condition::UpToDate,
        published: Some(published.clone()),
        runs: Some(runs),
        phase: Some(Phase::Confirmed),
        phase_generation: Some(generation),
        note: None,
        refused: None,
        health: check_in.health.clone(),
        attack: Some(attack),
        clone_alarm: false,
        clone_alarm_at: None,
        holds: check_in.holds,
        agent: Some("0.1.0".into()),
        age: Some("age1".into()),
        key: Some(key(MACHINE).public()),
        key_rotated_at: None,
        key_rotation_asked: false,
        enrolled_at: Some(NOW * 1000),
        last_seen: Some(NOW * 1000),
        clock_skew_ms: Some(-5),
        shown: None,
        generations_forgotten: 0,
        understands: vec![],
        signing: None,
        awaits: None,
        rollout: None,
        age_proof: None,
    };
    put("operator", "machine", &json_of(&view));
    put("operator", "machines", &json_of(&vec![view]));
    put("operator", "history", &json_of(&vec![HistoryEntry { published, events, left_out: 3 }]));
    let fleet = Sha256::of(&root());
    put(
        "operator",
        "fleet",
        &json_of(&FleetView { fleet, root_version: 1, root: fleet, version: "0.1.0".into() }),
    );
}

fn drafts(put: Put<'_>) {
    let fleet = Sha256::of(&root());
    let draft = |what| Draft {
        fleet,
        made_at: NOW * 1000,
        made_by: key(OPERATOR).public(),
        ends: NOW + DRAFT_SECONDS,
        what,
    };
    let generations = draft(Drafted::Generations {
        generations: vec![DraftedGeneration {
            machine: name(OWN),
            class: Class::Nixos,
            publication: draft_generation(&target(OWN, 3), NOW + 90 * DAY).unwrap(),
        }],
    });
    put("drafts", "generations", &json_of(&generations));
    put("drafts", "signed-generations", &json_of(&generations.sign(&key(OPERATOR)).unwrap()));
    let names = [(key(OPERATOR).public().hex(), "alice".to_owned())].into();
    let next = RootSpec { version: 2, ..root_spec() };
    let next = draft(Drafted::Root { root: draft_root(&next, &names).unwrap() });
    put("drafts", "root", &json_of(&next));
    let next = next.sign(&key(ROOT)).unwrap();
    put("drafts", "signed-root", &json_of(&next));
    let Drafted::Root { root } = &next.what else { unreachable!() };
    put("drafts", "new-root", &json_of(&NewRoot { root: root.clone() }));
    put("drafts", "taken", &json_of(&RootTaken { version: 2, online_key_named: true }));
    let view = DraftView {
        id: generations.id().unwrap(),
        kind: DraftKind::Generations,
        made_at: NOW * 1000,
        made_by: key(OPERATOR).public(),
        ends: NOW + DRAFT_SECONDS,
        machines: vec![name(OWN)],
        signed: vec![key(OPERATOR).public()],
        missing: 1,
        void: Some("it was overtaken".into()),
    };
    put("drafts", "list", &json_of(&vec![view]));
    let mut entry = Entry {
        id: 1,
        at: NOW * 1000,
        by: Some(key(OPERATOR).public()),
        action: "machine-added".into(),
        machine: Some(name(OWN)),
        detail: "nixos".into(),
        hash: fleet,
    };
    entry.hash = hash(&origin(&fleet).hash, &entry);
    put("drafts", "log", &json_of(&Page { entries: vec![entry], last: 1, anchor: None }));
}

fn rest(put: Put<'_>) {
    let fleet = Sha256::of(&root());
    let signed = RequestSignature::make(&key(OPERATOR), operators::signed_request(&fleet), NOW, [9; 16]);
    let by_security_key =
        RequestSignature::make_with(&Security(OPERATOR), operators::signed_request(&fleet), NOW, [9; 16])
            .unwrap();
    let basic = base64::engine::general_purpose::STANDARD.encode("muster:bearer");
    for (name, header) in [
        ("bearer", "aBearer 5f0c".into()),
        ("basic", format!("aBasic {basic}")),
        ("machine", format!("m{}", key(MACHINE).sign_raw(b"body").hex())),
        ("operator", format!("o{}", serde_json::to_string(&signed).unwrap())),
        ("security-key", format!("o{}", serde_json::to_string(&by_security_key).unwrap())),
        ("sign-in", format!("s{}", operators::signed_in(&fleet))),
        ("netrc", "b5f0c".into()),
        ("retry-after", "r120".into()),
    ] {
        put("headers", name, header.as_bytes());
    }

    let narinfo = format!(
        "StorePath: /nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-hello.drv\nURL: nar/{NAR}.nar.zst\n\
         Compression: zstd\n\
         FileHash: sha256:{NAR}\nFileSize: 12\nNarHash: sha256:{NAR}\nNarSize: 120\n\
         References: 1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-bash.drv\nDeriver: unknown-deriver\n\
         CA: text:sha256:{NAR}\n"
    );
    put("narinfo", "derivation", narinfo.as_bytes());
    put("narinfo", "archive-name", format!("{NAR}.nar.xz").as_bytes());

    let derivation = concat!(
        r#"Derive([("out","/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x","","")],"#,
        r#"[("/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-y.drv",["out"])],"#,
        r#"["/nix/store/2c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-s"],"x86_64-linux","/bin/sh",["-c","echo "#,
        r#"\"hi\" > $out\n"],[("name","x"),("system","x86_64-linux")])"#,
    );
    put("derivation", "simple", derivation.as_bytes());
    let floating = concat!(
        r#"Derive([("dev","","r:sha256",""),("out","","r:sha256","")],[],[],"aarch64-darwin","#,
        r#""/bin/sh",[],[])"#,
    );
    put("derivation", "floating", floating.as_bytes());

    for (name, printed) in [
        ("metadata", json!({ "url": "path:/flake?narHash=sha256-x", "locked": { "rev": "0" } })),
        (
            "facts",
            json!({ "drv": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x.drv",
                "out": "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x" }),
        ),
        ("derivation-2-8", json!({ "/nix/store/x.drv": { "system": "x86_64-linux" } })),
        (
            "derivation-newer",
            json!({ "version": 4, "derivations": { "x.drv": { "system": "aarch64-darwin" } } }),
        ),
        (
            "muster",
            json!({ "machines": { "cinnabar": {
                "tags": ["servers"], "deadlineSeconds": 300, "action": "dry-activate",
                "trustedNixKeys": ["k:AAAA"],
                "checks": {
                    "web": { "http": "http://127.0.0.1/" },
                    "ssh": { "tcp": "127.0.0.1:22", "timeoutSeconds": 5, "tries": 3 },
                    "data": { "command": ["/bin/test", "-d", "/data"] }, "two": { "http": "u", "tcp": "t" },
                },
            } } }),
        ),
        (
            "muster-policies",
            json!({ "machines": { "cinnabar": {
                "window": { "days": ["sat", "sun"], "from": "22:00", "to": "05:00", "zone": "Europe/Berlin" },
                "reboot": "window", "minimumBattery": 30, "maxJobs": 2, "nice": 10,
            } } }),
        ),
    ] {
        put("nix_json", name, printed.to_string().as_bytes());
    }
    let far = [
        r#"@nix {"action":"start","id":1,"level":0,"text":"","type":104}"#,
        r#"@nix {"action":"result","fields":[0,2,1,0],"id":1,"type":105}"#,
        concat!(
            r#"@nix {"action":"start","fields":["/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x.drv","","#,
            r#"1,1],"id":3,"level":3,"text":"","type":105}"#,
        ),
        r#"@nix {"action":"result","fields":["a line"],"id":3,"type":101}"#,
        r#"@nix {"action":"stop","id":3}"#,
    ];
    put("nix_json", "progress", far.join("\n").as_bytes());

    put("key_files", "plain", key(MACHINE).to_pem().unwrap().as_bytes());
    put("key_files", ENCRYPTED, key(MACHINE).to_encrypted_pem(keys::PASSPHRASE).unwrap().as_bytes());
    put(
        "key_files",
        "age",
        b"# public key: age1\nAGE-SECRET-KEY-1QPF2SQ062UDCWC2FCLQUKPPPT5QWW5A5KQYF8TEUE7A8EG8KZZ4SQVZ5F9\n",
    );
}
