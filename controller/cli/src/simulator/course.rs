//! What happened in a simulated fleet, and when.

use serde::Serialize;

/// How many machines were where, at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Seconds from the publication.
    pub after_seconds: i64,
    pub preparing: u32,
    pub waiting: u32,
    pub switching: u32,
    pub runs: u32,
    pub failed: u32,
}

/// The whole course.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Course {
    pub machines: usize,
    /// The sizes of the waves.
    pub waves: Vec<usize>,
    /// When which wave's first machine began, in seconds; `None`: never.
    pub began: Vec<Option<i64>>,
    /// When the rollout was halted, in seconds from the publication.
    pub halted: Option<i64>,
    /// Machines on which the new generation had run by then, or by the end.
    pub exposed: u32,
    /// Machines on which it had failed by then, or by the end.
    pub broken: u32,
    /// When half, nine tenths and 99 in a hundred of the machines had it, in seconds.
    pub reached: [Option<i64>; 3],
    /// Leave that machines did not use, since their gate was not proven.
    pub refused: u64,
    /// The most machines of one wave that were switching when one more began, itself included, beside the
    /// plan's `maxInFlight`.
    pub most_in_flight: u32,
    pub max_in_flight: u32,
    /// Machines that began before their gate was proven: a defect of gate or agent.
    pub too_early: u32,
    /// How often the engine decided.
    pub decisions: u64,
    /// The last state, and its sentence.
    pub state: String,
    pub why: String,
    /// What happened, in order: seconds and a sentence.
    pub told: Vec<(i64, String)>,
    /// Every hour.
    pub seen: Vec<Seen>,
}

/// `3 d 04:10`, for people.
pub fn clock(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (hours, minutes) = (rest / 3600, rest % 3600 / 60);
    if days > 0 { format!("{days} d {hours:02}:{minutes:02}") } else { format!("{hours:02}:{minutes:02}") }
}
