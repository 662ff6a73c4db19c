//! NixOS: systemd and `switch-to-configuration`.

mod boots;
mod messages;
mod reboot;
mod resurrect;
mod units;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use muster_protocol::ids::{Generation, StorePath, to_hex};
use muster_protocol::target::Action;

use super::layout::Layout;
use super::programs::{PlatformError, ask, finish, run};
use super::system::{Platform, Preflight};
use super::{boot_id, linux};
use crate::core::activate::{Ailing, Outcome, Way};
use crate::core::boots::BootFacts;
use crate::core::cause::with_cause;
use crate::core::policy::inhibited;
use crate::core::reboot::Due;
use crate::process::Finished;

/// The lock of switch-to-configuration-ng.
const SWITCH_LOCK: &str = "/run/nixos/switch-to-configuration.lock";
const AGENT_UNIT: &str = "muster-agent.service";
const LOGIND_UNIT: &str = "systemd-logind.service";
/// The time limit of a system's own checks.
const CHECK_LIMIT: Duration = Duration::from_secs(300);

pub struct Nixos {
    layout: Layout,
    activator: Vec<String>,
    /// Where the unit that starts the activator at a boot is between switches.
    parked: PathBuf,
    compared: reboot::Compared,
}

impl Nixos {
    /// `activator` is the program to start, with its arguments.
    pub fn new(layout: Layout, activator: Vec<String>, state_dir: &Path) -> Self {
        let parked = state_dir.join("at-boot");
        Self { layout, activator, parked, compared: reboot::Compared::default() }
    }

    /// The agent's unit in `system`: a changed one is restarted.
    fn agent_unit(&self, system: &StorePath) -> Option<Vec<u8>> {
        let unit = self.layout.physical(system).join("etc/systemd/system").join(AGENT_UNIT);
        // In a NixOS system this is a link into the store, whose target says as much as the file.
        std::fs::read_link(&unit)
            .map(|text| text.into_os_string().into_encoded_bytes())
            .or_else(|_| std::fs::read(&unit))
            .ok()
    }

    /// A logind that lost its bus never answers again, and no switch completes: the next try of OLD needs a
    /// new one. A logind that was only slow is left alone, since a graphical session may not survive its
    /// restart.
    fn revive_logind(&self) {
        if ask(&self.layout, "loginctl", &["list-users", "--no-legend"]).is_ok() {
            return;
        }
        tracing::warn!("logind does not answer; restarting it");
        if let Err(error) = ask(&self.layout, "systemctl", &["restart", LOGIND_UNIT]) {
            tracing::warn!(%error, "logind cannot be restarted");
        }
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
        if let Some(id) = boot_id::of_stand_in(&self.layout) {
            return Ok(id);
        }
        std::fs::read_to_string(boot_id::LINUX)
            .map(|text| text.trim().to_owned())
            .map_err(|source| PlatformError::Run { program: boot_id::LINUX.to_owned(), source })
    }

    fn failed_units(&self) -> Result<Vec<String>, PlatformError> {
        units::failed(&self.layout)
    }

    fn failed_before(&self) -> Result<Vec<String>, PlatformError> {
        units::failed_or_restless(&self.layout)
    }

    /// Newer systems have `check`; older ones do not know the word, and check when they switch.
    fn preflight(&self, new: &StorePath, action: Action) -> Result<Preflight, PlatformError> {
        let script = self.script(new);
        if !script.is_file() {
            let words = format!("{new} is not a NixOS system: it has no bin/switch-to-configuration");
            return Ok(Preflight::Failed(words));
        }
        let mut check = self.switch(new, "check");
        // The current program takes one word, and checks as for a switch in any case.
        check.arg(action.as_str());
        let finished = finish(&self.layout, check, CHECK_LIMIT)?;
        let switches = matches!(action, Action::Switch | Action::Test);
        Ok(match messages::inhibitors(&finished.said) {
            _ if finished.exit == 0 => Preflight::Passed,
            Some(what) if switches => Preflight::Inhibited(what.join(", ")),
            Some(_) => Preflight::Passed,
            None if messages::check_failed(&finished.said) => {
                let what = "the system's own checks refused";
                Preflight::Failed(with_cause(what, &finished.output))
            }
            None => Preflight::Passed,
        })
    }

