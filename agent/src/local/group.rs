//! A group's number, as the machine's own programs know it: groups may come from a directory.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::process;

const LIMIT: Duration = Duration::from_secs(30);

/// The ID of a group of this machine, or why there is none.
pub fn id(group: &str) -> Result<u32, String> {
    let mut command = if cfg!(target_os = "macos") {
        let mut command = Command::new("dscl");
        command.args([".", "-read", &format!("/Groups/{group}"), "PrimaryGroupID"]);
        command
    } else {
        let mut command = Command::new("getent");
        command.args(["group", group]);
        command
    };
    match process::run(&mut command, LIMIT, Path::new("/tmp")) {
        Ok(finished) if finished.exit == 0 => {
            parse(&finished.output).ok_or_else(|| "its number is not understood".to_owned())
        }
        Ok(_) => Err("this machine has no such group".to_owned()),
        // A minimal system has the file but not the program.
        Err(_) => {
            let file = std::fs::read_to_string("/etc/group").unwrap_or_default();
            let line = file.lines().find(|line| line.split(':').next() == Some(group));
            line.and_then(parse).ok_or_else(|| "this machine has no such group".to_owned())
        }
    }
}

/// `wheel:x:10:alice`, or `PrimaryGroupID: 80`.
fn parse(text: &str) -> Option<u32> {
    let text = text.trim();
    match text.strip_prefix("PrimaryGroupID:") {
        Some(number) => number.trim().parse().ok(),
        None => text.lines().next()?.split(':').nth(2)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_groups_number_are_read() {
        assert_eq!(parse("wheel:x:10:alice,bob\n"), Some(10));
        assert_eq!(parse("PrimaryGroupID: 80\n"), Some(80));
        assert_eq!(parse("garbage"), None);
    }

    #[test]
    fn a_group_is_found_by_its_name_or_said_to_be_missing() {
        assert_eq!(id("daemon"), Ok(1));
        assert!(id("no-such-group-here").unwrap_err().contains("no such group"));
    }
}
