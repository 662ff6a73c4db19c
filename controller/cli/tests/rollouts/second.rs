//! `muster sign` of a draft for a rollout: the plan is the one that is signed, and every machine in its
//! place.

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::draft::{Draft, Drafted, DraftedGeneration};
use muster_protocol::machine::Class;
use muster_protocol::operator::Publications;
use muster_protocol::plan::Plan;
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::draft_generation;

use super::renewed::Published;
use super::skipped::OUTPUT;
use super::*;

/// Writes a plan, and a draft that puts zinc into a wave of it.
fn write(bed: &Bed, wave: u32, output: &str) {
    let key = SecretKey::generate().unwrap().public();
    let plan = json!({
        "fleet": bed.fleet, "name": "weekly", "nonce": Sha256::of(b"nonce"), "budget": 1,
        "waves": [
            { "name": "canaries", "members": ["tin"], "atLeast": 1, "soakSeconds": 7200, "maxInFlight": 1,
              "vouchers": [{ "machine": "tin", "key": key, "output": OUTPUT }] },
            { "name": "rest", "members": ["zinc"], "atLeast": 0, "maxInFlight": 1,
              "vouchers": [{ "machine": "zinc", "key": bed.key, "output": OUTPUT }] },
        ],
    });
    let plan = Plan::parse(plan.to_string().as_bytes()).unwrap().to_bytes().unwrap();
    draft(
        bed,
        1,
        output,
        &json!({
            "requires": ["rollouts"], "rollout": { "plan": Sha256::of(&plan), "wave": wave },
        }),
    );
    std::fs::write(bed.at("draft.plan"), plan).unwrap();
}

/// Writes a draft of a generation for zinc.
fn draft(bed: &Bed, generation: u64, output: &str, more: &Value) {
    let mut target = json!({
        "machine": "zinc", "class": "nixos", "generation": generation, "system": "x86_64-linux",
        "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv", "output": output,
    });
    target.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    drafted(bed, &[Target::parse(target.to_string().as_bytes()).unwrap()]);
}

