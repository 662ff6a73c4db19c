//! What a thief may substitute for targets and for the cache's files when the metadata itself is genuine.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use muster_protocol::ids::StorePath;
use muster_protocol::report::Attack;
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::sign_generation;
use muster_testbed::machine::finish;
use muster_testbed::stolen::{NEIGHBOUR, VICTIM};
use muster_testbed::thief::{Answer, Thief};

use crate::book::{Book, By};
use crate::controller;
use crate::siege::Siege;

type Edit = Box<dyn Fn(&mut serde_json::Value) + Send>;

pub fn run(siege: &mut Siege, book: &mut Book) -> Result<()> {
    targets(siege, book)?;
    archives(siege, book)?;
    poisoned(siege, book)?;
    lie_of_an_operator(siege, book)
}

/// Alters the victim's only target, which its genuine metadata names.
fn bend_target(siege: &Siege, edit: impl Fn(&mut Vec<u8>) + Send + 'static) {
    siege.stolen.thief.bend(move |answer: &mut Answer| {
        if answer.path.ends_with(".generation.json") && answer.path.contains(&format!("/machines/{VICTIM}/"))
        {
            answer.status = 200;
            edit(&mut answer.body);
        }
    });
}

fn targets(siege: &mut Siege, book: &mut Book) -> Result<()> {
    let neighbour = siege.view(NEIGHBOUR)?.published.context("it has one")?.target;
    let old = siege.stolen.fleet.history(VICTIM)?.pop().context("generation 1")?.published.target;
    let json = |edit: Edit| {
        move |body: &mut Vec<u8>| {
            let mut value = serde_json::from_slice(body).unwrap_or_default();
            edit(&mut value);
            *body = serde_json::to_vec(&value).unwrap_or_default();
        }
    };
    siege.part(&[Attack::MixAndMatch])?;
    let known = siege.known()?;
    let other = neighbour.derivation.to_string();
    bend_target(siege, json(Box::new(move |target| target["derivation"] = other.as_str().into())));
    siege.outlast_stamps()?;
    siege.stolen.fleet.fixture.say("greeting", "four")?;
    siege.stolen.fleet.update(&[VICTIM])?;
    let tried = siege.sees(known, &[Attack::MixAndMatch]);
    book.attack(
        "a changed derivation",
        "the target names another derivation than was signed",
        By::Agent,
        tried,
    );

    let file = ".generation.json";
    let other = neighbour.output.to_string();
    bend_target(siege, json(Box::new(move |target| target["output"] = other.as_str().into())));
    let tried = siege.goes_on_refusing(Attack::MixAndMatch, file);
    book.attack("a changed output", "the target names another output than was signed", By::Agent, tried);

    bend_target(siege, json(Box::new(|target| target["checks"] = serde_json::Value::Array(vec![]))));
    let tried = siege.goes_on_refusing(Attack::MixAndMatch, file);
    book.attack("removed health checks", "the target without the checks that were signed", By::Agent, tried);

    let other = serde_json::to_vec(&neighbour)?;
    bend_target(siege, move |body| *body = other.clone());
    let tried = siege.goes_on_refusing(Attack::MixAndMatch, file);
    book.attack(
        "another machine's target",
        "the neighbour's target under the victim's metadata",
        By::Agent,
        tried,
    );

    let other = serde_json::to_vec(&old)?;
    bend_target(siege, move |body| *body = other.clone());
    let tried = siege.goes_on_refusing(Attack::MixAndMatch, file);
    book.attack("an older target", "generation 1's target under the newest metadata", By::Agent, tried);

    let known = siege.known()?;
    bend_target(siege, |body| *body = vec![b' '; 8 * 1024 * 1024]);
    let tried = siege.sees(known, &[Attack::EndlessData]);
    book.attack("an endless target", "megabytes where some hundred bytes are signed", By::Agent, tried);

    siege.stolen.thief.behave();
    let number = siege.settles("four")?;
    book.control(&format!(
        "generation {number}, whose target was bent, is taken once it comes as it was signed"
    ));
    Ok(())
}

