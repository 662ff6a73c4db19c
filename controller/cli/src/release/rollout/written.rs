//! A rollout as people write it, in a flake or a file. Every mistake is told with its place.

use std::collections::BTreeMap;
use std::path::Path;

use muster_protocol::ids::{MachineName, Tag};
use muster_protocol::machine::Class;
use muster_protocol::plan::{Failure, MAX_SOAK_SECONDS, MAX_WAVE_NAME, MAX_WAVES};
use muster_protocol::policy::{Day, Policy, TimeOfDay, Window};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::duration;

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// A rollout, checked as far as it can be without machines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    pub waves: Vec<WrittenWave>,
    pub seed: Option<String>,
    pub budget: Option<Quantity>,
    pub failures: Option<Vec<Failure>>,
    pub after: BTreeMap<MachineName, Vec<MachineName>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WrittenWave {
    pub name: String,
    /// Without machines and tags: every machine of the class.
    pub machines: Vec<MachineName>,
    pub tags: Vec<Tag>,
    pub class: Option<Class>,
    pub percent: Option<u8>,
    pub at_least: Option<Quantity>,
    pub soak_seconds: Option<u64>,
    pub max_in_flight: Option<Quantity>,
    pub windows: Vec<Window>,
}

/// A number of machines, or a part of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    Count(u32),
    Percent(u8),
}

impl Quantity {
    /// How many of `all` this is, rounded up.
    pub fn of(self, all: usize) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => part(percent, all),
        }
    }
    /// The same, rounded down.
    pub fn at_most_of(self, all: usize) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => u32::try_from(all * usize::from(percent) / 100).unwrap_or(u32::MAX),
        }
    }
}

/// So many of every 100, rounded up.
pub fn part(percent: u8, all: usize) -> u32 {
    u32::try_from((all * usize::from(percent)).div_ceil(100)).unwrap_or(u32::MAX)
}

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub struct WrittenError {
    pub place: String,
    pub why: String,
}

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {0}: {1}")]
    Read(String, std::io::Error),
    #[error("{0} has more than {MAX_FILE_BYTES} bytes, so it is not a rollout")]
    TooLarge(String),
    #[error("{0} is neither JSON nor TOML: {1}")]
    Format(String, String),
    #[error(transparent)]
    Written(#[from] WrittenError),
}

/// Reads a file: JSON if it begins with a brace, TOML otherwise.
pub fn from_file(path: &Path) -> Result<Written, FileError> {
    use std::io::Read as _;
    let name = path.display().to_string();
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| FileError::Read(name.clone(), error))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(FileError::TooLarge(name));
    }
    let value: Result<Value, String> = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(&text).map_err(|error| error.to_string()),
        false => toml::from_str(&text).map_err(|error| error.to_string()),
    };
    let value = value.map_err(|why| FileError::Format(name.clone(), why))?;
    Ok(Written::read(&name, &value)?)
}

/// A value and the words that lead to it.
struct At<'a> {
    place: String,
    value: &'a Value,
}

type Found<T> = Result<T, WrittenError>;

impl<'a> At<'a> {
    fn wrong<T>(&self, why: impl Into<String>) -> Found<T> {
        Err(WrittenError { place: self.place.clone(), why: why.into() })
    }

