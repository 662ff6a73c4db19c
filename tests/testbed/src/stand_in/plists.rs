//! A launch daemon's plist.
//!
//! Left out: every key that is not read here, path triggers, sockets, users, resource limits, `KeepAlive`
//! conditions other than `SuccessfulExit` and `Crashed`, `StartInterval` and `StartCalendarInterval` (no job
//! of nix-darwin's that the agent meets is begun by them).

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use plist::Value;

use super::job::{Job, Manager, Restart, Together};

/// `launchd.plist(5)`: the minimum time between two starts of a job, in seconds.
const THROTTLE_SECONDS: u64 = 10;
/// `launchd.plist(5)`: from SIGTERM to SIGKILL.
const EXIT_TIMEOUT_SECONDS: u64 = 20;

pub struct Plist {
    pub job: Job,
    /// The key `Disabled`.
    pub disabled: bool,
}

/// Reads a plist that launchd would load: only root (here: the user who runs the machine) may be able to
/// change it.
pub fn read(file: &Path) -> Result<Plist> {
    let facts = fs::metadata(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let own = rustix::process::geteuid().as_raw();
    if facts.mode() & 0o022 != 0 || (facts.uid() != 0 && facts.uid() != own) {
        bail!("Path had bad ownership/permissions");
    }
    let value = Value::from_file(file).with_context(|| format!("{} is no plist", file.display()))?;
    parse(&value, file)
}

fn parse(value: &Value, file: &Path) -> Result<Plist> {
    let keys = value.as_dictionary().context("a plist of launchd is a dictionary")?;
    let text = |key: &str| keys.get(key).and_then(Value::as_string).map(str::to_owned);
    let flag = |key: &str| keys.get(key).and_then(Value::as_boolean).unwrap_or(false);
    let seconds =
        |key: &str, default| keys.get(key).and_then(Value::as_unsigned_integer).unwrap_or(default) * 1000;

    let mut arguments: Vec<String> = keys
        .get("ProgramArguments")
        .and_then(Value::as_array)
        .map(|words| words.iter().filter_map(|word| word.as_string().map(str::to_owned)).collect())
        .unwrap_or_default();
    if let Some(program) = text("Program") {
        match arguments.first_mut() {
            Some(first) => *first = program,
            None => arguments.push(program),
        }
    }
    if arguments.is_empty() {
        bail!("it has neither Program nor ProgramArguments");
    }
    let keep_alive = keys.get("KeepAlive");
    let restart = match keep_alive {
        Some(Value::Boolean(true)) => Restart::Always,
        Some(Value::Dictionary(when)) => match when.get("SuccessfulExit").and_then(Value::as_boolean) {
            Some(false) => Restart::OnFailure,
            None if when.get("Crashed").and_then(Value::as_boolean) == Some(true) => Restart::OnCrash,
            _ => Restart::Always,
        },
        _ => Restart::Never,
    };
    let environment = keys
        .get("EnvironmentVariables")
        .and_then(Value::as_dictionary)
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), value.as_string()?.to_owned())))
        .collect();
    let job = Job {
        name: text("Label").context("it has no Label")?,
        manager: Manager::Launchd,
        source: Some(file.to_path_buf()),
        arguments,
        environment,
        folder: text("WorkingDirectory").map(Into::into),
        stdout: text("StandardOutPath").map(Into::into),
        stderr: text("StandardErrorPath").map(Into::into),
        start: flag("RunAtLoad") || restart != Restart::Never,
        restart,
        pause_ms: seconds("ThrottleInterval", THROTTLE_SECONDS),
        patience_ms: seconds("ExitTimeOut", EXIT_TIMEOUT_SECONDS),
        together: if flag("AbandonProcessGroup") { Together::Nothing } else { Together::Group },
        collect: false,
        conditions: Vec::new(),
        runtime_directory: None,
    };
    Ok(Plist { job, disabled: flag("Disabled") })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const AGENT: &str = r#"<?xml version="1.0" encoding="UTF-8"?><plist version="1.0"><dict>
        <key>Label</key><string>org.muster.agent</string>
        <key>ProgramArguments</key>
        <array><string>/bin/sh</string><string>-c</string><string>true</string></array>
        <key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
        <key>EnvironmentVariables</key><dict><key>A</key><string>b</string></dict>
        <key>ThrottleInterval</key><integer>3</integer><key>AbandonProcessGroup</key><true/>
        </dict></plist>"#;

    fn job(text: &str) -> Result<Plist> {
        parse(&Value::from_reader_xml(text.as_bytes()).unwrap(), Path::new("/x.plist"))
    }

    #[test]
    fn a_daemons_keys_are_read() {
        let job = job(AGENT).unwrap().job;
        assert_eq!(job.name, "org.muster.agent");
        assert_eq!((job.restart, job.start), (Restart::OnFailure, true));
        assert_eq!((job.pause_ms, job.patience_ms), (3_000, 20_000));
        assert_eq!(job.together, Together::Nothing);
        assert_eq!(job.environment.get("A").map(String::as_str), Some("b"));
    }

    #[test]
    fn a_daemon_without_a_label_or_a_program_is_refused() {
        assert!(job(&AGENT.replace("Label", "Lable")).is_err());
        assert!(job(&AGENT.replace("ProgramArguments", "Arguments")).is_err());
    }

    #[test]
    fn a_plist_that_others_may_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.plist");
        fs::write(&file, AGENT).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&file).is_ok());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(read(&file).is_err());
    }
}
