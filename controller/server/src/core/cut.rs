//! The stored form of an event: as received, unless it is larger than any that an agent sends.

use muster_protocol::report::MAX_LOG_TAIL;
use serde_json::{Map, Value};

/// The largest event that is stored as received, in bytes. An agent's longest text has 4 KiB, up to six times
/// that in JSON.
pub const MAX_EVENT_BYTES: usize = 32 * 1024;
/// The most entries that are kept of a list.
const MOST_ENTRIES: usize = 256;

/// Cuts what is too large: first long texts, from the start, since the latest output is at the end; then
/// lists. If that is not enough, only the fields that every event has are kept.
pub fn cut(raw: &str) -> String {
    if raw.len() <= MAX_EVENT_BYTES {
        return raw.to_owned();
    }
    let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(raw) else { return stub(&Map::new()) };
    for (text, entries) in [(MAX_LOG_TAIL, MOST_ENTRIES), (256, 32)] {
        let mut shorter = Value::Object(fields.clone());
        shorten(&mut shorter, text, entries);
        let written = shorter.to_string();
        if written.len() <= MAX_EVENT_BYTES {
            return written;
        }
    }
    stub(&fields)
}

fn shorten(value: &mut Value, text: usize, entries: usize) {
    match value {
        Value::String(long) if long.len() > text => {
            *long = long[long.ceil_char_boundary(long.len() - text)..].to_owned();
        }
        Value::Array(list) => {
            list.truncate(entries);
            list.iter_mut().for_each(|value| shorten(value, text, entries));
        }
        Value::Object(fields) => {
            let beyond: Vec<String> = fields.keys().skip(entries).cloned().collect();
            for name in beyond.iter().filter(|name| !KEPT.contains(&name.as_str())) {
                fields.remove(name);
            }
            fields.values_mut().for_each(|value| shorten(value, text, entries));
        }
        _ => {}
    }
}

/// The fields that every event has.
const KEPT: [&str; 4] = ["seq", "at", "generation", "kind"];

fn stub(fields: &Map<String, Value>) -> String {
    // A generation of a later epoch is a string.
    let short = |name: &str, value: &Value| {
        value.is_number() || name == "generation" && value.as_str().is_some_and(|text| text.len() <= 64)
    };
    let kept = fields.iter().filter(|(name, value)| KEPT.contains(&name.as_str()) && short(name, value));
    let mut left: Map<String, Value> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    left.insert("kind".to_owned(), "too-large".into());
    Value::Object(left).to_string()
}

#[cfg(test)]
mod tests {
    use muster_protocol::report::{Event, EventKind};

    use super::*;

    #[test]
    fn what_an_agent_sends_stays_byte_by_byte() {
        let escaped = "\\u0007".repeat(4096);
        let honest = format!(r#"{{"seq":1,"at":1,  "kind":"needs-human","detail":"{escaped}"}}"#);
        assert_eq!(cut(&honest), honest);
    }

    #[test]
    fn a_long_text_keeps_its_end() {
        let long = format!(
            r#"{{"seq":7,"at":1,"generation":2,"kind":"needs-human","detail":"{}the end"}}"#,
            "é".repeat(400_000)
        );
        let event: Event = serde_json::from_str(&cut(&long)).unwrap();
        let EventKind::NeedsHuman { detail } = event.kind else { panic!("another kind") };
        assert!(detail.len() <= MAX_LOG_TAIL && detail.ends_with("the end"), "{}", detail.len());
        assert_eq!(event.seq, 7);
    }

    #[test]
    fn whatever_comes_is_stored_in_bounds_with_its_number() {
        let many = |item: &str| format!("[{}]", vec![item; 100_000].join(","));
        let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        let fields = (0..50_000).map(|n| format!(r#""f{n}":1"#)).collect::<Vec<_>>().join(",");
        let long = format!(r#""{}""#, "x".repeat(1000));
        for value in [
            many("1"),
            many(&long),
            many(&many("0")[..2000].replace('[', "")),
            deep,
            format!("{{{fields}}}"),
            many(&format!("[{long}]")),
        ] {
            let raw =
                format!(r#"{{"more":{value},"seq":3,"at":5,"kind":"new","pad":"{}"}}"#, "p".repeat(40_000));
            let stored = cut(&raw);
            assert!(stored.len() <= MAX_EVENT_BYTES);
            let event: Event = serde_json::from_str(&stored).unwrap();
            assert_eq!((event.seq, event.kind), (3, EventKind::Unknown));
        }
    }
}
