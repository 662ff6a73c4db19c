//! When a generation should be signed again though nothing changed. Pure.

use muster_protocol::ids::Epoch;
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::Published;
use muster_protocol::tuf::metadata::{Role, Root};

const DAY: i64 = 86_400;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// Its signature ends in this many days; 0 means today.
    Ends(i64),
    /// Its signature has ended.
    Ended,
    /// Too few of its signers still hold the role: machines refuse it as forged.
    Signers,
    /// A new epoch has begun since: machines refuse it as disowned.
    Epoch,
}

impl Renewal {
    /// Whether machines refuse it until it is signed again.
    pub fn must_be(&self) -> bool {
        matches!(self, Self::Signers | Self::Epoch)
    }

    pub fn describe(&self) -> String {
        match self {
            Self::Ends(0) => "its signature ends today".to_owned(),
            Self::Ends(1) => "its signature ends tomorrow".to_owned(),
            Self::Ends(days) => format!("its signature ends in {days} days"),
            Self::Ended => "its signature has ended".to_owned(),
            Self::Epoch => "it was signed in an earlier epoch, so machines refuse it".to_owned(),
            Self::Signers => "too few of today's operators have signed it, so machines refuse it".to_owned(),
        }
    }
}

/// Why this generation needs a new signature within this many days, if it does.
pub fn wanted(published: &Published, root: &Root, now: i64, days: u32) -> Option<Renewal> {
    let operators = (root.keys_of(Role::Targets), root.threshold(Role::Targets));
    renewal(published, root.epoch(), operators, (now, days))
}

fn renewal(
    published: &Published,
    epoch: Epoch,
    (operators, threshold): (Vec<PublicKey>, u32),
    (now, days): (i64, u32),
) -> Option<Renewal> {
    if published.target.generation.epoch() != epoch {
        return Some(Renewal::Epoch);
    }
    if !published.is_signed_by(&operators, threshold) {
        return Some(Renewal::Signers);
    }
    let left = published.expires.saturating_sub(now);
    match left {
        ..=0 => Some(Renewal::Ended),
        left if left <= i64::from(days) * DAY => Some(Renewal::Ends(left / DAY)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::SecretKey;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn a_generation_is_renewed_near_its_end_and_when_its_signers_are_gone() {
        let [alice, bob] = [(); 2].map(|()| SecretKey::generate().unwrap().public());
        let target = serde_json::json!({
            "machine": "cinnabar", "class": "nixos", "generation": 2, "system": "x86_64-linux",
            "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
            "output": "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system",
        });
        let ends = |days: i64| Published {
            target: serde_json::from_value(target.clone()).unwrap(),
            at: 0,
            by: alice,
            expires: NOW + days * DAY,
            signers: vec![alice],
        };
        let of_alice = || (vec![alice], 1);
        let wanted = |days, operators| renewal(&ends(days), Epoch::default(), operators, (NOW, 30));
        assert_eq!(wanted(31, of_alice()), None);
        assert_eq!(wanted(30, of_alice()), Some(Renewal::Ends(30)));
        assert_eq!(wanted(0, of_alice()), Some(Renewal::Ended));
        assert_eq!(wanted(80, (vec![bob], 1)), Some(Renewal::Signers));
        assert_eq!(wanted(80, (vec![alice, bob], 2)), Some(Renewal::Signers));
        let later = renewal(&ends(80), Epoch::new(1).unwrap(), of_alice(), (NOW, 30));
        assert_eq!(later, Some(Renewal::Epoch));
        assert!(Renewal::Epoch.must_be() && Renewal::Signers.must_be() && !Renewal::Ended.must_be());
    }
}
