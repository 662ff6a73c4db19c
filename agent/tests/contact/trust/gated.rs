//! Targets that have a place in a rollout: where they are found and kept, and their plans.

use muster_protocol::checkin::Files;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::Publication;
use muster_protocol::plan::{Failure, MAX_PLAN_BYTES, Place, Plan, PlanError, Voucher, Wave};

use super::*;

/// A plan of two waves, with the machine in the second one.
fn plan(machine: &Machine) -> Plan {
    let wave = |name: &str, member: &MachineName| Wave {
        name: name.into(),
        members: vec![member.clone()],
        vouchers: vec![Voucher {
            machine: member.clone(),
            key: SecretKey::generate().unwrap().public(),
            output: machine.fleet.target(2).output,
        }],
        at_least: 1,
        percent: 0,
        soak_seconds: 60,
        max_in_flight: 1,
        windows: vec![],
    };
    Plan {
        fleet: machine.identity.fleet,
        epoch: Epoch::default(),
        name: "weekly".parse().unwrap(),
        nonce: Sha256::of(b"nonce"),
        waves: vec![wave("canaries", &"canary".parse().unwrap()), wave("all", &machine.fleet.machine)],
        after: vec![],
        budget: 0,
        failures: Failure::all(),
    }
}

fn gated(machine: &Machine, generation: u64, plan: Sha256) -> Target {
    Target {
        rollout: Some(Place { plan, wave: 1 }),
        requires: vec!["rollouts".into()],
        output: machine.fleet.target(2).output,
        ..machine.fleet.target(generation)
    }
}

/// Serves this gated target.
fn publish(machine: &Machine, target: &Target) -> Publication {
    let publication = sign_generation(target, NOW + 30 * DAY, &[&machine.fleet.operator]).unwrap();
    machine.controller.publish(&machine.fleet, &publication);
    let hash = Sha256::of(publication.target.as_bytes());
    let target = publication.target.as_bytes();
    machine.controller.take(&api::target_path(&machine.fleet.machine, &hash));
    machine.controller.put(&api::gated_path(&machine.fleet.machine, &hash), target);
    publication
}

/// A machine that holds plain generation 1, and gated generation 2 that it is offered with its plan.
async fn offered() -> (Machine, Trust, Plan) {
    let (machine, trust) = Machine::holding(1).await;
    let plan = plan(&machine);
    let bytes = plan.to_bytes().unwrap();
    machine.controller.put(&api::plan_path(&Sha256::of(&bytes)), bytes.clone());
    publish(&machine, &gated(&machine, 2, Sha256::of(&bytes)));
    (machine, trust, plan)
}

fn names(machine: &Machine) -> Vec<String> {
    let names = ["generation.json", "gated.json", "plan.json"];
    let folder = machine.state.path().join("tuf");
    names.into_iter().filter(|name| folder.join(name).exists()).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_gated_target_and_its_plan_are_kept_under_names_that_older_agents_do_not_read() {
    let (machine, mut trust, plan) = offered().await;
    assert_eq!(names(&machine), ["generation.json"]);
    let target = trust.refresh(&machine.client, NOW).await.unwrap().unwrap();
    assert_eq!((target.generation.get(), trust.lacks_plan()), (2, true));
    assert_eq!(names(&machine), ["gated.json"], "an agent that knows no gates finds nothing to switch to");
    trust.fetch_plan(&machine.client).await.unwrap();
    let hash = target.rollout.unwrap().plan;
    for again in [&trust, &machine.open()] {
        assert_eq!(again.held().as_ref(), Some(&target));
        let (of, held) = again.plan().unwrap();
        assert_eq!((of, &*held, again.lacks_plan()), (hash, &plan, false));
        assert_eq!(again.expires(), Some((target.generation, NOW + 30 * DAY)));
    }
    // A plan that was changed on disk is not used, and fetched again.
    let file = machine.state.path().join("tuf/plan.json");
    std::fs::write(&file, b"{}").unwrap();
    let mut again = machine.open();
    assert!(again.lacks_plan() && again.plan().is_none());
    again.fetch_plan(&machine.client).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), plan.to_bytes().unwrap());
    // The next plain target takes the place of both.
    machine.controller.publish(&machine.fleet, &machine.fleet.publication(3));
    again.refresh(&machine.client, NOW).await.unwrap();
    assert_eq!((names(&machine), again.plan().is_none()), (vec!["generation.json".to_owned()], true));
    assert_eq!(machine.open().held(), Some(machine.fleet.target(3)));
}

#[tokio::test]
async fn a_crash_between_the_two_files_leaves_the_newer_one_and_a_failed_removal_is_made_up_for() {
    let (machine, mut trust, _) = offered().await;
    let plain = std::fs::read(machine.state.path().join("tuf/generation.json")).unwrap();
    let target = trust.refresh(&machine.client, NOW).await.unwrap();
    std::fs::write(machine.state.path().join("tuf/generation.json"), plain).unwrap();
    let mut again = machine.open();
    assert_eq!(again.held(), target);
    again.refresh(&machine.client, NOW).await.unwrap();
    assert_eq!(names(&machine), ["gated.json"]);
}

