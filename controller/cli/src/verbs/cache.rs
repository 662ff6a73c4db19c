//! `muster cache`: what becomes of the controller's binary cache.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use muster_protocol::api::OPERATOR_COLLECT;
use muster_protocol::cache::{Collect, Collection, KEEP_DAYS, MAX_KEEP_DAYS};

use crate::api::client::Api;
use crate::config::Config;
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;
use crate::terminal::json::print_json;

#[derive(Debug, Subcommand)]
pub enum Cache {
    /// Remove from the cache what no signed generation needs
    Gc(Gc),
}

#[derive(Debug, Args)]
pub struct Gc {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Keep what generations published in the last N days need; what the newest generation of each machine
    /// and waiting drafts need always stays
    #[arg(long, value_name = "N", default_value_t = KEEP_DAYS,
        value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_KEEP_DAYS)))]
    keep_days: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Cache {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        match self {
            Self::Gc(gc) => gc.run(config).await,
        }
    }
}

impl Gc {
    async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = Config::load(config)?;
        let api = Api::open(&config)?;
        let asked = Collect { dry_run: self.dry_run, keep_days: self.keep_days };
        let mut run: Collection = api.post(OPERATOR_COLLECT, &asked).await?;
        if run.asked != asked {
            return Err(anyhow!("the controller is in the middle of another collection"))
                .hint("repeat this in a while");
        }
        // Each answer comes after a while, or at the end.
        while !run.ended {
            run = api.get(OPERATOR_COLLECT).await?;
        }
        if self.json {
            print_json(&run)?;
        } else {
            for line in lines(&run) {
                say!("{line}");
            }
        }
        if let Some(failed) = run.failed {
            bail!("the controller stopped early: {failed}");
        }
        Ok(())
    }
}

fn lines(run: &Collection) -> Vec<String> {
    let found = &run.found;
    let files = |files: u64, bytes: u64| {
        format!("{} ({:.1} MiB)", count(files, "file", "files"), bytes as f64 / 1024.0 / 1024.0)
    };
    let (now, later) = match run.asked.dry_run {
        true => ("would be removed", "would be condemned: a run a day after that removes them"),
        false => {
            ("removed", "condemned: operators' programs no longer see them, and a run in a day removes them")
        }
    };
    let generations = count(found.generations, "generation and draft needs", "generations and drafts need");
    let mut lines = vec![format!("{generations} {}.", count(found.needed, "file", "files"))];
    lines.push(format!("{} {now}.", files(found.removed, found.removed_bytes)));
    if found.condemned > 0 {
        lines.push(format!("{} {later}.", files(found.condemned, found.condemned_bytes)));
    }
    if found.waiting > 0 {
        lines.push(format!("{} condemned less than a day ago.", files(found.waiting, found.waiting_bytes)));
    }
    if found.recent > 0 {
        lines.push(format!("{} came in the last day.", count(found.recent, "other file", "other files")));
    }
    if found.unfinished > 0 {
        lines.push(format!("{} {now}.", count(found.unfinished, "unfinished upload", "unfinished uploads")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use muster_protocol::cache::Found;

    use super::*;

    #[test]
    fn a_run_says_what_it_did_and_a_dry_one_what_it_would_do() {
        let found = Found {
            generations: 1,
            needed: 20,
            condemned: 3,
            condemned_bytes: 3 * 1024 * 1024,
            removed: 1,
            removed_bytes: 1024 * 1024,
            ..Found::default()
        };
        let run = |dry_run| {
            let asked = Collect { dry_run, keep_days: 30 };
            lines(&Collection { asked, began_at: 0, ended: true, failed: None, found }).join("\n")
        };
        let want = "1 generation and draft needs 20 files.\n1 file (1.0 MiB) removed.\n\
                    3 files (3.0 MiB) condemned: operators' programs no longer see them, and a run in a \
                    day removes them.";
        assert_eq!(run(false), want);
        assert!(run(true).contains("1 file (1.0 MiB) would be removed."));
    }
}
