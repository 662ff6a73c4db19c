//! Derivations in this computer's store: read as files where they are at hand, and asked of Nix where they
//! are not (a store elsewhere, or a kind of derivation that this version does not read).
//!
//! A file counts only if its name is the hash of its content, whichever store it is from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use muster_protocol::derivation::Derivation;
use muster_protocol::ids::StorePath;
use muster_protocol::machine::System;
use serde::Deserialize;
use serde_json::Value;

use super::nix::{EVALUATION_LIMIT, NixError, in_command_lines, nix, run};

/// Longer files are left to Nix; the longest in nixpkgs have a few hundred KiB.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// The time limit of a question about closures.
const CLOSURE_LIMIT: Duration = Duration::from_secs(60);

/// What a derivation says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The Nix system that builds it.
    pub system: System,
    /// Every path that it makes.
    pub outputs: Vec<String>,
}

/// What was read of derivations so far.
#[derive(Debug)]
pub struct Derivations {
    /// Where stores may be, by their roots.
    roots: Vec<PathBuf>,
    files: HashMap<StorePath, Option<Derivation>>,
    /// The references that Nix told of those that have no file here.
    told: HashMap<StorePath, Vec<StorePath>>,
}

impl Default for Derivations {
    fn default() -> Self {
        Self::at(std::env::var("NIX_REMOTE").ok().as_deref())
    }
}

impl Derivations {
    pub(super) fn at(remote: Option<&str>) -> Self {
        let root = remote.and_then(|remote| {
            let (_, settings) = remote.strip_prefix("local")?.split_once('?')?;
            settings.split('&').find_map(|setting| setting.strip_prefix("root="))
        });
        let root = root.or(remote.filter(|remote| remote.starts_with('/')));
        let roots = root.into_iter().map(PathBuf::from).chain([PathBuf::from("/")]).collect();
        Self { roots, files: HashMap::new(), told: HashMap::new() }
    }

    fn file(&mut self, path: &StorePath) -> Option<&Derivation> {
        if !self.files.contains_key(path) {
            let read = self.read(path).map(|(derivation, _)| derivation);
            self.files.insert(path.clone(), read);
        }
        self.files.get(path)?.as_ref()
    }

    /// Reads a derivation's file: what it says, and its text.
    pub fn read(&self, path: &StorePath) -> Option<(Derivation, String)> {
        self.roots.iter().find_map(|root| {
            let file = File::open(root.join(path.as_str().trim_start_matches('/'))).ok()?;
            let mut text = String::new();
            let length = file.take(MAX_BYTES + 1).read_to_string(&mut text).ok()?;
            let derivation = Derivation::parse(&text).ok()?;
            let is_good = length as u64 <= MAX_BYTES && derivation.is_named(path, &text);
            is_good.then_some((derivation, text))
        })
    }

    /// These derivations and all that they are built from, sources too; `None` unless each derivation among
    /// them is here as a file.
    pub fn everything(&mut self, derivations: &[StorePath]) -> Option<BTreeSet<StorePath>> {
        let mut all: BTreeSet<StorePath> = derivations.iter().cloned().collect();
        let mut left: Vec<StorePath> = derivations.to_vec();
        while let Some(path) = left.pop() {
            for reference in &self.file(&path)?.references {
                let reference: StorePath = reference.parse().ok()?;
                if all.insert(reference.clone()) && reference.is_derivation() {
                    left.push(reference);
                }
            }
        }
        Some(all)
    }

    /// What these derivations say about themselves, in their order.
    pub async fn described(&mut self, paths: &[StorePath]) -> Vec<Result<Described, NixError>> {
        let read: Vec<Option<Described>> = paths.iter().map(|path| self.described_here(path)).collect();
        let missing = paths.iter().zip(&read).filter(|(_, read)| read.is_none());
        let missing: BTreeSet<&StorePath> = missing.map(|(path, _)| path).collect();
        let missing: Vec<StorePath> = missing.into_iter().cloned().collect();
        let mut shown = BTreeMap::new();
        for some in in_command_lines(&missing) {
            // If Nix refuses all of them for one, each is asked for below.
            shown.extend(show(some).await.unwrap_or_default());
        }
        let mut described = Vec::with_capacity(paths.len());
        for (path, read) in paths.iter().zip(read) {
            described.push(match read.or_else(|| shown.get(path).cloned()) {
                Some(one) => Ok(one),
                None => describe_alone(path).await,
            });
        }
        described
    }

    fn described_here(&mut self, path: &StorePath) -> Option<Described> {
        let derivation = self.file(path)?;
        let outputs = derivation.outputs.iter().filter(|output| !output.is_empty()).cloned().collect();
        Some(Described { system: derivation.platform.parse().ok()?, outputs })
    }

