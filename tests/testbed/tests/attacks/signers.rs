//! Two operators, one of them a thief, and a controller that lies to both.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_protocol::api;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::draft::DraftView;
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::{Condition, MachineView};
use muster_protocol::report::Attack;
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::{RootSpec, sign_generation, sign_root, sign_timestamp};
use muster_testbed::caller::key_in;
use muster_testbed::fleet::{Fleet, said};
use muster_testbed::printed;
use muster_testbed::stolen::{Stolen, Untouched, VICTIM};
use muster_testbed::thief::Answer;
use reqwest::Method;
use serde_json::Value;

use crate::book::{Book, By};
use crate::siege::DAY;

struct Pair {
    stolen: Stolen,
    alice: SecretKey,
    bob: PathBuf,
    before: Untouched,
    stamps: Cell<u64>,
}

pub fn run(book: &mut Book) -> Result<()> {
    let mut pair = Pair::new()?;
    alone(&pair, book)?;
    deceived(&pair, book)?;
    pair.together("signed by both", book)?;
    log(&mut pair, book)?;
    fast_forward(&mut pair, book)
}

impl Pair {
    fn new() -> Result<Self> {
        let stolen = Stolen::new()?;
        let fleet = &stolen.fleet;
        let folder = fleet.folder().join("bob");
        fs::create_dir_all(folder.join("keys"))?;
        let key = folder.join("keys/operator.pem");
        let public = fleet.must(&["keys", "generate", &key.display().to_string(), "--plain"])?;
        fleet.must(&[
            "keys",
            "add",
            "operator",
            public.trim(),
            "--name",
            "bob",
            "--threshold",
            "2",
            "--yes",
        ])?;
        for file in ["muster.toml", "root.json"] {
            fs::copy(fleet.config_folder().join(file), folder.join(file))?;
        }
        let alice = key_in(&fleet.config_folder().join("keys/operator.pem"))?;
        let before = stolen.untouched(VICTIM)?;
        let mut pair = Self { before, bob: folder.join("muster.toml"), alice, stolen, stamps: Cell::new(0) };
        // What one had signed before the threshold became two is signed by both.
        pair.together("at home", &mut Book::default())?;
        Ok(pair)
    }

    fn bob(&self, arguments: &[&str]) -> Result<Output> {
        let config = self.bob.display().to_string();
        self.stolen.fleet.run(&[&["--config", &config], arguments].concat())
    }

    fn flake(&self) -> String {
        format!("path:{}", self.stolen.fleet.fixture.flake().display())
    }

    fn draft(&self) -> Result<String> {
        let drafts: Vec<DraftView> = printed::read(&self.stolen.fleet.must(&["drafts", "list", "--json"])?)?;
        Ok(drafts.last().context("a draft waits")?.id.short())
    }

    /// An honest update signed by both succeeds.
    fn together(&mut self, greeting: &str, book: &mut Book) -> Result<()> {
        let fleet = &self.stolen.fleet;
        self.stolen.thief.behave();
        // The thief's timestamps are a second or two ahead of the clock, and the controller's versions are
        // the time.
        while u64::try_from(SystemClock::new().unix_seconds())? <= self.stamps.get() {
            std::thread::sleep(Duration::from_millis(100));
        }
        fleet.fixture.say("greeting", greeting)?;
        fleet.update(&[VICTIM])?;
        let signed = self.bob(&["sign", &self.draft()?, "--yes", "--flake", &self.flake()])?;
        ensure!(signed.status.success(), "{}", said(&signed));
        let number = fleet.view(VICTIM)?.published.context("published")?.target.generation.get();
        self.stolen.ask(VICTIM)?;
        fleet.settled(VICTIM, number, Condition::UpToDate)?;
        ensure!(fleet.machine(VICTIM).greeting().as_deref() == Some(greeting), "it says something else");
        self.before = self.stolen.untouched(VICTIM)?;
        book.control(&format!("generation {number}, signed by both operators, is taken"));
        Ok(())
    }

