//! Which of this controller's settings others on the same database must have too, and whether they have.

use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock};

use muster_protocol::ids::Sha256;

use crate::config::{BlobsAt, Limits, ServerConfig};
use crate::core::settings::{self, Prints, Setting, Told};
use crate::keyring::Keyring;

#[derive(Debug)]
pub struct Settings {
    shares_keys: bool,
    blobs: Option<i32>,
    limits: i32,
    /// Those that differ from another controller's.
    apart: RwLock<BTreeSet<Setting>>,
}

impl Settings {
    pub fn of(config: &ServerConfig) -> Self {
        Self {
            shares_keys: config.bearer_keys.is_some(),
            blobs: blobs(&config.blobs),
            limits: limits(&config.limits),
            apart: RwLock::default(),
        }
    }

    /// What this controller tells the others. Its keys may be replaced while it runs.
    pub fn prints(&self, keyring: &Keyring) -> Prints {
        Prints::new(|setting| match setting {
            Setting::BearerKeys => self.shares_keys.then(|| keyring.keys().seals.print()),
            Setting::Blobs => self.blobs,
            Setting::Limits => Some(self.limits),
        })
    }

    /// Compares what all tell; what differs is logged when that begins and when it has ended.
    pub fn compare(&self, keyring: &Keyring, told: &[Told]) {
        let seals = keyring.keys().seals.clone();
        let found = settings::apart(&self.prints(keyring), |print| seals.accept(print), told);
        let now: BTreeSet<Setting> = found.keys().copied().collect();
        let mut apart = self.apart.write().unwrap_or_else(PoisonError::into_inner);
        for setting in now.difference(&apart) {
            let from = found.get(setting).map(|places| places.join(", ")).unwrap_or_default();
            tracing::warn!(from, "{}", setting.complaint());
        }
        for setting in apart.difference(&now) {
            tracing::info!("{} is the same at all controllers now", setting.name());
        }
        *apart = now;
    }

    /// Those that differ from another controller's, as far as that is known.
    pub fn apart(&self) -> BTreeSet<Setting> {
        self.apart.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn print(text: &str) -> i32 {
    let hash = Sha256::of(text.as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    i32::from_be_bytes([a, b, c, d])
}

/// A folder is a controller's own.
fn blobs(at: &BlobsAt) -> Option<i32> {
    let BlobsAt::S3(s3) = at else { return None };
    let endpoint = s3.endpoint.as_deref().unwrap_or("");
    Some(print(&format!("{} {} {endpoint}", s3.bucket, s3.prefix)))
}

/// What adds up over all controllers, and what each of them forgets. Written one by one: another version may
/// know further limits, and still has the same ones.
fn limits(limits: &Limits) -> i32 {
    let rates = [
        limits.controllers,
        limits.machine_per_second,
        limits.cache_per_second,
        limits.operator_per_second,
        limits.address_per_second,
        limits.report_kib_per_second,
        limits.event_mib,
        limits.event_days,
        limits.generations,
        limits.generation_days,
    ];
    print(&format!("{rates:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_count_together_are_told_and_a_controllers_own_are_not() {
        let usual = limits(&Limits::default());
        let own = Limits { connections: 7, poll_seconds: 9, ..Limits::default() };
        assert_eq!(limits(&own), usual);
        assert_ne!(limits(&Limits { controllers: 3, ..Limits::default() }), usual);
        assert_ne!(limits(&Limits { event_days: 3, ..Limits::default() }), usual);
    }
}
