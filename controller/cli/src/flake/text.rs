//! Quoting for the Nix language.

/// A string literal.
pub fn nix_string(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${");
    format!("\"{escaped}\"")
}

/// A list of string literals.
pub fn nix_list<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let strings: Vec<String> = texts.map(nix_string).collect();
    format!("[ {} ]", strings.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_list_cannot_leave_their_quotes() {
        assert_eq!(nix_list([r#"a"b"#, "${x}", r"c\"].into_iter()), r#"[ "a\"b" "\${x}" "c\\" ]"#);
    }

    #[test]
    fn names_cannot_leave_their_quotes() {
        assert_eq!(nix_string(r#"a"b\c${d}"#), r#""a\"b\\c\${d}""#);
    }
}
