//! Facts from Linux itself: battery, memory, metered networks, and who holds a lock.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::layout::Layout;
use super::programs::run;

const SUPPLIES: &str = "/sys/class/power_supply";
const MEMORY: &str = "/proc/meminfo";
/// The locks of the whole computer, also for a machine in a folder.
const LOCKS: &str = "/proc/locks";
const NETWORK_MANAGER: [&str; 5] = [
    "get-property",
    "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager",
    "Metered",
];

/// The charge of the fullest battery in percent, while no other supply is connected. A mouse's battery does
/// not count.
pub fn on_battery(layout: &Layout) -> Option<u8> {
    let folder = std::fs::read_dir(layout.system(SUPPLIES)).ok()?;
    let (mut charge, mut supplied) = (None, false);
    for supply in folder.flatten().map(|entry| entry.path()) {
        let read = |name: &str| {
            std::fs::read_to_string(supply.join(name)).map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        match read("type").as_str() {
            "Battery" if read("scope") != "Device" => {
                supplied |= read("status") == "Charging";
                charge = charge.max(read("capacity").parse::<u8>().ok());
            }
            "Battery" => {}
            _ => supplied |= read("online") == "1",
        }
    }
    charge.filter(|_| !supplied)
}

/// The memory still available to programs, in bytes.
pub fn free_memory(layout: &Layout) -> Option<u64> {
    let text = std::fs::read_to_string(layout.system(MEMORY)).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// According to NetworkManager (`NM_METERED_YES` and `NM_METERED_GUESS_YES`). Without it nothing is metered.
pub fn metered(layout: &Layout) -> bool {
    run(layout, "busctl", &NETWORK_MANAGER)
        .is_ok_and(|asked| asked.exit == 0 && matches!(asked.output.trim(), "u 1" | "u 3"))
}

/// The process that holds a lock on this file. Read from a list: trying the lock would hold it for a moment,
/// and make a program that wants it just then fail.
pub fn holder(file: &Path) -> Option<String> {
    let data = std::fs::metadata(file).ok()?;
    let list = std::fs::read_to_string(LOCKS).ok()?;
    let pid = list.lines().find_map(|line| holds(line, data.dev(), data.ino()))?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(match name.trim() {
        "" => format!("process {pid}"),
        name => format!("{name} (process {pid})"),
    })
}

/// `1: FLOCK ADVISORY WRITE 812 fd:01:1234 0 EOF`; a line with `->` waits for the one above it.
fn holds(line: &str, device: u64, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1).skip_while(|word| *word != "WRITE" && *word != "READ");
    let pid = words.nth(1)?.parse().ok()?;
    let mut place = words.next()?.split(':');
    let number = |text: Option<&str>| u64::from_str_radix(text?, 16).ok();
    let (major, minor) = (number(place.next())?, number(place.next())?);
    // Linux's makedev(3); rustix's type for it differs between systems.
    let of_line = ((major & 0xfff) << 8) | (minor & 0xff) | ((minor & !0xff) << 12);
    let same = of_line == device && place.next()?.parse() == Ok(inode) && !line.contains("->");
    same.then_some(pid)
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;
    use rustix::fs::FlockOperation;

    use super::super::testing::{layout, script};
    use super::*;

    fn supply(root: &Path, name: &str, facts: &[(&str, &str)]) {
        let folder = root.join("sys/class/power_supply").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in facts {
            std::fs::write(folder.join(name), format!("{text}\n")).unwrap();
        }
    }

    #[test]
    fn a_machine_is_on_battery_only_while_nothing_else_supplies_it() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        assert_eq!(on_battery(&layout), None, "a server");
        supply(folder.path(), "AC", &[("type", "Mains"), ("online", "0")]);
        supply(folder.path(), "BAT0", &[("type", "Battery"), ("capacity", "41"), ("status", "Discharging")]);
        supply(folder.path(), "mouse", &[("type", "Battery"), ("scope", "Device"), ("capacity", "99")]);
        assert_eq!(on_battery(&layout), Some(41));
        supply(folder.path(), "AC", &[("online", "1")]);
        assert_eq!(on_battery(&layout), None);
        supply(folder.path(), "AC", &[("online", "0")]);
        supply(folder.path(), "BAT0", &[("status", "Charging")]);
        assert_eq!(on_battery(&layout), None, "by a cable that tells nothing of itself");
    }

    #[test]
    fn memory_is_what_can_still_be_had() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        assert_eq!(free_memory(&layout), None);
        std::fs::create_dir_all(folder.path().join("proc")).unwrap();
        std::fs::write(folder.path().join("proc/meminfo"), "MemTotal:  8000 kB\nMemAvailable:    512 kB\n")
            .unwrap();
        assert_eq!(free_memory(&layout), Some(512 * 1024));
    }

    #[test]
    fn a_network_is_paid_for_when_its_manager_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        for (text, expected) in
            [("echo u 1", true), ("echo u 3", true), ("echo u 2", false), ("exit 1", false)]
        {
            script(&folder.path().join("programs/busctl"), text);
            assert_eq!(metered(&layout), expected, "{text}");
        }
    }

    #[test]
    fn who_holds_a_lock_is_found_without_touching_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert_eq!(holder(&path), None);
        let file = std::fs::File::create(&path).unwrap();
        assert_eq!(holder(&path), None);
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        // In a process namespace the list may give its holder another number, or omit it.
        let listed = std::fs::read_to_string(LOCKS).unwrap_or_default();
        let inode = format!(":{} ", std::fs::metadata(&path).unwrap().ino());
        if listed.contains(&inode) {
            assert!(holder(&path).unwrap().contains("process "));
        }
        // Closing is not enough: a child of another test has the file open until it executes its program.
        rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
        assert_eq!(holder(&path), None);
    }

    #[test]
    fn lines_of_the_list_of_locks_are_read() {
        let line = "3: FLOCK  ADVISORY  WRITE 812 fe:01:4660 0 EOF";
        assert_eq!(holds(line, 0xfe01, 4660), Some(812));
        assert_eq!(holds(line, 0xfe01, 4661), None);
        assert_eq!(holds("3: -> FLOCK  ADVISORY  WRITE 9 fe:01:4660 0 EOF", 0xfe01, 4660), None);
        assert_eq!(holds("garbage", 1, 1), None);
    }
}