    fn require_untouched(&self) -> Result<()> {
        let now = self.stolen.untouched(VICTIM)?;
        let touched = (now.running, now.profile, now.generation);
        let before = (&self.before.running, &self.before.profile, &self.before.generation);
        ensure!((&touched.0, &touched.1, &touched.2) == before, "the machine was touched: {:?}", touched.0);
        Ok(())
    }

    fn next(&self) -> Result<Target> {
        let target = self.stolen.fleet.view(VICTIM)?.published.context("published")?.target;
        Ok(Target { generation: target.generation.next()?, ..target })
    }

    /// Serves a generation to the machine and checks that it refuses it as forged.
    fn refuses(
        &self,
        publication: &muster_protocol::operator::Publication,
        attacks: &[Attack],
    ) -> Result<String> {
        let reported = served_and_refused(&self.stolen, &self.stamps, publication, attacks)?;
        self.require_untouched()?;
        self.stolen.thief.behave();
        Ok(reported)
    }

    fn refused_by_operator(&self, output: &Output, words: &[&str]) -> Result<String> {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "it was accepted: {}", said(output));
        for word in words {
            ensure!(text.contains(word), "'{word}' is missing in: {text}");
        }
        self.require_untouched()?;
        Ok(format!("'{}'", words[0]))
    }
}

/// Serves a generation to the machine, stamped by the thief, and waits until it reports one of these attacks.
pub fn served_and_refused(
    stolen: &Stolen,
    stamps: &Cell<u64>,
    publication: &muster_protocol::operator::Publication,
    attacks: &[Attack],
) -> Result<String> {
    let fleet = &stolen.fleet;
    let now = SystemClock::new().unix_seconds();
    let snapshot = publication.snapshot.clone().into_bytes();
    let seen = fleet.view(VICTIM)?.holds.timestamp.max(stamps.get());
    let version = u64::try_from(now)?.max(seen) + 1;
    stamps.set(version);
    let stamp = sign_timestamp(&VICTIM.parse()?, &snapshot, version, now + DAY, &stolen.online_key()?)?;
    // An attack like the previous one is not reported again: between two there is a different one.
    let timestamp = format!("/{VICTIM}/tuf/timestamp.json");
    stolen.thief.bend(move |answer: &mut Answer| {
        if answer.path.ends_with(&timestamp) {
            (answer.status, answer.body) = (200, b"a page in between".to_vec());
        }
    });
    stolen.ask(VICTIM)?;
    fleet.wait(VICTIM, "the page's refusal", |view| attack_of(view) == Some(Attack::Malformed))?;
    let number = publication.generation;
    let (targets, target) =
        (publication.targets.clone().into_bytes(), publication.target.clone().into_bytes());
    stolen.thief.bend(move |answer: &mut Answer| {
        let Some((_, file)) = answer.path.split_once(&format!("/machines/{VICTIM}/tuf/")) else { return };
        let bytes = match file {
            "timestamp.json" => &stamp,
            _ if file == format!("{number}.snapshot.json") => &snapshot,
            _ if file == format!("{number}.targets.json") => &targets,
            _ if file.ends_with(".generation.json") => &target,
            _ => return,
        };
        (answer.status, answer.body) = (200, bytes.clone());
    });
    stolen.ask(VICTIM)?;
    let view =
        fleet.wait(VICTIM, "a refusal", |view| attack_of(view).is_some_and(|a| a != Attack::Malformed))?;
    let reported = view.attack.context("it is not reported")?;
    ensure!(
        attacks.contains(&reported.attack),
        "it was taken for {}: {}",
        reported.attack.as_str(),
        reported.detail
    );
    Ok(format!("status and history: {}", reported.attack.as_str()))
}

fn attack_of(view: &MachineView) -> Option<Attack> {
    view.attack.as_ref().map(|reported| reported.attack)
}