    fn fields(&self, known: &[&str]) -> Found<&'a Map<String, Value>> {
        let Value::Object(fields) = self.value else {
            return self.wrong(format!("write a set with {}", known.join(", ")));
        };
        match fields.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => self.wrong(format!("there is no field '{name}'; it may have {}", known.join(", "))),
            None => Ok(fields),
        }
    }

    /// A field's value; null is none.
    fn field(&self, fields: &'a Map<String, Value>, name: &str) -> Option<At<'a>> {
        let value = fields.get(name).filter(|value| !value.is_null())?;
        Some(At { place: format!("{}.{name}", self.place), value })
    }

    fn list(&self, what: &str) -> Found<&'a Vec<Value>> {
        match self.value {
            Value::Array(all) => Ok(all),
            _ => self.wrong(format!("write a list of {what}")),
        }
    }

    fn text(&self) -> Found<&'a str> {
        self.value.as_str().map_or_else(|| self.wrong("write a text"), Ok)
    }

    fn typed<T: DeserializeOwned>(&self) -> Found<T> {
        serde_json::from_value(self.value.clone()).or_else(|error| self.wrong(error.to_string()))
    }

    /// Names of whom a wave takes. Without the field it takes everybody, so that none of them must not.
    fn some<T: DeserializeOwned>(&self, what: &str) -> Found<Vec<T>> {
        let all = self.all(what)?;
        match all.is_empty() {
            true => self.wrong("it names nobody; leave it out for every machine"),
            false => Ok(all),
        }
    }

    fn all<T: DeserializeOwned>(&self, what: &str) -> Found<Vec<T>> {
        self.list(what)?.iter().map(|value| At { place: self.place.clone(), value }.typed()).collect()
    }

    /// `low`: the least count that makes sense.
    fn quantity(&self, low: u32) -> Found<Quantity> {
        const RULE: &str = "write a whole number of machines, or a percentage such as \"10%\"";
        let percent = |text: &str| {
            let digits = text.strip_suffix('%')?;
            let plain = digits.bytes().all(|digit| digit.is_ascii_digit());
            digits.parse::<u8>().ok().filter(|percent| plain && *percent <= 100)
        };
        match self.value {
            Value::Number(number) => match number.as_u64().and_then(|number| u32::try_from(number).ok()) {
                Some(count) if count >= low => Ok(Quantity::Count(count)),
                Some(_) => self.wrong(format!("{low} is the least")),
                None => self.wrong(RULE),
            },
            Value::String(text) => match percent(text) {
                Some(0) if low > 0 => self.wrong("0 % is nobody; write 1 % or more"),
                Some(percent) => Ok(Quantity::Percent(percent)),
                None => self.wrong(RULE),
            },
            _ => self.wrong(RULE),
        }
    }
}

impl Written {
    /// Reads and checks a rollout. `place` says where it stands.
    pub fn read(place: &str, value: &Value) -> Found<Self> {
        let at = At { place: place.to_owned(), value };
        let fields = at.fields(&["waves", "seed", "budget", "failures", "after"])?;
        let mut waves = Vec::new();
        if let Some(all) = at.field(fields, "waves") {
            for (number, value) in all.list("waves")?.iter().enumerate() {
                waves.push(wave(&all.place, number, value)?);
            }
            for (number, wave) in waves.iter().enumerate() {
                if waves[..number].iter().any(|other| other.name == wave.name) {
                    return all.wrong(format!("two waves are called '{}'", wave.name));
                }
            }
            // One more may come: the rest.
            if waves.len() >= MAX_WAVES {
                return all.wrong(format!("{} waves are too many: {} at most", waves.len(), MAX_WAVES - 1));
            }
        }
        let mut after = BTreeMap::new();
        if let Some(all) = at.field(fields, "after") {
            let Value::Object(entries) = all.value else {
                return all.wrong("write a set, app1 = [ \"db1\" ] for example");
            };
            for (name, value) in entries {
                let here = At { place: format!("{}.{name}", all.place), value };
                let Ok(machine) = name.parse() else {
                    return here.wrong("this is no name of a machine");
                };
                after.insert(machine, here.all("names of machines")?);
            }
        }
        Ok(Self {
            waves,
            seed: at.field(fields, "seed").map(|seed| seed.text().map(str::to_owned)).transpose()?,
            budget: at.field(fields, "budget").map(|budget| budget.quantity(0)).transpose()?,
            failures: at.field(fields, "failures").map(|all| failures(&all)).transpose()?,
            after,
        })
    }
}

fn failures(all: &At<'_>) -> Found<Vec<Failure>> {
    let failures: Vec<Failure> = all.all("kinds of failures")?;
    match failures.contains(&Failure::Unknown) {
        true => all.wrong("there are rolled-back, degraded and needs-human"),
        false => Ok(failures),
    }
}

