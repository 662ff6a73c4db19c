//! The agent's own job, as the machine's service manager knows it.

use std::process::Stdio;
use std::time::Duration;

use muster_protocol::machine::Class;

use crate::platform::Layout;

pub const UNIT: &str = "muster-agent.service";
pub const LABEL: &str = "org.muster.agent";
/// How long the service manager may take to report the job's state.
const LIMIT: Duration = Duration::from_secs(5);

/// Whether the service manager runs the agent, or is about to. If it does not say so, no.
pub async fn is_up_or_coming(layout: &Layout) -> bool {
    let mut command = match layout.class() {
        Class::Nixos => layout.command("systemctl"),
        Class::Darwin => layout.command("launchctl"),
    };
    match layout.class() {
        Class::Nixos => command.args(["is-active", UNIT]),
        Class::Darwin => command.args(["print", &format!("system/{LABEL}")]),
    };
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let asked = tokio::process::Command::from(command).kill_on_drop(true).output();
    let Ok(Ok(answer)) = tokio::time::timeout(LIMIT, asked).await else { return false };
    says_so(layout.class(), &String::from_utf8_lossy(&answer.stdout))
}

/// `systemctl(1)`: a unit that is not ready yet, or that is restarted after a pause, is activating; one that
/// is being restarted is deactivating first. launchd's states between loaded and running are "spawn
/// scheduled" and "xpcproxy".
fn says_so(class: Class, answer: &str) -> bool {
    let mut words = answer.lines().map(str::trim);
    match class {
        Class::Nixos => words
            .next()
            .is_some_and(|state| ["active", "activating", "reloading", "deactivating"].contains(&state)),
        Class::Darwin => words
            .filter_map(|line| line.strip_prefix("state = "))
            .next()
            .is_some_and(|state| ["running", "spawn scheduled", "xpcproxy"].contains(&state)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_runs_or_is_being_started_is_told_from_one_that_is_not() {
        for (answer, up) in [
            ("active\n", true),
            ("activating\n", true),
            ("deactivating\n", true),
            ("inactive\n", false),
            ("failed\n", false),
        ] {
            assert_eq!(says_so(Class::Nixos, answer), up, "{answer}");
        }
        let print = |state: &str| {
            format!(
                "system/{LABEL} = {{\n\tactive count = 1\n\tstate = {state}\n\n\tendpoint = {{\n\t\tstate = \
                 running\n"
            )
        };
        for (state, up) in
            [("running", true), ("spawn scheduled", true), ("not running", false), ("waiting", false)]
        {
            assert_eq!(says_so(Class::Darwin, &print(state)), up, "{state}");
        }
        assert!(!says_so(Class::Darwin, "") && !says_so(Class::Nixos, ""));
    }
}
