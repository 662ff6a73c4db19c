//! `muster rollout skip-wave`: what it signs again is what operators signed, whatever the controller says.

use muster_protocol::operator::{Publication, Publications};
use muster_protocol::plan::{Claim, Plan, Said};
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::sign_generation;

use super::*;

pub const OUTPUT: &str = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system";
const FAR: i64 = 4_000_000_000;

/// Two canaries, of which one has soaked, and one machine that waits for both.
struct Halted {
    bed: Bed,
    plan: Sha256,
    operator: SecretKey,
}

impl Halted {
    async fn new() -> Self {
        let bed = Bed::new().await;
        let pem = std::fs::read_to_string(bed.at("fleet/keys/operator.pem")).unwrap();
        let operator = SecretKey::from_pem(&pem).unwrap();
        let tin = SecretKey::generate().unwrap();
        let voucher = |name: &str| {
            let key = if name == "tin" { tin.public() } else { SecretKey::generate().unwrap().public() };
            json!({ "machine": name, "key": key, "output": OUTPUT })
        };
        let plan = json!({
            "fleet": bed.fleet, "name": "weekly", "nonce": Sha256::of(b"nonce"), "budget": 1,
            "waves": [
                { "name": "canaries", "members": ["tin", "lead"],
                  "vouchers": [voucher("tin"), voucher("lead")],
                  "atLeast": 2, "percent": 100, "soakSeconds": 7200, "maxInFlight": 1 },
                { "name": "rest", "members": ["zinc"], "vouchers": [voucher("zinc")], "atLeast": 0,
                  "soakSeconds": 900, "maxInFlight": 1 },
            ],
        });
        let read = Plan::parse(plan.to_string().as_bytes()).unwrap();
        let plan = read.to_bytes().unwrap();
        let hash = Sha256::of(&plan);
        let claim = Claim {
            hash,
            plan: &read,
            voucher: read.voucher(&"tin".parse().unwrap()).unwrap(),
            said: Said::Soaked,
        };
        let soaked = json!([{ "machine": "tin", "said": "soaked", "signature": claim.sign(&tin) }]);
        bed.says(&format!("/v1/plans/{hash}/statements"), json!({ "statements": soaked }));
        let halted = Self { bed, plan: hash, operator };
        halted.bed.file(&format!("/v1/plans/{hash}"), String::from_utf8(plan).unwrap());
        let places = [("tin", 0), ("lead", 0), ("zinc", 1)];
        let machines = places.map(|(name, wave)| halted.published(name, wave, 3));
        halted.bed.says("/v1/operator/machines", json!(machines));
        halted.shows(["soaked", "away", "waiting"]);
        halted.bed.says("/v1/operator/session", json!({ "bearer": "b", "expires_in": 3600 }));
        halted.bed.says("/v1/operator/plans", Value::Null);
        halted.bed.says("/v1/operator/generations", json!({ "published": 2, "unchanged": 0 }));
        halted
    }

    /// What the controller says of tin, lead and zinc.
    fn shows(&self, [tin, lead, zinc]: [&str; 3]) {
        let member = |name: &str, wave: u32, state: &str| {
            json!({
                "machine": name, "wave": wave, "state": state, "why": "", "said": null,
            })
        };
        let view = json!({
            "plan": self.plan, "name": "weekly", "at": 1, "by": self.bed.key, "state": "running",
            "why": "it waits", "budget": 1, "failures": 0,
            "waves": [
                { "name": "canaries", "atLeast": 2, "open": true, "soaked": 1, "away": 1 },
                { "name": "rest", "open": false, "waiting": 1 },
            ],
            "members": [member("tin", 0, tin), member("lead", 0, lead), member("zinc", 1, zinc)],
        });
        self.bed.says("/v1/operator/rollouts", json!([view]));
        self.bed.says(&format!("/v1/operator/rollouts/{}", self.plan), view);
    }

    fn skip(&self) -> (bool, String) {
        let output = self.bed.muster(&["rollout", "skip-wave", "weekly", "--yes"]);
        (output.status.success(), out(&output))
    }

