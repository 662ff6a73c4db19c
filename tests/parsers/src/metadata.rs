//! TUF metadata of each role, canonical JSON, and the target.

use muster_protocol::tuf::canonical;
use muster_protocol::tuf::client::Update;
use muster_protocol::tuf::metadata::Root;
use serde_json::{Value, json};

use crate::oracle::Keeper;
use crate::world::*;

/// A root as the first one, as the next one, and as the signed part of a next one.
pub fn root(data: &[u8]) -> bool {
    let alone = Root::parse_self_signed(data).is_ok();
    let held = enrolled();
    let _ = Root::parse_self_signed(&held.root).expect("the first root").successor(data);
    serve("2.root.json", data, &[ROOT], |_| vec![]) | alone
}

pub fn timestamp(data: &[u8]) -> bool {
    serve("timestamp.json", data, &[ONLINE], |_| vec![])
}

pub fn snapshot(data: &[u8]) -> bool {
    serve("snapshot.json", data, &[OPERATOR], |version| {
        vec![("timestamp.json", ONLINE, json!({ "snapshot.json": { "version": version } }))]
    })
}

pub fn targets(data: &[u8]) -> bool {
    serve("targets.json", data, &[OPERATOR], |version| {
        vec![
            ("timestamp.json", ONLINE, json!({ "snapshot.json": { "version": 1 } })),
            (
                "snapshot.json",
                OPERATOR,
                json!({ "targets.json": { "version": version }, "helper.json": { "version": 1 } }),
            ),
        ]
    })
}

/// Serves the bytes under this name: as they are, and signed by the right keys. Returns whether any of it was
/// saved. `before` returns what is served before it, for a document of this version.
fn serve(
    file: &str,
    data: &[u8],
    keys: &[u8],
    before: impl Fn(u64) -> Vec<(&'static str, u8, Value)>,
) -> bool {
    let mut documents = vec![data.to_vec()];
    if let Ok(signed) = serde_json::from_slice::<Value>(data) {
        let keys: Vec<_> = keys.iter().map(|holder| key(*holder)).collect();
        documents.push(sealed(&signed, &keys));
        documents.push(sealed(&signed["signed"], &keys));
    }
    let mut saved = false;
    for bytes in &documents {
        let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let version = document["signed"]["version"].as_u64().filter(|version| *version > 0).unwrap_or(1);
        let before = before(version);
        for scope in [Some(scope()), None] {
            let mut keeper = Keeper::new(enrolled(), NOW, scope.is_some());
            let mut update = Update::start(&keeper.stored, scope, NOW).expect("the first root");
            let mut fed = false;
            while let Some(fetch) = update.next() {
                let asked = fetch.file.split_once('.').map_or("", |(_, rest)| rest);
                let plain = if asked == "json" || file == "2.root.json" { &fetch.file } else { asked };
                let made = before.iter().find(|(name, ..)| *name == plain).map(|(name, holder, meta)| {
                    let role = name.trim_end_matches(".json");
                    let signed = json!({
                        "_type": role, "spec_version": "1.0.0", "version": 1,
                        "expires": "2030-01-01T00:00:00Z",
                        "x-muster-machine": OWN,
                        "meta": meta,
                    });
                    sealed(&signed, &[key(*holder)])
                });
                let answer = if plain == file && !fed {
                    fed = true;
                    let most = usize::try_from(fetch.max_bytes).unwrap().saturating_add(1);
                    Some(bytes[..bytes.len().min(most)].to_vec())
                } else {
                    made
                };
                match update.feed(answer.as_deref()) {
                    Ok(Some(save)) => {
                        saved |= save.file.ends_with(file.trim_start_matches("2."));
                        keeper.save(save);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        let _ = (error.to_string(), error.attack());
                        assert!(update.next().is_none(), "something is asked for after a refusal");
                    }
                }
            }
            // A search through its delegations, with the same document for every role.
            #[cfg(feature = "delegations")]
            if update.find("releases/x.zip").is_ok() {
                for _ in 0..64 {
                    let Some(_) = update.next() else { break };
                    let _ = update.feed(Some(bytes));
                }
                assert!(update.next().is_none(), "a search has no end");
            }
        }
    }
    saved
}

/// Canonical JSON, which stays the same however often it is read and encoded.
pub fn canonical_json(data: &[u8]) -> bool {
    let document = [b"{\"signatures\":[],\"signed\":", data, b"}"].concat();
    let strict = Root::parse_self_signed(&document).err().map(|error| error.to_string());
    let Ok(value) = serde_json::from_slice::<Value>(data) else {
        assert!(strict.is_some_and(|why| why.contains("malformed")), "no JSON was read");
        return false;
    };
    let Ok(bytes) = canonical::encode(&value) else { return false };
    // Raw control characters are canonical, but not JSON.
    if bytes.iter().all(|byte| *byte >= b' ') {
        let again: Value = serde_json::from_slice(&bytes).expect("canonical JSON is JSON");
        assert_eq!(again, value);
        assert_eq!(canonical::encode(&again).expect("it has a canonical form"), bytes);
    }
    true
}

pub fn target(data: &[u8]) -> bool {
    use muster_protocol::target::Target;
    let Ok(target) = Target::parse(data) else { return false };
    let Target { machine, class, generation, system, .. } = &target;
    target.require_for(machine, *class, system, *generation).expect("it is for itself");
    let written = serde_json::to_vec(&target).expect("a target can be written");
    if written.len() as u64 <= muster_protocol::target::MAX_TARGET_BYTES {
        assert_eq!(Target::parse(&written).expect("what was written can be read"), target);
    }
    true
}
