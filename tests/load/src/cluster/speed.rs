//! How long things take before anything is broken: the figures of a database and a store beside others.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Speed {
    over: AtomicBool,
    /// In milliseconds.
    times: Mutex<BTreeMap<&'static str, Vec<f64>>>,
}

impl Speed {
    /// Something took so long.
    pub fn took(&self, what: &'static str, time: Duration) {
        if !self.over.load(Ordering::Relaxed)
            && let Ok(mut times) = self.times.lock()
        {
            times.entry(what).or_default().push(time.as_secs_f64() * 1e3);
        }
    }

    /// From now on things are broken. Returns a line for each kind of thing.
    pub fn end(&self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        let Ok(mut times) = self.times.lock() else { return Vec::new() };
        let line = |(what, times): (&&'static str, &mut Vec<f64>)| {
            times.sort_by(f64::total_cmp);
            let of = |share: f64| {
                let at = ((times.len() as f64 - 1.0) * share).round();
                times.get(at as usize).copied().unwrap_or_default()
            };
            format!("{what}: {} times, {:.1} ms (median), {:.1} ms (99 %)", times.len(), of(0.5), of(0.99))
        };
        times.iter_mut().map(line).collect()
    }
}
