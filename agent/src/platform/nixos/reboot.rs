//! Whether NixOS needs a reboot, and what prevents one.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use muster_protocol::ids::StorePath;

use super::super::layout::Layout;
use super::super::programs::{PlatformError, ask, run};
use crate::core::reboot::Due;
use crate::durable;

/// What only a boot brings; the parts of a system that are compared.
const PARTS: [&str; 3] = ["initrd", "kernel", "kernel-modules"];
const BOOTED: &str = "/run/booted-system";
/// Something else a running system cannot change: `switch-to-configuration` refuses with 100.
const INIT: &str = "init-interface-version";
const MAX_INIT_BYTES: u64 = 4096;

/// The comparison of two systems, which never change: it is needed before each step.
#[derive(Default)]
pub struct Compared(Mutex<Option<([StorePath; 3], Option<Due>)>>);

impl Compared {
    /// The parts in which the profile differs from what was booted, and from what runs.
    pub fn due(&self, layout: &Layout) -> Option<Due> {
        let profile = layout.profile_target()?;
        let booted = layout.resolve(layout.system(BOOTED))?;
        let running = layout.running().unwrap_or_else(|| profile.clone());
        let systems = [booted, profile, running];
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((compared, due)) if *compared == systems => due.clone(),
            _ => {
                let due = compare(layout, &systems);
                *held = Some((systems, due.clone()));
                due
            }
        }
    }
}

fn compare(layout: &Layout, systems: &[StorePath; 3]) -> Option<Due> {
    let [booted, profile, running] = systems.each_ref().map(|system| layout.physical(system));
    let part = |system: &Path, name: &str| std::fs::read_link(system.join(name)).ok();
    let init =
        |system: &Path| durable::read(&system.join(INIT), MAX_INIT_BYTES).ok().flatten().unwrap_or_default();
    let mut what: Vec<String> = PARTS
        .into_iter()
        .filter(|name| part(&booted, name) != part(&profile, name))
        .map(str::to_owned)
        .collect();
    let texts = PARTS.map(|name| part(&profile, name).unwrap_or_default().to_string_lossy().into_owned());
    let (mut mark, wanted) = (texts.join(" "), init(&profile));
    if wanted != init(&running) {
        what.push("init".to_owned());
        mark = format!("{mark} {}", String::from_utf8_lossy(&wanted));
    }
    if what.is_empty() { None } else { Some(Due { what, mark }) }
}

/// People who are logged in, and what inhibits a reboot.
pub fn blockers(layout: &Layout) -> Result<Vec<String>, PlatformError> {
    let sessions = ask(layout, "loginctl", &["list-sessions", "--no-legend", "--no-pager"])?;
    let ids: Vec<&str> = sessions.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let mut blockers = Vec::new();
    if !ids.is_empty() {
        let facts = ["--property=Name", "--property=Class", "--property=State", "--property=TTY"];
        let arguments = [&["show-session"][..], &ids, &facts].concat();
        // A session that has just ended is an error of loginctl's, in addition to its answer about the
        // others.
        blockers.extend(people(&run(layout, "loginctl", &arguments)?.said));
    }
    let arguments = ["--list", "--no-legend", "--no-pager"];
    blockers.extend(inhibitors(&ask(layout, "systemd-inhibit", &arguments)?));
    Ok(blockers)
}

/// Blocks of `KEY=VALUE`, one per session. Greeters, and processes of users who are away, are not people.
fn people(text: &str) -> Vec<String> {
    let block = |block: &str| {
        let fact = |key: &str| {
            block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
        };
        let here = fact("Class") == "user" && fact("State") != "closing" && !fact("Name").is_empty();
        here.then(|| match fact("TTY") {
            "" => format!("{} is logged in", fact("Name")),
            tty => format!("{} is logged in ({tty})", fact("Name")),
        })
    };
    text.split("\n\n").filter_map(block).collect()
}

