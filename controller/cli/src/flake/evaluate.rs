//! A flake, opened once: the machines that it describes, and evaluating what it says.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_protocol::evaluation::{Evaluation, Override};
use muster_protocol::ids::MachineName;
use muster_protocol::machine::{Class, MachineError};

use super::discover::{Found, Outputs, discover};
use super::facts::Muster;
use super::inventory::{CLAN_OUTPUT, Inventory, OF_CLAN};
use super::nix::{EVALUATION_LIMIT, NixError, nix_noting};
use super::options::{OptionError, Options};
use super::pin::{self, NO_WRITE, Pin};

/// Whether Nix may add what is missing from the lock file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Write nothing.
    Keep,
    /// Write it, as `nixos-rebuild` does: what is deployed is locked.
    Write,
}

/// A flake, locked once: everything is read from the same source, whatever happens to the folder meanwhile.
#[derive(Debug)]
pub struct Flake {
    /// The reference as the operator wrote it.
    pub reference: String,
    pin: Pin,
    hash: Option<String>,
    /// The tree's path in the store.
    path: Option<String>,
    /// Whether the folder has uncommitted changes.
    pub is_dirty: bool,
    /// What Nix was told besides the flake, as recorded in what is signed and as arguments.
    evaluation: Evaluation,
    arguments: Vec<String>,
    warnings: Mutex<Vec<String>>,
    nixos: BTreeSet<String>,
    darwin: BTreeSet<String>,
    /// What the flake says of its machines; tags are merged from all inventories.
    pub muster: Muster,
    /// Every machine the flake mentions, and where it is known from.
    pub found: Vec<Found>,
}

#[derive(Debug, thiserror::Error)]
pub enum FlakeError {
    #[error("cannot read the flake {reference}")]
    Lock { reference: String, source: NixError },
    #[error("cannot evaluate {attribute} of {reference}")]
    Evaluate { reference: String, attribute: String, source: NixError },
    #[error("{attribute} of {reference} is not what it should be: {reason}")]
    Shape { reference: String, attribute: String, reason: String },
    #[error("the flake {reference} describes no machine {machine} in {output}; it has {known}")]
    NotInFlake { reference: String, machine: MachineName, output: &'static str, known: String },
    #[error("{machine} is a {wanted} machine, and the flake {reference} describes it in {output}")]
    OtherClass { reference: String, machine: MachineName, wanted: Class, output: &'static str },
    #[error("the system of {machine} cannot go to it")]
    CannotTake { machine: MachineName, source: MachineError },
    #[error("the flake {reference} was changed while it was read")]
    Changed { reference: String },
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error("cannot read {reference}, which is to take the place of the input {input}")]
    Input { input: String, reference: String, source: NixError },
}

impl FlakeError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Lock { reference, .. } => {
                format!(
                    "see that {reference} is a flake, and that `nix flake metadata {reference}` reads it, or \
                     name another with --flake"
                )
            }
            Self::Evaluate { reference, attribute, .. } => {
                format!("fix the flake until `nix eval {reference}#{attribute}` succeeds")
            }
            Self::Shape { .. } => "correct it in the flake".to_owned(),
            Self::NotInFlake { machine, output, .. } => {
                format!("add {output}.{machine} to the flake, or name other machines")
            }
            Self::OtherClass { machine, .. } => format!(
                "correct the flake, or enrol the machine anew with `muster machines add {machine} --class … \
                 --replace`"
            ),
            Self::CannotTake { machine, .. } => format!(
                "correct the system in the flake, or the machine's with `muster machines add {machine} \
                 --system … --replace`"
            ),
            Self::Changed { .. } => {
                "run this again, and leave the folder alone meanwhile; a commit can be read whatever happens \
                                     to the folder"
                    .to_owned()
            }
            Self::Option(_) => "write it into nix.conf of this computer".to_owned(),
            Self::Input { input, .. } => format!("correct what --override-input {input} names"),
        }
    }
}

