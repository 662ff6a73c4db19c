//! How text from elsewhere (a controller, a machine, another operator, Nix, git, sops, a flake) is
//! displayed: characters that a terminal or an eye would obey instead of reading are escaped.
//!
//! Pure. [`crate::terminal`] prints every line through this, so no caller has to remember it.

use std::fmt::{self, Write as _};

/// Characters that are obeyed or invisible, besides the control characters: Unicode's format characters
/// (Cf), line separators, and what is ignored by default (fillers, variation selectors, tags).
const UNSEEN: [(u32, u32); 28] = [
    (0x00ad, 0x00ad),
    (0x034f, 0x034f),
    (0x0600, 0x0605),
    (0x061c, 0x061c),
    (0x06dd, 0x06dd),
    (0x070f, 0x070f),
    (0x0890, 0x0891),
    (0x08e2, 0x08e2),
    (0x115f, 0x1160),
    (0x17b4, 0x17b5),
    (0x180b, 0x180f),
    (0x200b, 0x200f),
    (0x2028, 0x202e),
    (0x2060, 0x206f),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xfe00, 0xfe0f),
    (0xfeff, 0xfeff),
    (0xffa0, 0xffa0),
    (0xfff0, 0xfffb),
    (0x110bd, 0x110bd),
    (0x110cd, 0x110cd),
    (0x13430, 0x1343f),
    (0x16fe4, 0x16fe4),
    (0x1bca0, 0x1bca3),
    (0x1d159, 0x1d159),
    (0x1d173, 0x1d17a),
    (0xe0000, 0xe0fff),
];

/// Whether a terminal would obey this character or an eye would miss it.
pub fn is_unseen(c: char) -> bool {
    let code = u32::from(c);
    // Most text is ASCII.
    c.is_control() || (code >= 0xad && UNSEEN.iter().any(|(first, last)| (*first..=*last).contains(&code)))
}

/// Displays a text as one line in which nothing is obeyed: `\n`, `\u{1b}` and `\u{202e}` are written out.
pub struct Shown<T>(pub T);

impl<T: fmt::Display> fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match f.width().is_some() || f.precision().is_some() {
            true => f.pad(&field(self.0.to_string().as_str())),
            false => write!(Escaping(f), "{}", self.0),
        }
    }
}

struct Escaping<'a, W: fmt::Write>(&'a mut W);

impl<W: fmt::Write> fmt::Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_unseen) {
            let (good, tail) = rest.split_at(at);
            self.0.write_str(good)?;
            let mut chars = tail.chars();
            match chars.next() {
                Some('\n') => self.0.write_str("\\n")?,
                Some('\r') => self.0.write_str("\\r")?,
                Some('\t') => self.0.write_str("\\t")?,
                Some(other) => write!(self.0, "{}", other.escape_unicode())?,
                None => {}
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

/// A text as one line in which nothing is obeyed.
pub fn field(text: &str) -> String {
    Shown(text).to_string()
}

/// The first line of a text, as [`field`].
pub fn first_line(text: &str) -> String {
    field(text.lines().next().unwrap_or_default())
}

/// The lines of a text, each like [`field`], with tabs as spaces. The caller prints something in front of
/// each, so that none of them passes for a line of ours.
pub fn lines(text: &str) -> impl Iterator<Item = String> {
    text.lines().map(|line| field(&line.trim_end_matches('\r').replace('\t', "    ")))
}

/// A command as it would be typed in a shell (bash, zsh): one line, each argument quoted as needed.
pub fn command<S: AsRef<str>>(argv: &[S]) -> String {
    argv.iter().map(|argument| quoted(argument.as_ref())).collect::<Vec<_>>().join(" ")
}

fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    if !argument.contains(is_unseen) {
        return format!("'{}'", argument.replace('\'', r"'\''"));
    }
    let mut quoted = "$'".to_owned();
    for c in argument.chars() {
        let written = match c {
            '\'' | '\\' => write!(quoted, "\\{c}"),
            '\n' => quoted.write_str("\\n"),
            '\r' => quoted.write_str("\\r"),
            '\t' => quoted.write_str("\\t"),
            c if is_unseen(c) => write!(quoted, "\\U{:08x}", u32::from(c)),
            c => quoted.write_char(c),
        };
        // Writing to a `String` does not fail.
        debug_assert!(written.is_ok());
    }
    quoted.push('\'');
    quoted
}

/// JSON text in which nothing is obeyed: such characters occur only in strings, where `\uXXXX` means the
/// same.
pub fn json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || !is_unseen(c) {
            shown.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(shown, "\\u{unit:04x}");
        }
    }
    shown
}

/// A message about a configuration with the number types of Rust in words.
pub fn without_types(message: &str) -> String {
    const WORDS: [(&str, &str); 6] = [
        ("expected usize", "expected a whole number from 0 on"),
        ("expected u64", "expected a whole number from 0 on"),
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected u16", "expected a whole number from 0 to 65535"),
        ("expected u8", "expected a whole number from 0 to 255"),
        ("expected i64", "expected a whole number"),
    ];
    WORDS.iter().fold(message.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str =
        "a\u{1b}[2J\u{9b}2J\nsigned\r\t\u{7}\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}\u{ad}z";

    #[test]
    fn nothing_in_a_field_is_obeyed_and_the_rest_stays() {
        let shown = field(HOSTILE);
        assert!(!shown.contains(is_unseen), "{shown:?}");
        assert_eq!(
            shown,
            "a\\u{1b}[2J\\u{9b}2J\\nsigned\\r\\t\\u{7}\\u{202e}\\u{2066}\\u{200b}\\u{feff}\\u{e0041}\\u{ad}z"
        );
        assert_eq!(field("Büro, 日本, 🦀, C:\\n"), "Büro, 日本, 🦀, C:\\n");
        assert_eq!(field(&shown), shown);
        assert_eq!(format!("{:<4}|{:>6}", Shown("a"), Shown("\n")), "a   |    \\n");
    }

    #[test]
    fn a_command_reads_one_way_only() {
        assert_eq!(command(&["/bin/sh", "-c", "curl x | sh"]), "/bin/sh -c 'curl x | sh'");
        assert_eq!(command(&["a b", "", "it's"]), r"'a b' '' 'it'\''s'");
        assert_eq!(command(&["true", "\n    derivation  x"]), "true $'\\n    derivation  x'");
        assert_eq!(command(&["\u{202e}\\n'"]), "$'\\U0000202e\\\\n\\''");
        // Two arguments are not the same as one with a space.
        assert_ne!(command(&["a", "b"]), command(&["a b"]));
    }

    #[test]
    fn json_means_the_same_when_it_is_shown() {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "note": HOSTILE })).unwrap();
        let shown = json(&text);
        assert!(!shown.contains(|c| c != '\n' && is_unseen(c)), "{shown:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap()["note"], HOSTILE);
    }

    #[test]
    fn each_line_of_a_longer_text_is_a_line() {
        let shown: Vec<String> = lines("one\r\ntwo\u{2028}three\n").collect();
        assert_eq!(shown, ["one", "two\\u{2028}three"]);
    }
}