/// One stolen operator key where two are required.
fn alone(pair: &Pair, book: &mut Book) -> Result<()> {
    let expires = SystemClock::new().unix_seconds() + 30 * DAY;
    let target = pair.next()?;
    let alone = sign_generation(&target, expires, &[&pair.alice])?;
    let caller = pair.stolen.caller()?;
    let path = format!("{}/generations", api::operator_machine(&VICTIM.parse()?));
    let tried =
        caller.operate(&pair.alice, &Method::POST, &path, serde_json::to_vec(&alone)?).and_then(|answered| {
            ensure!(answered.status == 422, "{}", answered.text());
            pair.require_untouched()?;
            Ok("refused with 422".to_owned())
        });
    book.attack("one operator of two", "a stolen operator's key publishes alone", By::Controller, tried);

    let tried = pair.refuses(&alone, &[Attack::ForgedSignature]);
    book.attack(
        "one operator and the controller",
        "both stolen, where two operators must sign",
        By::Agent,
        tried,
    );

    let twice = |text: &str| -> Result<String> {
        let mut value: Value = serde_json::from_str(text)?;
        let mut second = value["signatures"][0].clone();
        second["keyid"] = "0".repeat(64).into();
        if let Some(signatures) = value["signatures"].as_array_mut() {
            signatures.push(second);
        }
        Ok(value.to_string())
    };
    let mut doubled = alone.clone();
    doubled.snapshot = twice(&doubled.snapshot)?;
    let tried = pair.refuses(&doubled, &[Attack::ForgedSignature]);
    book.attack("one signature counted twice", "an operator's signature under two key ids", By::Agent, tried);

    let both = sign_generation(&target, expires, &[&pair.alice, &pair.stolen.online_key()?])?;
    let tried = pair.refuses(&both, &[Attack::ForgedSignature]);
    book.attack(
        "the online key as the second",
        "the controller signs beside a stolen operator",
        By::Agent,
        tried,
    );
    Ok(())
}

