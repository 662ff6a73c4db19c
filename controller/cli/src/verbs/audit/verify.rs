//! `muster audit verify`: whether one log extends what this computer saw, what was kept elsewhere, and what
//! machines were shown.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::audit::{self, Checkpoint, MAX_NOTE_BYTES, NotANote, Note};
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::MachineView;
use serde::Serialize;

use crate::api::client::Api;
use crate::config::Config;
use crate::log::export;
use crate::log::follow::{Followed, follow};
use crate::log::seen::{self, SEEN};
use crate::log::verdict::{Verdict, worst};
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;
use crate::terminal::json::print_json;
use crate::terminal::table;
use crate::trust::roots::{self, Trusted};

/// The exit codes; see docs/operators.md.
const CODES: &str = "Exit codes: 0 the log extends all of them, 3 it ends before one, 4 it has another entry of \
    that number, 5 another fleet's checkpoint, 6 not a checkpoint, 7 a wrong signature, 8 the entry was cut \
    off the log; 1 if nothing could be compared";

#[derive(Debug, Args)]
#[command(after_help = CODES)]
pub struct Verify {
    /// Files with checkpoints of `muster audit checkpoint`; - reads one from standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Compare with the log in this export, and ask no controller
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// Print JSON instead of sentences
    #[arg(long)]
    json: bool,
}

/// A checkpoint that somebody kept.
struct Kept {
    from: String,
    note: Result<Note, NotANote>,
    ours: bool,
}

#[derive(Serialize)]
struct Judged {
    from: String,
    verdict: &'static str,
    sentence: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<Checkpoint>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    signers: Vec<PublicKey>,
    #[serde(skip)]
    code: u8,
}

#[derive(Serialize)]
struct Witness {
    machine: MachineName,
    verdict: &'static str,
    sentence: String,
    shown: Vec<Checkpoint>,
    #[serde(skip)]
    code: u8,
}

#[derive(Serialize)]
struct Printed<'a> {
    log: &'a Option<Checkpoint>,
    begins_after: &'a Checkpoint,
    checkpoints: &'a [Judged],
    machines: &'a [Witness],
    machines_that_agree: usize,
}

impl Verify {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let config = Config::load(config)?;
        let fleet = config.file.fleet;
        let before = seen::seen(&config)?;
        let mut kept = self.files.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?;
        if let Some(seen) = before {
            let note = Ok(Note::new(fleet, seen, 0));
            kept.insert(0, Kept { from: format!("this computer ({SEEN})"), note, ours: true });
        }
        let ids = kept.iter().filter_map(|kept| kept.note.as_ref().ok()).map(|note| note.at.id);
        let mut wanted: BTreeSet<u64> = ids.collect();
        let (trusted, machines, found) = match &self.export {
            Some(file) => {
                let trusted = Trusted::load(&config)?;
                let found = exported(file, &fleet, &trusted, &wanted)?;
                kept.retain(|kept| !kept.ours || !is_beyond(kept, &found));
                (trusted, Vec::new(), found)
            }
            None => {
                let api = Api::to_read(&config)?;
                let trusted = roots::follow(&api, &config).await?;
                // First: what they were shown before is in what is read now.
                let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
                let shown = machines.iter().filter_map(|view| view.shown.as_ref());
                wanted.extend(shown.flat_map(|shown| &shown.log).map(|shown| shown.id));
                let from = wanted.first().copied().unwrap_or(0);
                let found = follow(&api, &fleet, from, &wanted, &mut |_| ()).await?;
                (trusted, machines, found)
            }
        };
        let operators = trusted.operators().0;
        let mut judged: Vec<Judged> =
            kept.iter().map(|kept| judge(kept, &fleet, &operators, &found)).collect();
        contradictions(&kept, &mut judged);
        let (witnesses, agree) = witnesses(&machines, &fleet, &found);
        let ours = kept.iter().zip(&judged).find(|(kept, _)| kept.ours);
        let extends = ours.map(|(_, judged)| judged.code == 0);
        let code = worst(judged.iter().map(|one| one.code).chain(witnesses.iter().map(|one| one.code)));
        // An export alone is no reason to believe a log that was never seen, and nothing is where two
        // histories are shown.
        let believed = extends.unwrap_or(self.export.is_none() && code != Verdict::Contradicts.code());
        if believed {
            seen::keep(&config, before, found.head)?;
        }
        if self.json {
            print_json(&Printed {
                log: &found.head,
                begins_after: &found.anchor,
                checkpoints: &judged,
                machines: &witnesses,
                machines_that_agree: agree,
            })?;
            return Ok(ExitCode::from(code));
        }
        for one in &judged {
            say!("{}: {}{}.", one.from, one.sentence, signed_by(&one.signers, &trusted));
        }
        for one in &witnesses {
            say!("machine {}: {}.", one.machine, one.sentence);
        }
        if before.is_none() && self.export.is_none() && found.head.is_some() {
            match believed {
                true => say!(
                    "This computer had seen no log of this fleet; from now on this one must be extended."
                ),
                false => say!("This computer had seen no log of this fleet, and does not remember this one."),
            }
        }
        if agree > 0 {
            say!("{} shown this history.", count(agree, "machine was", "machines were"));
        }
        if let Some(head) = found.head {
            say!("The log ends with entry {} {}.", head.id, head.hash);
        }
        Ok(ExitCode::from(code))
    }
}

