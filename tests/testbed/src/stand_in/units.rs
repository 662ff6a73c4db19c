//! A service's unit file.
//!
//! Left out: every setting that is not read here, drop-ins, templates, specifiers, and all types but
//! `simple`, `exec` and `notify`, which are treated alike: started means running.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::job::{Job, Manager, Restart, Together};

/// `systemd-system.conf(5)`, in milliseconds.
const RESTART_MS: u64 = 100;
const STOP_MS: u64 = 90_000;

pub struct Unit {
    pub job: Job,
    /// Whether it starts at boot.
    pub wanted: bool,
    pub description: String,
}

pub fn read(file: &Path) -> Result<Unit> {
    let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    parse(&text, file)
}

fn parse(text: &str, file: &Path) -> Result<Unit> {
    let mut settings: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';', '['])) {
        if let Some((key, value)) = line.split_once('=') {
            settings.entry(key.trim()).or_default().push(value.trim());
        }
    }
    let last = |key: &str| settings.get(key).and_then(|values| values.last()).copied();
    let all = |key: &str| -> Vec<String> {
        settings.get(key).into_iter().flatten().map(|value| (*value).to_owned()).collect()
    };
    let name = file.file_name().and_then(|name| name.to_str()).context("a unit has a name")?;
    let command = last("ExecStart").with_context(|| format!("{name} has no ExecStart"))?;
    let environment = settings
        .get("Environment")
        .into_iter()
        .flatten()
        .flat_map(|line| words(line))
        .filter_map(|word| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect();
    let log = format!("/var/log/journal/{name}.log");
    let job = Job {
        name: name.to_owned(),
        manager: Manager::Systemd,
        source: Some(file.to_path_buf()),
        arguments: words(command.trim_start_matches(['-', '@', '+', '!'])),
        environment,
        folder: last("WorkingDirectory").map(Into::into),
        stdout: Some(log.clone().into()),
        stderr: Some(log.into()),
        start: false,
        restart: match last("Restart") {
            Some("always") => Restart::Always,
            Some("on-failure" | "on-abnormal" | "on-abort") => Restart::OnFailure,
            _ => Restart::Never,
        },
        pause_ms: last("RestartSec").and_then(milliseconds).unwrap_or(RESTART_MS),
        patience_ms: last("TimeoutStopSec").and_then(milliseconds).unwrap_or(STOP_MS),
        together: match last("KillMode") {
            Some("process" | "none") => Together::Nothing,
            _ => Together::Everything,
        },
        collect: false,
        conditions: all("ConditionPathExists"),
        runtime_directory: last("RuntimeDirectory").map(str::to_owned),
    };
    Ok(Unit {
        job,
        wanted: settings.contains_key("WantedBy"),
        description: last("Description").unwrap_or(name).to_owned(),
    })
}

/// `5`, `5s`, `100ms`, `2min`.
fn milliseconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().ok()?;
    Some(match unit.trim() {
        "" | "s" | "sec" => number * 1000,
        "ms" => number,
        "min" | "m" => number * 60_000,
        _ => return None,
    })
}

/// Splits at blanks, except inside quotes.
pub fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut open) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(mark)) if c == mark => quote = None,
            ('"' | '\'', None) => (quote, open) = (Some(c), true),
            (c, None) if c.is_whitespace() => {
                if open || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            (c, _) => word.push(c),
        }
    }
    if open || !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_settings_are_read() {
        let text = "[Unit]\nDescription=The agent\n[Service]\n# why\n\
            ExecStart=/bin/agent --config \"/a b\" run\n\
            Restart=always\nRestartSec=250ms\nEnvironment=\"A=b c\" D=e\nTimeoutStopSec=5\n\
            [Install]\nWantedBy=x\n";
        let unit = parse(text, Path::new("/etc/muster-agent.service")).unwrap();
        assert_eq!(unit.job.arguments, ["/bin/agent", "--config", "/a b", "run"]);
        assert_eq!((unit.job.restart, unit.job.pause_ms), (Restart::Always, 250));
        assert_eq!(unit.job.patience_ms, 5000);
        assert_eq!(unit.job.environment.get("A").map(String::as_str), Some("b c"));
        assert_eq!(unit.job.environment.get("D").map(String::as_str), Some("e"));
        assert_eq!(unit.job.together, Together::Everything);
        assert!(unit.wanted);
    }

    #[test]
    fn a_unit_without_a_program_is_refused() {
        assert!(parse("[Service]\nRestart=always\n", Path::new("/x.service")).is_err());
    }
}