/// Lies that a controller may tell operators.
fn deceived(pair: &Pair, book: &mut Book) -> Result<()> {
    let (fleet, thief) = (&pair.stolen.fleet, &pair.stolen.thief);
    fleet.fixture.say("greeting", "honest")?;
    fleet.update(&[VICTIM])?;
    let id = pair.draft()?;

    let drafts = format!("{}/{id}", api::OPERATOR_DRAFTS);
    let old = fleet.history(VICTIM)?.pop().context("generation 1")?.published.target;
    let evil = old.output.hash_part().to_owned();
    let path = drafts.clone();
    thief.bend(move |answer: &mut Answer| {
        if answer.path == path {
            let mut draft: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let target = draft["generations"][0]["target"].as_str().unwrap_or_default().to_owned();
            let mut inner: Target = serde_json::from_str(&target).unwrap();
            let bent = inner.output.as_str().replace(inner.output.hash_part(), &evil);
            inner.output = bent.parse().unwrap();
            draft["generations"][0]["target"] = serde_json::to_string(&inner).unwrap().into();
            answer.body = serde_json::to_vec(&draft).unwrap();
        }
    });
    let tried = pair
        .bob(&["sign", &id, "--yes"])
        .and_then(|out| pair.refused_by_operator(&out, &["is not sound", "do not sign it"]));
    book.attack(
        "a draft bent on its way",
        "the controller shows the second operator another target",
        By::Operator,
        tried,
    );

    // A complete draft of the controller's own, well-formed, signed with a key of its own, and another
    // machine's generation.
    let mine = sign_generation(
        &Target { derivation: old.derivation.clone(), output: old.output.clone(), ..pair.next()? },
        SystemClock::new().unix_seconds() + 30 * DAY,
        &[&pair.stolen.online_key()?],
    )?;
    let path = drafts.clone();
    thief.bend(move |answer: &mut Answer| {
        if answer.path == path {
            let mut draft: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            for (field, text) in
                [("targets", &mine.targets), ("snapshot", &mine.snapshot), ("target", &mine.target)]
            {
                draft["generations"][0][field] = text.as_str().into();
            }
            answer.body = serde_json::to_vec(&draft).unwrap();
        }
    });
    let flake = pair.flake();
    let tried = pair
        .bob(&["sign", &id, "--yes", "--flake", &flake])
        .and_then(|out| pair.refused_by_operator(&out, &["is not what", "derivation"]));
    book.attack(
        "a draft of the controller's own",
        "an old system, offered to the second operator to sign",
        By::Operator,
        tried,
    );

    let forged = SecretKey::generate()?;
    let spec = RootSpec {
        version: 3,
        epoch: Default::default(),
        expires: SystemClock::new().unix_seconds() + DAY,
        root: (vec![forged.public()], 1),
        operators: (vec![forged.public()], 1),
        online: vec![pair.stolen.online_key()?.public()],
    };
    let root = sign_root(&spec, &[&forged])?;
    thief.bend(move |answer: &mut Answer| {
        if answer.path == api::root_path(3) {
            (answer.status, answer.body) = (200, root.clone());
        }
    });
    let tried = pair
        .bob(&["sign", &id, "--yes"])
        .and_then(|out| pair.refused_by_operator(&out, &["do not sign anything", "root 3"]));
    book.attack(
        "a forged root for operators",
        "the next root, signed by its own keys alone",
        By::Operator,
        tried,
    );

    thief.bend(|answer: &mut Answer| {
        if answer.path == api::FLEET {
            let mut fleet: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            fleet["root_version"] = 1.into();
            answer.body = serde_json::to_vec(&fleet).unwrap();
        }
    });
    let tried = pair
        .bob(&["sign", &id, "--yes"])
        .and_then(|out| pair.refused_by_operator(&out, &["you have seen version 2"]));
    book.attack(
        "an older root for operators",
        "the controller forgets that a second operator is wanted",
        By::Operator,
        tried,
    );

    thief.bend(|answer: &mut Answer| {
        if answer.path == api::FLEET {
            answer.body = vec![b' '; 80 * 1024 * 1024];
        }
    });
    let tried = pair
        .bob(&["status"])
        .and(pair.bob(&["drafts", "list"]))
        .and_then(|out| pair.refused_by_operator(&out, &["has more than"]));
    book.attack(
        "an endless answer for operators",
        "80 megabytes where a view of the fleet belongs",
        By::Operator,
        tried,
    );

    // What a machine runs according to the controller is never what gets signed again: the flake is.
    thief.bend(move |answer: &mut Answer| {
        if answer.path == api::OPERATOR_MACHINES && answer.method == "GET" {
            let mut machines: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            for machine in machines.as_array_mut().into_iter().flatten() {
                machine["published"]["target"]["derivation"] = old.derivation.as_str().into();
                machine["published"]["target"]["output"] = old.output.as_str().into();
                machine["published"]["expires"] = 1.into();
            }
            answer.body = serde_json::to_vec(&machines).unwrap();
        }
    });
    let refreshed = fleet.run(&["update", "--refresh", "--yes", "--flake", &flake, VICTIM]);
    let tried = refreshed.and_then(|out| {
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(
            out.status.success() && text.contains("left alone") && text.contains("nothing to sign"),
            "{}",
            said(&out)
        );
        pair.require_untouched()?;
        Ok("'left alone': the flake says something else".to_owned())
    });
    book.attack(
        "a lie to renew",
        "an old system called the current one, to be signed again",
        By::Operator,
        tried,
    );
    thief.behave();
    fleet.must(&["drafts", "drop", &id])?;
    Ok(())
}