#[doc(hidden)]
pub use super::pin::Metadata;

/// Settings are for people to read, and evaluating them would evaluate every service.
const OF_MUSTER: &str = r#"muster: builtins.removeAttrs muster [ "settings" ]"#;

impl Flake {
    /// Locks the flake and lists what it describes; evaluates no system yet, and writes nothing.
    pub async fn open(reference: &str) -> Result<Self, FlakeError> {
        Self::open_with(reference, &Options::default(), Lock::Keep).await
    }

    /// The same, with the operator's options for Nix.
    pub async fn open_with(reference: &str, options: &Options, write: Lock) -> Result<Self, FlakeError> {
        options.check()?;
        let mut flake = Self {
            reference: reference.to_owned(),
            pin: Pin::Live(reference.to_owned()),
            hash: None,
            path: None,
            is_dirty: false,
            evaluation: Evaluation {
                impure: options.impure,
                overrides: Vec::new(),
                options: options.options().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            },
            arguments: options.arguments(),
            warnings: Mutex::default(),
            nixos: BTreeSet::new(),
            darwin: BTreeSet::new(),
            muster: Muster::default(),
            found: Vec::new(),
        };
        flake.lock_inputs(options).await?;
        flake.lock(write).await?;
        let names = |output| flake.optional(output, "builtins.attrNames");
        let (nixos, darwin, muster, clan) = tokio::try_join!(
            names(Class::Nixos.flake_output()),
            names(Class::Darwin.flake_output()),
            flake.optional("muster", OF_MUSTER),
            flake.optional(CLAN_OUTPUT, OF_CLAN),
        )?;
        let clan: Option<Inventory> = flake.parse(CLAN_OUTPUT, clan)?;
        let parsed = (
            flake.parse(Class::Nixos.flake_output(), nixos)?,
            flake.parse(Class::Darwin.flake_output(), darwin)?,
            flake.parse("muster", muster)?,
        );
        (flake.nixos, flake.darwin, flake.muster) = parsed;
        flake.found = discover(&Outputs {
            nixos: &flake.nixos,
            darwin: &flake.darwin,
            clan: clan.as_ref(),
            muster: &flake.muster,
        });
        for (machine, tags) in clan.iter().chain(&flake.muster.inventory).flat_map(Inventory::usable_tags) {
            flake.muster.machines.entry(machine).or_default().tags.extend(tags);
        }
        Ok(flake)
    }

    /// Locks each override once, so that every evaluation sees the same tree.
    async fn lock_inputs(&mut self, options: &Options) -> Result<(), FlakeError> {
        for (input, reference) in options.overrides() {
            let tree = pin::lock_input(reference).await.map_err(|source| FlakeError::Input {
                input: input.to_owned(),
                reference: reference.to_owned(),
                source,
            })?;
            self.note(tree.warnings);
            self.arguments.extend(["--override-input".into(), input.into(), tree.pin.url().into()]);
            let (input, reference) = (input.to_owned(), reference.to_owned());
            self.evaluation.overrides.push(Override { input, reference, hash: tree.hash });
        }
        Ok(())
    }

    async fn lock(&mut self, write: Lock) -> Result<(), FlakeError> {
        let mut arguments = self.arguments.clone();
        arguments.extend((write == Lock::Keep).then(|| NO_WRITE.to_owned()));
        let tree = match pin::lock(&self.reference, &arguments).await {
            Ok(tree) => tree,
            Err(error) => {
                let source = super::advice::advised(error, &self.reference, None).await;
                return Err(FlakeError::Lock { reference: self.reference.clone(), source });
            }
        };
        self.note(tree.warnings);
        (self.pin, self.hash, self.path, self.is_dirty) = (tree.pin, tree.hash, tree.path, tree.is_dirty);
        Ok(())
    }