/// Lines of `WHO UID USER PID COMM WHAT WHY MODE`, in which WHO and WHY may contain blanks: WHAT is the one
/// word that consists only of things that can be inhibited.
fn inhibitors(text: &str) -> Vec<String> {
    const KINDS: [&str; 8] = [
        "shutdown",
        "sleep",
        "idle",
        "handle-power-key",
        "handle-suspend-key",
        "handle-hibernate-key",
        "handle-lid-switch",
        "handle-reboot-key",
    ];
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let what = words.iter().position(|word| word.split(':').all(|kind| KINDS.contains(&kind)))?;
        let blocks = words[what].split(':').any(|kind| kind == "shutdown") && words.last() == Some(&"block");
        let (who, why) = (words.first()?, words.get(what + 1..words.len().saturating_sub(1))?.join(" "));
        blocks.then(|| format!("{who} inhibits it: {why}"))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use muster_protocol::machine::Class;

    use super::super::super::testing::{layout, script};
    use super::*;
    use crate::core::records::tests::path;

    fn system(layout: &Layout, name: &str, kernel: &str, initrd: &str) {
        let folder = layout.physical(&path(name));
        std::fs::create_dir_all(&folder).unwrap();
        for (part, of) in [("kernel", kernel), ("initrd", initrd), ("kernel-modules", kernel)] {
            symlink(format!("/nix/store/{of}/{part}"), folder.join(part)).unwrap();
        }
    }

    #[test]
    fn a_reboot_is_due_while_the_profile_has_another_kernel_initrd_or_modules_than_what_was_booted() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        system(&layout, "booted", "linux-6.1", "initrd-1");
        system(&layout, "same", "linux-6.1", "initrd-1");
        system(&layout, "initrd", "linux-6.1", "initrd-2");
        system(&layout, "kernel", "linux-6.6", "initrd-2");
        std::fs::create_dir_all(layout.profile().parent().unwrap()).unwrap();
        std::fs::create_dir_all(layout.system("/run")).unwrap();
        let compared = Compared::default();
        assert_eq!(compared.due(&layout), None, "what was booted is not known");
        symlink(path("booted").as_str(), layout.system(BOOTED)).unwrap();
        let mut marks = Vec::new();
        for (name, what) in
            [("same", &[][..]), ("initrd", &["initrd"]), ("kernel", &["initrd", "kernel", "kernel-modules"])]
        {
            let _ = std::fs::remove_file(layout.profile());
            symlink(path(name).as_str(), layout.profile()).unwrap();
            let due = compared.due(&layout);
            assert_eq!(compared.due(&layout), due, "the second time too");
            assert_eq!(due.as_ref().map_or(&[][..], |due| &due.what), what, "{name}");
            marks.extend(due.map(|due| due.mark));
        }
        assert_ne!(marks[0], marks[1]);
    }

    #[test]
    fn a_reboot_is_due_while_the_profile_has_another_init_than_what_runs() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        for (name, init) in [("booted", "1"), ("old", "1"), ("new", "2")] {
            system(&layout, name, "linux-6.1", "initrd-1");
            std::fs::write(layout.physical(&path(name)).join(INIT), init).unwrap();
        }
        std::fs::create_dir_all(layout.profile().parent().unwrap()).unwrap();
        std::fs::create_dir_all(layout.system("/run")).unwrap();
        symlink(path("booted").as_str(), layout.system(BOOTED)).unwrap();
        symlink(path("old").as_str(), layout.profile()).unwrap();
        let compared = Compared::default();
        for (running, what) in [("new", &["init"][..]), ("old", &[])] {
            let _ = std::fs::remove_file(layout.current_system());
            symlink(path(running).as_str(), layout.current_system()).unwrap();
            let due = compared.due(&layout);
            assert_eq!(due.as_ref().map_or(&[][..], |due| &due.what), what, "{running} runs");
        }
    }

    #[test]
    fn people_block_a_reboot_and_greeters_and_the_machines_own_sessions_do_not() {
        let text = "Name=alice\nClass=user\nState=active\nTTY=tty2\n\n\
            Name=gdm\nClass=greeter\nState=online\nTTY=tty1\n\n\
            Name=bob\nClass=user\nState=closing\nTTY=pts/1\n\n\
            Name=carol\nClass=manager\nState=active\nTTY=\n\n\
            Name=dora\nClass=user\nState=online\nTTY=\n";
        assert_eq!(people(text), ["alice is logged in (tty2)", "dora is logged in"]);
    }

    #[test]
    fn what_blocks_a_shutdown_blocks_a_reboot_and_what_only_delays_it_does_not() {
        // Output of systemd 252.
        let text = "\
ModemManager   0 root 700 ModemManager   sleep                          ModemManager needs to reset devices \
delay
Unattended Upg 0 root 801 unattended-upg shutdown                       Stop ongoing upgrades or perform \
upgrades before shutdown delay
backup job     0 root 922 borg           shutdown:sleep                 A backup is under way block
alice's player 9 al   950 mpv            idle                           Playing block
";
        assert_eq!(inhibitors(text), ["backup inhibits it: A backup is under way"]);
        assert_eq!(inhibitors(""), Vec::<String>::new());
    }

    #[test]
    fn sessions_and_inhibitors_are_asked_of_systemd() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        let programs = folder.path().join("programs");
        script(&programs.join("systemd-inhibit"), "true");
        script(&programs.join("loginctl"), "true");
        assert_eq!(blockers(&layout).unwrap(), Vec::<String>::new());
        let text = "case $1 in list-sessions) echo ' 4 1000 alice seat0 tty2'; echo ' 7 0 root -';; \
            show-session) test \"$2 $3\" = '4 7' && printf 'Name=alice\\nClass=user\\nState=active\\n'; exit \
            1;; esac";
        script(&programs.join("loginctl"), text);
        assert_eq!(blockers(&layout).unwrap(), ["alice is logged in"]);
        script(&programs.join("systemd-inhibit"), "echo 'Failed to connect to bus' >&2; exit 1");
        assert!(blockers(&layout).unwrap_err().to_string().contains("Failed to connect"));
    }
}
