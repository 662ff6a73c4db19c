//! Runs a generator's script: provides its inputs in memory, and reads what it wrote.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::flake::Script;
use super::generators::Generator;
use super::memory::{Memory, MemoryError, remove_tree};
use super::names::{GeneratorId, VarName};
use super::program::{self, ProgramError};
use super::sandbox::{Job, READ, Sandbox, SandboxError, WORK, WRITTEN};
use super::secret::{MAX_VALUE, SecretBytes};

/// A script's standard output is not used; more than this is not read.
const MAX_PRINTED: usize = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(
        "the script of {generator} {how}; its own words may hold secrets and are shown only with \
         --script-output"
    )]
    Failed { generator: GeneratorId, how: String },
    #[error("the script of {generator} did not end within {} s: give it more with \
         --script-seconds", .limit.as_secs())]
    TooLong { generator: GeneratorId, limit: Duration },
    #[error("the script of {generator} wrote no file $out/{file}; it wrote {wrote}")]
    Missing { generator: GeneratorId, file: VarName, wrote: String },
    #[error(
        "the script of {generator} wrote $out/{file}, which is not a plain file of at most {MAX_VALUE} bytes"
    )]
    NotPlain { generator: GeneratorId, file: VarName },
    #[error("the folder for the script of {generator} cannot be used: {source}")]
    Folder { generator: GeneratorId, source: io::Error },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// What a script is given.
#[derive(Default)]
pub struct Inputs {
    /// `$in/GENERATOR/FILE`.
    pub dependencies: BTreeMap<VarName, BTreeMap<VarName, SecretBytes>>,
    /// `$prompts/PROMPT`.
    pub prompts: BTreeMap<VarName, SecretBytes>,
}

pub type Outputs = BTreeMap<VarName, SecretBytes>;

/// How scripts run.
pub struct Runner {
    pub sandbox: Sandbox,
    pub memory: Memory,
    /// Where the Nix store's files lie.
    pub store: PathBuf,
    pub limit: Duration,
    /// Whether to show what scripts print.
    pub show: bool,
    probed: bool,
}

impl Runner {
    pub fn new(sandbox: Sandbox, store: PathBuf, limit: Duration, show: bool) -> Result<Self, RunError> {
        Ok(Self { sandbox, memory: Memory::open()?, store, limit, show, probed: false })
    }

    pub async fn run(
        &mut self,
        generator: &Generator,
        script: &Script,
        inputs: &Inputs,
    ) -> Result<Outputs, RunError> {
        let folder = self.memory.path().join("job");
        let failed = |source| RunError::Folder { generator: generator.id.clone(), source };
        let prepared = prepare(&folder, inputs).map_err(failed);
        let outputs = match prepared {
            Ok(()) => self.run_in(&folder, generator, script).await,
            Err(error) => Err(error),
        };
        // Whatever happened, no plaintext is left behind.
        remove_tree(&folder).map_err(failed)?;
        outputs
    }

    async fn run_in(
        &mut self,
        folder: &Path,
        generator: &Generator,
        script: &Script,
    ) -> Result<Outputs, RunError> {
        let job = Job { bash: &script.bash, script: &script.path, store: &self.store, folder };
        if !self.probed && self.sandbox != Sandbox::None {
            self.sandbox.probe(&job).await?;
        }
        self.probed = true;
        let ended = match program::run_alone(self.sandbox.run(&job), self.limit, MAX_PRINTED).await {
            Err(ProgramError::TooLong { limit, .. }) => {
                return Err(RunError::TooLong { generator: generator.id.clone(), limit });
            }
            ended => ended?,
        };
        if self.show {
            muster_protocol::terminal::error_lines("  | ", &ended.stderr);
        }
        if !ended.well() {
            return Err(RunError::Failed { generator: generator.id.clone(), how: ended.how() });
        }
        generator.files.keys().map(|name| Ok((name.clone(), take(folder, generator, name)?))).collect()
    }
}

fn prepare(folder: &Path, inputs: &Inputs) -> io::Result<()> {
    // Left by an interrupted run; nobody reads it any longer.
    let _ = remove_tree(folder);
    fs::create_dir(folder)?;
    for name in READ.into_iter().chain([WRITTEN, WORK]) {
        fs::create_dir(folder.join(name))?;
    }
    for (generator, files) in &inputs.dependencies {
        let folder = folder.join("in").join(generator.as_str());
        fs::create_dir(&folder)?;
        for (name, value) in files {
            write(&folder.join(name.as_str()), value)?;
        }
    }
    for (name, value) in &inputs.prompts {
        write(&folder.join("prompts").join(name.as_str()), value)?;
    }
    Ok(())
}

fn write(path: &Path, value: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?.write_all(value)
}

/// Reads what the script wrote. Links are not followed: they could lead to files that the script itself may
/// not read.
fn take(folder: &Path, generator: &Generator, name: &VarName) -> Result<SecretBytes, RunError> {
    let out = folder.join(WRITTEN);
    let not_plain = || RunError::NotPlain { generator: generator.id.clone(), file: name.clone() };
    let path = out.join(name.as_str());
    let Ok(found) = path.symlink_metadata() else {
        let wrote: Vec<String> = fs::read_dir(&out)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        let wrote = if wrote.is_empty() { "none".to_owned() } else { wrote.join(", ") };
        return Err(RunError::Missing { generator: generator.id.clone(), file: name.clone(), wrote });
    };
    if !found.is_file() || found.len() > MAX_VALUE as u64 {
        return Err(not_plain());
    }
    let failed = |source| RunError::Folder { generator: generator.id.clone(), source };
    let follow_none = rustix::fs::OFlags::NOFOLLOW.bits();
    let flags = i32::try_from(follow_none).map_err(|_| not_plain())?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(failed)?;
    // As large as the file, so that the buffer never grows and leaves a copy behind.
    let size = usize::try_from(found.len()).map_err(|_| not_plain())?;
    let mut value = SecretBytes::new(Vec::with_capacity(size + 1));
    file.take(found.len() + 1).read_to_end(&mut value).map_err(failed)?;
    if value.len() == size { Ok(value) } else { Err(not_plain()) }
}