    /// What Nix was told besides the flake.
    pub fn evaluation(&self) -> &Evaluation {
        &self.evaluation
    }

    /// Nix's warnings so far, each once. A dirty tree is reported by [`Flake::is_dirty`] instead.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn note(&self, warnings: Vec<String>) {
        let mut known = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings {
            let is_of_dirt = warning.starts_with("warning: Git tree") && warning.ends_with("is dirty");
            if !is_of_dirt && !known.contains(&warning) {
                known.push(warning);
            }
        }
    }

    /// Applies a function to an attribute of the locked tree.
    pub(crate) async fn eval(
        &self,
        attribute: &str,
        apply: &str,
        limit: Duration,
    ) -> Result<Vec<u8>, NixError> {
        let arguments = self.eval_arguments(attribute, apply);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match nix_noting(&arguments, limit).await {
            Ok(printed) => {
                self.note(printed.warnings);
                Ok(printed.stdout)
            }
            Err(error) => Err(super::advice::advised(error, &self.reference, self.path.as_deref()).await),
        }
    }

    /// What `nix` is told to apply a function to an attribute of the locked tree.
    pub(super) fn eval_arguments(&self, attribute: &str, apply: &str) -> Vec<String> {
        let mut arguments: Vec<String> = ["eval", "--json", NO_WRITE].map(str::to_owned).to_vec();
        arguments.extend(self.arguments.iter().cloned());
        arguments.extend([format!("{}#{attribute}", self.pin.url()), "--apply".into(), apply.into()]);
        arguments
    }

    /// Checks, at the end, that the tree is still the one that was read, where it could not be pinned.
    pub async fn require_unchanged(&self) -> Result<(), FlakeError> {
        if let Pin::Snapshot(_) = self.pin {
            return Ok(());
        }
        let mut arguments = self.arguments.clone();
        arguments.push(NO_WRITE.to_owned());
        let reference = self.reference.clone();
        match pin::lock(&self.reference, &arguments).await {
            Ok(tree) if tree.hash == self.hash => Ok(()),
            Ok(_) => Err(FlakeError::Changed { reference }),
            Err(source) => Err(FlakeError::Lock { reference, source }),
        }
    }

    pub(super) fn names(&self, class: Class) -> &BTreeSet<String> {
        match class {
            Class::Nixos => &self.nixos,
            Class::Darwin => &self.darwin,
        }
    }

    /// The names in both outputs that may be machines.
    pub fn machines(&self) -> impl Iterator<Item = &str> {
        self.nixos.iter().chain(&self.darwin).map(String::as_str)
    }

    pub fn describes(&self, machine: &MachineName) -> bool {
        self.machines().any(|name| name == machine.as_str())
    }

    /// An optional output; `null` if it is missing.
    pub(crate) async fn optional(&self, output: &str, apply: &str) -> Result<serde_json::Value, FlakeError> {
        match self.eval(output, apply, EVALUATION_LIMIT).await {
            Ok(printed) => serde_json::from_slice(&printed)
                .map_err(|error| NixError::Format { program: "nix", reason: error.to_string() }),
            Err(NixError::Failed(message)) if message.contains("does not provide attribute") => {
                Ok(serde_json::Value::Null)
            }
            Err(error) => Err(error),
        }
        .map_err(|source| FlakeError::Evaluate {
            reference: self.reference.clone(),
            attribute: output.to_owned(),
            source,
        })
    }

    /// An output's value; the default if the flake has no such output.
    pub(crate) fn parse<T: Default + serde::de::DeserializeOwned>(
        &self,
        output: &str,
        value: serde_json::Value,
    ) -> Result<T, FlakeError> {
        serde_json::from_value::<Option<T>>(value).map(Option::unwrap_or_default).map_err(|error| {
            FlakeError::Shape {
                reference: self.reference.clone(),
                attribute: output.to_owned(),
                reason: error.to_string(),
            }
        })
    }
}
