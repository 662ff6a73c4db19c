//! How the plan of a draft differs from the one that the second signer worked out.

use muster_protocol::plan::{Plan, Wave};

use super::duration;
use super::told::hours;
use crate::terminal::list::listed;

/// Each difference in a sentence; `drafted` is what would be signed.
pub fn differences(drafted: &Plan, own: &Plan) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, drafted: String, own: String| {
        if drafted != own {
            differences.push(format!("{what}: the plan says {drafted}, the flake {own}"));
        }
    };
    let names = |plan: &Plan| listed(plan.waves.iter().map(|wave| wave.name.clone()));
    compare("waves", names(drafted), names(own));
    compare("budget", drafted.budget.to_string(), own.budget.to_string());
    compare("failures", format!("{:?}", drafted.failures), format!("{:?}", own.failures));
    let after =
        |plan: &Plan| listed(plan.after.iter().map(|one| format!("{} after {}", one.machine, one.first)));
    compare("order", after(drafted), after(own));
    for (drafted, own) in drafted.waves.iter().zip(&own.waves).filter(|(a, b)| a.name == b.name) {
        let mut wave = |what: &str, of: &dyn Fn(&Wave) -> String| {
            compare(&format!("{what} of wave '{}'", own.name), of(drafted), of(own));
        };
        // All of them: what differs may be the last of many.
        wave("machines", &|wave| joined(wave.members.iter()));
        wave("vouchers", &|wave| joined(wave.vouchers.iter().map(|one| &one.machine)));
        wave("keys", &|wave| joined(wave.vouchers.iter().map(|one| format!("{} {}", one.machine, one.key))));
        wave("outputs", &|wave| joined(wave.vouchers.iter().map(|one| &one.output)));
        wave("atLeast", &|wave| format!("{} ({} %)", wave.at_least, wave.percent));
        wave("soak", &|wave| duration::shown(wave.soak_seconds));
        wave("maxInFlight", &|wave| wave.max_in_flight.to_string());
        wave("hours", &|wave| hours(&wave.windows));
    }
    differences
}

fn joined<T: std::fmt::Display>(all: impl Iterator<Item = T>) -> String {
    let all: Vec<String> = all.map(|one| one.to_string()).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::SecretKey;
    use serde_json::json;

    use super::super::work::tests::plan_of;
    use super::*;

    #[test]
    fn every_setting_that_differs_is_told() {
        let plan = plan_of(
            &json!({ "waves": [{ "name": "a", "machines": ["tin", "lead"] }], "after": { "zinc": ["tin"] } }),
            &["tin", "lead", "zinc"],
        );
        assert!(differences(&plan, &plan).is_empty());
        type Change = fn(&mut Plan);
        let changes: [(&str, Change); 9] = [
            ("budget", |plan| plan.budget += 1),
            ("failures", |plan| plan.failures.clear()),
            ("order", |plan| plan.after.clear()),
            ("machines of wave 'a'", |plan| plan.waves[0].members.reverse()),
            ("vouchers of wave 'a'", |plan| plan.waves[0].vouchers.truncate(1)),
            ("atLeast of wave 'a'", |plan| plan.waves[0].at_least = 1),
            ("soak of wave 'a'", |plan| plan.waves[0].soak_seconds = 1),
            ("keys of wave 'a'", |plan| {
                plan.waves[0].vouchers[0].key = SecretKey::generate().unwrap().public();
            }),
            ("waves", |plan| plan.waves.truncate(1)),
        ];
        for (what, change) in changes {
            let mut drafted = plan.clone();
            change(&mut drafted);
            let told = differences(&drafted, &plan);
            assert!(told.iter().any(|line| line.starts_with(what)), "{what}: {told:?}");
        }
    }
}
