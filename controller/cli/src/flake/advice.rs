//! What to do about failures of Nix that are about the folder, and that Nix reports in terms of its store.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_protocol::shown::command;

use super::nix::{NixError, run};

const GIT_LIMIT: Duration = Duration::from_secs(60);

/// Puts advice in front of the failure where there is any. `source` is the tree in the store.
pub async fn advised(error: NixError, reference: &str, source: Option<&str>) -> NixError {
    let NixError::Failed(message) = &error else { return error };
    let Some(root) = local(reference).and_then(|folder| git_root(&folder)) else { return error };
    if let Some(advice) = foreign(&root, message) {
        return NixError::Failed(format!("{advice}\n{message}"));
    }
    for file in in_store(message, source) {
        if root.join(&file).exists() && !is_known(&root, &file).await {
            return NixError::Failed(format!(
                "{} is in the folder, but not in git, and Nix sees only what git knows: run `{}`\n{message}",
                file.display(),
                command(&["git", "-C", &root.to_string_lossy(), "add", &file.to_string_lossy()])
            ));
        }
    }
    error
}

/// A folder owned by another user: git refuses to read it, and Nix 2.8 does not say why.
fn foreign(root: &Path, message: &str) -> Option<String> {
    let is_about =
        ["Not a git repository", "not owned by", "dubious ownership"].iter().any(|it| message.contains(it));
    let owner = std::fs::metadata(root).ok()?.uid();
    let me = rustix::process::geteuid().as_raw();
    (is_about && owner != me).then(|| {
        format!(
            "{} is owned by another user (number {owner}; you are {me}), and git does not read it: run this \
             as its owner, or `{}`",
            root.display(),
            command(&["git", "config", "--global", "--add", "safe.directory", &root.to_string_lossy()])
        )
    })
}

/// The local folder that a reference names, if it names one.
fn local(reference: &str) -> Option<PathBuf> {
    let (text, _) = reference.split_once(['?', '#']).unwrap_or((reference, ""));
    let path = match text.strip_prefix("git+file:") {
        Some(path) => PathBuf::from(path.strip_prefix("//").unwrap_or(path)),
        // `path:` takes everything in the folder, whatever git knows.
        None if text.starts_with("path:") => return None,
        None => PathBuf::from(text),
    };
    path.canonicalize().ok()
}

fn git_root(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|folder| folder.join(".git").exists()).map(Path::to_path_buf)
}

async fn is_known(root: &Path, file: &Path) -> bool {
    let (root, file) = (root.to_string_lossy(), file.to_string_lossy());
    let listed = run("git", &["--literal-pathspecs", "-C", &root, "ls-files", "--", &file], GIT_LIMIT).await;
    // Unknown unless git says so.
    listed.map_or(true, |names| !names.is_empty())
}

/// The files of the tree that a message mentions by their store paths.
fn in_store(message: &str, source: Option<&str>) -> Vec<PathBuf> {
    const FOLDER: &str = "/nix/store/";
    let quotes = |c: char| matches!(c, '\'' | '"' | '«' | '»');
    let mut files = Vec::new();
    for text in message.split(quotes).filter(|text| !text.contains('\n')) {
        let Some(at) = text.find(FOLDER) else { continue };
        let Some((name, file)) = text[at + FOLDER.len()..].split_once('/') else { continue };
        let is_ours = source.is_none_or(|source| source.strip_prefix(FOLDER) == Some(name));
        let file = PathBuf::from(file);
        let is_plain = file.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if is_ours && name.ends_with("-source") && is_plain && !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_tree_are_found_in_messages() {
        let message = "getting status of '/tmp/x/nix/store/dg4-source/m.nix': No such file\nat \
             /nix/store/dg4-source/flake.nix:1";
        let found = |source| in_store(message, source);
        assert_eq!(found(None), [Path::new("m.nix")]);
        assert_eq!(found(Some("/nix/store/dg4-source")), [Path::new("m.nix")]);
        assert_eq!(found(Some("/nix/store/abc-source")), Vec::<PathBuf>::new());
        assert_eq!(in_store("path '/nix/store/a-source/../../etc/x' is", None), Vec::<PathBuf>::new());
    }

    #[test]
    fn folders_are_found_in_references() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().canonicalize().unwrap();
        let text = here.display();
        for reference in
            [format!("{text}"), format!("{text}?submodules=1"), format!("git+file://{text}?ref=x")]
        {
            assert_eq!(local(&reference).as_deref(), Some(&*here), "{reference}");
        }
        for elsewhere in [format!("path:{text}"), "github:a/b".into(), "nixpkgs".into()] {
            assert_eq!(local(&elsewhere), None, "{elsewhere}");
        }
    }
}
