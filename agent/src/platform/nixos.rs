//! NixOS: systemd and `switch-to-configuration`.

mod reboot;
mod resurrect;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use muster_protocol::ids::{Generation, StorePath, to_hex};
use muster_protocol::target::Action;

use super::process::Finished;
use super::{Layout, Outcome, Platform, PlatformError, Preflight, ask, finish, linux, run, stand_in_boot_id};
use crate::core::reboot::Due;

/// What switch-to-configuration-ng locks while it works.
const SWITCH_LOCK: &str = "/run/nixos/switch-to-configuration.lock";
const AGENT_UNIT: &str = "muster-agent.service";
pub(super) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The limit of a system's own checks.
const CHECK_LIMIT: Duration = Duration::from_secs(300);

pub struct Nixos {
    layout: Layout,
    activator: Vec<String>,
    /// Where the unit that starts the activator at a boot lies between switches.
    parked: PathBuf,
    compared: reboot::Compared,
}

impl Nixos {
    /// `activator` is the program to start, with its arguments.
    pub fn new(layout: Layout, activator: Vec<String>, state_dir: &Path) -> Self {
        let parked = state_dir.join("at-boot");
        Self { layout, activator, parked, compared: reboot::Compared::default() }
    }

    /// What `system` says of the agent's unit: a changed one is started anew.
    fn agent_unit(&self, system: &StorePath) -> Option<Vec<u8>> {
        let unit = self.layout.physical(system).join("etc/systemd/system").join(AGENT_UNIT);
        // In a NixOS system this is a link into the store, whose text tells as much as the file.
        std::fs::read_link(&unit)
            .map(|text| text.into_os_string().into_encoded_bytes())
            .or_else(|_| std::fs::read(&unit))
            .ok()
    }

    fn switch(&self, system: &StorePath, argument: &str) -> Command {
        let mut command = Command::new(self.script(system));
        command.arg(argument).env("PATH", self.layout.search_path()).current_dir("/");
        command
    }
}

impl Platform for Nixos {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn boot_id(&self) -> Result<String, PlatformError> {
        if let Some(id) = stand_in_boot_id(&self.layout) {
            return Ok(id);
        }
        std::fs::read_to_string(BOOT_ID)
            .map(|text| text.trim().to_owned())
            .map_err(|source| PlatformError::Run { program: BOOT_ID.to_owned(), source })
    }

    fn failed_units(&self) -> Result<Vec<String>, PlatformError> {
        let arguments = ["list-units", "--state=failed", "--plain", "--no-legend", "--no-pager"];
        let mut units: Vec<String> = ask(&self.layout, "systemctl", &arguments)?
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect();
        units.sort();
        Ok(units)
    }

    /// Newer systems have `check`; older ones do not know the word, and check when they switch.
    fn preflight(&self, new: &StorePath) -> Result<Preflight, PlatformError> {
        let script = self.script(new);
        if !script.is_file() {
            let words = format!("{new} is no NixOS system: it has no bin/switch-to-configuration");
            return Ok(Preflight::Failed(words));
        }
        let finished = finish(&self.layout, self.switch(new, "check"), CHECK_LIMIT)?;
        let words = finished.output.trim();
        if finished.exit != 0 && words.to_ascii_lowercase().contains("pre-switch") {
            return Ok(Preflight::Failed(words.to_owned()));
        }
        Ok(Preflight::Passed)
    }

