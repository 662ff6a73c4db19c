//! Runs a program to its end, or to a limit and then ends everything that it started.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::core::backoff::look;
use crate::nix::free_bytes;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::report::MAX_LOG_TAIL;
use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};

/// How much of a program's output is looked through for what its exit code does not say.
const MAX_SAID: u64 = 256 * 1024;
/// With less than this free no words are kept.
const ROOM_FOR_WORDS: u64 = 1024 * 1024;
/// How long a process has to end by itself after it was asked to.
const GRACE: Duration = Duration::from_secs(2);
/// The longest pause between two looks at a child.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Of the times in /proc, whatever the kernel's own clock (`USER_HZ`, proc(5)).
const TICKS_PER_SECOND: u64 = 100;

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its exit code, or 128 and the number of the signal that ended it.
    pub exit: i32,
    /// The end of what it wrote, as much as is told of it.
    pub output: String,
    /// More of the same.
    pub said: String,
    /// Whether it was ended at the limit.
    pub timed_out: bool,
}

/// Runs `command` in a process group of its own. `scratch` is a folder for its output.
///
/// The output goes to a file without a name rather than through a pipe: it outlives this process, so a program whose
/// watcher is killed does not die of writing, and a daemon that it leaves behind holds nothing up.
pub fn run(command: &mut Command, limit: Duration, scratch: &Path) -> io::Result<Finished> {
    // On a full disk a program is run without its words being kept: an undo must not depend on them.
    run_into(nameless(scratch).ok(), command, limit)
}

/// The same for one of the system's own programs, whose words are few and are kept in memory: it is asked often.
#[cfg(target_os = "linux")]
pub fn ask(command: &mut Command, limit: Duration, scratch: &Path) -> io::Result<Finished> {
    run_into(in_memory().or_else(|_| nameless(scratch)).ok(), command, limit)
}

#[cfg(not(target_os = "linux"))]
pub use run as ask;

fn run_into(mut output: Option<File>, command: &mut Command, limit: Duration) -> io::Result<Finished> {
    let clock = SystemClock::new();
    let end_of = || match &output {
        Some(file) => file.try_clone().map(Stdio::from),
        None => Ok(Stdio::null()),
    };
    command.stdin(Stdio::null()).stdout(end_of()?).stderr(end_of()?);
    let mut child = command.process_group(0).spawn()?;
    unprotect(child.id());
    let (status, timed_out) = match wait(&mut child, &clock, limit)? {
        Some(status) => (status, false),
        None => (end(&mut child, &clock)?, true),
    };
    let said = output.as_mut().and_then(|file| tail(file).ok()).unwrap_or_default();
    let mut from = said.len().saturating_sub(MAX_LOG_TAIL);
    while !said.is_char_boundary(from) {
        from += 1;
    }
    Ok(Finished { exit: exit_code(status), output: said[from..].to_owned(), said, timed_out })
}

/// How soon the kernel ends what the agent starts when memory runs out: before services, which have 0.
const OOM_SCORE: &str = "250";

/// Takes from a child that the kernel kills it last: that is the agent's alone, whose unit says so.
pub fn unprotect(pid: u32) {
    if cfg!(target_os = "linux") {
        // A child that has ended already needs nothing.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
    }
}

/// Whether the kernel holds another process to a limit of memory. That of macOS limits address space alone (RLIMIT_AS and
/// RLIMIT_DATA), of which a process has gigabytes before it begins, and a process sets it for itself; limits of what is in use
/// (jetsam) are Apple's own.
pub const LIMITS_MEMORY: bool = cfg!(target_os = "linux");

/// Holds a child to so much memory of its own. The kernel counts what may be written, so address space that is only
/// reserved is free.
#[cfg(target_os = "linux")]
pub fn limit_memory(pid: u32, bytes: u64) {
    use rustix::process::{Resource, Rlimit, prlimit};
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    if let Err(error) = prlimit(Some(pid), Resource::Data, limit) {
        tracing::debug!(%error, "a program has no memory limit");
    }
}

