//! A copy of the example flake, where a changed file makes a generation, and the operator's Nix.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use muster_protocol::ids::StorePath;
use muster_protocol::machine::{Class, System};

use crate::machine::finish;
use crate::programs;

/// One machine of the flake.
#[derive(Debug, Clone)]
pub struct Listed {
    pub name: String,
    pub system: System,
    pub tags: Vec<String>,
    /// Its folder, if it uses the host's store.
    pub root: Option<PathBuf>,
}

impl Listed {
    pub fn new(name: &str, system: &str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), system: system.parse()?, tags: Vec::new(), root: None })
    }
    pub fn class(&self) -> Class {
        self.system.class()
    }
}

/// A copy of `tests/fixtures/fleet` and its input, in a folder, with an operator's own Nix store beside it.
pub struct Fixture {
    folder: PathBuf,
}

/// The fixtures in the repository.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/fleet")
}

impl Fixture {
    /// Copies the flake into `folder`, lists `machines` in it, and locks it.
    pub fn make(folder: &Path, machines: &[Listed]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let folder = fs::canonicalize(folder)?;
        let fixture = Self { folder };
        copy(&source(), &fixture.flake())?;
        fs::rename(fixture.flake().join("words"), fixture.words())?;
        // No other fleet has this text, so no store can have it by chance.
        let own = muster_protocol::ids::to_hex(&muster_protocol::random::bytes::<16>()?);
        fs::write(fixture.words().join("own"), format!("{own}\n"))?;
        let flake = fixture.flake().join("flake.nix");
        let text = fs::read_to_string(&flake)?;
        // Nix before 2.26 needs an absolute path here.
        let input = format!("path:{}", fixture.words().display());
        fs::write(&flake, text.replace("path:./words", &input))?;
        let listed = machines.iter().map(|machine| {
            let tags: Vec<String> = machine.tags.iter().map(|tag| format!("\"{tag}\"")).collect();
            let root = machine.root.as_deref().unwrap_or(Path::new("")).display().to_string();
            format!(
                "  {} = {{ system = \"{}\"; tags = [ {} ]; root = \"{root}\"; }};\n",
                machine.name,
                machine.system,
                tags.join(" ")
            )
        });
        fs::write(fixture.flake().join("machines.nix"), format!("{{\n{}}}\n", listed.collect::<String>()))?;
        let flake = fixture.flake();
        finish(fixture.nix("nix").args(["flake", "lock"]).arg(flake))?;
        Ok(fixture)
    }

    pub fn flake(&self) -> PathBuf {
        self.folder.join("flake")
    }

    /// The source of the locked input. Nix copies it when the flake is locked.
    pub fn words(&self) -> PathBuf {
        self.folder.join("words")
    }

    /// The operator's Nix store; no machine sees it.
    pub fn store(&self) -> String {
        format!("local?root={}", self.folder.join("operator").display())
    }

    /// The environment of every command of the operator.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        let home = self.folder.join("operator");
        [
            ("NIX_CONFIG", programs::nix_config("")),
            ("NIX_REMOTE", self.store()),
            ("HOME", home.display().to_string()),
            ("XDG_CACHE_HOME", home.join("cache").display().to_string()),
            // Unset: whoever runs the tests may have one.
            ("XDG_RUNTIME_DIR", home.join("none").display().to_string()),
        ]
    }

    pub fn nix(&self, program: &str) -> Command {
        let mut command =
            Command::new(programs::of_the_host(program).unwrap_or_else(|| PathBuf::from(program)));
        let _ = fs::create_dir_all(self.folder.join("operator"));
        command.envs(self.environment());
        command
    }

    /// Sets how the next generation behaves: `what` is the name of a file in `behaviour/`.
    pub fn say(&self, what: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.flake().join("behaviour").join(what), format!("{text}\n"))?)
    }

    /// Removes that file, so that the flake's default applies.
    pub fn unsay(&self, what: &str) -> Result<()> {
        fs::remove_file(self.flake().join("behaviour").join(what))
            .with_context(|| format!("behaviour/{what}"))
    }

    /// An attribute's derivation, from plain Nix.
    pub fn derivation(&self, attribute: &str) -> Result<StorePath> {
        let reference = format!("{}#{attribute}.drvPath", self.flake().display());
        let path = finish(self.nix("nix").args(["eval", "--raw", &reference]))?;
        Ok(path.trim().parse()?)
    }

    /// The output path that Nix predicts for it.
    pub fn output(&self, attribute: &str) -> Result<StorePath> {
        let reference = format!("{}#{attribute}.outPath", self.flake().display());
        let path = finish(self.nix("nix").args(["eval", "--raw", &reference]))?;
        Ok(path.trim().parse()?)
    }

    /// The derivation of what an installer leaves on the machine.
    pub fn factory(&self, machine: &str) -> Result<StorePath> {
        self.derivation(&format!("factory.{machine}"))
    }
}

/// The attribute of a machine's system.
pub fn attribute(machine: &Listed) -> String {
    match machine.class() {
        Class::Nixos => format!("nixosConfigurations.{}.config.system.build.toplevel", machine.name),
        Class::Darwin => format!("darwinConfigurations.{}.system", machine.name),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("{} cannot be read", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target).map(drop)?;
        }
    }
    Ok(())
}