    /// Asks Nix about the closures that are not here as files, so that [`Self::names`] knows them; not about
    /// those that this store does not have.
    pub async fn prepare(&mut self, wanted: &[&StorePath]) {
        let missing: BTreeSet<&StorePath> =
            wanted.iter().copied().filter(|path| self.closure(path).is_none()).collect();
        let missing: Vec<StorePath> = missing.into_iter().cloned().collect();
        for some in in_command_lines(&missing) {
            let Some(valid) = valid(some).await else { continue };
            for some in in_command_lines(&valid) {
                let paths = some.iter().map(StorePath::as_str);
                let arguments: Vec<&str> =
                    ["path-info", "--json", "--recursive", "--derivation"].into_iter().chain(paths).collect();
                if let Ok(printed) = nix(&arguments, CLOSURE_LIMIT).await {
                    self.told.extend(references_in(&printed));
                }
            }
        }
    }

    /// The names and versions in a derivation's closure; `None` if this store does not have it.
    pub fn names(&mut self, derivation: &StorePath) -> Option<BTreeSet<String>> {
        let closure = self.closure(derivation)?;
        Some(closure.iter().filter_map(|path| path.name().strip_suffix(".drv").map(str::to_owned)).collect())
    }

    fn closure(&mut self, derivation: &StorePath) -> Option<BTreeSet<StorePath>> {
        let (mut closure, mut left) = (BTreeSet::from([derivation.clone()]), vec![derivation.clone()]);
        while let Some(path) = left.pop() {
            let references: Vec<StorePath> = match self.file(&path) {
                Some(derivation) => {
                    derivation.references.iter().map(|path| path.parse()).collect::<Result<_, _>>().ok()?
                }
                None => self.told.get(&path)?.clone(),
            };
            for reference in references.into_iter().filter(StorePath::is_derivation) {
                if closure.insert(reference.clone()) {
                    left.push(reference);
                }
            }
        }
        Some(closure)
    }
}

/// Which of these paths this store has.
pub async fn valid(paths: &[StorePath]) -> Option<Vec<StorePath>> {
    let arguments = ["--check-validity", "--print-invalid"].into_iter();
    let arguments: Vec<&str> = arguments.chain(paths.iter().map(StorePath::as_str)).collect();
    let printed = String::from_utf8(run("nix-store", &arguments, CLOSURE_LIMIT).await.ok()?).ok()?;
    let invalid: BTreeSet<&str> = printed.lines().map(str::trim).collect();
    Some(paths.iter().filter(|path| !invalid.contains(path.as_str())).cloned().collect())
}

async fn describe_alone(path: &StorePath) -> Result<Described, NixError> {
    let named_none = || NixError::Format { program: SHOW, reason: "it names no system".to_owned() };
    show(std::slice::from_ref(path)).await?.remove(path).ok_or_else(named_none)
}

const SHOW: &str = "nix derivation show";