/// See [`LIMITS_MEMORY`].
#[cfg(not(target_os = "linux"))]
pub fn limit_memory(_: u32, _: u64) {}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

#[cfg(target_os = "linux")]
fn in_memory() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
    let file = File::from(memfd_create("output", MemfdFlags::CLOEXEC)?);
    // Both streams write to its end.
    fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

fn nameless(scratch: &Path) -> io::Result<File> {
    // A file can be made on a full disk, but a script under `set -e` ends at the first word that it cannot say.
    if free_bytes(scratch)? < ROOM_FOR_WORDS {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let number = u64::from_le_bytes(muster_protocol::random::bytes().map_err(io::Error::other)?);
    let path = scratch.join(format!(".output-{number:016x}"));
    let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn tail(file: &mut File) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_SAID)))?;
    let mut bytes = Vec::new();
    file.take(MAX_SAID).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The status of `child`, or `None` when it still runs at the end of `limit`.
fn wait(child: &mut Child, clock: &SystemClock, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let began = clock.awake();
    let end = began.saturating_add(limit);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let now = clock.awake();
        let left = end.saturating_sub(now);
        if left.is_zero() {
            return Ok(None);
        }
        std::thread::sleep(look(now.saturating_sub(began), LONGEST_PAUSE).min(left));
    }
}

/// Ends a child and all that it started, the hard way after [`GRACE`].
fn end(child: &mut Child, clock: &SystemClock) -> io::Result<ExitStatus> {
    let family = family(&table()?, own(), i32::try_from(child.id()).unwrap_or(i32::MAX));
    signal(&family, Signal::TERM);
    let ended = wait(child, clock, GRACE)?;
    signal(&family, Signal::KILL);
    match ended {
        Some(status) => Ok(status),
        None => child.wait(),
    }
}

/// Ends every process that was started as `script` by an activator that is gone, with all that it started.
pub fn end_leftovers(script: &Path) -> io::Result<()> {
    let table = table()?;
    let wanted = script.to_string_lossy();
    let own = own();
    for process in table.iter().filter(|process| process.pid != own) {
        if process.words.split('\0').any(|word| word == wanted) {
            tracing::warn!(pid = process.pid, "ending an activation that was left behind: {wanted}");
            signal(&family(&table, own, process.pid), Signal::KILL);
        }
    }
    Ok(())
}

/// Somebody else at work, in words for people, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    pub who: String,
    pub age: Duration,
}

/// Another process of this computer's root that has such a word among its program and arguments. What this process itself
/// started is none, and of what other users run nothing is believed: they may give a program any name.
pub fn find(wanted: impl Fn(&str) -> bool) -> io::Result<Option<Other>> {
    let table = table()?;
    Ok(other(&table, own(), rustix::process::geteuid().as_raw(), wanted))
}

/// The youngest one.
fn other(table: &[Process], own: i32, root: u32, wanted: impl Fn(&str) -> bool) -> Option<Other> {
    let mine = family(table, own, own);
    let others = table.iter().filter(|process| {
        process.user == Some(root) && process.pid != own && !mine.members.contains(&process.pid)
    });
    let found = others.filter_map(|process| {
        let word = process.words.split('\0').find(|word| wanted(word))?;
        Some(Other { who: format!("{word} (process {})", process.pid), age: process.age })
    });
    found.min_by_key(|other| other.age)
}

fn signal(family: &Family, signal: Signal) {
    for group in &family.groups {
        if let Some(group) = Pid::from_raw(*group) {
            let _ = kill_process_group(group, signal);
        }
    }
    for pid in &family.members {
        if let Some(pid) = Pid::from_raw(*pid) {
            let _ = kill_process(pid, signal);
        }
    }
}

