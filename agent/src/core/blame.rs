//! Whether a failed build says something about the derivation, or only about the machine at that moment.
//!
//! Nix's exit code says that a build failed permanently (`Worker::failingExitStatus`), even for a builder
//! that was killed. So the text counts as well. Wrongly blaming the machine costs a few more tries; wrongly
//! blaming the derivation would keep a good system away.

/// What is to blame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blame {
    Derivation,
    /// With the line that says so.
    Machine(String),
}

/// From here on Nix's exit codes are flags of builds that failed permanently.
const PERMANENT: i32 = 100;
const TIMED_OUT: i32 = 1;

/// What Nix, shells and compilers print when the machine is the obstacle.
const WORDS: [&str; 30] = [
    "failed due to signal",
    "failed with exit code 129",
    "failed with exit code 130",
    "failed with exit code 137",
    "failed with exit code 143",
    "Killed signal terminated program",
    "SIGKILL",
    "SIGTERM",
    "interrupted by the user",
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Too many open files",
    "Cannot allocate memory",
    "out of memory",
    "memory exhausted",
    "std::bad_alloc",
    "annot fork",
    "fork: retry",
    "Resource temporarily unavailable",
    "Input/output error",
    "Stale file handle",
    "unable to start build process",
    // What the network did not deliver, or delivered wrongly, to a derivation that fetches. A hash that is
    // wrong for everybody costs a few more tries.
    "curl: (",
    "cannot download ",
    "Could not resolve host",
    "Temporary failure in name resolution",
    "unable to access 'http",
    "hash mismatch in fixed-output derivation",
    // A feature or a platform that the machine's nix.conf does not offer.
    "is required to build",
];

/// `exit` is Nix's exit code, `None` if it was killed itself; `output` is the end of its output.
pub fn of_build(exit: Option<i32>, output: &str) -> Blame {
    let last = || output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
    let Some(exit) = exit else { return Blame::Machine("Nix itself was killed".to_owned()) };
    if exit < PERMANENT {
        return Blame::Machine(last());
    }
    let says = |line: &&str| WORDS.iter().any(|words| line.contains(words)) || is_killed(line);
    if let Some(line) = output.lines().find(says) {
        return Blame::Machine(line.trim().to_owned());
    }
    let failed = output.contains("failed with exit code") || output.contains("failed to produce output");
    if exit & TIMED_OUT != 0 && !failed {
        let timed_out = output.lines().find(|line| line.contains("timed out"));
        return Blame::Machine(timed_out.map_or_else(last, |line| line.trim().to_owned()));
    }
    Blame::Derivation
}

/// `/bin/sh: line 3: 4711 Killed cc1plus …`, and `Killed` alone, after the name of the derivation.
fn is_killed(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let a_process = |pair: &[&str]| pair[1] == "Killed" && pair[0].bytes().all(|b| b.is_ascii_digit());
    let alone = match words.as_slice() {
        ["Killed"] => true,
        [name, "Killed"] => name.ends_with('>'),
        _ => false,
    };
    alone || words.windows(2).any(a_process)
}

/// What the next try of a build takes from caches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Caches {
    /// Everything that they claim to have.
    #[default]
    Trusted,
    /// What they fail to deliver is built here.
    Doubted,
    /// Nothing: Nix 2.8 itself ends when a cache fails that it was told to do without.
    Unused,
}

/// After this many failed tries, what a cache does not deliver is built here: an outage of a few seconds must
/// not make a machine build what it could have had a minute later.
const CACHE_TRIES: u32 = 5;

/// Decides by the number of failures in a row, and by Nix's last output.
pub fn caches(failures: u32, last: Option<&str>) -> Caches {
    let broke_off = |words: &str| words.contains("nix::SubstituterDisabled");
    match failures >= CACHE_TRIES {
        false => Caches::Trusted,
        true if failures > CACHE_TRIES && last.is_some_and(broke_off) => Caches::Unused,
        true => Caches::Doubted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_by_itself_is_the_derivations_doing() {
        for (exit, output) in [
            (100, "error: builder for '/nix/store/x.drv' failed with exit code 1;\n > no such compiler"),
            (100, "x> Killed two birds\nerror: builder for '/nix/store/x.drv' failed with exit code 2"),
            (101, "error: builder for '/nix/store/x.drv' failed with exit code 1"),
        ] {
            assert_eq!(of_build(Some(exit), output), Blame::Derivation, "{output}");
        }
    }

    #[test]
    fn signals_memory_disks_limits_and_nixs_own_troubles_are_the_machines_doing() {
        for (exit, output) in [
            (
                Some(100),
                "these 2 derivations will be built:\nerror: builder for '/nix/store/x.drv' failed due to \
                 signal 9 (Killed)",
            ),
            (
                Some(100),
                "error: Cannot build '/nix/store/x.drv'.\n Reason: builder failed due to signal 9 (Killed).",
            ),
            (Some(100), "error: builder for '/nix/store/x.drv' failed with exit code 137"),
            (
                Some(100),
                "x> g++: fatal error: Killed signal terminated program cc1plus\nerror: … failed with exit \
                 code 1",
            ),
            (
                Some(100),
                "x> /bin/sh: line 3:  4711 Killed                  cc1plus\nerror: … failed with exit code 1",
            ),
            (Some(100), "x> Killed\nerror: … failed with exit code 1"),
            (Some(102), "error: hash mismatch in fixed-output derivation '/nix/store/x.drv'"),
            (Some(100), "x> curl: (6) Could not resolve host: example.org\nerror: … failed with exit code 1"),
            (
                Some(100),
                "x> fatal: unable to access 'https://example.org/x/': timed out\n… failed with exit code 1",
            ),
            (
                Some(100),
                "x> process didn't exit successfully: rustc (signal: 9, SIGKILL: kill)\n… failed with exit \
                 code 101",
            ),
            (Some(100), "x> cannot write: No space left on device\n… failed with exit code 1"),
            (Some(100), "x> fork: Cannot allocate memory\n… failed with exit code 1"),
            (Some(100), "error: unable to start build process"),
            (Some(101), "error: building of '/nix/store/x.drv' timed out after 60 seconds of silence"),
            (Some(1), "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket'"),
            (Some(1), "error: the build users group 'nixbld' has no members"),
            (Some(1), ""),
            (None, "these 2 derivations will be built:"),
        ] {
            assert!(matches!(of_build(exit, output), Blame::Machine(_)), "{output}");
        }
    }

    #[test]
    fn caches_that_keep_failing_are_done_without_and_not_at_the_first_failure() {
        let crash = Some("terminate called after throwing an instance of 'nix::SubstituterDisabled'");
        for (failures, last, caches_) in [
            (0, None, Caches::Trusted),
            (4, crash, Caches::Trusted),
            (5, crash, Caches::Doubted),
            (6, Some("unable to download"), Caches::Doubted),
            (6, crash, Caches::Unused),
        ] {
            assert_eq!(caches(failures, last), caches_, "{failures} {last:?}");
        }
    }

    #[test]
    fn the_words_are_those_of_the_cause() {
        let output = "these 2 derivations will be built:\n  /nix/store/x.drv\nerror: builder for '/nix/store/x.drv' \
                      failed due to signal 9 (Killed)\nerror: 1 dependencies of derivation \
                      '/nix/store/y.drv' failed";
        let Blame::Machine(words) = of_build(Some(100), output) else { panic!("it was killed") };
        assert_eq!(words, "error: builder for '/nix/store/x.drv' failed due to signal 9 (Killed)");
    }
}
