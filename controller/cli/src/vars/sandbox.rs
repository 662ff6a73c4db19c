//! Where generators' scripts run: they see the Nix store, their inputs and outputs, and no network.

mod darwin;
mod job;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

pub use self::job::Job;
use super::program::{self, ProgramError};

/// What `--no-sandbox` gives up, for display.
pub const WITHOUT: &str =
    "Scripts run without a sandbox: they can read your files and your keys, and use the network.";

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(
        "there is no `bwrap` on PATH, which keeps scripts away from your files and the network: install \
         bubblewrap, or give --no-sandbox to let them run without"
    )]
    NoBubblewrap,
    #[error(
        "there is no /usr/bin/sandbox-exec: give --no-sandbox to let scripts run with all that you may do"
    )]
    NoSandboxExec,
    #[error(
        "no sandbox can be made here ({0}): let this user make namespaces, or give --no-sandbox to let \
         scripts run without"
    )]
    Refused(String),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sandbox {
    Bubblewrap(PathBuf),
    SandboxExec(PathBuf),
    None,
}

/// The folders of a job, and the variables that name them.
pub const READ: [&str; 2] = ["in", "prompts"];
pub const WRITTEN: &str = "out";
pub const WORK: &str = "work";
/// Where the sandbox on Linux mounts them.
const INSIDE: &str = "/muster";

impl Sandbox {
    pub fn find() -> Result<Self, SandboxError> {
        if cfg!(target_os = "macos") {
            let program = PathBuf::from("/usr/bin/sandbox-exec");
            return if program.exists() {
                Ok(Self::SandboxExec(program))
            } else {
                Err(SandboxError::NoSandboxExec)
            };
        }
        program::find("bwrap").map(Self::Bubblewrap).ok_or(SandboxError::NoBubblewrap)
    }

    /// Checks once whether a sandbox can be made here, so that a script's own failure is not mistaken for it.
    pub async fn probe(&self, job: &Job<'_>) -> Result<(), SandboxError> {
        let mut command = self.command(job, &["-c".into(), ":".into()]);
        command.current_dir("/");
        let ended = program::run(command, b"", Duration::from_secs(60), 64 * 1024).await?;
        match ended.well() {
            true => Ok(()),
            // It was given nothing secret.
            false => Err(SandboxError::Refused(
                ended.stderr.lines().last().unwrap_or(&ended.how()).trim().to_owned(),
            )),
        }
    }

    /// The command that runs the script.
    pub fn run(&self, job: &Job<'_>) -> Command {
        let shell = ["-euo", "pipefail", job.script.as_str()].map(OsString::from);
        self.command(job, &shell)
    }

    fn command(&self, job: &Job<'_>, shell: &[OsString]) -> Command {
        let (program, arguments, at) = match self {
            Self::Bubblewrap(program) => (program.clone(), bubblewrap(job, shell), PathBuf::from(INSIDE)),
            Self::SandboxExec(program) => {
                (program.clone(), darwin::arguments(job, shell), job.folder.to_owned())
            }
            Self::None => (job.bash.to_owned(), shell.to_vec(), job.folder.to_owned()),
        };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().current_dir(job.folder.join(WORK));
        for name in READ.into_iter().chain([WRITTEN]) {
            command.env(name, at.join(name));
        }
        // The script sets PATH as it needs; bash would otherwise use its own default.
        let work = at.join(WORK);
        command.env("PATH", "/no-such-path").env("HOME", &work).env("TMPDIR", &work);
        // The store has no locale data in view.
        command.env("LANG", "C.UTF-8");
        command
    }
}

