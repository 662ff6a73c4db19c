//! Which generations of the system profile to remove once a new one is confirmed.

use muster_protocol::ids::StorePath;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProfileGeneration {
    pub number: u64,
    pub system: StorePath,
    pub is_current: bool,
}

/// The numbers to remove: all but the `keep` newest, the current one, and any in `spared`.
pub fn doomed(all: &[ProfileGeneration], keep: u32, spared: &[&StorePath]) -> Vec<u64> {
    let mut numbers: Vec<u64> = all.iter().map(|generation| generation.number).collect();
    numbers.sort_unstable();
    let kept = usize::try_from(keep).unwrap_or(usize::MAX);
    let newest = numbers.len().saturating_sub(kept);
    let old = &numbers[..newest];
    let goes = |generation: &&ProfileGeneration| {
        old.contains(&generation.number) && !generation.is_current && !spared.contains(&&generation.system)
    };
    let mut doomed: Vec<u64> = all.iter().filter(goes).map(|generation| generation.number).collect();
    doomed.sort_unstable();
    doomed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::records::tests::path;

    fn generations(systems: &[&str], current: u64) -> Vec<ProfileGeneration> {
        let one = |(place, system): (usize, &&str)| ProfileGeneration {
            number: place as u64 + 1,
            system: path(system),
            is_current: place as u64 + 1 == current,
        };
        systems.iter().enumerate().map(one).collect()
    }

    #[test]
    fn failure_mode_39_the_newest_the_current_and_what_an_undo_needs_are_kept() {
        let all = generations(&["a", "b", "c", "d", "e"], 5);
        assert_eq!(doomed(&all, 2, &[]), [1, 2, 3]);
        assert_eq!(doomed(&all, 2, &[&path("b")]), [1, 3], "OLD is kept whatever its number");
        assert_eq!(doomed(&all, 5, &[]), Vec::<u64>::new());
        assert_eq!(doomed(&all, 100, &[]), Vec::<u64>::new());
        // After a manual `nix-env --rollback` the current one is not the newest.
        assert_eq!(doomed(&generations(&["a", "b", "c", "d", "e"], 1), 2, &[]), [2, 3]);
    }
}