fn drafted(bed: &Bed, targets: &[Target]) {
    let clock = SystemClock::new();
    let generation = |target: &Target| DraftedGeneration {
        machine: target.machine.clone(),
        class: Class::Nixos,
        publication: draft_generation(target, 4_000_000_000).unwrap(),
    };
    let draft = Draft {
        fleet: bed.fleet,
        made_at: clock.unix_ms(),
        made_by: bed.key,
        ends: clock.unix_seconds() + 1000,
        what: Drafted::Generations { generations: targets.iter().map(generation).collect() },
    };
    std::fs::write(bed.at("draft"), serde_json::to_vec(&draft).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_signer_sees_the_plan_that_is_signed_and_refuses_another() {
    let bed = Bed::new().await;
    let sign = |more: &[&str]| {
        let output = bed.muster(&[&["sign", "draft", "--offline", "--unseen", "--yes"], more].concat());
        (output.status.success(), out(&output))
    };
    write(&bed, 1, OUTPUT);
    let before = std::fs::read(bed.at("draft")).unwrap();
    let (done, said) = sign(&[]);
    assert!(!done && said.contains("its plan is not here"), "{said}");

    std::fs::write(bed.at("other.plan"), "{}").unwrap();
    let (done, said) = sign(&["--plan", "other.plan"]);
    assert!(!done && said.contains("the target names"), "{said}");
    assert_eq!(std::fs::read(bed.at("draft")).unwrap(), before, "nothing was signed");

    let (done, said) = sign(&["--plan", "draft.plan"]);
    assert!(done, "{said}");
    for words in [
        "wave 2 of plan",
        "Rollout weekly: 2 machines in 2 waves",
        "1 of 1 must have run it well for 2h",
        "not in this draft: tin",
        "were not compared",
        "Signed draft",
    ] {
        assert!(said.contains(words), "{words}\n{said}");
    }

    // Another wave than the plan's, and another system than its word would count for.
    let other = "/nix/store/2c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system";
    for (wave, output) in [(0, OUTPUT), (2, OUTPUT), (1, other)] {
        write(&bed, wave, output);
        let (done, said) = sign(&["--plan", "draft.plan"]);
        assert!(!done && said.contains("the draft for zinc does not fit its rollout"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_a_draft_takes_off_is_a_doubt_of_the_next_signer() {
    let bed = Bed::new().await;
    let sign_number = |generation: u64, more: &[&str]| {
        draft(&bed, generation, OUTPUT, &json!({}));
        let output = bed.muster(&[&["sign", "draft", "--offline", "--unseen"], more].concat());
        (output.status.success(), out(&output))
    };
    let sign = |more: &[&str]| sign_number(4, more);
    let toml = bed.at("fleet/muster.toml");
    let settings = std::fs::read_to_string(&toml).unwrap();
    let seen = |is_gated: bool| {
        let seen = json!({
            "fleet": bed.fleet, "machines": { "zinc": 3 },
            "published": { "zinc": { "generation": 3, "is_gated": is_gated } },
        });
        std::fs::write(bed.at("fleet/generations-seen.json"), seen.to_string()).unwrap();
    };
    // It waited for nobody, and there is no default.
    seen(false);
    let (done, said) = sign(&["--yes"]);
    assert!(done && !said.contains("rollout"), "{said}");
    // It waited.
    seen(true);
    let (done, said) = sign(&["--yes"]);
    assert!(!done && said.contains("zinc leaves its rollout: it switches at once"), "{said}");
    assert!(said.contains("give --at-once"), "{said}");
    let (done, said) = sign(&["--yes", "--at-once"]);
    assert!(done && said.contains("zinc leaves its rollout: it switches at once"), "{said}");
    // There is a default, and the draft does without it.
    std::fs::write(&toml, format!("rollout = \"weekly\"\n{settings}")).unwrap();
    seen(false);
    let (done, said) = sign(&["--yes"]);
    assert!(!done && said.contains("no rollout for zinc: muster.toml here names weekly"), "{said}");
    // What was seen here may be older than what it was given last.
    let (done, said) = sign_number(5, &["--yes"]);
    assert!(!done && said.contains("zinc would switch at once, and it may wait in a rollout"), "{said}");
    std::fs::remove_file(bed.at("fleet/generations-seen.json")).unwrap();
    let (done, said) = sign(&["--yes"]);
    assert!(!done && said.contains("zinc would switch at once, and it may wait in a rollout"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_the_flake_does_not_have_is_a_doubt_of_the_next_signer() {
    let published = Published::at_once().await;
    published.show(&|_| {});
    let (done, said) = published.update(&["--force", "--rollout", "weekly"]);
    assert!(done, "{said}");
    let bed = &published.bed;
    let asked = bed.asked();
    let of = |path: &str| &asked.iter().find(|(asked, _)| asked == path).unwrap().1;
    let plan = of("/v1/operator/plans")["plan"].as_str().unwrap();
    bed.file(&format!("/v1/plans/{}", Sha256::of(plan.as_bytes())), plan.to_owned());
    let sent: Publications = serde_json::from_value(of("/v1/operator/generations").clone()).unwrap();
    let targets =
        sent.generations.iter().map(|one| Target::parse(one.publication.target.as_bytes()).unwrap());
    let targets: Vec<Target> = targets.collect();
    let sign = || {
        drafted(bed, &targets);
        out(&bed.muster(&["sign", "draft", "--yes", "--flake", "./repository"]))
    };
    let said = sign();
    assert!(said.contains("The rollout is what") && said.contains("Signed draft"), "{said}");
    // The same systems; somebody made the plan up.
    let other = FLAKE.replace("rollouts.weekly", "rollouts.monthly");
    std::fs::write(bed.at("repository/flake.nix"), other).unwrap();
    let said = sign();
    assert!(said.contains("has no rollout weekly: nothing was compared"), "{said}");
    assert!(said.contains("is not what is known here") && !said.contains("Signed draft"), "{said}");
}