/// Publishes another generation while the cache lies; Nix refuses what it serves, and the machine then gets
/// it honestly.
fn lies(
    siege: &mut Siege,
    book: &mut Book,
    (name, attempt): (&str, &str),
    rule: impl FnMut(&mut Answer) + Send + 'static,
) -> Result<()> {
    siege.stolen.fleet.fixture.say("greeting", name)?;
    siege.stolen.thief.bend(rule);
    let known = siege.known()?;
    siege.stolen.fleet.update(&[VICTIM])?;
    let tried = siege.sees(known, &[Attack::AlteredArchive]);
    book.attack(name, attempt, By::Nix, tried);
    siege.stolen.thief.behave();
    siege.settles(name)?;
    Ok(())
}

/// Whether this is the narinfo of a derivation on its way to a machine.
fn describes_derivation(answer: &Answer) -> bool {
    answer.method == "GET"
        && answer.status == 200
        && answer.path.ends_with(".narinfo")
        && String::from_utf8_lossy(&answer.body).contains("-system-")
}

fn lines(answer: &mut Answer, edit: impl Fn(&str) -> Option<String>) {
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let edited: Vec<String> = text.lines().filter_map(|line| edit(line)).collect();
    answer.body = (edited.join("\n") + "\n").into_bytes();
}

fn archives(siege: &mut Siege, book: &mut Book) -> Result<()> {
    let flipped = |answer: &mut Answer| {
        if answer.method == "GET" && answer.path.contains("/cache/nar/") && answer.status == 200 {
            let middle = answer.body.len() / 2;
            answer.body[middle] ^= 1;
        }
    };
    lies(siege, book, ("an altered archive", "a flipped byte in every archive of the cache"), flipped)?;

    // The archive of another path, truthfully described, under the derivation's name.
    let mut other: Option<String> = None;
    let swapped = move |answer: &mut Answer| {
        if answer.method != "GET" || answer.status != 200 || !answer.path.ends_with(".narinfo") {
            return;
        }
        if !describes_derivation(answer) {
            other = Some(String::from_utf8_lossy(&answer.body).into_owned());
            return;
        }
        if let Some(other) = &other {
            let of = |name: &str| other.lines().find(|line| line.starts_with(name)).map(str::to_owned);
            lines(answer, |line| {
                let swapped = ["URL:", "FileHash:", "FileSize:", "NarHash:", "NarSize:", "Compression:"];
                match swapped.iter().find(|name| line.starts_with(**name)) {
                    Some(name) => of(name),
                    None => Some(line.to_owned()),
                }
            });
        } else {
            // Nothing else has been requested yet: another hash will do.
            lines(answer, |line| {
                Some(if line.starts_with("NarSize:") { "NarSize: 1".into() } else { line.to_owned() })
            });
        }
    };
    lies(siege, book, ("a swapped archive", "another path's archive under the derivation's name"), swapped)?;

    let unsigned = |answer: &mut Answer| {
        if describes_derivation(answer) {
            lines(answer, |line| (!line.starts_with("CA:")).then(|| line.to_owned()));
        }
    };
    lies(
        siege,
        book,
        ("a path without its address", "a derivation that is content-addressed no more, and unsigned"),
        unsigned,
    )?;

    let broken = |answer: &mut Answer| {
        if describes_derivation(answer) {
            answer.body = b"StorePath: /etc/shadow\nURL: ../../../etc/shadow\n".to_vec();
        }
    };
    lies(siege, book, ("a broken description", "a narinfo that leads out of the cache"), broken)?;

    let endless = |answer: &mut Answer| {
        if describes_derivation(answer) {
            lines(answer, |line| {
                Some(if line.starts_with("URL:") { "URL: file:///dev/zero".into() } else { line.to_owned() })
            });
        }
    };
    lies(
        siege,
        book,
        ("an archive without end", "a narinfo whose archive is /dev/zero of the machine"),
        endless,
    )?;

    let trap = Thief::start()?;
    let address = trap.url.clone();
    let elsewhere = move |answer: &mut Answer| {
        if describes_derivation(answer) {
            let leads = format!("URL: {address}/nar/x.nar");
            lines(answer, |line| {
                Some(if line.starts_with("URL:") { leads.clone() } else { line.to_owned() })
            });
        }
    };
    let name = ("an archive elsewhere", "a narinfo whose archive is on a host that the machine reaches");
    lies(siege, book, name, elsewhere)?;
    ensure!(trap.asked().is_empty(), "the machine asked {:?}", trap.asked().first().map(|asked| &asked.path));
    book.control("every generation whose files were tampered with is taken once they are whole");
    Ok(())
}

