//! `muster vars generate`: shows what it will make and for whom, asks, and makes all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::ids::MachineName;

use crate::config::FlakeArgument;
use crate::terminal::ask::confirm_change;
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;
use crate::terminal::spinner::spinner;
use crate::vars::answers::{self, Answers};
use crate::vars::change::{Change, Draft};
use crate::vars::flake::{Script, VarsFlakeError, physical_store};
use crate::vars::generators::{File, Generator};
use crate::vars::layout::{self, Kind};
use crate::vars::make;
use crate::vars::names::{GeneratorId, Place, VarName};
use crate::vars::order::Order;
use crate::vars::plan::{Plan, State, Why, Wish, plan};
use crate::vars::repository;
use crate::vars::run::{Inputs, Outputs, Runner};
use crate::vars::sandbox::{self, Sandbox};
use crate::vars::secret::SecretBytes;
use crate::vars::sops::Sops;
use crate::vars::workspace::{Held, Operator, or_interrupted, show, tell_of_git};

#[derive(Debug, Args)]
pub struct Generate {
    /// Machines [default: all]
    #[arg(value_name = "MACHINE")]
    machines: Vec<MachineName>,
    /// Only this generator, and what it needs; may be repeated
    #[arg(long = "generator", short = 'g', value_name = "GENERATOR")]
    generators: Vec<VarName>,
    /// Make this generator's files anew though they are there, and what was made from them; may be repeated
    #[arg(long = "regenerate", short = 'r', value_name = "GENERATOR")]
    again: Vec<VarName>,
    /// Make everything of the named machines anew
    #[arg(long, requires = "machines")]
    regenerate_all: bool,
    /// Let scripts run without a sandbox: they can read your files and your keys, and use the network
    #[arg(long)]
    no_sandbox: bool,
    /// Answers to what generators ask, as {"GENERATOR": {"PROMPT": "text"}}; - is standard input
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Show what scripts print; it may hold secrets
    #[arg(long)]
    script_output: bool,
    /// The longest that one script may run, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    script_seconds: u64,
    /// Say what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before making it
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    flake: FlakeArgument,
}

