//! `muster drafts`: what waits for signatures, on the controller and in files.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use muster_protocol::api::OPERATOR_DRAFTS;
use muster_protocol::clock::Clock as _;
use muster_protocol::draft::{DraftKind, DraftView};
use muster_protocol::ids::Sha256;

use crate::api::client::Api;
use crate::config::Config;
use crate::release::drafts::{check, digits, from_file, get, gone, write};
use crate::release::inspect::{self, Current};
use crate::release::publish;
use crate::terminal::count::count;
use crate::terminal::json::print_json;
use crate::terminal::table;
use crate::trust::roots;

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
                inspect::tell(&draft, &checked, &trusted, &Current::ask(&api).await?, None).await
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
                publish::draft(&api, &config, &mut trusted, &draft).await
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
            (None, missing) => count(missing, "signature", "signatures"),
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
