//! What the agent reads of a `.drv` file: its outputs and its platform.
//!
//! The file's format has been the same since Nix 1.0 (`Derive(outputs, inputs, sources, platform, …)`), while the JSON of
//! `nix show-derivation` changed its name and its keys.

use std::iter::Peekable;
use std::str::Chars;

/// The part of a derivation that decides whether it may be built here.
#[derive(Debug, PartialEq, Eq)]
pub struct Derivation {
    /// The paths of its outputs; empty texts where they are known only after building.
    pub outputs: Vec<String>,
    pub platform: String,
}

/// A value of the ATerm format, as far as derivations use it.
enum Term {
    Text(String),
    /// A list or a tuple.
    Group(Vec<Term>),
}

/// The deepest nesting that a derivation has is 3.
const MAX_DEPTH: u32 = 8;

impl Derivation {
    /// Reads the text of a `.drv` file, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let body = text.trim_end().strip_prefix("Derive").ok_or("it does not begin with 'Derive('")?;
        let mut rest = body.chars().peekable();
        let Term::Group(fields) = term(&mut rest, 0)? else { return Err("it has no fields") };
        if rest.next().is_some() {
            return Err("something stands behind its end");
        }
        let mut fields = fields.into_iter();
        let (Some(Term::Group(outputs)), Some(Term::Text(platform))) = (fields.next(), fields.nth(2)) else {
            return Err("its outputs or its platform are missing");
        };
        let path = |output| match output {
            Term::Group(output) => match output.into_iter().nth(1) {
                Some(Term::Text(path)) => Ok(path),
                _ => Err("an output has no path"),
            },
            Term::Text(_) => Err("an output has no path"),
        };
        let outputs = outputs.into_iter().map(path).collect::<Result<_, _>>()?;
        Ok(Self { outputs, platform })
    }
}

fn term(rest: &mut Peekable<Chars<'_>>, depth: u32) -> Result<Term, &'static str> {
    if depth > MAX_DEPTH {
        return Err("it is nested too deeply");
    }
    match rest.next() {
        Some('"') => text(rest).map(Term::Text),
        Some('(') => group(rest, ')', depth),
        Some('[') => group(rest, ']', depth),
        _ => Err("a value is missing"),
    }
}

fn group(rest: &mut Peekable<Chars<'_>>, end: char, depth: u32) -> Result<Term, &'static str> {
    let mut values = Vec::new();
    if rest.next_if_eq(&end).is_some() {
        return Ok(Term::Group(values));
    }
    loop {
        values.push(term(rest, depth + 1)?);
        match rest.next() {
            Some(',') => {}
            Some(character) if character == end => return Ok(Term::Group(values)),
            _ => return Err("a list has no end"),
        }
    }
}

fn text(rest: &mut Peekable<Chars<'_>>) -> Result<String, &'static str> {
    let mut text = String::new();
    loop {
        match rest.next().ok_or("a text has no end")? {
            '"' => return Ok(text),
            '\\' => text.push(match rest.next().ok_or("a text has no end")? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                other => other,
            }),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIMPLE: &str = r#"Derive([("out","/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x","","")],[("/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-y.drv",["out"])],["/nix/store/2c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-s"],"x86_64-linux","/bin/sh",["-c","echo \"hi\" > $out\n"],[("name","x"),("system","x86_64-linux")])"#;

    #[test]
    fn outputs_and_platform_are_read() {
        let derivation = Derivation::parse(SIMPLE).unwrap();
        assert_eq!(derivation.outputs, ["/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x"]);
        assert_eq!(derivation.platform, "x86_64-linux");
    }

    #[test]
    fn a_platform_inside_a_text_is_not_the_platform() {
        let text = SIMPLE.replace(r#"echo \"hi\""#, r#"\"],\"aarch64-darwin\",\""#);
        assert_eq!(Derivation::parse(&text).unwrap().platform, "x86_64-linux");
    }

    #[test]
    fn everything_else_is_refused() {
        for end in 0..SIMPLE.len() {
            assert!(Derivation::parse(&SIMPLE[..end]).is_err(), "cut at {end}");
        }
        assert!(Derivation::parse(&format!("{SIMPLE}x")).is_err());
        assert!(Derivation::parse(&format!("Derive{}", "(".repeat(100_000))).is_err());
        assert!(Derivation::parse("Derive(\"a\",\"b\",\"c\",\"d\")").is_err());
    }
}