    /// A machine's files as its operator signed them, and how the controller shows it.
    fn published(&self, name: &str, wave: u32, generation: u64) -> Value {
        let target = json!({
            "machine": name, "class": "nixos", "generation": generation, "system": "x86_64-linux",
            "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv", "output": OUTPUT,
            "deadline_seconds": 77, "requires": ["rollouts"], "message": "first words",
            "rollout": { "plan": self.plan, "wave": wave },
        });
        let read = Target::parse(target.to_string().as_bytes()).unwrap();
        let Publication { targets, snapshot, target: text, .. } =
            sign_generation(&read, FAR, &[&self.operator]).unwrap();
        let tuf = format!("/v1/machines/{name}/tuf");
        let hash = Sha256::of(text.as_bytes());
        self.bed.file(&format!("{tuf}/{generation}.targets.json"), targets);
        self.bed.file(&format!("{tuf}/{generation}.snapshot.json"), snapshot);
        self.bed.file(&format!("{tuf}/targets/{name}/{hash}.gated.json"), text);
        let published =
            json!({ "target": target, "at": 1, "by": self.bed.key, "expires": FAR, "signers": [] });
        self.bed.machine(name, &json!({ "published": published, "key": self.bed.key }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wave_that_blocks_comes_last_and_the_same_systems_are_signed_again() {
    let halted = Halted::new().await;
    let output = halted.bed.muster(&["rollout", "skip-wave", "weekly", "--yes"]);
    let said = out(&output);
    assert!(output.status.success(), "{said}");
    for words in [
        "'canaries' is no longer waited for: 1 of 2 have proved that they soaked; the controller says of the \
         others: lead (away)",
        &format!("zinc (nixos) generation 4: what generation 3 was ({OUTPUT}), published 1970-01-01"),
        "'rest' begins as soon as it is published",
        "1. rest, 1 machine: zinc",
        "2. canaries later, 1 machine: lead",
    ] {
        assert!(said.contains(words), "{words}\n{said}");
    }
    let asked = halted.bed.asked();
    let paths: Vec<&str> = asked.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/v1/operator/plans", "/v1/operator/generations"], "the plan comes first");
    let text = asked[0].1["plan"].as_str().unwrap();
    let plan = Plan::parse(text.as_bytes()).unwrap();
    assert_ne!(plan.nonce, Sha256::of(b"nonce"), "what was said of the old plan counts for nothing");
    let generations: Publications = serde_json::from_value(asked[1].1.clone()).unwrap();
    let found: Vec<(String, u64, u32)> = generations
        .generations
        .iter()
        .map(|one| {
            let target = Target::parse(one.publication.target.as_bytes()).unwrap();
            let place = target.rollout.unwrap();
            assert_eq!(place.plan, Sha256::of(text.as_bytes()));
            assert_eq!((target.output.as_str(), target.deadline_seconds), (OUTPUT, 77));
            assert_eq!(target.requires, ["rollouts"]);
            (target.machine.to_string(), target.generation.get(), place.wave)
        })
        .collect();
    assert_eq!(found, [("lead".into(), 4, 1), ("zinc".into(), 4, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_names_another_target_gets_no_signature_for_it() {
    let halted = Halted::new().await;
    // Signed by somebody else, and every hash fits.
    let thief = Halted { operator: SecretKey::generate().unwrap(), ..halted };
    thief.published("zinc", 1, 3);
    let refused = thief.bed.muster(&["rollout", "skip-wave", "weekly", "--yes"]);
    let said = out(&refused);
    assert!(!refused.status.success() && said.contains("was not signed by today's operators"), "{said}");
    // A plan that the target does not name.
    thief.bed.file(&format!("/v1/plans/{}", thief.plan), "{}".to_owned());
    let said = out(&thief.bed.muster(&["rollout", "skip-wave", "weekly", "--yes"]));
    assert!(said.contains("the target names"), "{said}");
    assert_eq!(thief.bed.asked(), [], "nothing was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_rollout_that_operators_signed_once_is_not_signed_again() {
    let halted = Halted::new().await;
    let (done, said) = halted.skip();
    assert!(done, "{said}");
    halted.bed.asked();
    // It is all genuine, and this computer has published generation 4 since.
    let (done, said) = halted.skip();
    assert!(!done && said.contains("shows generation 3 of lead as its newest, and generation 4"), "{said}");
    // Another plan than the one that the list has.
    let path = format!("/v1/operator/rollouts/{}", halted.plan);
    let mut other = halted.bed.controller.lock().unwrap().answers[&path].clone();
    other["plan"] = json!(Sha256::of(b"older"));
    halted.bed.says(&path, other);
    let (done, said) = halted.skip();
    assert!(!done && said.contains("the controller shows the rollout"), "{said}");
    assert_eq!(halted.bed.asked(), [], "nothing was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn that_a_machine_soaked_or_left_is_believed_if_it_was_signed() {
    let halted = Halted::new().await;
    // Both canaries, says the controller; one has signed it, and its signature is shown for the other, too.
    let path = format!("/v1/plans/{}/statements", halted.plan);
    let mut said = halted.bed.controller.lock().unwrap().answers[&path].clone();
    let mut forged = said["statements"][0].clone();
    forged["machine"] = json!("lead");
    said["statements"].as_array_mut().unwrap().push(forged);
    halted.bed.says(&path, said);
    halted.shows(["soaked", "soaked", "waiting"]);
    let (done, said) = halted.skip();
    assert!(done && said.contains("1 of 2 have proved that they soaked"), "{said}");
    assert!(said.contains("the others: lead (soaked)"), "{said}");
    let asked = halted.bed.asked();
    assert_eq!(asked[1].1["generations"].as_array().unwrap().len(), 2, "lead stays in the rollout");
    // Its target is still the rollout's.
    let halted = Halted::new().await;
    halted.shows(["soaked", "away", "left"]);
    let (done, said) = halted.skip();
    assert!(!done && said.contains("says that zinc has left the rollout, and it has not"), "{said}");
    assert_eq!(halted.bed.asked(), [], "nothing was sent");
}