fn signed_by(signers: &[PublicKey], trusted: &Trusted) -> String {
    let names: Vec<String> = signers.iter().map(|key| trusted.name(key)).collect();
    if names.is_empty() { String::new() } else { format!("; signed by {}", names.join(" and ")) }
}

fn read(file: &Path) -> Result<Kept> {
    let mut text = Vec::new();
    let most = MAX_NOTE_BYTES as u64 + 1;
    let from = match file.as_os_str() == "-" {
        true => {
            std::io::stdin().take(most).read_to_end(&mut text).context("cannot read standard input")?;
            "standard input".to_owned()
        }
        false => {
            let opened = std::fs::File::open(file);
            let read = opened.and_then(|opened| opened.take(most).read_to_end(&mut text));
            read.with_context(|| format!("cannot read {}", file.display()))
                .hint("name files that `muster audit checkpoint` wrote")?;
            file.display().to_string()
        }
    };
    // A text that is not UTF-8 is no checkpoint either.
    let note = String::from_utf8_lossy(&text).parse();
    Ok(Kept { from, note, ours: false })
}

/// The log in a file, in place of the controller's.
fn exported(file: &Path, fleet: &Sha256, trusted: &Trusted, wanted: &BTreeSet<u64>) -> Result<Followed> {
    let operators = trusted.operators().0;
    let mut known = std::collections::BTreeMap::new();
    let mut each = |entry: &audit::Entry| {
        if wanted.contains(&entry.id) {
            known.insert(entry.id, entry.hash);
        }
    };
    let export = export::read(file, fleet, &operators, &mut each)?;
    if wanted.contains(&export.after.id) {
        known.insert(export.after.id, export.after.hash);
    }
    if export.signers.is_empty() {
        tell!(
            "warning: {} is not signed by an operator of root {}: believe it no more than whoever gave it to \
             you",
            file.display(),
            trusted.root.version()
        );
    }
    Ok(Followed { anchor: export.after, last: export.last.id, head: Some(export.last), known })
}

/// Whether an export ends before what was seen, which says nothing against either.
fn is_beyond(kept: &Kept, found: &Followed) -> bool {
    kept.note.as_ref().is_ok_and(|note| note.at.id > found.last)
}

fn judge(kept: &Kept, fleet: &Sha256, operators: &[PublicKey], found: &Followed) -> Judged {
    let (verdict, checkpoint, signers) = match &kept.note {
        Err(error) => (Verdict::NotACheckpoint(error.clone()), None, Vec::new()),
        Ok(note) => (
            Verdict::of_note(note, fleet, operators, found),
            Some(note.at),
            note.signers(operators).unwrap_or_default(),
        ),
    };
    Judged {
        from: kept.from.clone(),
        verdict: verdict.name(),
        sentence: verdict.sentence(checkpoint.map_or(0, |at| at.id)),
        checkpoint,
        signers,
        code: verdict.code(),
    }
}

/// Two checkpoints with one number and two hashes contradict one another, whatever the log shows now.
fn contradictions(kept: &[Kept], judged: &mut [Judged]) {
    for (at, one) in kept.iter().enumerate() {
        let Ok(note) = &one.note else { continue };
        let other = kept.iter().find(|other| {
            other.note.as_ref().is_ok_and(|other| {
                other.fleet == note.fleet && other.at.id == note.at.id && other.at.hash != note.at.hash
            })
        });
        if let (Some(other), Some(judged)) = (other, judged.get_mut(at))
            && judged.code != Verdict::WrongSignature.code()
        {
            judged.code = Verdict::Contradicts.code();
            judged.verdict = Verdict::Contradicts.name();
            judged.sentence = format!("{}; it contradicts {}", judged.sentence, other.from);
        }
    }
}

