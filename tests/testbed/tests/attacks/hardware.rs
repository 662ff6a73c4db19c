//! An operator with a security key, one with a key in a file, and whoever has stolen less than both.

use std::cell::Cell;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use muster_protocol::api;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::keys::{SecretKey, Signature, Signer};
use muster_protocol::operator::{Condition, NewRoot, Publication, Request, RequestSignature};
use muster_protocol::report::Attack;
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::{add_signature, key_id, sign_generation};
use muster_testbed::caller::{Answered, Caller, key_in};
use muster_testbed::fleet::said;
use muster_testbed::security_key::{Posing, SecurityKey, counted_on};
use muster_testbed::stolen::{Stolen, Untouched, VICTIM};
use reqwest::Method;
use serde_json::{Value, json};

use crate::book::{Book, By};
use crate::siege::DAY;
use crate::signers::served_and_refused;

/// Two operators of whom both must sign: bob with a key in a file, alice with a security key.
struct Hardware {
    stolen: Stolen,
    bob: SecretKey,
    alice: SecurityKey,
    before: Untouched,
    stamps: Cell<u64>,
}

pub fn run(book: &mut Book) -> Result<()> {
    let mut fleet = Hardware::new()?;
    on_machines(&fleet, book)?;
    on_the_controller(&fleet, book)?;
    on_the_root(&fleet, book)?;
    fleet.together(book)
}

impl Hardware {
    fn new() -> Result<Self> {
        let (stolen, alice) = (Stolen::new()?, SecurityKey::new()?);
        let bob = key_in(&stolen.fleet.config_folder().join("keys/operator.pem"))?;
        let key = alice.public().to_string();
        stolen.fleet.must(&[
            "keys",
            "add",
            "operator",
            &key,
            "--name",
            "alice",
            "--threshold",
            "2",
            "--yes",
        ])?;
        let before = stolen.untouched(VICTIM)?;
        let mut fleet = Self { stolen, bob, alice, before, stamps: Cell::new(0) };
        // What one had signed before the threshold became two is signed by both.
        fleet.together(&mut Book::default())?;
        Ok(fleet)
    }

