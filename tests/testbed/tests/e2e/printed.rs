//! JSON output of both programs in a real fleet: no number in it is a time.

use muster_testbed::fleet::{Fleet, both, said};
use muster_testbed::printed::bare_times;
use serde_json::Value;

use crate::operators::flake;

#[track_caller]
fn assert_dated(text: &str, what: &str, fields: &[&str]) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{what}: {error}: {text}"));
    let bare = bare_times(&value, "");
    assert!(bare.is_empty(), "{what}: {bare:?}");
    for field in fields {
        let at = text
            .find(&format!("\"{field}\": \"20"))
            .unwrap_or_else(|| panic!("{what} has no {field}: {text}"));
        let moment = text[at..].split('"').nth(3).unwrap();
        assert!(
            moment.ends_with('Z') && moment.parse::<jiff::Timestamp>().is_ok(),
            "{what}: {field} is {moment}"
        );
    }
}

#[test]
fn times_in_what_is_printed_are_rfc_3339_and_durations_have_their_unit() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    fleet.update(&["cinnabar"]).unwrap();
    fleet
        .wait("cinnabar", "the first generation", |view| {
            view.runs.as_ref().is_some_and(|runs| runs.generation.is_some())
        })
        .unwrap();
    fleet.must(&["machines", "add", "lead", "--class", "nixos"]).unwrap();
    let bob = crate::operators::Operator::new(&fleet, "bob");
    fleet
        .must(&["keys", "add", "operator", &bob.public, "--name", "bob", "--threshold", "2", "--yes"])
        .unwrap();
    fleet.fixture.say("greeting", "again").unwrap();
    fleet.update(&["cinnabar"]).unwrap();

    let flake = flake(&fleet);
    for (arguments, fields) in [
        (&["status"][..], &["at", "expires", "enrolled_at", "last_seen"][..]),
        (&["machines", "list"], &["at", "expires", "enrolled_at", "last_seen"]),
        (&["machines", "show", "cinnabar"], &["at", "expires", "enrolled_at", "last_seen"]),
        (&["machines", "list", "--flake", &flake], &[]),
        (&["history", "cinnabar"], &["at", "expires"]),
        (&["history", "cinnabar", "--attacks"], &[]),
        (&["audit"], &["at"]),
        (&["drafts", "list"], &["made_at", "ends"]),
        (&["keys", "list"], &[]),
    ] {
        let printed = fleet.must(&[arguments, &["--json"]].concat()).unwrap();
        assert_dated(&printed, &arguments.join(" "), fields);
    }

    let status = || {
        let output = fleet.agent("cinnabar", &["status", "--json"]).unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_dated(&status(), "the agent's status", &["last_contact"]);
    let paused = fleet.agent("cinnabar", &["pause", "--for", "4h"]).unwrap();
    assert!(paused.status.success(), "{}", said(&paused));
    assert_dated(&status(), "the agent's status", &["paused_until"]);
    fleet.agent("cinnabar", &["resume"]).unwrap();
    let paused = fleet.agent("cinnabar", &["pause"]).unwrap();
    assert!(paused.status.success(), "{}", said(&paused));
    let text = status();
    assert_dated(&text, "the agent's status", &[]);
    assert!(text.contains("\"paused_until\": \"9999-12-30T00:00:00.000Z\""), "{text}");
    fleet.machine("cinnabar").stop(false).unwrap();
    assert_dated(&status(), "the status of an agent that does not run", &[]);
}
