//! Shortens Nix's messages: the cause of a failure, with the output of programs that it ran, and its
//! warnings. Pure.

/// A build's last lines, or a mistake in an inventory, take more than a few; longer messages are cut.
const MAX_MESSAGE_LINES: usize = 16;
const MAX_LINE: usize = 2000;
/// The most warnings kept from one run about one thing, and the most characters of one.
pub const MAX_WARNINGS: usize = 30;
const MAX_WARNING_LINES: usize = 6;

/// The innermost `error:` of Nix's trace with its position, what git or ssh said before it, and which input
/// it was about.
///
/// Nix 2.8 prints one `error: MESSAGE` followed by its frames; newer versions print `error:` alone, the
/// frames from the outside in, and `error: MESSAGE` last, indented by seven blanks.
pub fn shorten(stderr: &str) -> String {
    let plain = without_colours(stderr);
    let lines: Vec<&str> = plain.lines().collect();
    let Some(first) = (0..lines.len()).rev().find(|at| begins(&lines, *at)) else {
        let said: Vec<String> = lines.iter().map(|line| cut(line)).filter(|line| !line.is_empty()).collect();
        let tail = said.len().saturating_sub(8);
        let text = said[tail..].join("\n");
        return if text.is_empty() { "Nix failed and printed nothing".to_owned() } else { text };
    };
    let mut message = vec![cut(lines[first].trim().trim_start_matches("error:"))];
    for line in lines[first + 1..].iter().map(|line| line.trim()) {
        if line.starts_with("warning:") || message.len() >= MAX_MESSAGE_LINES {
            break;
        }
        let frame = line.starts_with('…') || line.starts_with("(use '--show-trace'") || is_source(line);
        if !frame && !line.is_empty() {
            message.push(cut(line));
        }
    }
    let (before, mut more) = (&lines[..first], Vec::new());
    if blames_another(&message[0]) {
        more.extend(said_by_tools(before));
    }
    more.extend(before.iter().filter_map(|line| input_of(line.trim())));
    for line in more {
        if !message.iter().any(|kept| kept.contains(&line)) && message.len() < MAX_MESSAGE_LINES {
            message.push(line);
        }
    }
    message.join("\n")
}

/// Whether Nix's own message begins on this line; some lines only look like it.
fn begins(lines: &[&str], at: usize) -> bool {
    let line = lines[at];
    let message = line.trim_start();
    let has_text = message.strip_prefix("error:").is_some_and(|rest| !rest.trim().is_empty());
    let indent = line.len() - message.len();
    has_text && (indent == 0 || indent == 7 && at > 0 && lines[at - 1].trim().is_empty())
}

/// Whether the cause is in a program that Nix ran: its own message only says that it failed.
fn blames_another(message: &str) -> bool {
    message.starts_with("program '") || message.contains("Git reference") || message.contains("revspec")
}

/// Output of git, ssh and the like, each line once; if none is recognised, the last lines before the end.
fn said_by_tools(before: &[&str]) -> Vec<String> {
    const BEGIN: [&str; 9] = [
        "fatal:",
        "ssh:",
        "remote:",
        "error: ",
        "curl:",
        "abort:",
        "gpg:",
        "kex_exchange_identification:",
        "git@",
    ];
    const HAVE: [&str; 8] = [
        "Permission denied",
        "Host key verification failed",
        "Could not resolve",
        "Connection refused",
        "Connection timed out",
        "Not a git repository",
        "dubious ownership",
        "not owned by",
    ];
    // What Nix adds while it retries says nothing about the cause.
    const CONSEQUENCES: [&str; 2] = ["outside of refs/", "unable to fork"];
    let known = |line: &&str| {
        let said = BEGIN.iter().any(|begin| line.starts_with(begin))
            || HAVE.iter().any(|words| line.contains(words));
        said && !CONSEQUENCES.iter().any(|words| line.contains(words))
            && !line.starts_with("error: program '")
    };
    let mut kept: Vec<String> = Vec::new();
    for line in before.iter().copied().filter(known) {
        let line = cut(line);
        if !kept.contains(&line) {
            kept.push(line);
        }
    }
    if kept.is_empty() {
        let said: Vec<&&str> =
            before.iter().filter(|line| !line.trim().is_empty() && !line.starts_with("warning:")).collect();
        kept.extend(said[said.len().saturating_sub(4)..].iter().map(|line| cut(line)));
    }
    kept
}