const WAVE: [&str; 9] =
    ["name", "machines", "tags", "class", "percent", "atLeast", "soak", "maxInFlight", "windows"];

fn wave(place: &str, number: usize, value: &Value) -> Found<WrittenWave> {
    let named = value.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let place = match named {
        Some(name) => format!("{place}.{name}"),
        None => format!("{place}.{}", number + 1),
    };
    let at = At { place, value };
    let fields = at.fields(&WAVE)?;
    let Some(name) = named.filter(|name| name.len() <= MAX_WAVE_NAME) else {
        return at.wrong(format!("a wave has a `name` of 1 to {MAX_WAVE_NAME} bytes"));
    };
    let soak = |soak: At<'_>| match soak.value.as_str().and_then(duration::parse) {
        Some(seconds) if seconds > MAX_SOAK_SECONDS => soak.wrong("30 days are the limit"),
        Some(seconds) => Ok(seconds),
        None => soak.wrong("write a time such as \"2h\", \"15m\" or \"1h30m\""),
    };
    let percent = |percent: At<'_>| match percent.value.as_u64() {
        Some(number @ 1..=100) => Ok(u8::try_from(number).unwrap_or(100)),
        _ => percent.wrong("write a whole number from 1 to 100"),
    };
    Ok(WrittenWave {
        name: name.to_owned(),
        machines: at.field(fields, "machines").map(|it| it.some("names")).transpose()?.unwrap_or_default(),
        tags: at.field(fields, "tags").map(|it| it.some("tags")).transpose()?.unwrap_or_default(),
        class: at.field(fields, "class").map(|it| it.typed()).transpose()?,
        percent: at.field(fields, "percent").map(percent).transpose()?,
        at_least: at.field(fields, "atLeast").map(|it| it.quantity(1)).transpose()?,
        soak_seconds: at.field(fields, "soak").map(soak).transpose()?,
        max_in_flight: at.field(fields, "maxInFlight").map(|it| it.quantity(1)).transpose()?,
        windows: at.field(fields, "windows").map(|it| windows(&it)).transpose()?.unwrap_or_default(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Strict {
    #[serde(default)]
    days: Vec<Day>,
    from: TimeOfDay,
    to: TimeOfDay,
    #[serde(default)]
    zone: Option<String>,
}

fn windows(at: &At<'_>) -> Found<Vec<Window>> {
    let all: Vec<Strict> = at.all("windows such as { from = \"22:00\"; to = \"04:00\"; }")?;
    let windows: Vec<Window> =
        all.into_iter().map(|Strict { days, from, to, zone }| Window { days, from, to, zone }).collect();
    let policy = Policy { windows, ..Policy::default() };
    policy.check().or_else(|error| at.wrong(error.to_string()))?;
    Ok(policy.windows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<Written, String> {
        Written::read("muster.rollouts.weekly", value).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_that_can_be_written_arrives() {
        let written = read(&json!({
            "waves": [{
                "name": "canaries", "machines": ["tin"], "tags": ["canary"], "class": "nixos", "percent": 10,
                "atLeast": "90%", "soak": "1h30m", "maxInFlight": 5,
                "windows": [{ "days": ["sat"], "from": "22:00", "to": "04:00", "zone": "UTC" }],
            }],
            "seed": "s", "budget": "1%", "failures": ["rolled-back"], "after": { "app1": ["db1"] },
        }))
        .unwrap();
        let wave = &written.waves[0];
        assert_eq!((wave.soak_seconds, wave.percent, wave.class), (Some(5400), Some(10), Some(Class::Nixos)));
        assert_eq!(
            (wave.at_least, wave.max_in_flight),
            (Some(Quantity::Percent(90)), Some(Quantity::Count(5)))
        );
        assert_eq!((wave.windows.len(), written.budget), (1, Some(Quantity::Percent(1))));
        assert_eq!(written.failures, Some(vec![Failure::RolledBack]));
        assert_eq!(written.after[&"app1".parse().unwrap()], ["db1".parse().unwrap()]);
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let wave = |field: &str, value: Value| json!({ "waves": [{ "name": "first", field: value }] });
        for (written, told) in [
            (json!([]), "muster.rollouts.weekly: write a set with waves, seed"),
            (json!({ "wave": [] }), "muster.rollouts.weekly: there is no field 'wave'"),
            (json!({ "waves": {} }), "muster.rollouts.weekly.waves: write a list of waves"),
            (json!({ "waves": [{ "percent": 3 }] }), "muster.rollouts.weekly.waves.1: a wave has a `name`"),
            (
                json!({ "waves": [{ "name": "a" }, { "name": "a" }] }),
                "muster.rollouts.weekly.waves: two waves are called 'a'",
            ),
            (wave("soak", json!(90)), "weekly.waves.first.soak: write a time such as"),
            (wave("soak", json!("31d")), "weekly.waves.first.soak: 30 days are the limit"),
            (wave("percent", json!(0)), "weekly.waves.first.percent: write a whole number from 1 to 100"),
            (wave("atLeast", json!(0)), "weekly.waves.first.atLeast: 1 is the least"),
            (wave("atLeast", json!("0%")), "weekly.waves.first.atLeast: 0 % is nobody"),
            (wave("atLeast", json!("101%")), "weekly.waves.first.atLeast: write a whole number of machines"),
            (wave("maxInFlight", json!(-1)), "weekly.waves.first.maxInFlight: write a whole number"),
            (wave("maxInflight", json!(1)), "weekly.waves.first: there is no field 'maxInflight'"),
            (wave("machines", json!("tin")), "weekly.waves.first.machines: write a list of names"),
            (wave("machines", json!([])), "weekly.waves.first.machines: it names nobody; leave it out"),
            (wave("tags", json!([])), "weekly.waves.first.tags: it names nobody; leave it out"),
            (wave("tags", json!(["a b"])), "weekly.waves.first.tags: "),
            (wave("class", json!("mac")), "weekly.waves.first.class: "),
            (wave("windows", json!([{ "from": "22:00" }])), "weekly.waves.first.windows: missing field `to`"),
            (
                wave("windows", json!([{ "from": "22:00", "to": "23:00", "zone": "../x" }])),
                "weekly.waves.first.windows: ",
            ),
            (json!({ "failures": ["odd"] }), "weekly.failures: there are rolled-back, degraded"),
            (json!({ "after": { "app1": "db1" } }), "weekly.after.app1: write a list of names of machines"),
            (json!({ "after": { "-": [] } }), "weekly.after.-: this is no name of a machine"),
            (json!({ "budget": 1.5 }), "weekly.budget: write a whole number of machines"),
        ] {
            let refused = read(&written).unwrap_err();
            assert!(refused.contains(told), "{written}: {refused}");
        }
    }

    #[test]
    fn a_file_is_json_or_toml() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weekly.toml");
        std::fs::write(&path, "seed = 's'\n[[waves]]\nname = 'first'\npercent = 10\n").unwrap();
        let of_toml = from_file(&path).unwrap();
        std::fs::write(&path, r#" {"seed":"s","waves":[{"name":"first","percent":10}]}"#).unwrap();
        assert_eq!(from_file(&path).unwrap(), of_toml);
        std::fs::write(&path, "[[waves]]\nname = 'first'\nsoak = 3\n").unwrap();
        let refused = from_file(&path).unwrap_err().to_string();
        assert!(refused.contains("weekly.toml.waves.first.soak"), "{refused}");
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(from_file(&path), Err(FileError::Format(..))));
    }

    #[test]
    fn parts_are_rounded_up() {
        assert_eq!([0, 1, 9, 10, 11, 100].map(|all| part(10, all)), [0, 1, 1, 1, 2, 10]);
        assert_eq!(Quantity::Percent(1).at_most_of(199), 1);
        assert_eq!(Quantity::Count(3).of(1), 3);
    }
}