#[tokio::test]
async fn a_target_that_is_listed_as_what_it_is_not_is_refused() {
    let (machine, mut trust, plan) = offered().await;
    let hash = Sha256::of(&plan.to_bytes().unwrap());
    for (target, listed_gated) in [(machine.fleet.target(2), true), (gated(&machine, 3, hash), false)] {
        // The operator's program would not sign this: the lists are bent, and signed anew.
        let publication = sign_generation(&target, NOW + 30 * DAY, &[&machine.fleet.operator]).unwrap();
        let [plain, with_gate] =
            [api::target_name(&machine.fleet.machine), api::gated_name(&machine.fleet.machine)];
        let (from, to) = if listed_gated { (plain, with_gate) } else { (with_gate, plain) };
        let bent = bend(&machine, &publication, &from, &to);
        machine.controller.publish(&machine.fleet, &bent);
        let target_hash = Sha256::of(bent.target.as_bytes());
        let path = if listed_gated { api::gated_path } else { api::target_path };
        machine.controller.put(&path(&machine.fleet.machine, &target_hash), bent.target.as_bytes());
        let error = trust.refresh(&machine.client, NOW).await.unwrap_err();
        assert_eq!(error.attack(), Some(Attack::MixAndMatch), "{error}");
        assert_eq!(trust.held().unwrap().generation.get(), 1);
        assert_eq!(names(&machine), ["generation.json"]);
    }
}

/// The same publication with another path in its list, signed by the operator all the same.
fn bend(machine: &Machine, publication: &Publication, from: &str, to: &str) -> Publication {
    let resign = |text: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let mut document: serde_json::Value = serde_json::from_str(text).unwrap();
        change(&mut document["signed"]);
        let bytes = canonical::encode(&document["signed"]).unwrap();
        document["signatures"][0]["sig"] = machine.fleet.operator.sign_raw(&bytes).hex().into();
        document.to_string()
    };
    let targets = resign(&publication.targets, &|signed| {
        let list = signed["targets"].as_object_mut().unwrap();
        let listed = list.remove(from).unwrap();
        list.insert(to.to_owned(), listed);
    });
    let snapshot = resign(&publication.snapshot, &|signed| {
        let pin = &mut signed["meta"]["targets.json"];
        pin["length"] = targets.len().into();
        pin["hashes"]["sha256"] = Sha256::of(targets.as_bytes()).to_string().into();
    });
    Publication { targets, snapshot, ..publication.clone() }
}

#[tokio::test]
async fn a_plan_that_is_not_the_one_signed_is_refused_and_the_target_kept() {
    let (machine, mut trust, plan) = offered().await;
    trust.refresh(&machine.client, NOW).await.unwrap();
    let path = api::plan_path(&Sha256::of(&plan.to_bytes().unwrap()));
    machine.controller.take(&path);
    let missing = trust.fetch_plan(&machine.client).await.unwrap_err();
    assert!(matches!(missing, TrustError::NoPlan) && missing.attack().is_none());
    let other = Plan { budget: 9, ..plan.clone() };
    for (bytes, attack) in [
        (other.to_bytes().unwrap(), Attack::MixAndMatch),
        (b"{}".to_vec(), Attack::MixAndMatch),
        (vec![b' '; usize::try_from(MAX_PLAN_BYTES).unwrap() + 1], Attack::EndlessData),
    ] {
        machine.controller.put(&path, bytes);
        let error = trust.fetch_plan(&machine.client).await.unwrap_err();
        assert_eq!(error.attack(), Some(attack), "{error}");
        assert!(trust.lacks_plan() && trust.plan().is_none());
        assert_eq!(names(&machine), ["gated.json"], "nothing of it is stored");
        assert_eq!(trust.held().unwrap().generation.get(), 2);
    }
    machine.controller.put(&path, plan.to_bytes().unwrap());
    trust.fetch_plan(&machine.client).await.unwrap();
    assert!(trust.plan().is_some());
}

#[tokio::test]
async fn a_signed_plan_that_has_no_such_place_for_this_machine_is_refused() {
    let (machine, mut trust, good) = offered().await;
    let with = |change: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        change(&mut plan);
        plan
    };
    let bad = [
        with(&|plan| plan.fleet = Sha256::of(b"another fleet")),
        with(&|plan| plan.epoch = Epoch::new(1).unwrap()),
        with(&|plan| plan.waves[1].vouchers[0].output = machine.fleet.target(9).output),
        with(&|plan| plan.waves.reverse()),
        with(&|plan| {
            plan.waves[1].members = vec!["zinc".parse().unwrap()];
            plan.waves[1].vouchers[0].machine = "zinc".parse().unwrap();
        }),
    ];
    for (number, plan) in bad.into_iter().enumerate() {
        let bytes = plan.to_bytes().unwrap();
        let hash = Sha256::of(&bytes);
        machine.controller.put(&api::plan_path(&hash), bytes);
        publish(&machine, &gated(&machine, 2 + number as u64, hash));
        trust.refresh(&machine.client, NOW).await.unwrap();
        let error = trust.fetch_plan(&machine.client).await.unwrap_err();
        assert!(
            matches!(error, TrustError::Plan(PlanError::Foreign(_) | PlanError::NotItsPlace { .. })),
            "{error}"
        );
        assert_eq!(error.attack(), Some(Attack::MixAndMatch));
        assert!(trust.lacks_plan());
    }
}

#[tokio::test]
async fn what_is_sent_along_with_news_may_be_gated() {
    let (machine, mut trust, plan) = offered().await;
    let publication = publish(&machine, &gated(&machine, 3, Sha256::of(&plan.to_bytes().unwrap())));
    let timestamp = String::from_utf8(machine.controller.file(&machine.path("timestamp.json"))).unwrap();
    let Publication { generation: _, targets, snapshot, target } = publication;
    let files = Files { root: 1, roots: vec![], timestamp, snapshot, targets, target };
    let sent = muster_agent::trust::Sent { files, root: 1 };
    let before = machine.controller.seen().len();
    let target = trust.refresh_from(&machine.client, Some(sent), NOW).await.unwrap().unwrap();
    assert_eq!((target.generation.get(), machine.controller.seen().len()), (3, before));
    assert!(trust.take_bent().is_none() && target.rollout.is_some());
}