    /// A transient unit is outside the agent's cgroup: stopping the agent does not affect it. systemd
    /// restarts it if it is killed: a system that breaks the agent is undone all the same.
    fn start_activator(&self, generation: Generation) -> Result<(), PlatformError> {
        // A new name for each start: the unit of an earlier try of this generation may still exist.
        let start = muster_protocol::random::bytes::<4>().map(|bytes| to_hex(&bytes)).unwrap_or_default();
        let mut arguments = vec![
            format!("--unit=muster-activator-{generation}-{start}"),
            "--collect".to_owned(),
            "--no-ask-password".to_owned(),
            "--service-type=exec".to_owned(),
            "--property=Restart=on-failure".to_owned(),
            "--property=RestartSec=1".to_owned(),
            // While it runs the unit for the next boot has nothing to do, although a switch starts it too.
            format!("--property=RuntimeDirectory={}", resurrect::STARTED),
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
            tracing::warn!(%error, "after a reboot in mid-switch only the agent could undo this one");
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
        way: Way,
        limit: Duration,
    ) -> Result<Finished, PlatformError> {
        // A chosen specialisation is kept if the other system has it, as with `nixos-rebuild
        // --specialisation`: the profile is the base, and the specialisation's own script runs.
        let chosen = self.layout.specialisation().filter(|_| action != Action::Boot).and_then(|name| {
            let there = self.layout.specialisations(system).into_iter();
            there.into_iter().find(|(known, _)| *known == name).map(|(_, system)| system)
        });
        if let Some(chosen) = &chosen {
            tracing::info!(%chosen, "keeping the specialisation that runs");
        }
        let mut command = self.switch(chosen.as_ref().unwrap_or(system), action.as_str());
        if way == Way::Back {
            // OLD's pre-switch checks must not prevent going back to it, which would leave NEW running.
            command.env("NIXOS_NO_CHECK", "1");
        }
        let finished = finish(&self.layout, command, limit)?;
        if way == Way::Back && messages::lacks_logind(&finished.said) {
            self.revive_logind();
        }
        Ok(finished)
    }

    fn outcome(&self, finished: &Finished) -> Outcome {
        let held = || linux::holder(&self.layout.system(SWITCH_LOCK)).is_some();
        messages::outcome(finished.exit, &finished.said, held)
    }

    fn ailing(&self, finished: &Finished) -> Ailing {
        match self.outcome(finished) {
            Outcome::UnitsFailed => Ailing {
                units: messages::failed_units(&finished.said).into_iter().filter(is_not_ours).collect(),
                sessions: messages::failed_sessions(&finished.said),
            },
            _ => Ailing::default(),
        }
    }

    /// Where `check` did not say so, or did not exist.
    fn needs_human(&self, exit: i32, output: &str) -> Option<String> {
        let what = messages::inhibitors(output).filter(|_| exit != 0)?;
        Some(inhibited(&what.join(", ")))
    }

    fn script(&self, system: &StorePath) -> PathBuf {
        self.layout.physical(system).join("bin/switch-to-configuration")
    }

    /// The unit has `restartIfChanged = false`, so the switch itself leaves the agent alone. A changed unit
    /// is restarted here, so that the new agent confirms; this waits until the old one is gone.
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

    fn boots(&self) -> Option<BootFacts> {
        boots::facts(&self.layout)
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

/// The switch leaves the agent alone, so that its own unit says nothing of the new system: it was killed
/// meanwhile, and whoever judges this is the agent that was started again.
fn is_not_ours(unit: &String) -> bool {
    unit != AGENT_UNIT
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;

    use super::super::testing::{layout, script};
    use super::*;

    fn nixos(root: &Path) -> Nixos {
        let activator = ["/bin/muster-agent", "--config", "/etc/x.toml", "activate"];
        Nixos::new(layout(root, Class::Nixos), activator.map(str::to_owned).to_vec(), &root.join("state"))
    }

    fn path(name: &str) -> StorePath {
        format!("/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-{name}").parse().unwrap()
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
                 --property=Restart=on-failure --property=RestartSec=1 \
                 --property=RuntimeDirectory=muster-activator --setenv=NIXOS_INSTALL_BOOTLOADER=0"
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
        assert!(matches!(nixos.preflight(&new, Action::Switch).unwrap(), Preflight::Failed(_)));
        for (text, passes) in [
            ("test \"$1\" = check", true),
            ("echo 'Usage: switch-to-configuration [switch|boot]'; exit 1", true),
            ("echo 'Pre-switch checks failed: zfs'; exit 1", false),
        ] {
            script(&nixos.script(&new), text);
            assert_eq!(nixos.preflight(&new, Action::Switch).unwrap() == Preflight::Passed, passes, "{text}");
        }
    }

    #[test]
    fn a_system_that_is_not_for_a_running_machine_is_inhibited_and_one_for_the_next_boot_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let nixos = nixos(folder.path());
        let new = path("new");
        let text = "echo \"$@\" >> $0.asked\nprintf '%s\\n' 'Checking switch inhibitors...' \
            'There are changes to critical components of the system:' '' 'dbus-implementation : dbus -> \
            broker' '' \
            'Switching into this system is not recommended.' \"Pre-switch check 'switchInhibitors' failed\" \
            'Pre-switch checks failed'; exit 1";
        script(&nixos.script(&new), text);
        for action in [Action::Switch, Action::Test] {
            let expected = Preflight::Inhibited("dbus-implementation: dbus -> broker".to_owned());
            assert_eq!(nixos.preflight(&new, action).unwrap(), expected);
        }
        for action in [Action::Boot, Action::DryActivate] {
            assert_eq!(nixos.preflight(&new, action).unwrap(), Preflight::Passed);
        }
        let asked = std::fs::read_to_string(nixos.script(&new).with_extension("asked")).unwrap();
        assert_eq!(
            asked.lines().collect::<Vec<_>>(),
            ["check switch", "check test", "check boot", "check dry-activate"]
        );
        // Noticed only by the activator, it is not the derivation's fault either.
        let said = "There are changes to critical components of the system:\n\na : 1 -> 2\n";
        assert!(nixos.needs_human(1, said).unwrap().contains("a: 1 -> 2"));
        assert_eq!(nixos.needs_human(1, "Pre-switch checks failed"), None);
    }

    #[test]
    fn an_agent_that_was_killed_during_the_switch_is_no_unit_that_the_new_system_broke() {
        let folder = tempfile::tempdir().unwrap();
        let nixos = nixos(folder.path());
        let new = path("new");
        let text = "printf '%s\\n' 'activating the configuration...' \
            'warning: the following units failed: backup.service, muster-agent.service' >&2; exit 4";
        script(&nixos.script(&new), text);
        let finished = nixos.activate(&new, Action::Switch, Way::Forth, CHECK_LIMIT).unwrap();
        assert_eq!(nixos.ailing(&finished).units, ["backup.service"]);
    }

    #[test]
    fn on_the_way_back_nothing_that_old_checks_first_stops_it() {
        let folder = tempfile::tempdir().unwrap();
        let nixos = nixos(folder.path());
        let old = path("old");
        script(&nixos.script(&old), "test \"$NIXOS_NO_CHECK\" = 1");
        let exit = |way| nixos.activate(&old, Action::Switch, way, CHECK_LIMIT).unwrap().exit;
        assert_eq!((exit(Way::Forth), exit(Way::Back)), (1, 0));
    }

    #[test]
    fn on_the_way_back_a_logind_that_does_not_answer_is_restarted_for_the_next_try() {
        let folder = tempfile::tempdir().unwrap();
        let nixos = nixos(folder.path());
        let asked = folder.path().join("programs/systemctl.asked");
        script(&folder.path().join("programs/systemctl"), "echo \"$@\" >> $0.asked");
        let loginctl = folder.path().join("programs/loginctl");
        script(&loginctl, "exit 0");
        let old = path("old");
        let text = format!(
            "test -e {} || {{ echo 'Unable to list users with logind: timed out'; exit 11; }}",
            asked.display()
        );
        script(&nixos.script(&old), &text);
        let exit = |way| nixos.activate(&old, Action::Switch, way, CHECK_LIMIT).unwrap().exit;
        assert_eq!([exit(Way::Forth), exit(Way::Back)], [11, 11]);
        assert!(!asked.exists(), "one that answers by now is left alone");
        script(&loginctl, "exit 1");
        assert_eq!([exit(Way::Forth), exit(Way::Back), exit(Way::Back)], [11, 11, 0]);
        assert_eq!(std::fs::read_to_string(asked).unwrap(), "restart systemd-logind.service\n");
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
