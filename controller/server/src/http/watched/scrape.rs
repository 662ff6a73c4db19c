//! `/metrics`: what was counted, and what is asked when somebody scrapes. Counting the machines reads all of
//! them, so that is done again after ten seconds at the earliest, or after thirty times as long as it took.

use std::convert::Infallible;
use std::fs;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use muster_protocol::operator::RolloutState;

use super::health::readiness;
use crate::core::census::{Census, census};
use crate::core::rollouts::StoredRollout;
use crate::core::settings::Setting;
use crate::http::state::{App, Shared};
use crate::metrics::COUNTED;
use crate::metrics::text::{CONTENT_TYPE, Kind, Text};
use crate::store::{Keys, StoreError};

/// The least time between two counts of the machines.
const LEAST: Duration = Duration::from_secs(10);
/// How many times as long as a count took it is kept: so counting takes at most a thirtieth of the time.
const TIMES: u32 = 30;

/// How long a count may take: Prometheus gives up the whole scrape after ten seconds, and the alerts with it.
const MOST: Duration = Duration::from_secs(2);

/// `None` if the database does not say; it is asked again after [`LEAST`].
async fn counted(app: &App) -> Option<Census> {
    let services = &app.services;
    let find = async {
        let began = services.clock.awake();
        let machines = match tokio::time::timeout(MOST, services.store.machines(Keys::Left)).await {
            Ok(Ok(machines)) => machines,
            failed => {
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => format!("the database did not answer within {} s", MOST.as_secs()),
                };
                tracing::warn!("the machines could not be counted: {why}");
                return Ok::<_, Infallible>((LEAST, None));
            }
        };
        let census = census(&machines, services.limits.poll_seconds, services.now());
        let took = services.clock.awake().saturating_sub(began);
        Ok((took.saturating_mul(TIMES).max(LEAST), Some(census)))
    };
    match app.census.get(&*services.clock, find).await {
        Ok(found) => found,
        Err(never) => match never {},
    }
}

pub async fn metrics(State(app): State<Shared>) -> Response {
    let mut text = Text::default();
    this_controller(&app, &mut text).await;
    COUNTED.write(&mut text);
    if let Some(census) = counted(&app).await {
        fleet(&census, app.services.now_s(), &mut text);
    }
    rollouts(&app, &mut text).await;
    process(&mut text);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text.finish()).into_response()
}

async fn this_controller(app: &App, out: &mut Text) {
    out.family("muster_build_info", Kind::Gauge, "The controller's version.");
    out.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    out.family("muster_ready", Kind::Gauge, "Whether the controller can serve requests, as /readyz says.");
    out.sample(&[], u8::from(readiness(app).await.is_ok()));
    out.family("muster_waiting_polls", Kind::Gauge, "Machines and operators who wait in a long poll.");
    out.sample(&[("of", "machine")], app.services.wakers.len());
    out.sample(&[("of", "operator")], app.services.notify.listeners());
    let chain = app.services.roots.current();
    let root = chain.newest();
    out.family("muster_root_version", Kind::Gauge, "The version of the newest root.");
    out.sample(&[], root.version());
    out.family("muster_root_seconds_left", Kind::Gauge, "How long the newest root is valid, in seconds.");
    out.sample(&[], root.expires().saturating_sub(app.services.now_s()));
    out.family(
        "muster_online_key_named",
        Kind::Gauge,
        "Whether the newest root names this controller's online key, so that it can sign timestamps.",
    );
    out.sample(&[], u8::from(app.services.signer().is_ok()));
    out.family(
        "muster_certificate_seconds_left",
        Kind::Gauge,
        "How long the controller's certificate is valid, the first of its chain to end, in seconds.",
    );
    if let Some(certificate) = &app.services.certificate {
        out.sample(&[], certificate.ends().saturating_sub(app.services.now_s()));
    }
    out.family(
        "muster_settings_apart",
        Kind::Gauge,
        "Whether a setting differs from another controller's on the same database.",
    );
    let apart = app.services.settings.apart();
    for setting in Setting::ALL {
        out.sample(&[("setting", setting.name())], u8::from(apart.contains(&setting)));
    }
    if let Ok(disk) = rustix::fs::statvfs(&app.data) {
        out.family("muster_data_free_bytes", Kind::Gauge, "Free space where the data folder is.");
        out.sample(&[], disk.f_bavail.saturating_mul(disk.f_frsize));
        out.family("muster_data_size_bytes", Kind::Gauge, "All space where the data folder is.");
        out.sample(&[], disk.f_blocks.saturating_mul(disk.f_frsize));
    }
}

