//! Logs that launchd writes: it never starts a new file, and a job keeps writing to a file that was renamed.
//! So a file that grew large is copied and then emptied; launchd's jobs append, wherever the end is.

use std::fs;
use std::path::{Path, PathBuf};

use plist::{Dictionary, Value};

use super::super::layout::Layout;

/// The maximum size of a log. With the previous one that is twice as much.
const LIMIT: u64 = 16 * 1024 * 1024;
/// The environment variable in the jobs of Muster's services, and the agent's own job.
const OURS: [&str; 2] = ["MUSTER_CONFIGURATION", "MUSTER_SETTINGS"];
const OWN: &str = "/var/log/muster-agent.log";

/// Empties logs of the agent, its activator and the services that grew too large; `NAME.old` keeps the
/// contents.
pub fn trim(layout: &Layout) {
    let mut logs = vec![layout.system(OWN), layout.state("activator.log")];
    logs.extend(of_services(layout));
    logs.sort();
    logs.dedup();
    for log in logs {
        if let Err(error) = trim_one(&log, LIMIT) {
            tracing::warn!("{} is large and cannot be emptied: {error}", log.display());
        }
    }
}

fn trim_one(log: &Path, limit: u64) -> std::io::Result<()> {
    let Ok(facts) = fs::symlink_metadata(log) else { return Ok(()) };
    if !facts.is_file() || facts.len() <= limit {
        return Ok(());
    }
    let mut old = log.as_os_str().to_owned();
    old.push(".old");
    let old = PathBuf::from(old);
    match fs::remove_file(&old) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // On a disk without room for both, the log is lost.
    let copied = fs::copy(log, &old);
    if copied.is_err() {
        let _ = fs::remove_file(&old);
    }
    fs::OpenOptions::new().write(true).open(log)?.set_len(0)
}

/// The logs of Muster's services below /var/log, where only root can write.
fn of_services(layout: &Layout) -> Vec<PathBuf> {
    let jobs = fs::read_dir(layout.system("/Library/LaunchDaemons")).into_iter().flatten().flatten();
    let jobs = jobs.filter_map(|entry| plist::from_file::<_, Dictionary>(entry.path()).ok());
    let ours = jobs.filter(|job| {
        let environment = job.get("EnvironmentVariables").and_then(Value::as_dictionary);
        environment.is_some_and(|names| OURS.iter().any(|name| names.contains_key(name)))
    });
    let logs = ours.flat_map(|job| {
        let log = |key: &str| job.get(key).and_then(Value::as_string).map(str::to_owned);
        [log("StandardOutPath"), log("StandardErrorPath")].into_iter().flatten().collect::<Vec<_>>()
    });
    let below = |log: &String| {
        let name = log.strip_prefix("/var/log/");
        name.is_some_and(|name| !name.is_empty() && !name.contains('/'))
    };
    logs.filter(below).map(|log| layout.system(&log)).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use muster_protocol::machine::Class;

    use super::super::super::testing::layout;
    use super::*;

    #[test]
    fn a_large_log_is_emptied_under_whoever_writes_to_it_and_the_one_before_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("agent.log");
        let mut writer = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        writer.write_all(b"first\n").unwrap();
        trim_one(&log, 6).unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"first\n", "as large as it may be");
        for (more, old) in [("second\n", "first\nsecond\n"), ("the third\n", "the third\n")] {
            writer.write_all(more.as_bytes()).unwrap();
            trim_one(&log, 6).unwrap();
            assert_eq!(fs::read(&log).unwrap(), b"");
            assert_eq!(fs::read_to_string(folder.path().join("agent.log.old")).unwrap(), old);
        }
        writer.write_all(b"on\n").unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"on\n");
        std::os::unix::fs::symlink(&log, folder.path().join("link")).unwrap();
        trim_one(&folder.path().join("link"), 1).unwrap();
        trim_one(&folder.path().join("absent"), 1).unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"on\n", "a link is no log");
    }

    #[test]
    fn the_logs_of_musters_services_are_found_in_their_jobs_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Darwin);
        fs::create_dir_all(layout.system("/Library/LaunchDaemons")).unwrap();
        let job = |name: &str, variable: &str, log: &str| {
            let mut job = Dictionary::new();
            let mut environment = Dictionary::new();
            environment.insert(variable.to_owned(), "x".into());
            job.insert("EnvironmentVariables".to_owned(), Value::Dictionary(environment));
            job.insert("StandardErrorPath".to_owned(), log.into());
            plist::to_file_xml(layout.system("/Library/LaunchDaemons").join(name), &job).unwrap();
        };
        job("one.plist", "MUSTER_CONFIGURATION", "/var/log/one.log");
        job("two.plist", "MUSTER_CONFIGURATION", "/Users/alice/two.log");
        job("three.plist", "PATH", "/var/log/system.log");
        job("four.plist", "MUSTER_SETTINGS", "/var/log/../four.log");
        assert_eq!(of_services(&layout), [layout.system("/var/log/one.log")]);
    }
}
