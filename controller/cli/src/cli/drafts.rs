//! `muster drafts`: what waits for signatures, on the controller and in files.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::Subcommand;
use muster_protocol::api::{OPERATOR_DRAFTS, ProblemCode, operator_machine};
use muster_protocol::clock::Clock as _;
use muster_protocol::draft::{Checked, Draft, DraftKind, DraftView, Drafted, MAX_DRAFT_BYTES};
use muster_protocol::ids::Sha256;
use muster_protocol::operator::MachineView;

use super::api::{Api, Refused};
use super::config::Config;
use super::error::{Hint, WithHint as _};
use super::machines::print_json;
use super::roots::{self, Trusted};
use super::seen::Seen;
use super::{ask, keys, sign, table};

#[derive(Debug, Subcommand)]
pub enum Drafts {
    /// List what waits for signatures
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show what a draft would deploy, or how it would change the root
    Show {
        /// Its id, or a file
        draft: String,
    },
    /// Write a draft to a file that can be mailed; it holds nothing secret
    Export { draft: String, file: PathBuf },
    /// Publish a draft that enough have signed
    Publish {
        /// Its id, or a file
        draft: String,
    },
    /// End a draft
    Drop {
        /// Its id, or a file
        draft: String,
    },
}

impl Drafts {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = Config::load(config)?;
        let api = match &self {
            Self::List { .. } | Self::Show { .. } | Self::Export { .. } => Api::to_read(&config)?,
            Self::Publish { .. } | Self::Drop { .. } => Api::open(&config)?,
        };
        match self {
            Self::List { json } => list(&api, &config, json).await,
            Self::Show { draft } => {
                let trusted = roots::follow(&api, &config).await?;
                let draft = get(&api, &draft).await?;
                let checked = check(&draft, &config, &trusted, api.clock.unix_seconds())?;
                sign::show::tell(&draft, &checked, &trusted, &sign::show::Current::ask(&api).await?, None)
                    .await
            }
            Self::Export { draft, file } => {
                let draft = get(&api, &draft).await?;
                write(&draft, &file)?;
                say!("Draft {} is in {}.", draft.id()?.short(), file.display());
                Ok(())
            }
            Self::Publish { draft } => {
                let mut trusted = roots::follow(&api, &config).await?;
                let draft = get(&api, &draft).await?;
                check(&draft, &config, &trusted, api.clock.unix_seconds())?;
                publish(&api, &config, &mut trusted, &draft).await
            }
            Self::Drop { draft } => {
                let id = match Path::new(&draft).is_file() {
                    true => from_file(Path::new(&draft))?.id()?.to_string(),
                    false => digits(&draft)?,
                };
                let dropped: Result<Sha256> = api.post(&format!("{OPERATOR_DRAFTS}/{id}/drop"), &()).await;
                let id = dropped.map_err(gone)?;
                say!("Draft {} is dropped.", id.short());
                Ok(())
            }
        }
    }
}

async fn list(api: &Api, config: &Config, json: bool) -> Result<()> {
    let trusted = roots::follow(api, config).await?;
    let drafts: Vec<DraftView> = api.get(OPERATOR_DRAFTS).await?;
    if json {
        return print_json(&drafts);
    }
    if drafts.is_empty() {
        say!("No draft waits for a signature.");
        return Ok(());
    }
    let mut rows = table::table(["DRAFT", "FOR", "MADE", "SIGNED BY", "WAITS FOR", "KEPT UNTIL"]);
    for draft in &drafts {
        let what = match (draft.kind, draft.machines.as_slice()) {
            (DraftKind::Root, _) => "the root".to_owned(),
            (_, [one]) => one.to_string(),
            (_, [one, rest @ ..]) => format!("{one} and {} more", rest.len()),
            (_, []) => "nothing".to_owned(),
        };
        let signed: Vec<String> = draft.signed.iter().map(|key| trusted.name(key)).collect();
        let waits = match (&draft.void, draft.missing) {
            (Some(why), _) => format!("nothing, it is void: {why}"),
            (None, 0) => "publication".to_owned(),
            (None, missing) => ask::count(missing, "signature"),
        };
        rows.add_row([
            draft.id.short(),
            what,
            table::date(draft.made_at),
            signed.join(", "),
            waits,
            table::date(draft.ends * 1000),
        ]);
    }
    rows.print();
    Ok(())
}