    /// A generation of both is taken: nothing else was refused merely because nothing works.
    fn together(&mut self, book: &mut Book) -> Result<()> {
        self.stolen.thief.behave();
        while u64::try_from(SystemClock::new().unix_seconds())? <= self.stamps.get() {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let publication = self.signed(&[&self.bob, &self.alice])?;
        let path = format!("{}/generations", api::operator_machine(&VICTIM.parse()?));
        let body = serde_json::to_vec(&publication)?;
        // Alice asks, so that a request of a security key is taken, too.
        let answered = ask(&self.stolen.caller()?, &self.alice, &Method::POST, &path, body)?;
        ensure!(answered.is_good(), "{}", answered.text());
        let number = publication.generation.get();
        self.stolen.ask(VICTIM)?;
        self.stolen.fleet.settled(VICTIM, number, Condition::UpToDate)?;
        self.before = self.stolen.untouched(VICTIM)?;
        book.control(&format!("generation {number}, signed with a file's key and a security key, is taken"));
        Ok(())
    }

    fn signed(&self, signers: &[&dyn Signer]) -> Result<Publication> {
        let target = self.stolen.fleet.view(VICTIM)?.published.context("published")?.target;
        let next = Target { generation: target.generation.next()?, ..target };
        Ok(sign_generation(&next, SystemClock::new().unix_seconds() + 30 * DAY, signers)?)
    }

    /// Puts a root in force that names alice's key under both kinds, beside bob's; two must sign.
    fn name_twice(&self) -> Result<()> {
        let config = self.stolen.fleet.config_folder();
        let mut root: Value = serde_json::from_slice(&fs::read(config.join("root.json"))?)?;
        let (id, public) = (key_id(&self.alice.secret.public()), self.alice.secret.public().hex());
        let signed = &mut root["signed"];
        signed["version"] = (signed["version"].as_u64().context("a version")? + 1).into();
        signed["keys"][&id] =
            json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": public } });
        for role in ["targets", "snapshot"] {
            let holders = signed["roles"][role]["keyids"].as_array_mut().context("key IDs")?;
            holders.push(id.clone().into());
        }
        root["signatures"] = json!([]);
        let holder = key_in(&config.join("keys/root.pem"))?;
        let root = NewRoot { root: add_signature(&root.to_string(), &holder)? };
        let caller = self.stolen.caller()?;
        let taken = caller.operate(&holder, &Method::POST, api::OPERATOR_ROOT, serde_json::to_vec(&root)?)?;
        ensure!(taken.is_good(), "{}", taken.text());
        Ok(())
    }

    fn require_untouched(&self) -> Result<()> {
        let now = self.stolen.untouched(VICTIM)?;
        let same = (&now.running, &now.profile, &now.generation)
            == (&self.before.running, &self.before.profile, &self.before.generation);
        ensure!(same, "the machine was touched: {:?}", now.running);
        Ok(())
    }

    /// Serves the machine a generation that these signed.
    fn serve(&self, signers: &[&dyn Signer]) -> Result<String> {
        let publication = self.signed(signers)?;
        let attacks = [Attack::ForgedSignature];
        let reported = served_and_refused(&self.stolen, &self.stamps, &publication, &attacks)?;
        self.require_untouched()?;
        self.stolen.thief.behave();
        Ok(reported)
    }
}

/// A request to the controller, signed by whatever key.
fn ask(caller: &Caller, key: &dyn Signer, method: &Method, path: &str, body: Vec<u8>) -> Result<Answered> {
    let signature = caller.signature(key, method, path, &body, 0)?;
    caller.ask(method, path, &[(api::OPERATOR_SIGNATURE, signature)], body)
}

fn on_machines(fleet: &Hardware, book: &mut Book) -> Result<()> {
    let (bob, alice, thief) = (&fleet.bob, &fleet.alice, SecretKey::generate()?);
    let untouched = fleet.alice.untouched();
    book.attack(
        "a security key that nobody touched",
        "a generation for which the key was plugged in, and not touched",
        By::Agent,
        fleet.serve(&[bob, &untouched]),
    );

    let elsewhere = alice.for_application("https://example.com");
    book.attack(
        "a security key's signature for a website",
        "a generation signed as a login elsewhere, with the same key",
        By::Agent,
        fleet.serve(&[bob, &elsewhere]),
    );

    let counted = Posing { by: alice, named: alice.public(), bend: counted_on };
    book.attack(
        "a security key's signature under another counter",
        "a generation with an honest signature, its counter moved on",
        By::Agent,
        fleet.serve(&[bob, &counted]),
    );

    let plain = Posing { by: &thief, named: alice.public(), bend: |signature| signature };
    book.attack(
        "a plain key in a security key's place",
        "a generation signed with a file's key, under the security key's ID",
        By::Agent,
        fleet.serve(&[bob, &plain]),
    );

    // The same with alice's own private key, had it ever left the security key: it is of the wrong kind.
    let bare = Posing { by: &alice.secret, named: alice.public(), bend: |signature: Signature| signature };
    book.attack(
        "a security key's point, signing as a plain key",
        "a generation signed with its bare private key, under the security key's ID",
        By::Agent,
        fleet.serve(&[bob, &bare]),
    );
    Ok(())
}

fn on_the_controller(fleet: &Hardware, book: &mut Book) -> Result<()> {
    let (caller, path) = (fleet.stolen.caller()?, api::OPERATOR_MACHINES);
    let refused = |answered: Answered| {
        ensure!(answered.status == 401, "{}", answered.text());
        Ok("refused with 401".to_owned())
    };
    let untouched = fleet.alice.untouched();
    book.attack(
        "a request that nobody touched a security key for",
        "the list of machines, asked for while its owner is away",
        By::Controller,
        ask(&caller, &untouched, &Method::GET, path, vec![]).and_then(refused),
    );

    let request = Request { audience: &caller.fleet(), method: "GET", path, body: b"" };
    let now = SystemClock::new().unix_seconds();
    let honest = RequestSignature::make_with(&fleet.alice, request, now, muster_protocol::random::bytes()?)?;
    let send = |signature: &RequestSignature| {
        let header = (api::OPERATOR_SIGNATURE, serde_json::to_string(signature)?);
        caller.ask(&Method::GET, path, &[header], vec![])
    };
    let first = send(&honest)?;
    ensure!(first.is_good(), "an honest request: {}", first.text());
    let again = RequestSignature { signature: counted_on(honest.signature), ..honest };
    book.attack(
        "a request replayed under another counter",
        "an honest request of a security key once more, its counter moved on",
        By::Controller,
        send(&again).and_then(refused),
    );
    Ok(())
}

fn on_the_root(fleet: &Hardware, book: &mut Book) -> Result<()> {
    let twin = fleet.alice.secret.public().hex();
    let tried = fleet.stolen.fleet.run(&["keys", "add", "operator", &twin, "--name", "mallory", "--yes"]);
    let tried = tried.and_then(|output| {
        ensure!(!output.status.success(), "it was accepted: {}", said(&output));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(text.contains("holds the role operator already"), "{text}");
        fleet.require_untouched()?;
        Ok("'holds the role operator already'".to_owned())
    });
    book.attack(
        "a key named twice in a root",
        "a security key's point, added as a plain operator key",
        By::Operator,
        tried,
    );

    // A root holder's own program may make such a root. It counts, and the key counts once.
    fleet.name_twice()?;
    book.attack(
        "one key as two signers",
        "a generation signed twice with one key, as a security key and as a plain one, where two must sign",
        By::Agent,
        fleet.serve(&[&fleet.alice, &fleet.alice.secret]),
    );
    Ok(())
}
