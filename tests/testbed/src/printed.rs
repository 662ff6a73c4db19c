//! Parses JSON as the programs print it, where times are RFC 3339 strings; the protocol's types hold numbers.

use anyhow::{Context as _, Result};
use muster_protocol::moment::{Unit, unit_of};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Parses the output of `--json`.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T> {
    let mut value = serde_json::from_str(text)?;
    numbered(&mut value)?;
    Ok(serde_json::from_value(value)?)
}

fn numbered(value: &mut Value) -> Result<()> {
    match value {
        Value::Array(all) => all.iter_mut().try_for_each(numbered),
        Value::Object(all) => all.iter_mut().try_for_each(|(name, value)| match (unit_of(name), &*value) {
            (Some(unit), Value::String(text)) => {
                let moment: jiff::Timestamp =
                    text.parse().with_context(|| format!("{name} is '{text}', which is no time"))?;
                *value = match unit {
                    Unit::Milliseconds => moment.as_millisecond(),
                    Unit::Seconds => moment.as_second(),
                }
                .into();
                Ok(())
            }
            _ => numbered(value),
        }),
        _ => Ok(()),
    }
}

/// A metadata version is not a time, although it counts seconds: machines compare it, and nothing expires by
/// it.
const VERSION: &str = "/holds/timestamp";

/// Every number in a printed document that looks like a time of these decades, in seconds or milliseconds:
/// there should be none.
pub fn bare_times(value: &Value, at: &str) -> Vec<String> {
    let is_time = |number: f64| (1e9..5e9).contains(&number) || (1e12..5e12).contains(&number);
    let children: Vec<(String, &Value)> = match value {
        Value::Number(number) if number.as_f64().is_some_and(is_time) && !at.ends_with(VERSION) => {
            return vec![format!("{at}: {number}")];
        }
        Value::Array(all) => all.iter().enumerate().map(|(n, one)| (n.to_string(), one)).collect(),
        Value::Object(all) => all.iter().map(|(name, one)| (name.clone(), one)).collect(),
        _ => Vec::new(),
    };
    children.into_iter().flat_map(|(name, child)| bare_times(child, &format!("{at}/{name}"))).collect()
}
