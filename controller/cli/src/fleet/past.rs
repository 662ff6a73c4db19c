//! A machine's history, page by page: one answer has limited room, and only counts the rest.

use anyhow::Result;
use muster_protocol::api::operator_machine;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::operator::HistoryEntry;

use crate::api::client::Api;

/// The most generations in one answer.
const PAGE: usize = 200;

/// The newest `wanted` generations of a machine, only those before `before` if it is given.
pub async fn entries(
    api: &Api,
    machine: &MachineName,
    mut before: Option<Generation>,
    wanted: usize,
) -> Result<Vec<HistoryEntry>> {
    let mut all = Vec::new();
    while all.len() < wanted {
        let part = (wanted - all.len()).min(PAGE);
        let mut path = format!("{}/history?limit={part}", operator_machine(machine));
        if let Some(before) = before {
            path.push_str(&format!("&before={before}"));
        }
        let page = whole(api.get(&path).await?, before, part);
        let Some(last) = page.last().map(|entry| entry.published.target.generation) else { break };
        before = Some(last);
        all.extend(page);
    }
    Ok(all)
}

/// The entries of a page that are complete: what the answer had no room for comes with the next. Ends if a
/// controller does not know pages, or returns others than were asked for.
fn whole(page: Vec<HistoryEntry>, before: Option<Generation>, wanted: usize) -> Vec<HistoryEntry> {
    let mut last = before;
    let mut whole: Vec<HistoryEntry> = Vec::new();
    for entry in page.into_iter().take(wanted) {
        let generation = entry.published.target.generation;
        let is_cut = entry.left_out > 0;
        if last.is_some_and(|last| generation >= last) || (is_cut && !whole.is_empty()) {
            break;
        }
        last = Some(generation);
        whole.push(entry);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_page_had_no_room_for_comes_with_the_next_and_no_controller_pages_for_ever() {
        let entry = |generation: u64, events: usize, left_out: u64| {
            let text = format!(
                r#"{{"published":{{"target":{{"machine":"tin","class":"nixos","generation":{generation},
                "system":"x86_64-linux","derivation":"/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
                "output":"/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system"}},"at":0,"by":"{}",
                "expires":0}},
                "events":[{}],"left_out":{left_out}}}"#,
                muster_protocol::keys::SecretKey::generate().unwrap().public(),
                vec![r#"{"seq":1,"at":1,"kind":"verified"}"#; events].join(","),
            );
            serde_json::from_str::<HistoryEntry>(&text).unwrap()
        };
        let numbers = |page: Vec<HistoryEntry>, before: Option<u64>, wanted| {
            let before = before.map(|number| Generation::new(number).unwrap());
            let whole = whole(page, before, wanted);
            whole.iter().map(|entry| entry.published.target.generation.get()).collect::<Vec<_>>()
        };
        // Generation 8 did not fit: it comes whole with the next page. The rest has no events at all.
        assert_eq!(numbers(vec![entry(9, 1, 0), entry(8, 1, 4), entry(7, 0, 3)], None, 9), [9]);
        assert_eq!(numbers(vec![entry(7, 1, 0), entry(6, 1, 0), entry(5, 0, 0)], Some(8), 9), [7, 6, 5]);
        // What never fits is shown without events.
        assert_eq!(numbers(vec![entry(4, 0, 3), entry(3, 0, 3)], Some(5), 9), [4]);
        assert_eq!(numbers(vec![entry(9, 1, 0), entry(8, 1, 0)], Some(8), 9), Vec::<u64>::new());
        assert_eq!(numbers(vec![entry(7, 1, 0), entry(7, 1, 0), entry(8, 1, 0)], Some(8), 9), [7]);
        assert_eq!(numbers(vec![entry(7, 1, 0), entry(6, 1, 0)], None, 1), [7]);
    }
}
