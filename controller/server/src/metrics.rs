//! What this process has counted: numbers that only rise, and a few that say how many there are now.
//!
//! Counting is a few atomic additions. [`COUNTED`] is the process's own, so that the store and the
//! connections count without being handed anything; tests with several controllers in one process see the
//! sum. What is known otherwise (machines, waiting polls, ends of signatures) is asked when somebody
//! scrapes.

mod kinds;
mod numbers;
pub mod text;

use std::future::Future;
use std::time::Duration;

pub use kinds::{Blob, Call, Door, Turned};
pub use numbers::{Counter, Gauge, Histogram, Running};

use kinds::{Checked, Named, Status, code_names, code_of};
use text::{Kind, Text};

/// How long something took, in nanoseconds: from half a millisecond to ten seconds.
const LATENCIES: [u64; 14] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];
/// How many changes were committed together.
const SIZES: [u64; 14] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// Everything that is counted.
pub struct Counted {
    /// Requests by where they went and how they ended.
    requests: [[Counter; Status::COUNT]; Door::COUNT],
    /// How long requests took, apart from long polls.
    durations: [Histogram; Door::COUNT],
    check_ins: [Histogram; Checked::COUNT],
    /// Refusals by the code of their problem.
    refusals: [Counter; kinds::CODES],
    /// Events that were stored.
    pub events: Counter,
    /// Calls of the database.
    store: [Histogram; Call::COUNT],
    /// Calls that wait for the database's writer, or have it.
    pub writer_queue: Gauge,
    /// How many changes the writer committed together.
    pub groups: Histogram,
    blobs: [Histogram; Blob::COUNT],
    /// Connections that are open.
    pub connections: Gauge,
    /// Connections that were turned away.
    turned_away: [Counter; Turned::COUNT],
}

/// The process's own.
pub static COUNTED: Counted = Counted::new();

impl Counted {
    const fn new() -> Self {
        Self {
            requests: [const { [const { Counter::new() }; Status::COUNT] }; Door::COUNT],
            durations: [const { Histogram::new(&LATENCIES) }; Door::COUNT],
            check_ins: [const { Histogram::new(&LATENCIES) }; Checked::COUNT],
            refusals: [const { Counter::new() }; kinds::CODES],
            events: Counter::new(),
            store: [const { Histogram::new(&LATENCIES) }; Call::COUNT],
            writer_queue: Gauge::new(),
            groups: Histogram::new(&SIZES),
            blobs: [const { Histogram::new(&LATENCIES) }; Blob::COUNT],
            connections: Gauge::new(),
            turned_away: [const { Counter::new() }; Turned::COUNT],
        }
    }

    /// A request was answered.
    pub fn answered(&self, door: Door, status: u16, took: Duration) {
        self.requests[door as usize][Status::of(status) as usize].add(1);
        if door == Door::CheckIn {
            self.check_ins[Checked::of(status) as usize].took(took);
        }
        if !door.waits() {
            self.durations[door as usize].took(took);
        }
    }

    /// A request was refused with this code.
    pub fn refused(&self, code: muster_protocol::api::ProblemCode) {
        self.refusals[code_of(code)].add(1);
    }

    /// A connection was turned away.
    pub fn turned_away(&self, why: Turned) {
        self.turned_away[why as usize].add(1);
    }

    /// Runs a call of the database and counts how long it took.
    pub async fn call<T>(&self, call: Call, what: impl Future<Output = T>) -> T {
        self.store[call as usize].time(what).await
    }

    /// The same for a call of the blob store.
    pub async fn blob<T>(&self, call: Blob, what: impl Future<Output = T>) -> T {
        self.blobs[call as usize].time(what).await
    }

