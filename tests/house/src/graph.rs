//! Circles in a graph: the strongly connected components that have more than one node (Tarjan, 1972).

use std::collections::{BTreeMap, BTreeSet};

/// The circles, each with its nodes in order. An edge from a node to itself is none.
pub fn circles<N: Ord + Clone>(edges: &BTreeMap<N, BTreeSet<N>>) -> Vec<BTreeSet<N>> {
    let mut search =
        Search { edges, order: BTreeMap::new(), low: BTreeMap::new(), open: Vec::new(), found: Vec::new() };
    for node in edges.keys() {
        if !search.order.contains_key(node) {
            search.visit(node);
        }
    }
    search.found.retain(|circle| circle.len() > 1);
    search.found.sort();
    search.found
}

struct Search<'a, N> {
    edges: &'a BTreeMap<N, BTreeSet<N>>,
    /// When each node was found.
    order: BTreeMap<N, usize>,
    /// The earliest open node that each one leads to.
    low: BTreeMap<N, usize>,
    open: Vec<N>,
    found: Vec<BTreeSet<N>>,
}

impl<N: Ord + Clone> Search<'_, N> {
    fn visit(&mut self, node: &N) {
        let number = self.order.len();
        self.order.insert(node.clone(), number);
        self.low.insert(node.clone(), number);
        self.open.push(node.clone());
        for next in self.edges.get(node).into_iter().flatten() {
            let reached = match self.order.get(next) {
                None => {
                    self.visit(next);
                    self.low.get(next).copied()
                }
                Some(found) => self.open.contains(next).then_some(*found),
            };
            if let (Some(reached), Some(low)) = (reached, self.low.get_mut(node)) {
                *low = reached.min(*low);
            }
        }
        if self.low.get(node) == Some(&number)
            && let Some(start) = self.open.iter().position(|open| open == node)
        {
            self.found.push(self.open.split_off(start).into_iter().collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(edges: &[(&'static str, &[&'static str])]) -> Vec<Vec<&'static str>> {
        let edges = edges.iter().map(|(from, to)| (*from, to.iter().copied().collect())).collect();
        circles(&edges).into_iter().map(|circle| circle.into_iter().collect()).collect()
    }

    #[test]
    fn a_circle_is_found_whoever_leads_to_it_and_a_tree_has_none() {
        assert_eq!(found(&[("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &[])]), [[""; 0]; 0]);
        assert_eq!(found(&[("a", &["b"]), ("b", &["c"]), ("c", &["b", "d"]), ("d", &["d"])]), [["b", "c"]]);
        let two: &[(&str, &[&str])] =
            &[("a", &["b"]), ("b", &["a", "c"]), ("c", &["d"]), ("d", &["e"]), ("e", &["c"])];
        assert_eq!(found(two), [vec!["a", "b"], vec!["c", "d", "e"]]);
    }
}
