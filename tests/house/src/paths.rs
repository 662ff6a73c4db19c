//! The paths of one file, and the modules that they lead to.

use std::collections::{BTreeMap, BTreeSet};

use crate::tokens::Token;

/// A module by the names that lead to it from the crate's root, which is empty.
pub type ModulePath = Vec<String>;

/// What a file says of modules.
#[derive(Debug, Default)]
pub struct Source {
    /// Its children in files of their own, without those for tests alone.
    pub children: Vec<String>,
    /// Paths as they are written, and how many modules within the file they stand in.
    paths: Vec<(Vec<String>, usize)>,
    /// The names that a `use` brings: what is written behind them goes on from there.
    brought: BTreeMap<String, (Vec<String>, usize)>,
}

impl Source {
    pub fn read(tokens: &[Token]) -> Self {
        let mut source = Self::default();
        source.block(tokens, 0);
        source
    }

    /// The other modules that this one uses. `at` is where it stands itself.
    pub fn uses(&self, at: &ModulePath, modules: &BTreeSet<ModulePath>) -> BTreeSet<ModulePath> {
        let own = self.paths.iter().filter_map(|(path, depth)| self.absolute(path, *depth, at, modules));
        let mut found: BTreeSet<ModulePath> = own.map(|path| module_of(path, modules)).collect();
        found.remove(at);
        found
    }

    fn absolute(
        &self,
        path: &[String],
        depth: usize,
        at: &ModulePath,
        modules: &BTreeSet<ModulePath>,
    ) -> Option<ModulePath> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            // Within the file: the module in it, which is no file of its own.
            "self" => Some([at, rest].concat()),
            "super" => {
                let up = path.iter().take_while(|name| *name == "super").count();
                let up_of_file = up.saturating_sub(depth);
                let base = &at[..at.len().checked_sub(up_of_file)?];
                Some([base, &path[up..]].concat())
            }
            name => {
                let child = [at.clone(), vec![name.to_owned()]].concat();
                if modules.contains(&child) {
                    return Some([child.as_slice(), rest].concat());
                }
                let (from, of) = self.brought.get(name).filter(|(from, _)| from.first() != path.first())?;
                self.absolute(&[from.as_slice(), rest].concat(), *of, at, modules)
            }
        }
    }

    fn block(&mut self, tokens: &[Token], depth: usize) {
        let mut at = 0;
        while at < tokens.len() {
            let left = &tokens[at..];
            at += if is_for_tests(left) {
                item_length(left)
            } else if starts(left, &["use"]) {
                let end = left.iter().position(|token| token.is(";")).unwrap_or(left.len());
                self.tree(&left[1..end], Vec::new(), depth);
                end
            } else if let [first, Token::Name(name), behind, ..] = left
                && first.is("mod")
                && behind.is(";")
            {
                self.children.push(name.clone());
                3
            } else if let [first, Token::Name(_), behind, ..] = left
                && first.is("mod")
                && behind.is("{")
            {
                let inside = bracketed(&left[2..]);
                self.block(&left[3..2 + inside], depth + 1);
                2 + inside
            } else {
                let path = path_of(left);
                let length = path.len() * 2;
                if path.len() > 1 && !(at > 0 && tokens[at - 1].is("::")) {
                    self.paths.push((path, depth));
                    length - 1
                } else {
                    1
                }
            };
        }
    }

    /// What stands behind `use`: one path, or several with the same beginning.
    fn tree(&mut self, tokens: &[Token], before: Vec<String>, depth: usize) {
        let mut path = before;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            match token {
                Token::Name(name) if name == "as" => {
                    if let Some(Token::Name(other)) = tokens.get(at + 1) {
                        self.bring(other.clone(), path, depth);
                    }
                    return;
                }
                Token::Name(name) => path.push(name.clone()),
                Token::Sign('{') => {
                    let inside = bracketed(&tokens[at..]);
                    for branch in branches(&tokens[at + 1..at + inside]) {
                        self.tree(branch, path.clone(), depth);
                    }
                    return;
                }
                Token::Sign('*') => path.push("*".to_owned()),
                _ => {}
            }
            at += 1;
        }
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        if let Some(name) = path.last().cloned() {
            self.bring(name, path, depth);
        }
    }

    fn bring(&mut self, name: String, path: Vec<String>, depth: usize) {
        self.paths.push((path.clone(), depth));
        self.brought.insert(name, (path, depth));
    }
}

