//! `muster rollout undo`: it stops first, and signs for whoever began what they ran before.

use muster_protocol::operator::{Publication, Publications};
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::sign_generation;

use super::skipped::OUTPUT;
use super::*;

const DERIVATION: &str = "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv";
const OLD: &str = "/nix/store/3c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-old";
const OLD_DERIVATION: &str = "/nix/store/4c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-old.drv";
const FAR: i64 = 4_000_000_000;

/// Each machine has confirmed generation 2, and was given generation 3 by the rollout.
struct Begun {
    bed: Bed,
    plan: Sha256,
    operator: SecretKey,
}

impl Begun {
    async fn new(members: &[(&str, &str)]) -> Self {
        let bed = Bed::new().await;
        let pem = std::fs::read_to_string(bed.at("fleet/keys/operator.pem")).unwrap();
        let operator = SecretKey::from_pem(&pem).unwrap();
        let begun = Self { bed, plan: Sha256::of(b"plan"), operator };
        let machines: Vec<Value> = members.iter().map(|(name, _)| begun.published(name)).collect();
        let bed = &begun.bed;
        bed.says("/v1/operator/machines", json!(machines));
        bed.says("/v1/operator/session", json!({ "bearer": "b", "expires_in": 3600 }));
        bed.says("/v1/operator/changes", json!({ "cursor": 1, "machines": [] }));
        bed.says("/v1/operator/generations", json!({ "published": 1, "unchanged": 0 }));
        bed.file("/cache/4c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl.narinfo", "StorePath: it".into());
        begun.is("halted", members);
        begun
    }

    /// How the controller shows it.
    fn is(&self, state: &str, members: &[(&str, &str)]) {
        let member = |(name, state): &(&str, &str)| json!({ "machine": name, "wave": 0, "state": state, "why": "", "said": null });
        let view = json!({
            "plan": self.plan, "name": "weekly", "at": 1, "by": self.bed.key, "state": state,
            "why": "tin failed", "budget": 0, "failures": 1, "waves": [],
            "members": members.iter().map(member).collect::<Vec<_>>(),
        });
        self.bed.says("/v1/operator/rollouts", json!([view]));
        self.bed.says(&self.path(), view);
    }

    fn path(&self) -> String {
        format!("/v1/operator/rollouts/{}", self.plan)
    }

    /// The machine as the controller shows it; also serves its history, and the older generation's files.
    fn published(&self, name: &str) -> Value {
        let target = |generation: u64, derivation: &str, output: &str| {
            json!({
                "machine": name, "class": "nixos", "generation": generation, "system": "x86_64-linux",
                "derivation": derivation, "output": output, "deadline_seconds": 77, "message": "old words",
            })
        };
        let old = target(2, OLD_DERIVATION, OLD);
        let mut new = target(3, DERIVATION, OUTPUT);
        new["requires"] = json!(["rollouts"]);
        new["rollout"] = json!({ "plan": self.plan, "wave": 0 });
        let read = Target::parse(old.to_string().as_bytes()).unwrap();
        let Publication { targets, snapshot, target: text, .. } =
            sign_generation(&read, FAR, &[&self.operator]).unwrap();
        let tuf = format!("/v1/machines/{name}/tuf");
        let hash = Sha256::of(text.as_bytes());
        self.bed.file(&format!("{tuf}/2.targets.json"), targets);
        self.bed.file(&format!("{tuf}/2.snapshot.json"), snapshot);
        self.bed.file(&format!("{tuf}/targets/{name}/{hash}.generation.json"), text);
        let published =
            |target: &Value| json!({ "target": target, "at": 1, "by": self.bed.key, "expires": FAR });
        let confirmed = json!({ "seq": 1, "at": 1, "kind": "confirmed", "ms": 1, "running": OLD });
        let history = json!([
            { "published": published(&new), "events": [] },
            { "published": published(&old), "events": [confirmed] },
        ]);
        self.bed.says(&format!("/v1/operator/machines/{name}/history"), history);
        self.bed.machine(name, &json!({ "published": published(&new), "key": self.bed.key }))
    }

    fn undo(&self, more: &[&str]) -> (bool, String) {
        let output = self.bed.muster(&[&["rollout", "undo", "weekly"], more].concat());
        (output.status.success(), out(&output))
    }

