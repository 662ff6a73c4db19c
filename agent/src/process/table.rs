//! The process table: from /proc where there is one, else from ps(1).

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::Duration;

/// The unit of times in /proc, whatever the kernel's own clock (`USER_HZ`, proc(5)).
const TICKS_PER_SECOND: u64 = 100;

/// One line of the process table. `words` are the program and its arguments, separated by zero bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
    pub session: Option<i32>,
    /// The user it runs as, if known.
    pub user: Option<u32>,
    pub age: Duration,
    pub words: String,
}

/// All processes: from /proc if it exists, else from `ps`, which knows no sessions.
pub fn table() -> io::Result<Vec<Process>> {
    if cfg!(target_os = "linux") { from_proc() } else { from_ps() }
}

fn from_proc() -> io::Result<Vec<Process>> {
    let mut table = Vec::new();
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let uptime = uptime.split(' ').next().and_then(|seconds| seconds.parse::<f64>().ok()).unwrap_or_default();
    let uptime = Duration::try_from_secs_f64(uptime).unwrap_or_default();
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        // A process that ends while it is being read is no error.
        let Ok(stat) = std::fs::read_to_string(folder.join("stat")) else { continue };
        let Some(mut process) = parse_stat(&stat) else { continue };
        // Until here it holds the start time since the boot.
        process.age = uptime.saturating_sub(process.age);
        process.user = std::fs::metadata(&folder).ok().map(|facts| facts.uid());
        process.words = std::fs::read(folder.join("cmdline"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        table.push(process);
    }
    Ok(table)
}

/// `PID (NAME) STATE PARENT GROUP SESSION …`; the name may contain blanks and brackets itself. The 22nd field
/// is the start time, in ticks since the boot, returned here as the age.
fn parse_stat(stat: &str) -> Option<Process> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let began =
        rest.split(' ').nth(19).and_then(|ticks| ticks.trim().parse::<u64>().ok()).unwrap_or_default();
    let mut fields = rest.split(' ').skip(1).map(str::parse::<i32>);
    Some(Process {
        pid: head.split(' ').next()?.parse().ok()?,
        parent: fields.next()?.ok()?,
        group: fields.next()?.ok()?,
        session: Some(fields.next()?.ok()?),
        user: None,
        age: Duration::from_secs(began / TICKS_PER_SECOND),
        words: String::new(),
    })
}

fn from_ps() -> io::Result<Vec<Process>> {
    let output =
        Command::new("ps").args(["-A", "-ww", "-o", "pid=,ppid=,pgid=,uid=,etime=,args="]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(parse_ps).collect())
}

fn parse_ps(line: &str) -> Option<Process> {
    let mut fields = line.split_whitespace();
    let mut number = || fields.next()?.parse().ok();
    let (pid, parent, group) = (number()?, number()?, number()?);
    let user = fields.next()?.parse().ok();
    let age = elapsed(fields.next()?)?;
    let words = fields.collect::<Vec<_>>().join("\0");
    Some(Process { pid, parent, group, session: None, user, age, words })
}

/// `[[DAYS-]HOURS:]MINUTES:SECONDS`, as in ps(1).
fn elapsed(text: &str) -> Option<Duration> {
    let (days, time) = text.split_once('-').unwrap_or(("0", text));
    let days: u32 = days.parse().ok()?;
    let seconds = time.split(':').try_fold(0_u32, |sum, part| {
        let part: u32 = part.parse().ok()?;
        sum.checked_mul(60)?.checked_add(part)
    })?;
    Some(Duration::from_secs(u64::from(days) * 86_400 + u64::from(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_process_table_are_read() {
        let process = parse_stat("12 (a b) c)) S 1 12 11 0 -1 4194304 99").unwrap();
        assert_eq!((process.pid, process.parent, process.group, process.session), (12, 1, 12, Some(11)));
        let process = parse_ps("  412     1   412     0 1-02:03:04 /bin/sh /nix/store/x/activate").unwrap();
        assert_eq!((process.user, process.age), (Some(0), Duration::from_secs(93_784)));
        assert_eq!((process.pid, process.parent, process.group, process.session), (412, 1, 412, None));
        assert_eq!(process.words, "/bin/sh\0/nix/store/x/activate");
        assert!(parse_stat("garbage").is_none() && parse_ps("garbage").is_none());
    }
}
