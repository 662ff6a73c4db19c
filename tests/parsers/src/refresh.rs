//! A machine's whole life: whatever is published, forged, dropped or replayed, and whenever it crashes, it
//! never goes back, accepts nothing of another machine's, and saves nothing unverified.
//!
//! The input is a script: one byte names an event, the next ones its parameters.

use std::collections::BTreeMap;

use muster_protocol::tuf::client::Update;
use muster_protocol::tuf::repository::{RootSpec, sign_root};
use serde_json::{Value, json};

use crate::oracle::Keeper;
use crate::world::*;

/// What may happen, in the order of the bytes that name it.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// GENERATION, TIMESTAMP, WHO: bits 0 to 1 the operators who sign, 2 another machine, 3 another online
    /// key.
    Publish,
    /// GENERATION, TIMESTAMP, WHO as before: a new timestamp for a served snapshot.
    Stamp,
    /// FILE, CHANGE, VALUE, KEYS: changes a served document and signs it again.
    Alter,
    /// HOLDERS, THRESHOLDS, VERSION, KEYS: a new root.
    Root,
    /// FILE: it is no longer served.
    Drop,
    /// FILE, LENGTH, bytes: serves these bytes.
    Raw,
    /// QUARTERS of a day, signed: the clock jumps.
    Time,
    /// FILE, FILE: serves the first in place of the second.
    Swap,
    /// SAVES: the machine refreshes, and crashes after this many.
    Refresh,
}

impl Event {
    pub const ALL: [Self; 9] = [
        Self::Publish,
        Self::Stamp,
        Self::Alter,
        Self::Root,
        Self::Drop,
        Self::Raw,
        Self::Time,
        Self::Swap,
        Self::Refresh,
    ];
}

/// The longest script; the rest is ignored, so that no input takes long.
const MAX_EVENTS: usize = 64;

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
    fn event(&mut self) -> Option<Event> {
        self.byte().map(|byte| Event::ALL[usize::from(byte) % Event::ALL.len()])
    }
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

struct World {
    served: BTreeMap<String, Vec<u8>>,
    keeper: Keeper,
}

/// Plays the script. Returns whether a generation was reached at least once.
pub fn run(data: &[u8]) -> bool {
    let mut world = World { served: BTreeMap::new(), keeper: Keeper::new(enrolled(), NOW, true) };
    let mut script = Script(data);
    let mut reached = false;
    for _ in 0..MAX_EVENTS {
        match world.play(&mut script) {
            Some(done) => reached |= done,
            None => break,
        }
    }
    reached
}

impl World {
    fn play(&mut self, script: &mut Script<'_>) -> Option<bool> {
        match script.event()? {
            Event::Publish => {
                let (generation, version, who) =
                    (u64::from(script.byte()?) + 1, script.byte()?, script.byte()?);
                let machine = if who & 4 == 0 { OWN } else { FOREIGN };
                let publication = publication(machine, generation, &chosen((who & 3) << OPERATOR));
                self.put(&format!("{generation}.targets.json"), publication.targets.into_bytes());
                self.put(&format!("{generation}.snapshot.json"), publication.snapshot.into_bytes());
                self.stamp(generation, version, who);
            }
            Event::Stamp => {
                let (generation, version, who) =
                    (u64::from(script.byte()?) + 1, script.byte()?, script.byte()?);
                self.stamp(generation, version, who);
            }
            Event::Alter => {
                let (file, change) = (script.byte()?, script.byte()?);
                let (value, keys) = (script.byte()?, script.byte()?);
                let file = self.file(file)?;
                let document: Value = serde_json::from_slice(&self.served[&file]).unwrap_or_default();
                // An earlier event may have replaced it by anything.
                let mut signed = document.get("signed").cloned().unwrap_or_default();
                alter(&mut signed, change, value, self.keeper.now);
                self.put(&file, sealed(&signed, &chosen(keys)));
            }
            Event::Root => {
                let (holders, thresholds) = (script.byte()?, script.byte()?);
                let (version, keys) = (u64::from(script.byte()?), script.byte()?);
                let public = |mask: u8, first: u8| {
                    chosen((mask & 3) << first).iter().map(|key| key.public()).collect::<Vec<_>>()
                };
                let spec = RootSpec {
                    version,
                    epoch: Default::default(),
                    expires: self.keeper.now + i64::from(thresholds >> 4) * DAY,
                    root: (public(holders, ROOT), u32::from(thresholds & 3)),
                    operators: (public(holders >> 2, OPERATOR), u32::from(thresholds >> 2 & 3)),
                    online: public(holders >> 4, ONLINE),
                };
                if let Ok(root) = sign_root(&spec, &signers(&chosen(keys))) {
                    self.put(&format!("{version}.root.json"), root);
                }
            }
            Event::Drop => {
                let file = self.file(script.byte()?)?;
                self.served.remove(&file);
            }
            Event::Raw => {
                let (file, length) = (script.byte()?, script.byte()?);
                let bytes = script.take(usize::from(length)).to_vec();
                let file = self.file(file)?;
                self.put(&file, bytes);
            }
            Event::Time => self.keeper.now += i64::from(script.byte()?.cast_signed()) * DAY / 4,
            Event::Swap => {
                let (from, to) = (self.file(script.byte()?)?, self.file(script.byte()?)?);
                let bytes = self.served[&from].clone();
                self.put(&to, bytes);
            }
            Event::Refresh => return Some(self.refresh(script.byte()?)),
        }
        Some(false)
    }