    /// Everything, as Prometheus reads it.
    pub fn write(&self, out: &mut Text) {
        out.family("muster_requests_total", Kind::Counter, "Requests by where they went and how they ended.");
        for (door, ends) in Door::NAMES.iter().zip(&self.requests) {
            for (status, count) in Status::NAMES.iter().zip(ends) {
                out.sample(&[("to", door), ("status", status)], count.value());
            }
        }
        out.family(
            "muster_request_duration_seconds",
            Kind::Histogram,
            "How long requests took until their answer began, apart from long polls.",
        );
        for (door, durations) in Door::ALL.iter().zip(&self.durations).filter(|(door, _)| !door.waits()) {
            out.histogram(&[("to", Door::NAMES[*door as usize])], durations);
        }
        out.family(
            "muster_checkin_duration_seconds",
            Kind::Histogram,
            "How long check-ins took, by their outcome.",
        );
        for (outcome, durations) in Checked::NAMES.iter().zip(&self.check_ins) {
            out.histogram(&[("outcome", outcome)], durations);
        }
        out.family("muster_refusals_total", Kind::Counter, "Refused requests by the code of the problem.");
        for (code, count) in code_names().zip(&self.refusals) {
            out.sample(&[("code", code)], count.value());
        }
        out.family("muster_events_total", Kind::Counter, "Events of machines that were stored.");
        out.sample(&[], self.events.value());
        out.family(
            "muster_store_duration_seconds",
            Kind::Histogram,
            "How long calls of the database took: write is a whole transaction with all it waits for.",
        );
        for (call, durations) in Call::NAMES.iter().zip(&self.store) {
            out.histogram(&[("operation", call)], durations);
        }
        out.family(
            "muster_store_writer_queue",
            Kind::Gauge,
            "Transactions that wait for the database's writer, or have it.",
        );
        out.sample(&[], self.writer_queue.value());
        out.family(
            "muster_store_group_size",
            Kind::Histogram,
            "How many changes the database's writer committed together.",
        );
        out.histogram(&[], &self.groups);
        out.family(
            "muster_blob_duration_seconds",
            Kind::Histogram,
            "How long calls of the store of the binary cache took.",
        );
        for (call, durations) in Blob::NAMES.iter().zip(&self.blobs) {
            out.histogram(&[("operation", call)], durations);
        }
        out.family("muster_connections", Kind::Gauge, "Open connections.");
        out.sample(&[], self.connections.value());
        out.family(
            "muster_connections_refused_total",
            Kind::Counter,
            "Connections that were turned away before their first request.",
        );
        for (why, count) in Turned::NAMES.iter().zip(&self.turned_away) {
            out.sample(&[("reason", why)], count.value());
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::api::ProblemCode;

    use super::*;

    fn written(counted: &Counted) -> String {
        let mut text = Text::default();
        counted.write(&mut text);
        text.finish()
    }

    #[test]
    fn what_was_counted_is_written_under_its_name() {
        let counted = Counted::new();
        counted.answered(Door::CheckIn, 200, Duration::from_millis(3));
        counted.answered(Door::CheckIn, 409, Duration::from_millis(700));
        counted.answered(Door::Poll, 200, Duration::from_secs(50));
        counted.refused(ProblemCode::Sequence);
        counted.turned_away(Turned::Address);
        counted.groups.add(3);
        let text = written(&counted);
        for line in [
            "muster_requests_total{to=\"checkin\",status=\"2xx\"} 1",
            "muster_requests_total{to=\"poll\",status=\"2xx\"} 1",
            "muster_checkin_duration_seconds_bucket{outcome=\"accepted\",le=\"0.0025\"} 0",
            "muster_checkin_duration_seconds_bucket{outcome=\"accepted\",le=\"0.005\"} 1",
            "muster_checkin_duration_seconds_bucket{outcome=\"accepted\",le=\"+Inf\"} 1",
            "muster_checkin_duration_seconds_sum{outcome=\"accepted\"} 0.003",
            "muster_checkin_duration_seconds_count{outcome=\"conflict\"} 1",
            "muster_refusals_total{code=\"sequence\"} 1",
            "muster_connections_refused_total{reason=\"address\"} 1",
            "muster_store_group_size_bucket{le=\"2\"} 0",
            "muster_store_group_size_bucket{le=\"4\"} 1",
            "muster_store_group_size_sum 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(
            !text.contains("muster_request_duration_seconds_count{to=\"poll\"}"),
            "a wait is no duration"
        );
    }

    #[test]
    fn what_runs_is_counted_until_it_ends_however_it_ends() {
        static GAUGE: Gauge = Gauge::new();
        let gauge = &GAUGE;
        let (one, two) = (gauge.running(), gauge.running());
        assert_eq!(gauge.value(), 2);
        drop(one);
        assert_eq!(gauge.value(), 1);
        drop(two);
        assert_eq!(gauge.value(), 0);
    }
}