    /// A transient unit is outside the agent's cgroup: stopping the agent leaves it alone. systemd starts it again when it
    /// is killed: a system that breaks the agent is undone all the same.
    fn start_activator(&self, generation: Generation) -> Result<(), PlatformError> {
        // One name a start: the unit of an earlier try of this generation may not be gone yet.
        let start = muster_protocol::random::bytes::<4>().map(|bytes| to_hex(&bytes)).unwrap_or_default();
        let mut arguments = vec![
            format!("--unit=muster-activator-{generation}-{start}"),
            "--collect".to_owned(),
            "--no-ask-password".to_owned(),
            "--service-type=exec".to_owned(),
            "--property=Restart=on-failure".to_owned(),
            "--property=RestartSec=1".to_owned(),
            "--setenv=NIXOS_INSTALL_BOOTLOADER=0".to_owned(),
        ];
        if let Some(archive) = std::env::var_os("LOCALE_ARCHIVE") {
            arguments.push(format!("--setenv=LOCALE_ARCHIVE={}", archive.to_string_lossy()));
        }
        arguments.push("--".to_owned());
        arguments.extend(self.activator.iter().cloned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        ask(&self.layout, "systemd-run", &arguments).map(drop)
    }

    fn activator_begins(&self) {
        if let Err(error) = resurrect::at_boot(&self.layout, &self.parked, &self.activator) {
            tracing::warn!(%error, "after a reboot in mid-switch nobody but the agent can undo this one");
        }
    }

    fn activator_ends(&self) {
        if let Err(error) = resurrect::no_more(&self.layout, &self.parked) {
            tracing::warn!(%error, "the activator's unit for the next boot cannot be removed");
        }
    }

    fn activate(
        &self,
        system: &StorePath,
        action: Action,
        limit: Duration,
    ) -> Result<Finished, PlatformError> {
        finish(&self.layout, self.switch(system, action.as_str()), limit)
    }

    /// The codes of switch-to-configuration-ng.
    fn outcome(&self, exit: i32) -> Outcome {
        match exit {
            0 => Outcome::Done,
            1 => Outcome::Refused,
            2 => Outcome::ScriptFailed,
            4 => Outcome::UnitsFailed,
            11 => Outcome::Locked,
            100 => Outcome::RebootNeeded,
            _ => Outcome::Failed,
        }
    }

    fn script(&self, system: &StorePath) -> PathBuf {
        self.layout.physical(system).join("bin/switch-to-configuration")
    }

    /// The unit has `restartIfChanged = false`, so the switch itself leaves the agent as it is. A changed unit is
    /// restarted here, so that it is the new agent that confirms; this waits until the old one is gone.
    fn ensure_agent(&self, from: Option<&StorePath>, to: &StorePath) {
        let after = self.agent_unit(to);
        let changed = after.is_some() && from.is_some_and(|from| self.agent_unit(from) != after);
        let words: &[&str] =
            if changed { &["restart", AGENT_UNIT] } else { &["start", "--no-block", AGENT_UNIT] };
        let verb = words[0];
        match run(&self.layout, "systemctl", words) {
            Ok(finished) if finished.exit == 0 => {}
            Ok(finished) => tracing::warn!("systemctl {verb} {AGENT_UNIT}: {}", finished.output.trim()),
            Err(error) => tracing::warn!(%error, "the agent's unit cannot be started"),
        }
    }

    fn busy(&self) -> Result<Option<String>, PlatformError> {
        Ok(linux::holder(&self.layout.system(SWITCH_LOCK)))
    }

    fn on_battery(&self) -> Option<u8> {
        linux::on_battery(&self.layout)
    }

    fn metered(&self) -> bool {
        linux::metered(&self.layout)
    }

    fn free_memory(&self) -> Option<u64> {
        linux::free_memory(&self.layout)
    }

    fn due(&self) -> Option<Due> {
        self.compared.due(&self.layout)
    }

    fn blockers(&self) -> Result<Vec<String>, PlatformError> {
        reboot::blockers(&self.layout)
    }

    fn reboot(&self) -> Result<(), PlatformError> {
        ask(&self.layout, "systemctl", &["reboot"]).map(drop)
    }

    fn service(&self, name: &str) -> Result<(), String> {
        let asked =
            run(&self.layout, "systemctl", &["is-active", "--", name]).map_err(|error| error.to_string())?;
        if asked.exit == 0 { Ok(()) } else { Err(format!("{name} is {}", asked.output.trim())) }
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;

    use super::super::tests::{layout, script};
    use super::*;

    fn nixos(root: &Path) -> Nixos {
        let activator = ["/bin/muster-agent", "--config", "/etc/x.toml", "activate"];
        Nixos::new(layout(root, Class::Nixos), activator.map(str::to_owned).to_vec(), &root.join("state"))
    }

    fn path(name: &str) -> StorePath {
        format!("/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-{name}").parse().unwrap()
    }

    #[test]
    fn failed_units_are_read_from_systemctl() {
        let folder = tempfile::tempdir().unwrap();
        let nixos = nixos(folder.path());
        let text = "echo \"$@\" > $0.asked\nprintf 'b.service loaded failed failed B b\\na.mount x\\n'";
        script(&folder.path().join("programs/systemctl"), text);
        assert_eq!(nixos.failed_units().unwrap(), ["a.mount", "b.service"]);
        let asked = std::fs::read_to_string(folder.path().join("programs/systemctl.asked")).unwrap();
        assert_eq!(asked, "list-units --state=failed --plain --no-legend --no-pager\n");
        script(&folder.path().join("programs/systemctl"), "echo 'Failed to connect to bus' >&2; exit 1");
        assert!(nixos.failed_units().unwrap_err().to_string().contains("Failed to connect to bus"));
    }

    #[test]
    fn the_activator_is_a_transient_unit() {
        let folder = tempfile::tempdir().unwrap();
        script(&folder.path().join("programs/systemd-run"), "echo \"$@\" > $0.asked");
        nixos(folder.path()).start_activator(Generation::new(7).unwrap()).unwrap();
        let asked = std::fs::read_to_string(folder.path().join("programs/systemd-run.asked")).unwrap();
        let (name, asked) = asked.split_once(' ').unwrap();
        assert!(name.starts_with("--unit=muster-activator-7-") && name.len() == 34, "{name}");
        assert!(
            asked.starts_with(
                "--collect --no-ask-password --service-type=exec \
                 --property=Restart=on-failure --property=RestartSec=1 --setenv=NIXOS_INSTALL_BOOTLOADER=0"
            ),
            "{asked}"
        );
        assert!(asked.ends_with("-- /bin/muster-agent --config /etc/x.toml activate\n"), "{asked}");
    }

    #[test]
    fn a_system_that_refuses_in_its_check_is_not_switched_to_and_an_older_one_is_not_asked() {
        let folder = tempfile::tempdir().unwrap();
        let nixos = nixos(folder.path());
        let new = path("new");
        assert!(matches!(nixos.preflight(&new).unwrap(), Preflight::Failed(_)));
        for (text, passes) in [
            ("test \"$1\" = check", true),
            ("echo 'Usage: switch-to-configuration [switch|boot]'; exit 1", true),
            ("echo 'Pre-switch checks failed: zfs'; exit 1", false),
        ] {
            script(&nixos.script(&new), text);
            assert_eq!(nixos.preflight(&new).unwrap() == Preflight::Passed, passes, "{text}");
        }
    }

    #[test]
    fn a_changed_agent_unit_is_restarted_and_an_unchanged_one_only_started() {
        let folder = tempfile::tempdir().unwrap();
        let nixos = nixos(folder.path());
        script(&folder.path().join("programs/systemctl"), "echo \"$@\" >> $0.asked");
        let unit = |name: &str, text: &str| {
            let folder = nixos.layout.physical(&path(name)).join("etc/systemd/system");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(AGENT_UNIT), text).unwrap();
        };
        unit("old", "1");
        unit("same", "1");
        unit("new", "2");
        nixos.ensure_agent(Some(&path("old")), &path("same"));
        nixos.ensure_agent(Some(&path("old")), &path("new"));
        nixos.ensure_agent(Some(&path("old")), &path("without"));
        nixos.ensure_agent(None, &path("new"));
        let asked = std::fs::read_to_string(folder.path().join("programs/systemctl.asked")).unwrap();
        let verbs: Vec<&str> = asked.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(verbs, ["start", "restart", "start", "start"]);
    }

    #[test]
    fn the_boot_of_a_stand_in_is_what_its_tests_call_it() {
        let folder = tempfile::tempdir().unwrap();
        let nixos = nixos(folder.path());
        std::fs::write(folder.path().join("proc-boot-id"), "second\n").unwrap();
        assert_eq!(nixos.boot_id().unwrap(), "second");
    }
}