/// The machines that saw another history, and how many saw this one.
fn witnesses(machines: &[MachineView], fleet: &Sha256, found: &Followed) -> (Vec<Witness>, usize) {
    let (mut others, mut agree) = (Vec::new(), 0);
    for view in machines {
        let Some(shown) = view.shown.as_ref().filter(|shown| !shown.log.is_empty()) else { continue };
        let is_its_own = view.key.is_some_and(|key| shown.verify(fleet, &view.machine, &key).is_ok());
        let verdicts = shown.log.iter().map(|shown| (*shown, Verdict::of(shown, found)));
        let contradicting =
            verdicts.filter(|(_, verdict)| matches!(verdict, Verdict::Contradicts | Verdict::Older(_)));
        let worst = contradicting.max_by_key(|(_, verdict)| verdict.code());
        let (code, verdict, sentence) = match worst {
            _ if !is_its_own => (
                Verdict::WrongSignature.code(),
                Verdict::WrongSignature.name(),
                "what it is said to have been shown is not signed by its key: the controller altered it, or \
                 another machine sent it"
                    .to_owned(),
            ),
            None => {
                agree += 1;
                continue;
            }
            Some((at, verdict)) => {
                let when = table::date(shown.at);
                let sentence = match verdict {
                    Verdict::Older(last) => format!(
                        "it was shown entry {} {} until {when}, and this log ends with entry {last}: the \
                         controller was restored from an older backup, or hides entries",
                        at.id, at.hash
                    ),
                    _ => format!(
                        "it was shown another history, with entry {} {}, until {when}: compare `muster-agent \
                         status` there",
                        at.id, at.hash
                    ),
                };
                (verdict.code(), verdict.name(), sentence)
            }
        };
        let (machine, shown) = (view.machine.clone(), shown.log.clone());
        others.push(Witness { machine, verdict, sentence, shown, code });
    }
    (others, agree)
}

#[cfg(test)]
mod tests {
    use muster_protocol::audit::ShownLog;
    use muster_protocol::keys::SecretKey;

    use super::*;

    fn at(id: u64, of: &str) -> Checkpoint {
        Checkpoint { id, hash: Sha256::of(of.as_bytes()) }
    }

    fn found(entries: &[Checkpoint]) -> Followed {
        let last = *entries.last().unwrap();
        let known = entries.iter().map(|at| (at.id, at.hash)).collect();
        Followed { anchor: at(0, ""), last: last.id, head: Some(last), known }
    }

    #[test]
    fn two_kept_checkpoints_with_one_number_contradict_one_another() {
        let fleet = Sha256::of(b"fleet");
        let kept =
            |name: &str, at| Kept { from: name.into(), note: Ok(Note::new(fleet, at, 0)), ours: false };
        let kept = [kept("a", at(9, "x")), kept("b", at(9, "y")), kept("c", at(8, "z"))];
        // The log ends before all of them, and cannot say which one is true.
        let found = found(&[at(7, "7")]);
        let mut judged: Vec<Judged> = kept.iter().map(|kept| judge(kept, &fleet, &[], &found)).collect();
        contradictions(&kept, &mut judged);
        let codes: Vec<u8> = judged.iter().map(|one| one.code).collect();
        assert_eq!(codes, [4, 4, 3]);
        assert!(judged[0].sentence.contains("contradicts b"), "{}", judged[0].sentence);
    }

    #[test]
    fn machines_that_saw_another_history_are_named() {
        let fleet = Sha256::of(b"fleet");
        let key = SecretKey::generate().unwrap();
        let view = |name: &str, log: &[Checkpoint], by: &SecretKey| -> MachineView {
            let name: MachineName = name.parse().unwrap();
            let shown = ShownLog::sign(by, &fleet, &name, log.to_vec(), 5);
            serde_json::from_value(serde_json::json!({
                "machine": name, "class": "nixos", "system": "x86_64-linux", "tags": [], "standing": "enrolled",
                "condition": "up-to-date", "clone_alarm": false, "holds": {}, "key": key.public(),
                "shown": shown,
            }))
            .unwrap()
        };
        let found = found(&[at(7, "7"), at(8, "8")]);
        let machines = [
            view("tin", &[at(7, "7"), at(8, "8")], &key),
            view("lead", &[at(7, "other"), at(8, "8")], &key),
            view("zinc", &[at(9, "9")], &key),
            view("iron", &[at(8, "8")], &SecretKey::generate().unwrap()),
            view("gold", &[], &key),
        ];
        let (others, agree) = witnesses(&machines, &fleet, &found);
        let others: Vec<(&str, &str)> =
            others.iter().map(|other| (other.machine.as_str(), other.verdict)).collect();
        assert_eq!(others, [("lead", "contradicts"), ("zinc", "older"), ("iron", "wrong-signature")]);
        assert_eq!(agree, 1);
    }
}
