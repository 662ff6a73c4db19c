//! `muster vars set`: sets one variable's value. It comes from standard input or is typed, never from the
//! arguments, which everybody can read.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::ids::MachineName;

use crate::config::FlakeArgument;
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;
use crate::vars::answers;
use crate::vars::change::Draft;
use crate::vars::layout;
use crate::vars::make;
use crate::vars::names::VarId;
use crate::vars::plan::PlanError;
use crate::vars::secret::{MAX_VALUE, SecretBytes};
use crate::vars::sops::Sops;
use crate::vars::workspace::{Held, Operator, show, tell_of_git};

#[derive(Debug, Args)]
pub struct Set {
    machine: MachineName,
    #[arg(value_name = "GENERATOR/FILE")]
    var: VarId,
    #[command(flatten)]
    flake: FlakeArgument,
}

impl Set {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let held = Held::at(&self.flake.reference(config)?).await?;
        if !held.generators.machines.contains_key(&self.machine) {
            let known = listed(held.generators.machines.keys());
            return Err(PlanError::UnknownMachine(self.machine, known).into());
        }
        let generator = held.generators.find(&self.machine, &self.var.generator);
        let found = generator.and_then(|it| Some((it, it.files.get_key_value(&self.var.file)?)));
        let Some((generator, (name, file))) = found else {
            let declared = held.generators.of(&self.machine);
            let known =
                declared.flat_map(|it| it.files.keys().map(move |file| format!("{}/{file}", it.id.name)));
            return Err(anyhow!("{} declares no {}; it declares {}", self.machine, self.var, listed(known)))
                .hint("declare it in the flake first");
        };
        let sops = Sops::find().await?;
        let operator = Operator::find(&held.snapshot)?;
        let what = layout::shown(&layout::file(&generator.id, name));
        let value =
            if std::io::stdin().is_terminal() { answers::value(&what, file.secret)? } else { read(&what)? };
        let changes = make::file(&held, &sops, &operator, (generator, name, file), &value).await?;
        held.folder.commit(&changes)?;
        say!("{what} has a new value:");
        show(&Draft { changes, rekeys: Vec::new() });
        tell_of_git(&held.folder);
        Ok(ExitCode::SUCCESS)
    }
}

fn read(what: &str) -> Result<SecretBytes> {
    let mut value = SecretBytes::new(Vec::with_capacity(MAX_VALUE + 1));
    std::io::stdin().lock().take(MAX_VALUE as u64 + 1).read_to_end(&mut value)?;
    if value.len() > MAX_VALUE {
        return Err(anyhow!("the value for {what} has more than {MAX_VALUE} bytes; nothing was changed"));
    }
    if value.is_empty() {
        return Err(anyhow!("standard input is empty, and {what} was left as it is"))
            .hint("pipe the value into this command, or run it at a terminal to type it");
    }
    Ok(value)
}