async fn show(paths: &[StorePath]) -> Result<BTreeMap<StorePath, Described>, NixError> {
    let paths: Vec<&str> = paths.iter().map(StorePath::as_str).collect();
    let arguments = |command: &[&'static str]| [command, &paths].concat();
    let printed = match nix(&arguments(&["derivation", "show"]), EVALUATION_LIMIT).await {
        // Before Nix 2.12 the command had another name.
        Err(NixError::Failed(_)) => nix(&arguments(&["show-derivation"]), EVALUATION_LIMIT).await?,
        printed => printed?,
    };
    let format = |error: &dyn ToString| NixError::Format { program: SHOW, reason: error.to_string() };
    let value = serde_json::from_slice(&printed).map_err(|error| format(&error))?;
    let mut shown = BTreeMap::new();
    for (path, system, outputs) in described_in(&value) {
        let system = system.parse().map_err(|error| format(&error))?;
        if let Ok(path) = path.parse() {
            shown.insert(path, Described { system, outputs });
        }
    }
    Ok(shown)
}

/// Each derivation's path, `system` and outputs, whether it is listed under its path or, in newer versions,
/// under `derivations`, and whether paths are absolute or relative to the store.
#[doc(hidden)]
pub fn described_in(value: &Value) -> Vec<(String, &str, Vec<String>)> {
    let absolute =
        |path: &str| if path.starts_with('/') { path.to_owned() } else { format!("/nix/store/{path}") };
    let derivations = value.get("derivations").unwrap_or(value).as_object();
    let each = derivations.into_iter().flatten().filter_map(|(path, derivation)| {
        let outputs = derivation.get("outputs").and_then(Value::as_object);
        let outputs = outputs.into_iter().flat_map(|outputs| outputs.values());
        let outputs = outputs.filter_map(|output| output.get("path")?.as_str()).map(absolute);
        Some((absolute(path), derivation.get("system")?.as_str()?, outputs.collect()))
    });
    each.collect()
}

/// The references of each path that `nix path-info --json` tells of: a list in older versions, in newer ones
/// an object by path, which the newest have under `info`.
fn references_in(printed: &[u8]) -> HashMap<StorePath, Vec<StorePath>> {
    #[derive(Deserialize)]
    struct Info {
        path: Option<String>,
        references: Vec<String>,
    }
    let path = |text: &str| {
        let absolute = if text.starts_with('/') { text.to_owned() } else { format!("/nix/store/{text}") };
        absolute.parse::<StorePath>().ok()
    };
    let read = |named: Option<&str>, info: Value| {
        let info: Info = serde_json::from_value(info).ok()?;
        let named = path(named.or(info.path.as_deref())?)?;
        Some((named, info.references.iter().map(|text| path(text)).collect::<Option<Vec<_>>>()?))
    };
    match serde_json::from_slice(printed) {
        Ok(Value::Array(all)) => all.into_iter().filter_map(|info| read(None, info)).collect(),
        Ok(Value::Object(mut all)) => {
            let all = match all.remove("info") {
                Some(Value::Object(newest)) => newest,
                _ => all,
            };
            all.into_iter().filter_map(|(name, info)| read(Some(&name), info)).collect()
        }
        _ => HashMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x.drv";
    const SOURCE: &str = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-s";

    #[test]
    fn both_forms_of_shown_derivations_are_read() {
        let old = serde_json::json!({"/nix/store/x.drv": {
            "system": "x86_64-linux", "new": 1, "outputs": {"out": {"path": "/nix/store/a-x"}}}});
        let new = serde_json::json!({"version": 4, "derivations": {"x.drv": {
            "system": "aarch64-darwin", "outputs": {"out": {"path": "a-x"}, "floating": {}}}}});
        let one = |system| vec![("/nix/store/x.drv".to_owned(), system, vec!["/nix/store/a-x".to_owned()])];
        assert_eq!(described_in(&old), one("x86_64-linux"));
        assert_eq!(described_in(&new), one("aarch64-darwin"));
        assert!(described_in(&serde_json::json!([])).is_empty());
    }

    #[test]
    fn every_form_of_path_info_is_read() {
        let references: HashMap<StorePath, Vec<StorePath>> =
            HashMap::from([(DRV.parse().unwrap(), vec![SOURCE.parse().unwrap()])]);
        let base = |path: &str| path.trim_start_matches("/nix/store/").to_owned();
        for printed in [
            serde_json::json!([{ "path": DRV, "references": [SOURCE], "narSize": 1 }]),
            serde_json::json!({ DRV: { "references": [SOURCE], "deriver": null } }),
            serde_json::json!({ "version": 3, "info": { base(DRV): { "references": [base(SOURCE)] } } }),
        ] {
            assert_eq!(references_in(printed.to_string().as_bytes()), references, "{printed}");
        }
        assert!(references_in(b"no").is_empty());
    }

    #[test]
    fn a_store_below_another_root_is_found_by_what_nix_is_told() {
        let roots = |remote| Derivations::at(remote).roots;
        let both = [PathBuf::from("/tmp/x"), PathBuf::from("/")];
        assert_eq!(roots(Some("local?root=/tmp/x")), both);
        assert_eq!(roots(Some("local?read-only=true&root=/tmp/x")), both);
        assert_eq!(roots(Some("/tmp/x")), both);
        for elsewhere in [None, Some("daemon"), Some(""), Some("ssh-ng://h?root=/y"), Some("local")] {
            assert_eq!(roots(elsewhere), [PathBuf::from("/")], "{elsewhere:?}");
        }
    }

    /// The derivations were made by Nix 2.8.0.
    #[test]
    fn a_closure_is_that_of_files_whose_names_are_their_hashes() {
        let root = tempfile::tempdir().unwrap();
        let store = root.path().join("nix/store");
        std::fs::create_dir_all(&store).unwrap();
        let whole: StorePath = "/nix/store/mbsvbabnyvl1r10agmzkvjmdjmir6l45-x.drv".parse().unwrap();
        let text = r#"Derive([("out","/nix/store/47ggni907b05yfv762zamphhwg3r9xad-x","","")],[("/nix/store/6f39dwv7cggmflac4j1b0z6scbf4sccj-dep.drv",["out"])],["/nix/store/hnh4k9f7ql2wcpblcngqcir7j21i9vi4-y"],"s","/b",[],[("a","/nix/store/hnh4k9f7ql2wcpblcngqcir7j21i9vi4-y"),("builder","/b"),("d","/nix/store/nim4n26h61b7sgklsf4zp102q69n07dd-dep"),("name","x"),("out","/nix/store/47ggni907b05yfv762zamphhwg3r9xad-x"),("system","s")])"#;
        let fresh = || Derivations::at(root.path().to_str());
        std::fs::write(store.join(whole.base()), text.replace("/b", "/c")).unwrap();
        assert!(fresh().file(&whole).is_none(), "it is not what its name says");
        std::fs::write(store.join(whole.base()), text).unwrap();
        assert_eq!(fresh().file(&whole).unwrap().outputs, ["/nix/store/47ggni907b05yfv762zamphhwg3r9xad-x"]);
        assert_eq!(fresh().names(&whole), None, "what it is built from is not here");
        let mut derivations = fresh();
        let dep: StorePath = "/nix/store/6f39dwv7cggmflac4j1b0z6scbf4sccj-dep.drv".parse().unwrap();
        derivations.told.insert(dep, vec![SOURCE.parse().unwrap()]);
        assert_eq!(derivations.names(&whole).unwrap(), BTreeSet::from(["x".to_owned(), "dep".to_owned()]));
    }
}
