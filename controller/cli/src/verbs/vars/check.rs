//! `muster vars check`: exit code 0 if all is as it should be, 1 if something is wrong.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_protocol::ids::MachineName;

use crate::config::FlakeArgument;
use crate::terminal::count::count;
use crate::terminal::json::print_json;
use crate::vars::check::{Weight, check};
use crate::vars::names::VarName;
use crate::vars::order::Order;
use crate::vars::plan::{Wish, chosen};
use crate::vars::workspace::Looked;

#[derive(Debug, Args)]
pub struct Check {
    /// Machines [default: all]
    #[arg(value_name = "MACHINE")]
    machines: Vec<MachineName>,
    /// Only this generator; may be repeated
    #[arg(long = "generator", short = 'g', value_name = "GENERATOR")]
    generators: Vec<VarName>,
    /// Print JSON instead of sentences
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flake: FlakeArgument,
}

impl Check {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let looked = Looked::at(&self.flake.reference(config)?).await?;
        Order::of(&looked.generators)?;
        let wish = Wish {
            machines: self.machines.into_iter().collect(),
            generators: self.generators.into_iter().collect(),
            ..Wish::default()
        };
        let chosen = chosen(&looked.generators, &wish)?;
        let found = check(&looked.generators, &chosen, &looked.snapshot);
        let pending = looked.tell_of_pending();
        let wrong = found.iter().filter(|finding| finding.weight == Weight::Wrong).count();
        if self.json {
            print_json(&found)?;
        } else {
            for finding in &found {
                let mark = if finding.weight == Weight::Wrong { "wrong" } else { "note" };
                say!("{mark}: {}: {}", finding.about, finding.what);
            }
            if wrong == 0 && !pending {
                let generators = count(chosen.len(), "generator", "generators");
                say!("All variables of {generators} are as they should be.");
            }
        }
        Ok(if wrong == 0 && !pending { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
