//! Prints which modules of each crate use one another in a circle, and how many there are.
//!
//! A module is a file. It uses another one if a path in it leads there (`use crate::a::b`, `super::b::f()`),
//! in code that is not for tests alone. Declaring a child is no use of it; calling it, or passing it on by
//! `pub use`, is.
//!
//! [`tokens`] reads Rust as far as paths need it, [`paths`] finds the paths of one file, [`graph`] finds the
//! circles. [`width`] finds lines that are too wide, with `--wide`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod graph;
mod paths;
mod tokens;
mod width;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

use graph::circles;
use paths::{ModulePath, Source};

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    if let Some((option, folders)) = arguments.split_first()
        && option == Path::new("--wide")
    {
        return wide(folders);
    }
    if arguments.is_empty() {
        eprintln!(
            "usage: muster-house FOLDER …          circles; each folder has the lib.rs or main.rs of a \
             crate\n       muster-house --wide FOLDER …   lines that are too wide, in every .rs file below"
        );
        return ExitCode::from(2);
    }
    let mut found = 0;
    for folder in &arguments {
        match read(folder) {
            Ok(uses) => found += print(folder, &uses),
            Err(error) => {
                eprintln!("error: {}: {error}", folder.display());
                return ExitCode::from(2);
            }
        }
    }
    println!("{found} circles");
    if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn wide(folders: &[PathBuf]) -> ExitCode {
    let mut found = 0;
    for folder in folders {
        match width::wide_lines(folder) {
            Ok(lines) => {
                found += lines.len();
                lines.iter().for_each(|(file, line)| println!("{}:{line}", file.display()));
            }
            Err(error) => {
                eprintln!("error: {}: {error}", folder.display());
                return ExitCode::from(2);
            }
        }
    }
    println!("{found} lines have more than {} columns", width::COLUMNS);
    if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(folder: &Path, uses: &Uses) -> usize {
    let found = circles(uses);
    for circle in &found {
        println!("{}: {} modules use one another:", folder.display(), circle.len());
        for module in circle {
            let others = uses.get(module).into_iter().flatten();
            let inside: Vec<String> = others.filter(|other| circle.contains(*other)).map(name).collect();
            println!("    {} uses {}", name(module), inside.join(", "));
        }
    }
    let edges: usize = uses.values().map(BTreeSet::len).sum();
    println!("{}: {} modules, {edges} uses, {} circles", folder.display(), uses.len(), found.len());
    found.len()
}

fn name(module: &ModulePath) -> String {
    if module.is_empty() { "the crate's root".to_owned() } else { module.join("::") }
}

type Uses = BTreeMap<ModulePath, BTreeSet<ModulePath>>;

/// Which modules of the crate in `folder` use which.
fn read(folder: &Path) -> io::Result<Uses> {
    let mut sources = BTreeMap::new();
    for root in ["lib.rs", "main.rs"] {
        if folder.join(root).exists() {
            collect(&folder.join(root), folder, Vec::new(), &mut sources)?;
            break;
        }
    }
    if sources.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is neither lib.rs nor main.rs"));
    }
    let modules: BTreeSet<ModulePath> = sources.keys().cloned().collect();
    Ok(sources.iter().map(|(at, source)| (at.clone(), source.uses(at, &modules))).collect())
}

/// Reads a module's file, and those of its children that are not for tests alone.
fn collect(
    file: &Path,
    folder: &Path,
    at: ModulePath,
    sources: &mut BTreeMap<ModulePath, Source>,
) -> io::Result<()> {
    let source = Source::read(&tokens::of(&fs::read_to_string(file)?));
    for child in &source.children {
        let (file, folder) = (folder.join(format!("{child}.rs")), folder.join(child));
        collect(&file, &folder, [at.clone(), vec![child.clone()]].concat(), sources)?;
    }
    sources.insert(at, source);
    Ok(())
}
