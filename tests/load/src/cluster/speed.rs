//! How long things take while nothing is broken: the figures of a database and a store beside others.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use muster_protocol::ids::MachineName;
use serde::Serialize;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub struct Speed {
    over: AtomicBool,
    /// In milliseconds.
    times: Mutex<BTreeMap<What, Vec<f64>>>,
    /// When each generation was sent first.
    sent: Mutex<BTreeMap<(MachineName, u64), Instant>>,
}

/// What is timed, in the order in which it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    CheckIn,
    Report,
    Publication,
    /// From when a generation was sent until its machine has verified its files.
    Held,
    Upload,
    Read,
}

impl What {
    fn words(self) -> &'static str {
        match self {
            Self::CheckIn => "check-in",
            Self::Report => "report",
            Self::Publication => "publication answered",
            Self::Held => "publication until held",
            Self::Upload => "archive uploaded",
            Self::Read => "archive read",
        }
    }
}

/// Of one kind of thing, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Times {
    pub count: usize,
    pub median: f64,
    pub p99: f64,
}

/// What one kind of fleet was measured with.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub database: &'static str,
    pub blobs: &'static str,
    pub controllers: usize,
    pub times: BTreeMap<What, Times>,
}

impl Speed {
    /// Something took so long.
    pub fn took(&self, what: What, time: Duration) {
        if !self.over.load(Ordering::Relaxed)
            && let Ok(mut times) = self.times.lock()
        {
            times.entry(what).or_default().push(time.as_secs_f64() * 1e3);
        }
    }

    /// A generation is sent now.
    pub fn sends(&self, machine: &MachineName, generation: u64) {
        if !self.over.load(Ordering::Relaxed)
            && let Ok(mut sent) = self.sent.lock()
        {
            sent.insert((machine.clone(), generation), Instant::now());
        }
    }

    /// Its machine has verified its files.
    pub fn holds(&self, machine: &MachineName, generation: u64) {
        let sent = self.sent.lock().ok().and_then(|mut sent| sent.remove(&(machine.clone(), generation)));
        if let Some(sent) = sent {
            self.took(What::Held, sent.elapsed());
        }
    }

    /// From now on nothing is timed.
    pub fn end(&self) -> BTreeMap<What, Times> {
        self.over.store(true, Ordering::Relaxed);
        let Ok(mut times) = self.times.lock() else { return BTreeMap::new() };
        let of = |(what, times): (&What, &mut Vec<f64>)| {
            times.sort_by(f64::total_cmp);
            let at = |share: f64| {
                let index = ((times.len() as f64 - 1.0) * share).round();
                times.get(index as usize).copied().unwrap_or_default()
            };
            (*what, Times { count: times.len(), median: at(0.5), p99: at(0.99) })
        };
        times.iter_mut().map(of).collect()
    }
}

/// A line for each kind of thing; what comes after the first column is also told as its multiple.
pub fn table(all: &[Figures]) -> String {
    let title = |one: &Figures| match one.controllers {
        1 => format!("{} + {}", one.database, one.blobs),
        count => format!("{} + {}, {count} controllers", one.database, one.blobs),
    };
    let mut text = format!("{:24}", "median / 99 %, ms");
    for one in all {
        let _ = write!(text, "{:>42}", title(one));
    }
    for what in all.first().iter().flat_map(|first| first.times.keys()) {
        let _ = write!(text, "\n{:24}", what.words());
        let first = all.first().and_then(|first| first.times.get(what));
        for (index, one) in all.iter().enumerate() {
            let Some(Times { count, median, p99 }) = one.times.get(what) else {
                let _ = write!(text, "{:>42}", "-");
                continue;
            };
            let ratio = match first {
                Some(first) if index > 0 => format!(", {:.1} x", median / first.median.max(0.001)),
                _ => String::new(),
            };
            let _ = write!(text, "{:>42}", format!("{median:.1} / {p99:.1} of {count}{ratio}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn medians_are_printed_beside_each_other_as_multiples_of_the_first() {
        let machine: MachineName = "tin".parse().unwrap();
        let figures = [1_u64, 3].map(|slower| {
            let speed = Speed::default();
            for ms in 1..=100 {
                speed.took(What::CheckIn, Duration::from_millis(ms * slower));
            }
            speed.holds(&machine, 1);
            let times = speed.end();
            speed.took(What::Read, Duration::from_secs(1));
            Figures { database: "PostgreSQL", blobs: "folder", controllers: slower as usize, times }
        });
        let text = table(&figures);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("PostgreSQL + folder, 3 controllers"), "{text}");
        assert!(
            text.contains("51.0 / 99.0 of 100") && text.contains("153.0 / 297.0 of 100, 3.0 x"),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_generation_is_held_once_counted_from_when_it_was_sent() {
        let (speed, machine) = (Speed::default(), "tin".parse().unwrap());
        speed.sends(&machine, 2);
        tokio::time::advance(Duration::from_millis(40)).await;
        speed.holds(&machine, 2);
        speed.holds(&machine, 2);
        let held = speed.end()[&What::Held];
        assert_eq!((held.count, held.median.round()), (1, 40.0));
    }
}