/// A prebuilt output that the cache offers unsigned: the machine builds it itself.
fn poisoned(siege: &mut Siege, book: &mut Book) -> Result<()> {
    let name = "a poisoned output";
    let (fleet, thief) = (&siege.stolen.fleet, &siege.stolen.thief);
    fleet.fixture.say("greeting", name)?;
    let output = fleet.fixture.output("nixosConfigurations.cinnabar.config.system.build.toplevel")?;
    let poison = fleet.folder().join("poison");
    fs::create_dir_all(poison.join("bin"))?;
    fs::write(poison.join("bin/switch-to-configuration"), "#!/bin/sh\nexit 0\n")?;
    let added = finish(fleet.fixture.nix("nix-store").args(["--add", &poison.display().to_string()]))?;
    let added: StorePath = added.trim().parse()?;
    let evil = fleet.folder().join("evil");
    let cache = format!("file://{}?compression=none", evil.display());
    finish(fleet.fixture.nix("nix").args(["copy", "--to", &cache, added.as_str()]))?;
    let narinfo = fs::read_to_string(evil.join(format!("{}.narinfo", added.hash_part())))?;
    let narinfo: String = narinfo
        .lines()
        .filter(|line| !["CA:", "References:", "Sig:"].iter().any(|name| line.starts_with(name)))
        .map(|line| {
            if line.starts_with("StorePath:") {
                format!("StorePath: {output}\n")
            } else {
                format!("{line}\n")
            }
        })
        .chain(["References: \n".to_owned()])
        .collect();
    let wanted = format!("/cache/{}.narinfo", output.hash_part());
    thief.bend(move |answer: &mut Answer| {
        if answer.path.starts_with(&wanted) {
            (answer.status, answer.body) = (200, narinfo.clone().into_bytes());
        } else if let Some(nar) = answer.path.strip_prefix("/cache/nar/")
            && let Ok(bytes) = fs::read(evil.join("nar").join(nar))
        {
            (answer.status, answer.body) = (200, bytes);
        }
    });
    fleet.update(&[VICTIM])?;
    let tried = siege.settles(name).and_then(|_| {
        let script = siege.stolen.fleet.machine(VICTIM).physical(&output).join("bin/switch-to-configuration");
        let text = fs::read_to_string(script)?;
        ensure!(text.contains("switch-to-configuration-ng"), "it took the poison: {text}");
        Ok("nothing: the machine built what was signed at home".to_owned())
    });
    book.attack(name, "a ready-made system in the cache, unsigned, that does nothing", By::Nix, tried);
    siege.stolen.thief.behave();
    Ok(())
}

/// A stolen operator key signs an output that the derivation does not produce: the machine runs what was
/// built, or nothing new.
fn lie_of_an_operator(siege: &mut Siege, book: &mut Book) -> Result<()> {
    let target = siege.view(VICTIM)?.published.context("something was published")?.target;
    let older = siege.stolen.fleet.history(VICTIM)?.pop().context("generation 1")?.published.target;
    let lie = Target { generation: target.generation.next()?, output: older.output, ..target };
    let known = siege.known()?;
    let published =
        controller::publish(siege, VICTIM, &sign_generation(&lie, siege.expires(), &[&siege.operator])?)?;
    ensure!(published.is_good(), "{}", published.text());
    let tried = siege.sees(known, &[Attack::WrongOutput]);
    book.attack(
        "a false output",
        "an older system signed as what a newer derivation makes, by a stolen operator's key",
        By::Agent,
        tried,
    );
    siege.stolen.fleet.fixture.say("greeting", "after the lie")?;
    siege.stolen.fleet.update(&[VICTIM])?;
    siege.settles("after the lie")?;
    Ok(())
}