/// The controller's database in a thief's hands.
fn log(pair: &mut Pair, book: &mut Book) -> Result<()> {
    pair.stolen.fleet.must(&["audit"])?;
    let database = pair.stolen.fleet.controller_folder().join("data/muster.db");
    let change = |fleet: &mut Fleet, statements: &[&str]| -> Result<()> {
        fleet.stop_controller()?;
        for statement in statements {
            sql(&database, statement)?;
        }
        fleet.start_controller()
    };
    let refused =
        |statement: &str| sql(&database, statement).err().map(|error| error.to_string()).unwrap_or_default();
    let words = refused("UPDATE audit SET operator = NULL") + &refused("DELETE FROM audit");
    let tried = if words.matches("append-only").count() == 2 {
        pair.require_untouched().map(|()| "the database itself refuses it".to_owned())
    } else {
        Err(anyhow::anyhow!("the log was changed: {words}"))
    };
    book.attack("an edited log", "entries changed and removed in the database", By::Controller, tried);

    let edit = [
        "DROP TRIGGER audit_entries_are_never_changed",
        "UPDATE audit SET detail = 'nothing' WHERE action = 'machine-added'",
    ];
    change(&mut pair.stolen.fleet, &edit)?;
    let tried = pair
        .stolen
        .fleet
        .run(&["audit"])
        .and_then(|out| pair.refused_by_operator(&out, &["does not match the one before it"]));
    book.attack("a log edited behind its guard", "the triggers dropped first", By::Operator, tried);
    Ok(())
}

/// A timestamp from the far future is genuine and blocks every later one: it delays updates until the online
/// key is rotated.
fn fast_forward(pair: &mut Pair, book: &mut Book) -> Result<()> {
    let fleet = &pair.stolen.fleet;
    let now = SystemClock::new().unix_seconds();
    let number = fleet.view(VICTIM)?.published.context("published")?.target.generation;
    let bearer_file = pair.stolen.state(VICTIM).join("tuf/snapshot.json");
    let snapshot = fs::read(bearer_file)?;
    let far = u64::try_from(now + 3650 * DAY)?;
    let stamp = sign_timestamp(&VICTIM.parse()?, &snapshot, far, now + DAY, &pair.stolen.online_key()?)?;
    pair.stolen.thief.bend(move |answer: &mut Answer| {
        if answer.path.ends_with(&format!("{VICTIM}/tuf/timestamp.json")) {
            (answer.status, answer.body) = (200, stamp.clone());
        }
    });
    pair.stolen.ask(VICTIM)?;
    fleet.wait(VICTIM, "the far timestamp", |view| view.holds.timestamp == far)?;
    pair.stolen.thief.behave();
    pair.stolen.ask(VICTIM)?;
    let view = fleet.wait(VICTIM, "a refusal", |view| view.attack.is_some())?;
    let tried = (|| {
        ensure!(
            view.attack.as_ref().is_some_and(|reported| reported.attack == Attack::Rollback),
            "{:?}",
            view.attack
        );
        pair.require_untouched()?;
        Ok("status and history: rollback, until the online key is rotated".to_owned())
    })();
    book.attack(
        "a timestamp from the far future",
        "signed by the stolen online key, to keep all later ones out",
        By::Agent,
        tried,
    );

    // The way back described in docs/operators.md.
    let online = fleet.controller_folder().join("online.pem");
    let old = key_in(&online)?.public();
    let new_file = fleet.folder().join("online-2.pem");
    let new = fleet.must(&["keys", "generate", &new_file.display().to_string(), "--plain"])?;
    fleet.must(&["keys", "rotate", "online", &old.short(), new.trim(), "--yes"])?;
    fs::rename(&new_file, &online)?;
    pair.stolen.ask(VICTIM)?;
    fleet.settled(VICTIM, number.get(), Condition::UpToDate)?;
    pair.together("the stolen key is worth nothing", book)
}

/// Changes the controller's database as a thief who owns its folder can: neither the API nor the store
/// creates these states.
fn sql(database: &std::path::Path, statement: &str) -> Result<u64> {
    use sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqliteConnection};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connection = SqliteConnection::connect(&format!("sqlite://{}", database.display())).await?;
        let done = connection.execute(AssertSqlSafe(statement.to_owned())).await;
        connection.close().await?;
        Ok(done?.rows_affected())
    })
}