    fn put(&mut self, file: &str, bytes: Vec<u8>) {
        self.served.insert(file.to_owned(), bytes);
    }

    /// One of the served files; the first publication adds the timestamp.
    fn file(&self, number: u8) -> Option<String> {
        let files: Vec<_> = self.served.keys().collect();
        (!files.is_empty()).then(|| files[usize::from(number) % files.len()].clone())
    }

    fn stamp(&mut self, generation: u64, version: u8, who: u8) {
        let Some(snapshot) = self.served.get(&format!("{generation}.snapshot.json")) else { return };
        let machine = if who & 4 == 0 { OWN } else { FOREIGN };
        let online = key(ONLINE + (who >> 3 & 1));
        if let Some(timestamp) = timestamp(machine, snapshot, u64::from(version), &online) {
            self.put("timestamp.json", timestamp);
        }
    }

    /// One refresh, which crashes after this many saves. Returns whether it ended with a generation.
    fn refresh(&mut self, saves: u8) -> bool {
        self.keeper.begin();
        let mut update =
            Update::start(&self.keeper.stored, Some(scope()), self.keeper.now).expect("a sound root");
        let mut left = saves;
        while let Some(fetch) = update.next() {
            let most = usize::try_from(fetch.max_bytes).unwrap().saturating_add(1);
            let answer = self.served.get(&fetch.file).map(|bytes| &bytes[..bytes.len().min(most)]);
            match update.feed(answer) {
                Ok(Some(save)) => {
                    self.keeper.save(save);
                    let Some(less) = left.checked_sub(1) else { return false };
                    left = less;
                }
                Ok(None) => {}
                Err(error) => {
                    let _ = (error.to_string(), error.attack());
                    assert!(update.next().is_none() && update.targets_version().is_none());
                    return false;
                }
            }
        }
        let Some(generation) = update.targets_version() else { return false };
        assert!(generation >= self.keeper.generation, "the generation went back");
        let stored = crate::oracle::read(self.keeper.stored.targets.as_deref().expect("targets are stored"));
        assert_eq!(crate::oracle::version(&stored), generation);
        assert!(update.listed(&muster_protocol::api::target_name(&name(FOREIGN))).is_none());
        assert!(update.listed(&muster_protocol::api::target_name(&name(OWN))).is_some());
        true
    }
}

/// Changes a document to what an attacker would like it to say.
fn alter(signed: &mut Value, change: u8, value: u8, now: i64) {
    let number = Value::from(if value == 255 { u64::MAX } else { u64::from(value) });
    let own = muster_protocol::api::target_name(&name(OWN));
    let Value::Object(fields) = signed else { return };
    match change % 16 {
        0 => drop(fields.insert("version".into(), number)),
        1 => drop(fields.remove("x-muster-machine")),
        2 => drop(fields.insert("x-muster-machine".into(), FOREIGN.into())),
        3 => {
            let expires = jiff::Timestamp::from_second(now + i64::from(value.cast_signed()));
            drop(fields.insert("expires".into(), expires.unwrap().to_string().into()));
        }
        4..=6 => {
            let pins = fields.get_mut("meta").and_then(Value::as_object_mut);
            for pin in pins.into_iter().flat_map(|pins| pins.values_mut()) {
                match change % 16 {
                    4 => set(pin, &["version"], number.clone()),
                    5 => set(pin, &["length"], number.clone()),
                    _ => *pin = json!({ "version": pin.get("version").cloned() }),
                }
            }
        }
        7 => drop(fields.insert("x-muster-machine".into(), OWN.into())),
        8 => set(signed, &["targets", &own, "custom", "generation"], number),
        9 => set(signed, &["targets", &own, "custom", "machine"], FOREIGN.into()),
        10 => set(signed, &["targets", &value.to_string()], json!({ "length": 1, "hashes": {} })),
        11 => set(signed, &["meta", &format!("{value}.json")], json!({ "version": 1 })),
        12 => set(signed, &["roles", "targets", "threshold"], number),
        13 => set(signed, &["spec_version"], format!("{value}.0.0").into()),
        14 => set(signed, &["delegations"], json!({ "keys": {}, "roles": [] })),
        _ => set(signed, &["note"], json!({ "a": [value, null, "é\n\""] })),
    }
}

/// Changes the value at a path, and creates what is missing. A value on the way that has no fields, put
/// there by an earlier event, stays.
fn set(value: &mut Value, path: &[&str], new: Value) {
    let Some((first, rest)) = path.split_first() else {
        *value = new;
        return;
    };
    if value.is_null() {
        *value = json!({});
    }
    if let Value::Object(fields) = value {
        set(fields.entry(*first).or_insert(Value::Null), rest, new);
    }
}
