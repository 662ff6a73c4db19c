//! Refuses to sign fields that a newer agent would act on but this program cannot show.

use anyhow::{Result, anyhow};
use muster_protocol::draft::{Draft, Drafted};
use muster_protocol::ids::MachineName;
use muster_protocol::target::Target;
use serde_json::Value;

use crate::terminal::error::WithHint as _;

/// Refuses a draft that says more than was read of it.
pub fn require(draft: &Draft) -> Result<()> {
    let Drafted::Generations { generations } = &draft.what else { return Ok(()) };
    generations.iter().try_for_each(|one| require_target(&one.machine, &one.publication.target))
}

/// The same of one target.
pub fn require_target(machine: &MachineName, text: &str) -> Result<()> {
    match of_target(text.as_bytes())? {
        None => Ok(()),
        Some(path) => Err(anyhow!(
            "the target for {machine} says something under '{path}' that this muster does not know"
        ))
        .hint("sign it with a muster as new as its maker's; this one cannot show all that it does"),
    }
}

/// The path of the first field of a target's text that this program does not know.
pub fn of_target(text: &[u8]) -> Result<Option<String>> {
    let read = serde_json::to_value(Target::parse(text)?)?;
    Ok(beyond(&serde_json::from_slice(text)?, &read))
}

/// The path of the first field that was not read.
fn beyond(written: &Value, read: &Value) -> Option<String> {
    let under = |name: &dyn ToString, value: &Value, read: Option<&Value>| match read {
        None => Some(name.to_string()),
        Some(read) => beyond(value, read).map(|rest| match rest.as_str() {
            "" => name.to_string(),
            rest => format!("{}.{rest}", name.to_string()),
        }),
    };
    match (written, read) {
        (Value::Object(fields), Value::Object(known)) => {
            fields.iter().find_map(|(name, value)| under(name, value, known.get(name)))
        }
        (Value::Array(items), Value::Array(known)) => {
            items.iter().enumerate().find_map(|(at, value)| under(&at, value, known.get(at)))
        }
        _ => (written != read).then(String::new),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_and_was_not_read_is_named_by_its_path() {
        let read = json!({ "checks": [{ "name": "ssh", "kind": "tcp" }], "policy": { "urgent": true } });
        assert_eq!(beyond(&read, &read), None);
        assert_eq!(beyond(&json!({ "policy": { "urgent": true } }), &read), None);
        for (written, path) in [
            (json!({ "policy": { "urgent": true, "erase": "all" } }), "policy.erase"),
            (json!({ "also": 1 }), "also"),
            (json!({ "checks": [{ "name": "ssh", "kind": "ping" }] }), "checks.0.kind"),
            (json!({ "checks": [{ "name": "ssh" }, { "name": "web" }] }), "checks.1"),
        ] {
            assert_eq!(beyond(&written, &read).as_deref(), Some(path), "{written}");
        }
    }
}
