//! A Mac's battery, memory and network, and how to keep it awake. Based on the manuals of pmset(1),
//! caffeinate(8), route(8) and ifconfig(8).

use std::process::Stdio;

use super::super::layout::Layout;
use super::super::programs::ask;
use super::super::system::Awake;

/// Keeps the machine from sleeping while this process lives, with the lid open or closed as far as macOS
/// allows; `caffeinate` also ends by itself with this process.
pub fn keep_awake(layout: &Layout) -> Option<Awake> {
    let own = std::process::id().to_string();
    let mut command = layout.command("caffeinate");
    command.args(["-i", "-m", "-s", "-w", &own]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        Ok(program) => Some(Awake { program }),
        Err(error) => {
            tracing::warn!(%error, "caffeinate cannot be run: the Mac may go to sleep while it switches");
            None
        }
    }
}

pub fn on_battery(layout: &Layout) -> Option<u8> {
    charge(&ask(layout, "pmset", &["-g", "batt"]).ok()?)
}

/// The charge in `Now drawing from 'Battery Power' … 87%; discharging; …`.
fn charge(text: &str) -> Option<u8> {
    if !text.contains("'Battery Power'") {
        return None;
    }
    let (before, _) = text.split_once('%')?;
    before.rsplit(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// The share of memory that the system calls free.
pub fn free_memory(layout: &Layout) -> Option<u64> {
    let text = ask(layout, "sysctl", &["-n", "hw.memsize", "kern.memorystatus_level"]).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let (all, share) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    u64::try_from(u128::from(all) * u128::from(share.min(100)) / 100).ok()
}

/// Whether the interface of the default route is marked as metered (a phone's), or is in Low Data Mode.
pub fn metered(layout: &Layout) -> bool {
    let Ok(route) = ask(layout, "route", &["-n", "get", "default"]) else { return false };
    let Some(interface) = route.lines().find_map(|line| line.trim().strip_prefix("interface:")) else {
        return false;
    };
    let shown = ask(layout, "ifconfig", &["-v", interface.trim()]).unwrap_or_default();
    ["EXPENSIVE", "CONSTRAINED"]
        .iter()
        .any(|flag| shown.split(['<', ',', '>', ' ', '\n', '\t']).any(|word| word == *flag))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muster_protocol::clock::{Clock as _, SystemClock};
    use muster_protocol::machine::Class;

    use super::super::super::testing::{layout, script};
    use super::*;

    #[test]
    fn a_mac_is_on_battery_when_it_draws_from_it() {
        let battery = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=4653155)\t87%; \
            discharging; 4:10 remaining\n";
        assert_eq!(charge(battery), Some(87));
        assert_eq!(charge(&battery.replace("Battery Power", "AC Power")), None);
        assert_eq!(charge("Now drawing from 'AC Power'\n"), None, "a Mac mini");
        assert_eq!(charge("Now drawing from 'Battery Power'"), None);
    }

    #[test]
    fn memory_and_network_are_asked_of_their_programs() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Darwin);
        let programs = folder.path().join("programs");
        script(&programs.join("sysctl"), "printf '17179869184\\n25\\n'");
        assert_eq!(free_memory(&layout), Some(17_179_869_184 / 4));
        script(&programs.join("sysctl"), "exit 1");
        assert_eq!(free_memory(&layout), None);
        script(&programs.join("route"), "echo '   route to: default'; echo '  interface: en5'");
        for (flags, expected) in
            [("ACCEPT_RTADV,EXPENSIVE", true), ("ACCEPT_RTADV", false), ("NOEXPENSIVE", false)]
        {
            let text = format!(
                "test \"$2\" = en5 && echo 'en5: flags=8863<UP> mtu 1500'; echo ' eflags=1<{flags}>'"
            );
            script(&programs.join("ifconfig"), &text);
            assert_eq!(metered(&layout), expected, "{flags}");
        }
    }

    #[test]
    fn failure_mode_40_a_mac_is_kept_awake_until_the_guard_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Darwin);
        assert!(folder.path().join("programs").is_dir());
        script(&folder.path().join("programs/caffeinate"), "echo \"$@\" > $0.asked; exec sleep 300");
        let awake = keep_awake(&layout).unwrap();
        let asked = folder.path().join("programs/caffeinate.asked");
        let clock = SystemClock::new();
        let arguments = || std::fs::read_to_string(&asked).unwrap_or_default();
        // The shell makes the file first, and writes to it then.
        while !arguments().ends_with('\n') && clock.awake() < Duration::from_secs(60) {
            std::thread::yield_now();
        }
        assert_eq!(arguments(), format!("-i -m -s -w {}\n", std::process::id()));
        let pid = awake.program.id();
        drop(awake);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "it is ended, and reaped");
    }
}
