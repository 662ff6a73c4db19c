//! The line of a program's output that says why it failed.
//!
//! The first line is usually chatter, and the last one only names the step that failed.

/// The longest cause that is reported, in characters; the full output follows it.
const LONGEST: usize = 400;

/// What `switch-to-configuration`, `activate` and their tools print along the way, whatever the result.
const CHATTER: [&str; 22] = [
    "Checking switch inhibitors...",
    "Not checking switch inhibitors",
    "updating GRUB",
    "activating the configuration...",
    "setting up ",
    "stopping the following ",
    "NOT restarting the following ",
    "restarting the following ",
    "restarting systemd...",
    "restarting sysinit-reactivation.target",
    "reloading the following ",
    "reloading user units for ",
    "starting the following ",
    "the following new units were started:",
    "WARN: restarting or reloading systemd units",
    "stopping swap device:",
    "running activation script",
    "configuring ",
    "Switching into this system",
    "You probably want to run",
    "If you really want to switch",
    "you can set NIXOS_NO_CHECK",
];

/// Lines that only say which step failed; the reason is above them.
const STEPS: [&str; 6] = [
    "Pre-switch check",
    "Failed to install bootloader",
    "Failed to run activate script",
    "Activation script snippet ",
    "warning: the following units failed:",
    "warning: the following user units failed:",
];

/// Words that mark a line as an error.
const WRONG: [&str; 11] = [
    "error",
    "fail",
    "cannot",
    "can't",
    "could not",
    "denied",
    "no such",
    "not found",
    "timed out",
    "unable",
    "no space",
];

/// The cause in one line, with the failed step if the output names one; `None` for empty output.
pub fn cause(output: &str) -> Option<String> {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let reason = chain(&lines).or_else(|| of_step(&lines)).or_else(|| of_all(&lines))?;
    Some(reason.chars().take(LONGEST).collect())
}

/// The cause goes into the first line, which is all that a table shows; the output follows.
pub fn with_cause(what: &str, output: &str) -> String {
    let output = output.trim();
    match cause(output) {
        Some(cause) if cause == output => format!("{what}: {cause}"),
        Some(cause) => format!("{what}: {cause}\n{output}"),
        None => format!("{what}, and said nothing"),
    }
}

/// `Error: WHAT`, `Caused by:` and the causes, as Rust programs end.
fn chain(lines: &[&str]) -> Option<String> {
    let at = lines.iter().rposition(|line| line.starts_with("Error: "))?;
    let what = lines[at].trim_start_matches("Error: ").to_owned();
    let causes = lines[at + 1..].strip_prefix(&["Caused by:"]).unwrap_or_default();
    let parts = std::iter::once(what).chain(causes.iter().map(|line| unnumbered(line).to_owned()));
    Some(parts.collect::<Vec<_>>().join(": "))
}

/// Several causes are numbered: `0: …`.
fn unnumbered(line: &str) -> &str {
    match line.split_once(": ") {
        Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => line,
    }
}

/// The last line before a step was reported as failed, and that step.
fn of_step(lines: &[&str]) -> Option<String> {
    let at = lines.iter().position(|line| starts(line, &STEPS))?;
    let before = wrong(&lines[..at]).or_else(|| said(&lines[..at]).last().copied());
    Some(before.map_or_else(|| lines[at].to_owned(), |before| format!("{before}; {}", lines[at])))
}

fn of_all(lines: &[&str]) -> Option<String> {
    let last = wrong(lines).or_else(|| said(lines).last().copied()).or_else(|| lines.last().copied());
    last.map(str::to_owned)
}

/// The last line that reports an error.
fn wrong<'a>(lines: &[&'a str]) -> Option<&'a str> {
    let says = |line: &&&str| {
        let line = line.to_ascii_lowercase();
        WRONG.iter().any(|word| line.contains(word))
    };
    said(lines).iter().rev().find(says).copied()
}

fn said<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    lines.iter().filter(|line| !starts(line, &CHATTER)).copied().collect()
}

fn starts(line: &str, words: &[&str]) -> bool {
    words.iter().any(|word| line.starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_the_line_that_says_what_is_wrong_and_never_the_chatter_before_it() {
        for (output, expected) in [
            (
                "Checking switch inhibitors... done\nactivating the configuration...\nsetting up /etc...\n\
                 cp: cannot create regular file '/etc/x': Permission denied\n\
                 Activation script snippet 'x' failed (1)\nFailed to run activate script\nreloading user \
                 units for a...\n",
                "cp: cannot create regular file '/etc/x': Permission denied; Activation script snippet 'x' \
                 failed (1)",
            ),
            (
                "Checking switch inhibitors... done\nefibootmgr: no space left on device\nInstalled nothing\n\
                 Failed to install bootloader\n",
                "efibootmgr: no space left on device; Failed to install bootloader",
            ),
            (
                "Checking switch inhibitors... done\nthe pool is degraded\nPre-switch check 'zfs' \
                 failed\nPre-switch checks failed\n",
                "the pool is degraded; Pre-switch check 'zfs' failed",
            ),
            (
                "Checking switch inhibitors... done\nactivating the configuration...\n\
                 Error: Failed to process dbus messages\n\nCaused by:\n    0: D-Bus error\n    1: \
                 Disconnected from D-Bus\n",
                "Failed to process dbus messages: D-Bus error: Disconnected from D-Bus",
            ),
            ("Error: one\n\nCaused by:\n    another\n", "one: another"),
            (
                "Checking switch inhibitors... done\nactivating the configuration...\n\
                 Unable to list users with logind: Resource temporarily unavailable\n",
                "Unable to list users with logind: Resource temporarily unavailable",
            ),
            ("error: the first\nerror: the last\ncleaning up\n", "error: the last"),
            ("one\ntwo\n", "two"),
            ("activating the configuration...\n", "activating the configuration..."),
            ("Failed to run activate script\n", "Failed to run activate script"),
        ] {
            assert_eq!(cause(output).as_deref(), Some(expected), "{output}");
        }
        assert_eq!(cause("\n  \n"), None);
        assert_eq!(cause(&"é".repeat(5000)).unwrap().chars().count(), LONGEST);
    }
}
