//! sandbox-exec(1): a profile in Apple's sandbox language, in the style of those in /System/Library/Sandbox.

use std::ffi::OsString;

use super::job::Job;

/// Everything is denied except what follows: the store and the system's libraries can be read, the job's
/// folders read and written. What a process needs to start (dyld, sysctl, the user database) comes first.
const PROFILE: &str = r#"(version 1)
(deny default)
(allow process-fork)
(allow signal (target same-sandbox))
(allow sysctl-read)
(allow mach-lookup (global-name "com.apple.system.opendirectoryd.libinfo"))
(allow file-read-metadata)
(allow file-read*
  (literal "/")
  (subpath "/usr/lib") (subpath "/usr/share/locale") (subpath "/System/Library")
  (subpath "/System/Volumes/Preboot/Cryptexes/OS") (subpath "/private/var/db/dyld")
  (literal "/dev/random") (literal "/dev/urandom") (literal "/dev/zero"))
(allow file-read* file-write-data (literal "/dev/null") (literal "/dev/dtracehelper"))
(allow file-read* file-write-data (subpath "/dev/fd"))
(allow file-read* process-exec (subpath (param "STORE")))
(allow file-read* process-exec (literal "/bin/sh") (literal "/bin/bash") (literal "/usr/bin/env"))
(allow file-read* (subpath (param "FOLDER")))
(allow file-write*
  (subpath (string-append (param "FOLDER") "/out"))
  (subpath (string-append (param "FOLDER") "/work")))
(deny file-write-setugid)
"#;

pub fn arguments(job: &Job<'_>, shell: &[OsString]) -> Vec<OsString> {
    let parameter = |name: &str, value: &std::path::Path| {
        let mut text = OsString::from(name);
        text.push("=");
        text.push(value);
        text
    };
    // The sandbox matches real paths, and /var and /tmp are links on a Mac.
    let real = |path: &std::path::Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut arguments = vec!["-p".into(), PROFILE.into()];
    arguments.extend(["-D".into(), parameter("FOLDER", &real(job.folder))]);
    arguments.extend(["-D".into(), parameter("STORE", &real(job.store))]);
    arguments.push(job.bash.into());
    arguments.extend_from_slice(shell);
    arguments
}
