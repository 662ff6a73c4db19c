//! Words that count no longer, and a plan that nobody can read.

use super::*;

/// Another one is invited under its name, and enrols.
async fn replace(fleet: &Fleet, name: &str) -> Machine {
    let token = fleet.token(name, Class::Nixos);
    fleet.add(&token, true).await.good::<MachineView>();
    fleet.enrolled_with(token).await
}

#[tokio::test]
async fn the_word_of_a_revoked_machine_stays_void_when_another_one_has_its_name() {
    let fleet = Fleet::start().await;
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar", "realgar"], &["stibnite"]], 2).await;
    rollout.gets_leave(&fleet, "cinnabar").await;
    rollout.says(&fleet, "cinnabar", Said::Soaked).await;
    rollout.gets_leave(&fleet, "stibnite").await;
    let path = format!("{}/revoke", api::operator_machine(&"cinnabar".parse().unwrap()));
    fleet.operate(Method::POST, &path, vec![]).await.good::<MachineView>();
    assert_eq!(rollout.show(&fleet).await.state, RolloutState::Halted);
    let new = replace(&fleet, "cinnabar").await;
    let view = rollout.show(&fleet).await;
    assert_eq!(view.state, RolloutState::Halted, "{}", view.why);
    assert!(view.why.contains("cinnabar was revoked") && view.why.contains("rollout retry weekly"));
    // An operator goes on without it. What its key said does not count, whoever repeats it.
    rollout.ask(&fleet, Wish::Run, true).await.good::<RolloutView>();
    let said = rollout.vouch("cinnabar", Said::Soaked);
    rollout.machines.insert("cinnabar".into(), new);
    rollout.checks_in(&fleet, "cinnabar", |checkin| checkin.vouch = Some(said)).await;
    let view = rollout.show(&fleet).await;
    assert_eq!(view.state, RolloutState::Running, "{}", view.why);
    assert_eq!(seconds(&rollout.waits(&fleet, "stibnite").await), 0);
    assert_eq!(rollout.statements(&fleet, "stibnite").await, []);
    rollout.says(&fleet, "realgar", Said::Soaked).await;
    rollout.gets_leave(&fleet, "stibnite").await;
}

#[tokio::test]
async fn the_word_of_a_machine_that_was_replaced_counts_no_longer_and_halts_nothing() {
    let fleet = Fleet::start().await;
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar", "realgar"], &["stibnite"]], 2).await;
    rollout.says(&fleet, "cinnabar", Said::Soaked).await;
    replace(&fleet, "cinnabar").await;
    let closes = async {
        while rollout.show(&fleet).await.waves[1].open {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, closes).await.expect("the gate closes again");
    let view = rollout.show(&fleet).await;
    assert_eq!(view.state, RolloutState::Running, "{}", view.why);
    assert_eq!(seconds(&rollout.waits(&fleet, "stibnite").await), 0);
    assert_eq!(rollout.statements(&fleet, "stibnite").await, []);
}

#[tokio::test]
async fn a_plan_that_cannot_be_read_holds_up_no_other_rollout_and_no_brake() {
    let fleet = Fleet::start().await;
    // It is the first one in any order: hashes have no order among themselves.
    let damaged = fleet.dialect(
        "INSERT INTO plans (hash, document) SELECT zeroblob(32), x'7b'",
        "INSERT INTO plans (hash, document) SELECT decode(repeat('00', 32), 'hex'), decode('7b', 'hex')",
    );
    fleet.try_sql(damaged).await.unwrap();
    let open = "INSERT INTO rollouts (plan, name, budget, made_at, made_by)
                SELECT hash, 'odd', 0, 1, hash FROM plans";
    fleet.try_sql(open).await.unwrap();
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar"], &["stibnite"]], 1).await;
    rollout.gets_leave(&fleet, "cinnabar").await;
    brake(&fleet, true).await.unwrap();
    assert_eq!(seconds(&rollout.waits(&fleet, "cinnabar").await), 0);
    // A check-in that names it is not refused either.
    let plan = Sha256::from_bytes([0; 32]);
    let vouch = Vouch { plan, ..rollout.vouch("cinnabar", Said::Soaked) };
    rollout.checks_in(&fleet, "cinnabar", |checkin| checkin.vouch = Some(vouch)).await;
}