impl Generate {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let held = Held::at(&self.flake.reference(config)?).await?;
        let order = Order::of(&held.generators)?;
        let wish = Wish {
            machines: self.machines.iter().cloned().collect(),
            generators: self.generators.iter().cloned().collect(),
            again: self.again.iter().cloned().collect(),
            all_again: self.regenerate_all,
        };
        let plan = plan(&held.generators, &order, &held.snapshot, &wish)?;
        tell(&held, &plan);
        if plan.make.is_empty() {
            say!("Nothing to make.");
            return Ok(ExitCode::SUCCESS);
        }
        if self.dry_run {
            say!("Nothing was made: this was a dry run.");
            return Ok(ExitCode::SUCCESS);
        }
        // Everything needed is looked for before anybody has to answer anything.
        let sops = Sops::find().await?;
        let operator = Operator::find(&held.snapshot)?;
        let sandbox = if self.no_sandbox { Sandbox::None } else { Sandbox::find()? };
        let scripts = scripts(&held, &order, &plan).await?;
        if scripts.is_empty() {
            return Err(anyhow!("no script can be evaluated before what it needs is there"))
                .hint("make what they need first, and add it to git");
        }
        if self.no_sandbox {
            tell!("{}", sandbox::WITHOUT);
        }
        if !confirm_change(
            &format!("Make these {}?", count(scripts.len(), "generator", "generators")),
            self.yes,
        )? {
            return Ok(ExitCode::FAILURE);
        }
        let answers = self.answers.as_deref().map(Answers::load).transpose()?.unwrap_or_default();
        let prompts = prompts(&held, &sops, &answers, &plan, &scripts).await?;
        let limit = Duration::from_secs(self.script_seconds);
        let changes = or_interrupted(async {
            let runner = Runner::new(sandbox, physical_store(), limit, self.script_output)?;
            Making {
                held: &held,
                order: &order,
                sops: &sops,
                operator: &operator,
                runner,
                made: BTreeMap::new(),
            }
            .all(&plan, &scripts, prompts)
            .await
        })
        .await?;
        held.folder.commit(&changes)?;
        say!("Made {}:", count(scripts.len(), "generator", "generators"));
        show(&Draft { changes, rekeys: Vec::new() });
        tell_of_git(&held.folder);
        if scripts.len() < plan.make.len() {
            say!("The rest needs what was made now: once Nix sees it, run this again.");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn tell(held: &Held, plan: &Plan) {
    for (id, why) in &plan.make {
        let Some(generator) = held.generators.all.get(id) else { continue };
        let whose = match &id.place {
            Place::Machine(machine) => machine.to_string(),
            Place::Shared => format!("shared by {}", listed(&generator.machines)),
        };
        say!("{} for {whose}: {why}", id.name);
        for (name, file) in &generator.files {
            say!("    {name}: {}", reads(held, generator, file));
        }
    }
    for (id, state) in &plan.leave {
        match state {
            State::Incomplete { has, lacks } => tell!(
                "{id} is left as it is: there is {} and not {}. --regenerate {} makes all of it anew.",
                listed(has),
                listed(lacks),
                id.name
            ),
            _ => tell!(
                "{id} is left as it is, though what it depends on has changed. --regenerate {} makes it \
                 anew.",
                id.name
            ),
        }
    }
}

/// Who will read a file.
fn reads(held: &Held, generator: &Generator, file: &File) -> String {
    if !file.secret {
        return "public".to_owned();
    }
    let (have, lack): (Vec<&MachineName>, Vec<_>) = file
        .readers
        .iter()
        .partition(|machine| held.snapshot.members.has(&(Kind::Machine, machine.to_string())));
    let mut parts = vec!["secret".to_owned()];
    if !have.is_empty() {
        parts.push(format!("for {}", listed(have)));
    }
    if !lack.is_empty() {
        parts.push(format!("and, once `muster machines accept` has their keys, for {}", listed(lack)));
    }
    if file.readers.is_empty() {
        parts.push("for operators alone".to_owned());
    }
    if !generator.groups.is_empty() {
        parts.push(format!("(and the groups {})", listed(&generator.groups)));
    }
    parts.join(" ")
}

/// The scripts of everything that can run now. One that cannot be evaluated before another has run, and those
/// that need it, wait for the next run.
async fn scripts(held: &Held, order: &Order, plan: &Plan) -> Result<BTreeMap<GeneratorId, Script>> {
    let progress = spinner();
    progress.set_message("preparing scripts");
    let wanted: Vec<&Generator> =
        plan.make.iter().filter_map(|(id, _)| held.generators.all.get(id)).collect();
    let mut evaluated = held.flake.scripts(&held.generators, &wanted).await?;
    progress.finish_and_clear();
    let mut scripts = BTreeMap::new();
    let mut waiting: BTreeSet<&GeneratorId> = BTreeSet::new();
    for (id, _) in &plan.make {
        match evaluated.remove(id) {
            Some(_) if order.needs(id).any(|needs| waiting.contains(needs)) => drop(waiting.insert(id)),
            Some(Ok(script)) => drop(scripts.insert(id.clone(), script)),
            Some(Err(VarsFlakeError::Script { .. })) if waits(order, plan, id) => {
                tell!("{id} waits: its script says something of what is not there yet.");
                waiting.insert(id);
            }
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
    Ok(scripts)
}

/// Whether something that is still to be made is needed by this one.
fn waits(order: &Order, plan: &Plan, id: &GeneratorId) -> bool {
    let missing =
        |needs: &GeneratorId| plan.make.iter().any(|(other, why)| other == needs && *why != Why::Asked);
    order.needs(id).any(missing)
}

type Prompts = BTreeMap<GeneratorId, BTreeMap<VarName, SecretBytes>>;

/// All answers, before the first script runs.
async fn prompts(
    held: &Held,
    sops: &Sops,
    answers: &Answers,
    plan: &Plan,
    scripts: &BTreeMap<GeneratorId, Script>,
) -> Result<Prompts> {
    let mut all = Prompts::new();
    for (id, why) in plan.make.iter().filter(|(id, _)| scripts.contains_key(id)) {
        let Some(generator) = held.generators.all.get(id) else { continue };
        let mut answered = BTreeMap::new();
        for (name, prompt) in &generator.prompts {
            let before = match generator.files.get(name).filter(|_| prompt.persist) {
                Some(file) => there(held, sops, id, name, file).await?,
                None => None,
            };
            let answer = match before {
                // What is made anew only because of another is not asked for again.
                Some(before) if matches!(why, Why::MadeFrom(_)) => before,
                before => answers::ask(answers, generator, name, prompt, before.as_ref())?,
            };
            answered.insert(name.clone(), answer);
        }
        all.insert(id.clone(), answered);
    }
    Ok(all)
}

/// A file's current value, if any.
async fn there(
    held: &Held,
    sops: &Sops,
    id: &GeneratorId,
    name: &VarName,
    file: &File,
) -> Result<Option<SecretBytes>> {
    let folder = layout::file(id, name);
    if !held.snapshot.has(&folder, file.secret) {
        return Ok(None);
    }
    if file.secret {
        let path = held.folder.root().join(&folder).join(layout::SECRET);
        return Ok(Some(sops.decrypt(&path, &layout::shown(&folder)).await?));
    }
    Ok(repository::value(held.folder.root(), &folder)?.map(SecretBytes::new))
}

struct Making<'a> {
    held: &'a Held,
    order: &'a Order,
    sops: &'a Sops,
    operator: &'a Operator,
    runner: Runner,
    /// Outputs that later generators need.
    made: BTreeMap<GeneratorId, Outputs>,
}

impl Making<'_> {
    async fn all(
        mut self,
        plan: &Plan,
        scripts: &BTreeMap<GeneratorId, Script>,
        mut prompts: Prompts,
    ) -> Result<Vec<Change>> {
        let progress = spinner();
        let mut changes = Vec::new();
        for (id, _) in &plan.make {
            let (Some(generator), Some(script)) = (self.held.generators.all.get(id), scripts.get(id)) else {
                continue;
            };
            progress.set_message(format!("running the script of {id}"));
            let inputs = Inputs {
                dependencies: self.dependencies(generator).await?,
                prompts: prompts.remove(id).unwrap_or_default(),
            };
            let outputs = self.runner.run(generator, script, &inputs).await?;
            progress.set_message(format!("encrypting the files of {id}"));
            for (name, value) in &outputs {
                let Some(file) = generator.files.get(name) else { continue };
                let whole = (generator, name, file);
                changes.extend(make::file(self.held, self.sops, self.operator, whole, value).await?);
            }
            changes.extend(make::validation(self.held, generator));
            self.made.insert(id.clone(), outputs);
        }
        progress.finish_and_clear();
        Ok(changes)
    }

    /// The files of what a generator needs: made just now, or existing.
    async fn dependencies(&self, generator: &Generator) -> Result<BTreeMap<VarName, Outputs>> {
        let mut all = BTreeMap::new();
        for id in self.order.needs(&generator.id) {
            if let Some(made) = self.made.get(id) {
                all.insert(id.name.clone(), made.clone());
                continue;
            }
            let Some(needed) = self.held.generators.all.get(id) else { continue };
            let mut files = Outputs::new();
            for (name, file) in &needed.files {
                if let Some(value) = there(self.held, self.sops, id, name, file).await? {
                    files.insert(name.clone(), value);
                }
            }
            all.insert(id.name.clone(), files);
        }
        Ok(all)
    }
}