/// The longest beginning of a path that is a module.
fn module_of(mut path: ModulePath, modules: &BTreeSet<ModulePath>) -> ModulePath {
    while !modules.contains(&path) && path.pop().is_some() {}
    path
}

/// The names of a path that begins here.
fn path_of(tokens: &[Token]) -> Vec<String> {
    let mut path = Vec::new();
    let mut left = tokens;
    while let [Token::Name(name), rest @ ..] = left {
        path.push(name.clone());
        match rest {
            [Token::Into, behind @ ..] if matches!(behind.first(), Some(Token::Name(_))) => left = behind,
            _ => break,
        }
    }
    path
}

fn starts(tokens: &[Token], with: &[&str]) -> bool {
    tokens.len() >= with.len() && tokens.iter().zip(with).all(|(token, text)| token.is(text))
}

fn is_for_tests(tokens: &[Token]) -> bool {
    starts(tokens, &["#", "[", "cfg", "(", "test", ")", "]"])
}

/// How many tokens an item takes with its attributes: to its `;` or its closing bracket.
fn item_length(tokens: &[Token]) -> usize {
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            Token::Sign(';') => return at + 1,
            Token::Sign('{') => return at + bracketed(&tokens[at..]) + 1,
            Token::Sign('(' | '[') => at += bracketed(&tokens[at..]) + 1,
            _ => at += 1,
        }
    }
    at
}

/// Where the bracket that opens here is closed.
fn bracketed(tokens: &[Token]) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Sign('(' | '[' | '{') => depth += 1,
            Token::Sign(')' | ']' | '}') if depth == 1 => return at,
            Token::Sign(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
    }
    tokens.len().saturating_sub(1)
}

/// What stands between the commas of this level.
fn branches(tokens: &[Token]) -> Vec<&[Token]> {
    let (mut depth, mut start, mut found) = (0_usize, 0, Vec::new());
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Sign('{') => depth += 1,
            Token::Sign('}') => depth -= 1,
            Token::Sign(',') if depth == 0 => {
                found.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&tokens[start..]);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens;

    fn path(text: &str) -> ModulePath {
        text.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    fn used(at: &str, source: &str) -> Vec<String> {
        let modules = ["", "a", "a::b", "a::c", "a::c::d", "e"].map(path).into();
        let source = Source::read(&tokens::of(source));
        source.uses(&path(at), &modules).iter().map(|module| module.join("::")).collect()
    }

    #[test]
    fn paths_lead_to_the_longest_module_that_they_name() {
        assert_eq!(used("e", "use crate::a::c::d::Thing;"), ["a::c::d"]);
        assert_eq!(used("e", "fn f() { crate::a::b::g() }"), ["a::b"]);
        assert_eq!(used("e", "use crate::Top;"), [""]);
        assert_eq!(used("e", "use std::fmt; use serde::{Serialize, de::Visitor};"), [""; 0]);
    }

    #[test]
    fn trees_and_other_names_are_followed() {
        assert_eq!(
            used("e", "use crate::a::{self, b::{X, Y}, c as other}; fn f() { other::d::g() }"),
            ["a", "a::b", "a::c", "a::c::d"]
        );
    }

    #[test]
    fn super_and_children_are_found_from_where_a_module_stands() {
        assert_eq!(used("a::b", "use super::c::X; use super::Y;"), ["a", "a::c"]);
        assert_eq!(used("a", "mod b; mod c; pub use b::X; fn f() { c::d::g() }"), ["a::b", "a::c::d"]);
        assert_eq!(used("a", "mod b; mod c;"), [""; 0], "declaring a child is no use of it");
        assert_eq!(used("a", "mod inner { use super::b::X; use super::super::e::Y; }"), ["a::b", "e"]);
    }

    #[test]
    fn what_is_for_tests_alone_does_not_count() {
        assert_eq!(
            used("e", "#[cfg(test)] mod tests { use crate::a::X; } #[cfg(test)] use crate::a::b::Y;"),
            [""; 0]
        );
        let source = Source::read(&tokens::of("#[cfg(test)] mod tests; mod real;"));
        assert_eq!(source.children, ["real"]);
    }
}
