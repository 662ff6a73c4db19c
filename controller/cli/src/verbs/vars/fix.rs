//! `muster vars fix`: every secret is encrypted to just whom it is for; operators come and go.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_protocol::ids::MachineName;

use crate::config::FlakeArgument;
use crate::terminal::ask::confirm_change;
use crate::vars::change::Draft;
use crate::vars::layout;
use crate::vars::members::{self, Policy};
use crate::vars::names::{MemberName, VarName};
use crate::vars::plan::{Wish, chosen};
use crate::vars::sops::Sops;
use crate::vars::workspace::{Held, Operator, show, tell_of_git, tell_to_renew};

#[derive(Debug, Args)]
pub struct Fix {
    /// Machines [default: all, and all other secrets]
    #[arg(value_name = "MACHINE")]
    machines: Vec<MachineName>,
    /// Only this generator; may be repeated
    #[arg(long = "generator", short = 'g', value_name = "GENERATOR")]
    generators: Vec<VarName>,
    /// Let this operator read every secret that is named, or all that you read
    #[arg(long, value_name = "OPERATOR")]
    add_user: Option<MemberName>,
    /// Take this operator's access away from everything, and tell what wants new values
    #[arg(long, value_name = "OPERATOR", conflicts_with_all = ["add_user", "machines", "generators"])]
    remove_user: Option<MemberName>,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before changing it
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    flake: FlakeArgument,
}

impl Fix {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let held = Held::at(&self.flake.reference(config)?).await?;
        let wish = Wish {
            machines: self.machines.iter().cloned().collect(),
            generators: self.generators.iter().cloned().collect(),
            ..Wish::default()
        };
        let named: BTreeSet<PathBuf> = chosen(&held.generators, &wish)?
            .into_iter()
            .flat_map(|generator| generator.secrets().map(|(name, _)| layout::file(&generator.id, name)))
            .collect();
        let everything = wish.machines.is_empty() && wish.generators.is_empty();
        let concerned = |path: &Path| everything || named.contains(path);

        let (snapshot, generators) = (&held.snapshot, &held.generators);
        let mut left = Vec::new();
        let (draft, to_renew) = if let Some(operator) = &self.remove_user {
            let left = members::remove_operator(snapshot, generators, operator)?;
            (left.draft, left.known_to_the_old)
        } else if let Some(operator) = &self.add_user {
            let mine = Operator::find(snapshot)?.keys;
            (members::add_operator(snapshot, generators, operator, &mine, concerned)?, Vec::new())
        } else {
            let policy = Policy::new(generators, snapshot, &snapshot.members);
            let mut draft = policy.settle(|path, _, _| concerned(path))?;
            let mine = Operator::find(snapshot)?.keys;
            left = members::leave_to_others(snapshot, &mine, &mut draft);
            for secret in &left {
                tell!(
                    "{} is left as it is: you do not read it, so an operator who does has to run this.",
                    layout::shown(secret)
                );
            }
            (draft, Vec::new())
        };
        // Something left to another operator means that not everything is as it should be.
        let verdict = if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        if draft.is_empty() {
            if left.is_empty() {
                say!("Every secret is encrypted to just whom it is for.");
            }
            return Ok(verdict);
        }
        show(&draft);
        if self.dry_run {
            say!("Nothing was changed: this was a dry run.");
            return Ok(ExitCode::SUCCESS);
        }
        let sops = Sops::find().await?;
        // The names of those who gain access are shown above: a key that was slipped in is noticed here.
        if !confirm_change(&question(&draft), self.yes)? {
            return Ok(ExitCode::FAILURE);
        }
        held.make(&sops, draft).await?;
        say!("Done.");
        tell_to_renew(&to_renew);
        tell_of_git(&held.folder);
        Ok(verdict)
    }
}

fn question(draft: &Draft) -> String {
    let gains: BTreeSet<&str> =
        draft.rekeys.iter().flat_map(|rekey| &rekey.gains).map(String::as_str).collect();
    match gains.is_empty() {
        true => "Change this?".to_owned(),
        false => {
            let names: Vec<&str> = gains.into_iter().collect();
            format!("Change this, and let {} read what is marked?", names.join(", "))
        }
    }
}
