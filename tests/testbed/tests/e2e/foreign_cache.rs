//! What a stolen controller's cache serves to an operator who inspects a derivation before signing it.

use std::process::Output;

use muster_protocol::draft::DraftView;
use muster_testbed::fleet::{Fleet, Wishes, both, said};
use muster_testbed::printed;
use muster_testbed::thief::{Answer, Thief};

use crate::operators::{Operator, refused};

/// Alice's draft, behind a thief, and bob, whose store has nothing of it.
struct Desk {
    fleet: Fleet,
    thief: Thief,
    bob: Operator,
    draft: String,
}

impl Desk {
    fn new() -> Self {
        let thief = Thief::start().unwrap();
        let wishes = Wishes { url: Some(thief.url.clone()), ..Wishes::default() };
        let mut fleet = Fleet::prepare(&both()[..1], &wishes).unwrap();
        thief.passes_on_to(&format!("http://{}", fleet.address));
        fleet.invite_and_enrol("cinnabar").unwrap();
        let bob = Operator::new(&fleet, "bob");
        fleet
            .must(&["keys", "add", "operator", &bob.public, "--name", "bob", "--threshold", "2", "--yes"])
            .unwrap();
        fleet.fixture.say("greeting", "one").unwrap();
        fleet.update(&[]).unwrap();
        let drafts: Vec<DraftView> =
            printed::read(&fleet.must(&["drafts", "list", "--json"]).unwrap()).unwrap();
        let draft = drafts[0].id.short();
        Self { fleet, thief, bob, draft }
    }

    fn sign(&self) -> Output {
        let store = self.fleet.folder().join("bobs-store");
        let mut command = self.fleet.muster(&["sign", &self.draft, "--yes"]).unwrap();
        command.env("NIX_REMOTE", format!("local?root={}", store.display()));
        command.env("MUSTER_CONFIG", &self.bob.config).output().unwrap()
    }

    /// From now on this line of every narinfo is replaced.
    fn describes(&self, name: &'static str, value: String) {
        self.thief.bend(move |answer: &mut Answer| {
            if answer.status != 200 || !answer.path.ends_with(".narinfo") || answer.method == "HEAD" {
                return;
            }
            let text = String::from_utf8(std::mem::take(&mut answer.body)).unwrap();
            let lines = text.lines().map(|line| match line.split_once(": ") {
                Some((found, _)) if found == name => format!("{name}: {value}\n"),
                _ => format!("{line}\n"),
            });
            answer.body = lines.collect::<String>().into_bytes();
        });
    }
}

#[test]
fn what_a_stolen_cache_describes_leads_an_operators_nix_nowhere_and_a_sound_one_is_looked_into() {
    let desk = Desk::new();
    let trap = Thief::start().unwrap();
    trap.passes_on_to(&format!("http://{}", desk.fleet.address));
    for url in ["file:///dev/zero".to_owned(), format!("{}/nar", trap.url), "../../v1/fleet".to_owned()] {
        desk.describes("URL", url.clone());
        let output = desk.sign();
        refused(&output, &["is not believed", "is refused", "--unseen only if you know"]);
    }
    assert!(trap.asked().is_empty(), "Nix asked another host: {:?}", trap.asked());
    // A size that no archive of it has: unpacking stops when there is more.
    desk.describes("NarSize", "100".into());
    refused(&desk.sign(), &["is not believed", "longer than was described"]);
    desk.thief.bend(|answer: &mut Answer| {
        if answer.path.contains("/cache/") && answer.status == 200 {
            answer.status = 302;
            answer.location = Some("file:///etc/passwd".into());
        }
    });
    refused(&desk.sign(), &["not as Muster does"]);
    // Only the gate's requests arrived, each with bob's bearer, which Nix never had.
    let asked = desk.thief.asked();
    let cache: Vec<_> = asked.iter().filter(|asked| asked.path.starts_with("/cache/")).collect();
    assert!(!cache.is_empty());
    for asked in cache {
        let said = asked.headers["authorization"].to_str().unwrap();
        assert!(said.starts_with("Bearer "), "{} {}: {said}", asked.method, asked.path);
    }

    desk.thief.behave();
    let signed = desk.sign();
    assert!(signed.status.success(), "{}", said(&signed));
    assert!(String::from_utf8_lossy(&signed.stdout).contains("published generation 1"), "{}", said(&signed));
}
