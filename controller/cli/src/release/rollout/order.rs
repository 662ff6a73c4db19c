//! The order of machines within a rollout: it follows from a text and the names alone, so that two operators
//! get the same one, and a machine that joins moves no other.

use muster_protocol::ids::{MachineName, Sha256};

/// The machine's place: machines are sorted by it.
pub fn rank(seed: &str, machine: &MachineName) -> (Sha256Order, MachineName) {
    // The length keeps a seed's end and a name's beginning apart.
    let text = format!("{}\n{seed}\n{machine}", seed.len());
    (Sha256Order(*Sha256::of(text.as_bytes()).as_bytes()), machine.clone())
}

/// A hash that is compared as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sha256Order([u8; 32]);

/// The machines in the seed's order.
pub fn sorted(seed: &str, machines: impl IntoIterator<Item = MachineName>) -> Vec<MachineName> {
    let mut machines: Vec<_> = machines.into_iter().collect();
    machines.sort_by_cached_key(|machine| rank(seed, machine));
    machines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<MachineName> {
        (0..count).map(|number| format!("m{number}").parse().unwrap()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_order_and_another_one_another() {
        let mut backwards = names(50);
        backwards.reverse();
        assert_eq!(sorted("weekly", names(50)), sorted("weekly", backwards));
        assert_ne!(sorted("weekly", names(50)), sorted("nightly", names(50)));
        assert_ne!(sorted("weekly", names(50)), names(50), "names of one rack do not go first together");
    }

    #[test]
    fn a_machine_that_joins_or_leaves_does_not_move_the_others() {
        let all = sorted("weekly", names(60));
        for gone in &all {
            let left: Vec<_> = all.iter().filter(|name| *name != gone).cloned().collect();
            assert_eq!(sorted("weekly", left.clone()), left);
        }
    }
}
