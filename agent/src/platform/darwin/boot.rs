//! nix-darwin's part in a boot: the job `activate-system` points `/run/current-system` at the profile, and
//! then sets up /etc and the keyboard. Before it has ended only half of that is visible.

use std::path::PathBuf;
use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};

use super::super::layout::Layout;
use super::super::programs::run;
use super::messages;

/// The job's label without its prefix, which each configuration may choose.
const JOB: &str = ".activate-system";
/// How long to wait for it, and how long launchd may take to know it at all.
const LIMIT: Duration = Duration::from_secs(120);
const UNKNOWN_LIMIT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until the job has ended, if there is one. It never holds up a switch forever: an activation that
/// runs beside it is better than none.
pub fn wait(layout: &Layout) {
    let Some(label) = label(layout) else { return };
    let clock = SystemClock::new();
    let service = format!("system/{label}");
    loop {
        let printed = run(layout, "launchctl", &["print", &service]);
        let known = printed.as_ref().is_ok_and(|printed| printed.exit == 0);
        if known && printed.is_ok_and(|printed| messages::has_ended(&printed.said)) {
            return;
        }
        if clock.awake() >= if known { LIMIT } else { UNKNOWN_LIMIT } {
            tracing::warn!(label, "nix-darwin's boot job has not ended; no longer waiting for it");
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

fn label(layout: &Layout) -> Option<String> {
    let folder: PathBuf = layout.system("/Library/LaunchDaemons");
    let names = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name());
    let mut labels = names.filter_map(|name| Some(name.to_str()?.strip_suffix(".plist")?.to_owned()));
    labels.find(|label| label.ends_with(JOB))
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;

    use super::super::super::testing::{layout, script};
    use super::*;

    #[test]
    fn the_boots_own_job_is_waited_for_until_it_has_ended_and_only_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Darwin);
        let launchctl = folder.path().join("programs/launchctl");
        script(&launchctl, "echo asked >> $0.asked; exit 1");
        wait(&layout);
        assert!(!folder.path().join("programs/launchctl.asked").exists(), "no job, no question");
        script(&folder.path().join("Library/LaunchDaemons/org.example.activate-system.plist"), "");
        // First it has not run yet, then it runs, then it has ended.
        let text = "echo \"$@\" >> $0.asked; n=$(wc -l < $0.asked); state='not running' code='(never exited)'
            [ $n != 2 ] || state=running; [ $n -lt 3 ] || code=0; echo \"state = $state\"; echo \"last exit code = $code\"";
        script(&launchctl, text);
        wait(&layout);
        let asked = std::fs::read_to_string(folder.path().join("programs/launchctl.asked")).unwrap();
        assert_eq!(asked, "print system/org.example.activate-system\n".repeat(3));
    }
}
