//! How the plan of a draft differs from the one that the second signer worked out.

use muster_protocol::plan::{Plan, Wave};

use super::duration;
use super::told::hours;

/// Each difference in a sentence; `drafted` is what would be signed.
pub fn differences(drafted: &Plan, own: &Plan) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, drafted: String, own: String| {
        if drafted != own {
            differences.push(format!("{what}: the plan says {drafted}, the flake {own}"));
        }
    };
    // All of everything: what differs may be the last of many.
    let names = |plan: &Plan| joined(plan.waves.iter().map(|wave| &wave.name));
    compare("waves", names(drafted), names(own));
    compare("budget", drafted.budget.to_string(), own.budget.to_string());
    compare("failures", format!("{:?}", drafted.failures), format!("{:?}", own.failures));
    let after =
        |plan: &Plan| joined(plan.after.iter().map(|one| format!("{} after {}", one.machine, one.first)));
    compare("order", after(drafted), after(own));
    // By their place: a wave under another name is compared, too.
    for (drafted, own) in drafted.waves.iter().zip(&own.waves) {
        let mut wave = |what: &str, of: &dyn Fn(&Wave) -> String| {
            compare(&format!("{what} of wave '{}'", own.name), of(drafted), of(own));
        };
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
    fn a_difference_behind_many_that_agree_is_told_and_a_new_name_hides_none() {
        let names: Vec<String> = (0..30).map(|number| format!("m{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let each = |name: &&str| json!({ "name": format!("w-{name}"), "machines": [name] });
        let after: serde_json::Map<String, serde_json::Value> =
            names[1..].iter().map(|name| ((*name).to_owned(), json!(["m0"]))).collect();
        let waves: Vec<_> = names[..25].iter().map(each).collect();
        let plan = plan_of(&json!({ "waves": waves, "after": after }), &names);
        let last = plan.waves.len() - 1;
        let told = |change: &dyn Fn(&mut Plan)| {
            let mut drafted = plan.clone();
            change(&mut drafted);
            differences(&drafted, &plan).join("\n")
        };
        assert_eq!(told(&|_| {}), "");
        assert!(told(&|plan| drop(plan.after.pop())).contains("order: "));
        assert!(told(&|plan| plan.waves[last].name = "end".to_owned()).contains("waves: "));
        let renamed = told(&|plan| {
            plan.waves[2].name = "other".to_owned();
            plan.waves[2].soak_seconds = 1;
        });
        assert!(renamed.contains("waves: ") && renamed.contains("soak of wave 'w-m2'"), "{renamed}");
    }

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