/// A draft by its id, or out of a file.
pub async fn get(api: &Api, which: &str) -> Result<Draft> {
    let path = Path::new(which);
    if path.is_file() {
        return from_file(path);
    }
    let draft: Result<Draft> = api.get(&format!("{OPERATOR_DRAFTS}/{}", digits(which)?)).await;
    draft.map_err(gone)
}

fn digits(which: &str) -> Result<String> {
    let is_id = which.len() >= 8 && which.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_id {
        return Err(anyhow!("'{which}' is neither a file nor a draft's id"))
            .hint("an id has 8 digits or more: `muster drafts list` shows them");
    }
    Ok(which.to_ascii_lowercase())
}

/// What may have become of a draft that is not there.
fn gone(error: anyhow::Error) -> anyhow::Error {
    match is(&error, &[ProblemCode::NotFound]) {
        true => error.context(Hint(
            "it was published or dropped, or its time has ended: `muster audit` tells which".to_owned(),
        )),
        false => error,
    }
}

/// Whether the controller refused for one of these reasons.
fn is(error: &anyhow::Error, codes: &[ProblemCode]) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| codes.contains(&refused.code))
}

pub fn from_file(path: &Path) -> Result<Draft> {
    Draft::parse(&read_file(path)?)
        .with_context(|| path.display().to_string())
        .hint("name a file that `muster drafts export` or `muster update --draft-file` wrote")
}

pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = MAX_DRAFT_BYTES as u64;
    std::fs::File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > limit {
        return Err(anyhow!("{} has more than {limit} bytes, so it is no draft", path.display()));
    }
    Ok(bytes)
}

/// Writes a draft whole, or leaves what was there.
pub fn write(draft: &Draft, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = tempfile::NamedTempFile::new_in(folder).map_err(anyhow::Error::new).and_then(|mut file| {
        file.write_all(&serde_json::to_vec_pretty(draft)?)?;
        file.as_file().sync_all()?;
        let kept = file.persist(path)?;
        Ok(kept.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?)
    });
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Refuses a draft that is not sound, or not of this fleet.
pub fn check(draft: &Draft, config: &Config, trusted: &Trusted, now: i64) -> Result<Checked> {
    draft
        .check(&config.file.fleet, &trusted.root, now)
        .hint("do not sign it: have it made anew with `muster update`, or `muster keys` for a root")
}

/// Publishes what enough have signed, one generation after the other, and ends the draft.
pub async fn publish(api: &Api, config: &Config, trusted: &mut Trusted, draft: &Draft) -> Result<()> {
    let missing = draft.progress(&trusted.root)?.missing;
    if missing > 0 {
        return Err(anyhow!("draft {} wants {} more", draft.id()?.short(), ask::count(missing, "signature")))
            .hint(format!("another holder runs `muster sign {}`", draft.id()?.short()));
    }
    match &draft.what {
        Drafted::Root { root } => keys::publish(api, config, trusted, root.clone()).await?,
        Drafted::Generations { generations } => {
            // Enough operators have signed them, whoever that was: these numbers were seen.
            Seen::load(config)?
                .keep(generations.iter().map(|one| (one.machine.clone(), one.publication.generation)));
            for (done, one) in generations.iter().enumerate() {
                let (machine, generation) = (&one.machine, one.publication.generation);
                let path = format!("{}/generations", operator_machine(machine));
                let published: Result<MachineView> = api.post(&path, &one.publication).await;
                let passed = published
                    .as_ref()
                    .is_err_and(|error| is(error, &[ProblemCode::Conflict, ProblemCode::Sequence]));
                let hint = match passed {
                    true => format!(
                        "see with `muster history {machine}` whether it was published already, and drop the draft then; if \
                         not, have a new one made with `muster update`"
                    ),
                    false => format!("repeat with `muster drafts publish {}`", draft.id()?.short()),
                };
                published
                    .with_context(|| {
                        format!(
                            "generation {generation} for {machine} was not published ({done} of {} were, before it)",
                            generations.len()
                        )
                    })
                    .hint(hint)?;
                say!("published generation {generation} for {machine}");
            }
        }
    }
    let dropped: Result<Sha256> = api.post(&format!("{OPERATOR_DRAFTS}/{}/drop", draft.id()?), &()).await;
    match dropped {
        // It may never have been there: a file is enough.
        Err(error)
            if error.downcast_ref::<Refused>().is_none_or(|refused| refused.status.as_u16() != 404) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}