fn fleet(census: &Census, now_s: i64, out: &mut Text) {
    out.family("muster_machines", Kind::Gauge, "Machines by class and condition.");
    for ((class, condition), count) in &census.conditions {
        out.sample(&[("class", class.as_str()), ("condition", &word(condition))], count);
    }
    out.family(
        "muster_machines_behind",
        Kind::Gauge,
        "Enrolled machines by how many generations they are behind their newest.",
    );
    for (behind, count) in &census.behind {
        out.sample(&[("generations", behind.as_str())], count);
    }
    out.family("muster_attacks", Kind::Gauge, "Machines that refuse what they were given, by the attack.");
    for (attack, count) in &census.attacks {
        out.sample(&[("attack", &word(attack))], count);
    }
    out.family("muster_clone_alarms", Kind::Gauge, "Machines whose key more than one machine seems to have.");
    out.sample(&[], census.clone_alarms);
    out.family(
        "muster_signatures_ending",
        Kind::Gauge,
        "Newest generations of enrolled machines whose signatures end within 14 days, or have ended.",
    );
    out.sample(&[], census.ending);
    if let Some(first) = census.first_end {
        out.family(
            "muster_signature_seconds_left",
            Kind::Gauge,
            "How long the signatures of newest generations are valid, the first one to end, in seconds.",
        );
        out.sample(&[], first.saturating_sub(now_s));
    }
}

/// The states that a rollout can be in.
const STATES: [RolloutState; 6] = [
    RolloutState::Running,
    RolloutState::Paused,
    RolloutState::Halted,
    RolloutState::Stopped,
    RolloutState::Done,
    RolloutState::Superseded,
];

/// The newest rollouts, as they were decided last. Nothing where the database does not say.
async fn rollouts(app: &App, out: &mut Text) {
    let store = &app.services.store;
    let asked = async { Ok::<_, StoreError>((store.rollouts().await?, store.brake().await?)) };
    let Ok(Ok((found, brake))) = tokio::time::timeout(MOST, asked).await else { return };
    let state = |rollout: &StoredRollout| {
        rollout.verdict.as_ref().map_or(RolloutState::Running, |verdict| verdict.state)
    };
    out.family("muster_rollouts", Kind::Gauge, "The newest 200 rollouts, by state.");
    for one in STATES {
        let count = found.iter().filter(|rollout| state(rollout) == one).count();
        out.sample(&[("state", one.as_str())], count);
    }
    let open = || found.iter().filter(|rollout| rollout.open).filter_map(|rollout| rollout.verdict.as_ref());
    out.family(
        "muster_rollout_machines_in_flight",
        Kind::Gauge,
        "Machines that may begin to switch in a rollout that is under way, or have begun.",
    );
    let waves = open().flat_map(|verdict| &verdict.waves);
    out.sample(&[], waves.map(|wave| u64::from(wave.in_flight)).sum::<u64>());
    out.family(
        "muster_rollout_failures",
        Kind::Gauge,
        "Failures that count against the budgets of rollouts that are under way.",
    );
    out.sample(&[], open().map(|verdict| u64::from(verdict.failures)).sum::<u64>());
    out.family("muster_rollout_brake", Kind::Gauge, "Whether the brake of all rollouts is on.");
    out.sample(&[], u8::from(brake.is_some()));
}

/// A label of one word.
fn word(text: &str) -> String {
    text.replace(' ', "-")
}

/// What Prometheus' client libraries say of a process, under their names; where there is no /proc, nothing.
fn process(out: &mut Text) {
    let statm = fs::read_to_string("/proc/self/statm").ok();
    let pages = statm.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    if let Some(pages) = pages {
        out.family("process_resident_memory_bytes", Kind::Gauge, "Resident memory.");
        out.sample(&[], pages.saturating_mul(rustix::param::page_size() as u64));
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        out.family("process_open_fds", Kind::Gauge, "Open files and sockets.");
        out.sample(&[], open.count());
    }
    if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        out.family("process_max_fds", Kind::Gauge, "How many files and sockets may be open.");
        out.sample(&[], most);
    }
}
