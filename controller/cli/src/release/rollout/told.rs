//! A plan as it is shown before somebody signs it.

use muster_protocol::clock::UnixMillis;
use muster_protocol::plan::{Failure, Plan, Wave, needed};
use muster_protocol::policy::{Day, Window};

use super::duration;
use crate::terminal::count::count;
use crate::terminal::list::listed;
use crate::terminal::table;

/// The plan in lines. `now` is when its first wave would begin.
pub fn lines(plan: &Plan, now: UnixMillis) -> Vec<String> {
    let machines: usize = plan.waves.iter().map(|wave| wave.members.len()).sum();
    let mut lines = vec![format!(
        "Rollout {}: {} in {}",
        plan.name,
        count(machines, "machine", "machines"),
        count(plan.waves.len(), "wave", "waves")
    )];
    let last = plan.waves.len().saturating_sub(1);
    let mut soaked: u64 = 0;
    for (number, wave) in plan.waves.iter().enumerate() {
        let size = count(wave.members.len(), "machine", "machines");
        lines.push(format!("  {}. {}, {size}: {}", number + 1, wave.name, listed(&wave.members)));
        let begins = match number {
            0 => "begins when it is published".to_owned(),
            _ => {
                let names: Vec<&str> =
                    needed(number).filter_map(|one| Some(plan.waves.get(one)?.name.as_str())).collect();
                let earliest = now.saturating_add(i64::try_from(soaked * 1000).unwrap_or(i64::MAX));
                format!("waits for {}; {} at the earliest", names.join(" and "), table::date(earliest))
            }
        };
        lines.push(format!("     {begins}; {}", at_once(wave)));
        if number < last {
            lines.push(format!("     {}", must_soak(wave)));
        }
        if !wave.windows.is_empty() {
            lines.push(format!("     switches {}", hours(&wave.windows)));
        }
        soaked = soaked.saturating_add(wave.soak_seconds);
    }
    for after in &plan.after {
        lines.push(format!("  {} switches after {}", after.machine, after.first));
    }
    let failures: Vec<&str> = plan.failures.iter().filter_map(|failure| failure_word(*failure)).collect();
    lines.push(match failures.as_slice() {
        [] => "  no failure halts it".to_owned(),
        failures => {
            let next = count(plan.budget.saturating_add(1), "machine", "machines");
            format!("  halts when {next} failed: {}", failures.join(", "))
        }
    });
    if last > 0 {
        lines.push("  These are times awake without builds, hours and queues: expect later ones.".to_owned());
    }
    lines
}

fn at_once(wave: &Wave) -> String {
    match wave.max_in_flight as usize {
        some if some < wave.members.len() => format!("{some} at once"),
        _ if wave.members.len() == 1 => "one machine".to_owned(),
        _ => "all at once".to_owned(),
    }
}

fn must_soak(wave: &Wave) -> String {
    let (all, vouch) = (wave.members.len(), wave.vouchers.len());
    let of = if vouch == all { format!("{all}") } else { format!("{vouch} that vouch") };
    format!("{} of {of} must have run it well for {}", wave.at_least, duration::shown(wave.soak_seconds))
}

pub fn failure_word(failure: Failure) -> Option<&'static str> {
    match failure {
        Failure::RolledBack => Some("rolled back"),
        Failure::Degraded => Some("degraded"),
        Failure::NeedsHuman => Some("needs human"),
        Failure::Unknown => None,
    }
}

pub fn hours(windows: &[Window]) -> String {
    let one = |window: &Window| {
        let days: Vec<&str> = window.days.iter().map(|day| day_word(*day)).collect();
        let days = if days.is_empty() { "daily".to_owned() } else { days.join(",") };
        let zone = window.zone.as_deref().unwrap_or("the machine's time");
        format!("{days} {} to {} ({zone})", window.from, window.to)
    };
    windows.iter().map(one).collect::<Vec<_>>().join(" or ")
}

fn day_word(day: Day) -> &'static str {
    match day {
        Day::Mon => "Mon",
        Day::Tue => "Tue",
        Day::Wed => "Wed",
        Day::Thu => "Thu",
        Day::Fri => "Fri",
        Day::Sat => "Sat",
        Day::Sun => "Sun",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::work::tests::plan_of;
    use super::*;

    #[test]
    fn a_plan_says_who_waits_for_whom_for_how_long_and_what_ends_it() {
        let plan = plan_of(
            &json!({
                "waves": [
                    { "name": "canaries", "machines": ["tin"], "soak": "2h" },
                    { "name": "some", "machines": ["lead", "zinc", "iron"], "atLeast": 2, "maxInFlight": 2,
                      "windows": [{ "days": ["sat"], "from": "22:00", "to": "04:00", "zone": "UTC" }] },
                ],
                "budget": 1,
                "after": { "zinc": ["lead"] },
            }),
            &["tin", "lead", "zinc", "iron", "gold"],
        );
        let text = lines(&plan, 0).join("\n");
        for words in [
            "Rollout weekly: 5 machines in 3 waves",
            "1. canaries, 1 machine: tin\n     begins when it is published; one machine",
            "1 of 1 must have run it well for 2h",
            "waits for canaries; 1970-01-01 02:00",
            "at the earliest; 2 at once\n     2 of 3 must have run it well for 15m",
            "switches Sat 22:00 to 04:00 (UTC)",
            "waits for canaries and some; 1970-01-01 02:15",
            "zinc switches after lead",
            "halts when 2 machines failed: rolled back, needs human",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
    }
}