/// bwrap(1). The folders keep their mode and owner; the script runs as an arbitrary user.
fn bubblewrap(job: &Job<'_>, shell: &[OsString]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |more: &[&dyn AsRef<std::ffi::OsStr>]| {
        arguments.extend(more.iter().map(|word| word.as_ref().to_owned()));
    };
    add(&[&"--unshare-all", &"--die-with-parent", &"--new-session", &"--cap-drop", &"ALL"]);
    add(&[&"--uid", &"1000", &"--gid", &"1000"]);
    add(&[&"--tmpfs", &"/", &"--proc", &"/proc", &"--dev", &"/dev", &"--tmpfs", &"/tmp"]);
    add(&[&"--ro-bind", &job.store, &"/nix/store", &"--symlink", &job.bash, &"/bin/sh"]);
    for name in READ {
        add(&[&"--ro-bind", &job.folder.join(name), &Path::new(INSIDE).join(name)]);
    }
    for name in [WRITTEN, WORK] {
        add(&[&"--bind", &job.folder.join(name), &Path::new(INSIDE).join(name)]);
    }
    add(&[&"--chdir", &Path::new(INSIDE).join(WORK), &"--", &job.bash]);
    arguments.extend_from_slice(shell);
    arguments
}

#[cfg(test)]
mod tests {
    use muster_protocol::ids::StorePath;

    use super::*;

    fn job<'a>(script: &'a StorePath, folder: &'a Path) -> Job<'a> {
        Job { bash: Path::new("/nix/store/x-bash/bin/bash"), script, store: Path::new("/nix/store"), folder }
    }
    fn arguments(command: &Command) -> Vec<String> {
        command.as_std().get_args().map(|word| word.to_string_lossy().into_owned()).collect()
    }
    fn variables(command: &Command) -> Vec<(String, String)> {
        let text = |word: &std::ffi::OsStr| word.to_string_lossy().into_owned();
        command.as_std().get_envs().filter_map(|(name, value)| Some((text(name), text(value?)))).collect()
    }

    #[test]
    fn on_linux_a_script_sees_the_store_and_its_folders_alone() {
        let script: StorePath = "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-generator-x".parse().unwrap();
        let sandbox = Sandbox::Bubblewrap("/bin/bwrap".into());
        let command = sandbox.run(&job(&script, Path::new("/dev/shm/m")));
        let line = arguments(&command).join(" ");
        assert!(line.contains("--unshare-all") && line.contains("--die-with-parent"), "{line}");
        assert!(
            line.contains("--ro-bind /dev/shm/m/in /muster/in")
                && line.contains("--bind /dev/shm/m/out /muster/out")
        );
        assert!(line.ends_with(&format!("-- /nix/store/x-bash/bin/bash -euo pipefail {script}")), "{line}");
        let bound: Vec<&str> =
            line.match_indices("bind ").map(|(at, _)| line[at..].split(' ').nth(1).unwrap()).collect();
        assert_eq!(
            bound,
            ["/nix/store", "/dev/shm/m/in", "/dev/shm/m/prompts", "/dev/shm/m/out", "/dev/shm/m/work"]
        );
        assert!(variables(&command).contains(&("out".into(), "/muster/out".into())));
    }

    #[test]
    fn without_a_sandbox_the_environment_is_as_bare() {
        let script: StorePath = "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-generator-x".parse().unwrap();
        let command = Sandbox::None.run(&job(&script, Path::new("/dev/shm/m")));
        assert_eq!(command.as_std().get_program(), "/nix/store/x-bash/bin/bash");
        let names: Vec<String> = variables(&command).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["HOME", "LANG", "PATH", "TMPDIR", "in", "out", "prompts"]);
    }

    #[test]
    fn on_a_mac_the_profile_denies_all_but_the_store_and_the_folders() {
        let script: StorePath = "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-generator-x".parse().unwrap();
        let command =
            Sandbox::SandboxExec("/usr/bin/sandbox-exec".into()).run(&job(&script, Path::new("/private/m")));
        let arguments = arguments(&command);
        assert_eq!(arguments[0], "-p");
        let profile = &arguments[1];
        assert!(profile.contains("(deny default)") && !profile.contains("network"), "{profile}");
        assert_eq!(profile.matches('(').count(), profile.matches(')').count());
        assert_eq!(arguments[2..6], ["-D", "FOLDER=/private/m", "-D", "STORE=/nix/store"]);
        assert_eq!(arguments[6], "/nix/store/x-bash/bin/bash");
        assert!(variables(&command).contains(&("in".into(), "/private/m/in".into())));
    }
}