    fn stop(&self, why: Option<&str>) -> (String, Value) {
        (self.path(), json!({ "wish": "stop", "forgive": false, "why": why }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_stopped_and_whoever_began_is_given_the_older_system_as_a_new_generation() {
    let begun = Begun::new(&[("tin", "failed"), ("lead", "soaked"), ("zinc", "waiting")]).await;
    let (done, said) = begun.undo(&["--yes", "-m", "too slow"]);
    assert!(done, "{said}");
    for words in [
        "is stopped: it begins on no further machine",
        "stay as they are, and wait for what is published next: zinc",
        &format!("tin (nixos) generation 4: from generation 3 ({OUTPUT})"),
        &format!("lead (nixos) generation 4: from generation 3 ({OUTPUT})"),
        &format!("to what generation 2 was ({OLD})"),
        "signed and published generation 4 for lead",
    ] {
        assert!(said.contains(words), "{words}\n{said}");
    }
    let asked = begun.bed.asked();
    assert_eq!(asked[0], begun.stop(Some("too slow")), "before anything is signed");
    assert_eq!((asked.len(), asked[1].0.as_str()), (2, "/v1/operator/generations"));
    let sent: Publications = serde_json::from_value(asked[1].1.clone()).unwrap();
    let mut names = Vec::new();
    for one in &sent.generations {
        let target = Target::parse(one.publication.target.as_bytes()).unwrap();
        assert_eq!((target.output.as_str(), target.deadline_seconds), (OLD, 77));
        assert_eq!((target.generation.get(), target.rollout, target.requires.len()), (4, None, 0));
        assert_eq!(target.message.as_deref(), Some("rollback to 2: too slow"));
        names.push(one.machine.to_string());
    }
    assert_eq!(names, ["tin", "lead"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_signed_it_stays_stopped_and_says_how_to_go_on() {
    let begun = Begun::new(&[("tin", "in-flight")]).await;
    let again = format!("`muster rollout undo {}` goes on", begun.plan.short());
    // Nobody agrees.
    let (done, said) = begun.undo(&[]);
    assert!(!done && said.contains("nobody is here to answer: Sign and publish 1 generation?"), "{said}");
    assert!(said.contains("weekly stays stopped, and what it brought still runs") && said.contains(&again));
    assert_eq!(begun.bed.asked(), [begun.stop(None)]);
    // What the controller holds was signed by somebody else, and nobody takes it.
    let thief = Begun { operator: SecretKey::generate().unwrap(), ..begun };
    thief.published("tin");
    let (done, said) = thief.undo(&["--yes"]);
    assert!(!done && said.contains("did not sign 1 generation of these") && said.contains(&again), "{said}");
    assert!(said.contains("--unverified"), "{said}");
    // It holds the older generation no longer.
    thief.bed.controller.lock().unwrap().files.retain(|path, _| !path.ends_with("2.targets.json"));
    let (done, said) = thief.undo(&["--yes"]);
    assert!(!done && said.contains("holds generation 2 of tin no longer") && said.contains(&again), "{said}");
    assert!(said.contains("`muster rollback tin --to GENERATION`"), "{said}");
    assert_eq!(thief.bed.asked(), [thief.stop(None), thief.stop(None)], "nothing was published");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_shows_who_goes_back_and_stops_nothing() {
    let begun = Begun::new(&[("tin", "confirmed"), ("zinc", "preparing")]).await;
    let (done, said) = begun.undo(&["--dry-run"]);
    assert!(done && said.contains("would be stopped") && said.contains("this was a dry run"), "{said}");
    assert!(said.contains("tin (nixos) generation 4") && !said.contains("zinc (nixos)"), "{said}");
    assert_eq!(begun.bed.asked(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_never_began_are_only_stopped_and_what_is_undone_is_not_undone_again() {
    let waiting = [("tin", "waiting"), ("zinc", "preparing")];
    let begun = Begun::new(&waiting).await;
    let (done, said) = begun.undo(&["--yes"]);
    assert!(done && said.contains("No machine of weekly has begun: nothing is to be signed"), "{said}");
    assert_eq!(begun.bed.asked(), [begun.stop(None)]);
    begun.is("stopped", &waiting);
    let (done, said) = begun.undo(&["--yes"]);
    assert!(
        !done && said.contains("weekly is stopped already, and no machine runs what it brought"),
        "{said}"
    );
    assert!(said.contains("nothing is left to undo"), "{said}");
    assert_eq!(begun.bed.asked(), [], "nothing was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_goes_back_from_an_older_generation_than_the_one_that_was_published_last() {
    let begun = Begun::new(&[("tin", "failed"), ("lead", "failed")]).await;
    let (done, said) = begun.undo(&["--yes"]);
    assert!(done, "{said}");
    begun.bed.asked();
    // Generation 4 is published since, and all that it shows is genuine.
    let back = || {
        let output = begun.bed.muster(&["rollback", "tin", "--yes"]);
        (output.status.success(), out(&output))
    };
    let (done, said) = back();
    assert!(!done && said.contains("shows generation 3 of tin as its newest, and generation 4"), "{said}");
    // A history without its end.
    let mut tin = begun.published("tin");
    tin["published"]["target"]["generation"] = json!(4);
    begun.bed.says("/v1/operator/machines", json!([tin]));
    let (done, said) = back();
    assert!(!done && said.contains("the history of tin ends before"), "{said}");
    assert_eq!(begun.bed.asked(), [], "nothing was sent");
}
