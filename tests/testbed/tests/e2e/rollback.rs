//! Back to an older generation, with the flake gone.

use muster_protocol::operator::Condition;
use muster_testbed::fleet::{Fleet, both, said};

use crate::common::assert_runs_published;

#[test]
fn machines_go_back_to_what_they_confirmed_before_with_the_flake_deleted() {
    let fleet = Fleet::start(&both()).unwrap();
    let names = ["cinnabar", "stibnite"];
    for (number, greeting) in [(1, "one"), (2, "two"), (3, "three")] {
        fleet.fixture.say("greeting", greeting).unwrap();
        fleet.update(&["--message", greeting]).unwrap();
        for name in names {
            fleet.settled(name, number, Condition::UpToDate).unwrap();
        }
    }
    // The folder itself is where the operator stands.
    std::fs::remove_dir_all(fleet.fixture.flake()).unwrap();
    std::fs::create_dir(fleet.fixture.flake()).unwrap();

    // Nothing but the controller is asked, and nothing is signed before somebody agrees.
    let dry = fleet.must(&["rollback", "@all", "--dry-run"]).unwrap();
    for words in ["from generation 3", "to what generation 2 was", "message: two", "Nothing was signed"] {
        assert!(dry.contains(words), "{words}: {dry}");
    }
    assert!(!fleet.run(&["rollback", "@all"]).unwrap().status.success(), "nobody is here to agree");

    fleet.must(&["rollback", "@all", "--yes"]).unwrap();
    for name in names {
        fleet.settled(name, 4, Condition::UpToDate).unwrap();
        assert_runs_published(&fleet, name);
        assert_eq!(fleet.machine(name).greeting().unwrap(), "two");
        let history = fleet.history(name).unwrap();
        let targets: Vec<_> = history.iter().map(|entry| &entry.published.target).collect();
        assert_eq!(targets[0].message.as_deref(), Some("rollback to 2: two"));
        assert_eq!(
            (&targets[0].derivation, &targets[0].checks, &targets[0].policy),
            (&targets[2].derivation, &targets[2].checks, &targets[2].policy)
        );
    }

    // Further back by its number, with words of one's own.
    let one = ["rollback", "cinnabar", "--to", "1", "--yes", "--urgent", "--message", "still slow"];
    fleet.must(&one).unwrap();
    fleet.settled("cinnabar", 5, Condition::UpToDate).unwrap();
    assert_eq!(fleet.machine("cinnabar").greeting().unwrap(), "one");
    let target = fleet.history("cinnabar").unwrap().remove(0).published.target;
    assert_eq!(target.message.as_deref(), Some("rollback to 1: still slow"));
    assert!(target.policy.urgent);

    for (words, told) in [
        (&["rollback", "cinnabar", "--to", "99", "--yes"][..], "the controller holds 5, 4, 3, 2, 1"),
        (&["rollback", "cinnabar", "--to", "1", "--yes"], "was given the system of generation 1 last"),
        (&["rollback", "tin", "--yes"], "knows no machine tin"),
    ] {
        let refused = fleet.run(words).unwrap();
        assert!(!refused.status.success() && said(&refused).contains(told), "{}", said(&refused));
    }
    fleet.must(&["machines", "revoke", "stibnite"]).unwrap();
    let refused = fleet.run(&["rollback", "stibnite", "--yes"]).unwrap();
    assert!(!refused.status.success() && said(&refused).contains("is revoked"), "{}", said(&refused));
}