fn own() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// One line of the process table. `words` are the program and its arguments, divided by zero bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: Option<i32>,
    /// Whose rights it has, where that is known.
    user: Option<u32>,
    age: Duration,
    words: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Family {
    groups: BTreeSet<i32>,
    members: BTreeSet<i32>,
}

/// A process with its group, its descendants and their groups; and, when this process leads a session of its own, what
/// remains in that session: a child whose parent has ended already is found there.
///
/// Group and session of this process come from the table: in a process namespace (a container) both are 0 where their
/// leader is outside it, a number that `getsid` of rustix does not survive.
fn family(table: &[Process], own: i32, first: i32) -> Family {
    let this = table.iter().find(|process| process.pid == own);
    let own_group = this.map(|process| process.group);
    let session = this.and_then(|process| process.session).filter(|id| *id == own);
    let mut family = Family { groups: BTreeSet::from([first]), members: BTreeSet::from([first]) };
    loop {
        let before = family.members.len();
        for process in table.iter().filter(|process| process.pid != own && process.pid > 1) {
            if family.members.contains(&process.parent)
                || family.groups.contains(&process.group)
                || (session.is_some() && process.session == session)
            {
                family.members.insert(process.pid);
                if Some(process.group) != own_group && process.group > 1 {
                    family.groups.insert(process.group);
                }
            }
        }
        if family.members.len() == before {
            return family;
        }
    }
}

/// All processes: from /proc where there is one, else from `ps`, which knows no sessions.
fn table() -> io::Result<Vec<Process>> {
    if cfg!(target_os = "linux") { from_proc() } else { from_ps() }
}

