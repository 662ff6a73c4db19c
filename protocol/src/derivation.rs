//! What is read from a `.drv` file: its outputs, its platform, what it is built from, and whether it matches
//! its name. Pure.
//!
//! The file's format has been the same since Nix 1.0 (`Derive(outputs, inputs, sources, platform, …)`), while
//! the JSON of `nix show-derivation` has changed its name and its keys.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::str::Chars;

use crate::ids::{Sha256, StorePath, nix_base32_of};

/// The part of a derivation that decides whether it may be built here.
#[derive(Debug, PartialEq, Eq)]
pub struct Derivation {
    /// The paths of its outputs; empty where they are known only after building.
    pub outputs: Vec<String>,
    /// The Nix system that builds it.
    pub platform: String,
    /// The derivations and sources that it is built from.
    pub references: BTreeSet<String>,
}

/// An ATerm value, as far as derivations use them.
enum Term {
    Text(String),
    /// A list or a tuple.
    Group(Vec<Term>),
}

/// The deepest nesting in a derivation is 3.
const MAX_DEPTH: u32 = 8;

impl Derivation {
    /// Reads the text of a `.drv` file, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let body = text.trim_end().strip_prefix("Derive(").ok_or("it does not begin with 'Derive('")?;
        let mut rest = body.chars().peekable();
        let mut field = |last| {
            let field = term(&mut rest, 1);
            match (last, rest.next()) {
                (false, Some(',')) | (true, Some(')')) => field,
                _ => Err("its fields are not those of a derivation"),
            }
        };
        let (Term::Group(outputs), Term::Group(inputs), Term::Group(sources)) =
            (field(false)?, field(false)?, field(false)?)
        else {
            return Err("its outputs or inputs are missing");
        };
        let Term::Text(platform) = field(false)? else { return Err("its platform is missing") };
        // The builder, its arguments and its environment are Nix's business.
        field(false)?;
        field(false)?;
        field(true)?;
        if rest.next().is_some() {
            return Err("something stands behind its end");
        }
        let path = |output| match output {
            Term::Group(output) => match output.into_iter().nth(1) {
                Some(Term::Text(path)) => Ok(path),
                _ => Err("an output has no path"),
            },
            Term::Text(_) => Err("an output has no path"),
        };
        let outputs = outputs.into_iter().map(path).collect::<Result<_, _>>()?;
        let mut references = BTreeSet::new();
        for input in inputs {
            let Term::Group(input) = input else { return Err("an input is no group") };
            match input.into_iter().next() {
                Some(Term::Text(path)) => drop(references.insert(path)),
                _ => return Err("an input has no path"),
            }
        }
        for source in sources {
            let Term::Text(path) = source else { return Err("a source has no path") };
            references.insert(path);
        }
        Ok(Self { outputs, platform, references })
    }

    /// Whether the name of `path` is a hash of `text`, which this was parsed from (`makeTextPath` in Nix's
    /// `store-api.cc`). That the file is in the store's folder proves nothing: Nix 2.8 leaves files there
    /// that it refused.
    pub fn is_named(&self, path: &StorePath, text: &str) -> bool {
        let mut fingerprint = String::from("text");
        for reference in &self.references {
            fingerprint.push(':');
            fingerprint.push_str(reference);
        }
        let content = Sha256::of(text.as_bytes()).hex();
        fingerprint.push_str(&format!(":sha256:{content}:/nix/store:{}", path.name()));
        // 20 bytes: longer hashes are folded.
        let mut short = [0; 20];
        for (place, byte) in Sha256::of(fingerprint.as_bytes()).as_bytes().iter().enumerate() {
            short[place % 20] ^= byte;
        }
        nix_base32_of(&short) == path.hash_part()
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

    /// Made by Nix 2.8.0: `derivation { name = "x"; system = "s"; builder = "/b"; a = builtins.toFile "y"
    /// "z"; d = derivation { … }; }`.
    #[test]
    fn what_a_derivation_is_named_is_a_hash_of_all_of_it() {
        let text = r#"Derive([("out","/nix/store/47ggni907b05yfv762zamphhwg3r9xad-x","","")],[("/nix/store/6f39dwv7cggmflac4j1b0z6scbf4sccj-dep.drv",["out"])],["/nix/store/hnh4k9f7ql2wcpblcngqcir7j21i9vi4-y"],"s","/b",[],[("a","/nix/store/hnh4k9f7ql2wcpblcngqcir7j21i9vi4-y"),("builder","/b"),("d","/nix/store/nim4n26h61b7sgklsf4zp102q69n07dd-dep"),("name","x"),("out","/nix/store/47ggni907b05yfv762zamphhwg3r9xad-x"),("system","s")])"#;
        let path: StorePath = "/nix/store/mbsvbabnyvl1r10agmzkvjmdjmir6l45-x.drv".parse().unwrap();
        let derivation = Derivation::parse(text).unwrap();
        assert!(derivation.is_named(&path, text));
        let changed = text.replace("/b", "/c");
        assert!(!Derivation::parse(&changed).unwrap().is_named(&path, &changed));
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