/// Which input a failure is about.
fn input_of(line: &str) -> Option<String> {
    let about = line.strip_prefix("… ")?;
    let wanted =
        about.starts_with("while fetching the input") || about.starts_with("while updating the flake input");
    wanted.then(|| cut(about))
}

/// A quoted source line: `12| text` or `| ^`.
fn is_source(line: &str) -> bool {
    line.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with('|')
}

/// The first warnings by Nix and by the flake itself, each once, in whole paragraphs.
pub fn warnings(stderr: &str, most: usize) -> Vec<String> {
    const BEGIN: [&str; 4] = ["warning:", "evaluation warning:", "trace:", "Warning:"];
    // A warning ends where another of Nix's lines begins.
    const OTHER: [&str; 12] = [
        "error:",
        "fatal:",
        "path '",
        "unpacking ",
        "building ",
        "copying ",
        "fetching ",
        "downloading ",
        "evaluating ",
        "these ",
        "this ",
        "querying ",
    ];
    let plain = without_colours(stderr);
    let mut kept: Vec<Vec<String>> = Vec::new();
    let mut open = false;
    for line in plain.lines() {
        if BEGIN.iter().any(|begin| line.starts_with(begin)) {
            open = kept.len() < most;
            if open {
                let line =
                    line.strip_prefix("trace: ").filter(|rest| rest.starts_with("warning:")).unwrap_or(line);
                kept.push(vec![cut(line)]);
            }
        } else if line.trim().is_empty() || OTHER.iter().any(|begin| line.starts_with(begin)) {
            open = false;
        } else if let (true, Some(last)) = (open, kept.last_mut())
            && last.len() < MAX_WARNING_LINES
        {
            last.push(cut(line));
        }
    }
    let mut each = Vec::new();
    for warning in kept.into_iter().map(|lines| lines.join("\n")) {
        if !each.contains(&warning) {
            each.push(warning);
        }
    }
    each
}

fn cut(line: &str) -> String {
    line.trim().chars().take(MAX_LINE).collect()
}

fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' {
            rest.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_nix_2_8_is_told_in_short() {
        let said = "warning: Git tree '/x' is dirty\n\
                     error: undefined variable 'pkg'\n\n       at /x/flake.nix:7:30:\n\n            \
                    6|   a = 1;\n            7|   b = pkg;\n             |       ^\n            8| }\n\
                    (use '--show-trace' to show detailed location information)\n";
        assert_eq!(shorten(said), "undefined variable 'pkg'\nat /x/flake.nix:7:30:");
    }

    #[test]
    fn an_error_of_nix_2_26_is_told_in_short() {
        let said = "\u{1b}[31;1merror:\u{1b}[0m\n       … while evaluating the attribute 'drvPath'\n\n       \
                    \u{1b}[31;1merror:\u{1b}[0m attribute 'x' missing\n       at /x/flake.nix:1:1:\n\
                    \x20           1| {\n             | ^\n";
        assert_eq!(shorten(said), "attribute 'x' missing\nat /x/flake.nix:1:1:");
    }

    #[test]
    fn silence_is_told_as_such() {
        assert_eq!(shorten("\n"), "Nix failed and printed nothing");
    }

    #[test]
    fn a_message_that_speaks_of_errors_stays_whole() {
        let said = "error: line one\n       line two\n         error: three\n       four\n";
        assert_eq!(shorten(said), "line one\nline two\nerror: three\nfour");
        let newer = format!("error:\n       … while calling the 'throw' builtin\n\n       {said}");
        assert_eq!(shorten(&newer), "line one\nline two\nerror: three\nfour");
    }

    #[test]
    fn what_git_and_ssh_said_is_kept_and_said_once() {
        let of_2_8 = "fatal: unable to access 'https://no-such-host.invalid/x/': Could not \
                      resolve host: no-such-host.invalid\n\
                      error: program 'git' failed with exit code 128\n\
                      (use '--show-trace' to show detailed location information)\n";
        assert_eq!(
            shorten(of_2_8),
            "program 'git' failed with exit code 128\n\
             fatal: unable to access 'https://no-such-host.invalid/x/': \
             Could not resolve host: no-such-host.invalid"
        );
        let of_2_26 = "fatal: unable to access 'http://127.0.0.1:9/x/': Failed to connect\n\
                       warning: could not read HEAD ref from repo at 'http://127.0.0.1:9/x', using 'master'\n\
                       fatal: unable to access 'http://127.0.0.1:9/x/': Failed to connect\n\
                       fatal: Refusing to point HEAD outside of refs/\n\
                       error:\n       … while updating the flake input 'a'\n\n       … while fetching the \
                       input 'git+http://127.0.0.1:9/x'\n\n       \
                       error: resolving Git reference 'master': revspec 'master' not found\n";
        assert_eq!(
            shorten(of_2_26),
            "resolving Git reference 'master': revspec 'master' not found\n\
             fatal: unable to access 'http://127.0.0.1:9/x/': Failed to connect\n\
             while updating the flake input 'a'\n\
             while fetching the input 'git+http://127.0.0.1:9/x'"
        );
        let ssh = "ssh: connect to host 127.0.0.1 port 9: Connection refused\n\
                     fatal: Could not read from remote repository.\n\n\
                   Please make sure you have the correct access rights\nand the repository exists.\n\
                   error: program 'git' failed with exit code 128\n";
        assert!(shorten(ssh).contains("ssh: connect to host 127.0.0.1 port 9: Connection refused"));
        let unknown = "hg: something is odd\nerror: program 'hg' failed with exit code 255\n";
        assert_eq!(shorten(unknown), "program 'hg' failed with exit code 255\nhg: something is odd");
    }

    #[test]
    fn a_failed_builds_last_lines_are_kept() {
        let said = "building '/nix/store/x.drv'...\n\
                     error: builder for '/nix/store/x.drv' failed with exit code 1;\n\
                    \x20      last 2 log lines:\n       > checking\n       > the cause\n\
                    \x20      For full logs, run 'nix log /nix/store/x.drv'.\n";
        assert!(shorten(said).contains("> the cause"), "{}", shorten(said));
    }

    #[test]
    fn warnings_are_kept_whole_and_each_once() {
        let said = "warning: ignoring untrusted flake configuration setting 'extra-substituters'.\n\
                     Pass '--accept-flake-config' to trust it\n\
                    trace: warning: the option x is old\nevaluation warning: y is old\ntrace: a trace\n\
                    warning: not writing modified lock file of flake 'git+file:///x':\n\
                    • Added input 'w':\n    'path:./w'\n\
                    path '/x' does not contain a 'flake.nix', searching up\nevaluation warning: y is old\n\
                    error: no\n";
        assert_eq!(
            warnings(said, MAX_WARNINGS),
            [
                "warning: ignoring untrusted flake configuration setting 'extra-substituters'.\n\
                 Pass '--accept-flake-config' to trust it",
                "warning: the option x is old",
                "evaluation warning: y is old",
                "trace: a trace",
                "warning: not writing modified lock file of flake 'git+file:///x':\n• Added input 'w':\n\
                 'path:./w'",
            ]
        );
        assert_eq!(warnings("1\n", MAX_WARNINGS), Vec::<String>::new());
    }
}