fn from_proc() -> io::Result<Vec<Process>> {
    let mut table = Vec::new();
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let uptime = uptime.split(' ').next().and_then(|seconds| seconds.parse::<f64>().ok()).unwrap_or_default();
    let uptime = Duration::try_from_secs_f64(uptime).unwrap_or_default();
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        // A process that ends while it is looked at is no error.
        let Ok(stat) = std::fs::read_to_string(folder.join("stat")) else { continue };
        let Some(mut process) = parse_stat(&stat) else { continue };
        // So far it holds when it began, since the boot.
        process.age = uptime.saturating_sub(process.age);
        process.user = std::fs::metadata(&folder).ok().map(|facts| facts.uid());
        process.words = std::fs::read(folder.join("cmdline"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        table.push(process);
    }
    Ok(table)
}

/// `PID (NAME) STATE PARENT GROUP SESSION …`; the name may hold blanks and brackets itself. The 22nd field says when it began, in
/// ticks since the boot, and stands as its age here.
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

/// `[[DAYS-]HOURS:]MINUTES:SECONDS`, as ps(1) has it.
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

    fn sh(text: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", text]);
        command
    }

    fn lives(pid: i32) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z ")
    }

    #[test]
    fn the_exit_code_and_the_end_of_the_output_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for run in [run, ask] {
            let text = "echo out; echo err >&2; exit 7";
            let finished = run(&mut sh(text), Duration::from_secs(60), folder.path()).unwrap();
            let output = "out\nerr\n".to_owned();
            let expected = Finished { exit: 7, said: output.clone(), output, timed_out: false };
            assert_eq!(finished, expected);
            let long = run(&mut sh("seq 100000"), Duration::from_secs(60), folder.path()).unwrap();
            assert!(long.output.len() <= MAX_LOG_TAIL && long.output.ends_with("100000\n"));
            assert!(long.said.len() as u64 <= MAX_SAID && long.said.len() > MAX_LOG_TAIL);
            let killed = run(&mut sh("kill -9 $$"), Duration::from_secs(60), folder.path()).unwrap();
            assert_eq!(killed.exit, 137);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no output is left behind");
    }

    #[test]
    fn where_no_output_can_be_kept_the_program_runs_all_the_same() {
        let finished = run(&mut sh("echo x; exit 5"), Duration::from_secs(60), Path::new("/no/such/folder"));
        let (output, said) = (String::new(), String::new());
        assert_eq!(finished.unwrap(), Finished { exit: 5, output, said, timed_out: false });
    }

    #[test]
    fn a_daemon_that_is_left_behind_holds_nothing_up() {
        let folder = tempfile::tempdir().unwrap();
        let finished = run(&mut sh("sleep 300 & echo $!"), Duration::from_secs(60), folder.path()).unwrap();
        assert!(!finished.timed_out);
        kill_process(Pid::from_raw(finished.output.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn at_the_limit_the_whole_family_is_ended_even_what_ignores_the_request() {
        let folder = tempfile::tempdir().unwrap();
        let text = "trap '' TERM; setsid sleep 300 & echo $!; sleep 301 & echo $!; wait";
        let finished = run(&mut sh(text), Duration::from_millis(300), folder.path()).unwrap();
        assert!(finished.timed_out);
        let children: Vec<i32> = finished.output.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(children.len(), 2);
        while children.iter().any(|pid| lives(*pid)) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_an_activator_left_behind_is_found_by_its_program_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("activate");
        std::fs::write(&script, "sleep 302 & wait").unwrap();
        let mut left = Command::new("/bin/sh").arg(&script).process_group(0).spawn().unwrap();
        let pid = i32::try_from(left.id()).unwrap();
        let child = loop {
            if let Some(child) = table().unwrap().into_iter().find(|process| process.parent == pid) {
                break child.pid;
            }
        };
        end_leftovers(&folder.path().join("another")).unwrap();
        assert!(left.try_wait().unwrap().is_none());
        end_leftovers(&script).unwrap();
        assert!(!left.wait().unwrap().success());
        while lives(child) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn where_the_session_is_led_from_outside_the_namespace_a_family_is_found_and_nobody_else() {
        let process = |pid, parent, group, session| Process {
            pid,
            parent,
            group,
            session,
            user: Some(0),
            age: Duration::ZERO,
            words: String::new(),
        };
        // This process (7) and a stranger (8) are in a group and session whose leader is outside; 21 lost its parent.
        let outside = [
            process(7, 0, 0, Some(0)),
            process(8, 0, 0, Some(0)),
            process(20, 7, 20, Some(0)),
            process(21, 1, 20, Some(0)),
            process(22, 20, 22, Some(22)),
        ];
        let expected = Family { groups: BTreeSet::from([20, 22]), members: BTreeSet::from([20, 21, 22]) };
        assert_eq!(family(&outside, 7, 20), expected);
        // Leading a session of its own, it ends what remains in it as well.
        let leading = [process(7, 1, 7, Some(7)), process(20, 7, 20, Some(7)), process(30, 1, 30, Some(7))];
        let expected = Family { groups: BTreeSet::from([20, 30]), members: BTreeSet::from([20, 30]) };
        assert_eq!(family(&leading, 7, 20), expected);
    }

    #[test]
    fn failure_mode_20_only_what_root_runs_is_somebody_else_at_work() {
        let process = |pid, user, minutes: u64, words: &str| Process {
            pid,
            parent: 1,
            group: pid,
            session: None,
            user,
            age: Duration::from_secs(60 * minutes),
            words: words.replace(' ', "\0"),
        };
        let table = [
            process(7, Some(0), 1, "muster-agent darwin-rebuild"),
            process(20, Some(501), 1, "sleep /x/darwin-rebuild"),
            process(21, None, 1, "sleep /x/darwin-rebuild"),
            process(22, Some(0), 90, "sh /x/darwin-rebuild switch"),
            process(23, Some(0), 30, "sh /x/darwin-rebuild switch"),
        ];
        let wanted = |word: &str| word.ends_with("darwin-rebuild");
        assert_eq!(other(&table[..3], 7, 0, wanted), None);
        let found = other(&table, 7, 0, wanted).unwrap();
        assert_eq!((found.who.as_str(), found.age.as_secs()), ("/x/darwin-rebuild (process 23)", 1800));
    }

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
