use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;

use super::*;

/// A disk that fails after this many operations, as if the process was killed or the power was cut.
struct Mortal {
    left: Cell<u32>,
    dead: Cell<bool>,
}
impl Mortal {
    fn after(operations: u32) -> Self {
        Self { left: Cell::new(operations), dead: Cell::new(false) }
    }
}
impl Disk for Mortal {
    fn before(&self) -> io::Result<()> {
        match self.left.get().checked_sub(1) {
            Some(left) if !self.dead.get() => {
                self.left.set(left);
                Ok(())
            }
            _ => {
                self.dead.set(true);
                Err(io::Error::other("the power is cut"))
            }
        }
    }
}

/// Every file and link below a folder.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(folder) = left.pop() {
        let entries: Vec<_> = fs::read_dir(&folder).unwrap().map(Result::unwrap).collect();
        if entries.is_empty() {
            found.insert(folder.strip_prefix(root).unwrap().to_owned(), "empty".to_owned());
        }
        for entry in entries {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if let Ok(target) = fs::read_link(&path) {
                found.insert(name, format!("-> {}", target.display()));
            } else if path.is_dir() {
                left.push(path);
            } else {
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn fleet() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    put(root, "flake.nix", "{}");
    put(root, "sops/machines/tin/key.json", "old");
    put(root, "sops/machines/gone/key.json", "gone");
    put(root, "vars/shared/ca/key/secret", "old");
    fs::create_dir_all(root.join("vars/shared/ca/key/machines")).unwrap();
    std::os::unix::fs::symlink("elsewhere", root.join("vars/shared/ca/key/machines/tin")).unwrap();
    std::os::unix::fs::symlink("gone", root.join("vars/shared/ca/key/machines/gone")).unwrap();
    put(root, "vars/per-machine/gone/x/y/secret", "gone");
    folder
}

/// One of each kind, on existing and on missing paths.
fn changes() -> Vec<Change> {
    vec![
        Change::Write { path: "sops/machines/tin/key.json".into(), contents: b"new".to_vec() },
        Change::Write {
            path: "vars/per-machine/tin/openssh/key/secret".into(),
            contents: b"new secret".to_vec(),
        },
        Change::Link { path: "vars/per-machine/tin/openssh/key/machines/tin".into(), target: "../x".into() },
        Change::Link { path: "vars/shared/ca/key/machines/tin".into(), target: "../tin".into() },
        Change::Remove { path: "vars/shared/ca/key/machines/gone".into() },
        Change::Remove { path: "sops/machines/gone/key.json".into() },
        Change::Write { path: "vars/shared/ca/key/secret".into(), contents: b"new".to_vec() },
        Change::RemoveTree { path: "vars/per-machine/gone".into() },
    ]
}

fn with_changes() -> BTreeMap<PathBuf, String> {
    let fleet = fleet();
    Folder::take(fleet.path()).unwrap().commit(&changes()).unwrap();
    tree(fleet.path())
}

#[test]
fn a_change_is_made_as_a_whole_and_leaves_nothing_else() {
    let found = with_changes();
    let expected = [
        ("flake.nix", "{}"),
        ("sops/machines/tin/key.json", "new"),
        ("vars/per-machine/tin/openssh/key/machines/tin", "-> ../x"),
        ("vars/per-machine/tin/openssh/key/secret", "new secret"),
        ("vars/shared/ca/key/machines/tin", "-> ../tin"),
        ("vars/shared/ca/key/secret", "new"),
    ];
    let expected: BTreeMap<PathBuf, String> =
        expected.into_iter().map(|(path, text)| (path.into(), text.to_owned())).collect();
    assert_eq!(found, expected);
}

/// The folder without what is only prepared.
fn visible(root: &Path) -> BTreeMap<PathBuf, String> {
    tree(root).into_iter().filter(|(path, _)| !path.starts_with(STAGE)).collect()
}

#[test]
fn killed_before_any_operation_the_folder_is_as_it_was_or_the_next_run_finishes_it() {
    let (before, after) = (tree(fleet().path()), with_changes());
    let mut operations = 0;
    let (mut untouched, mut made) = (0, 0);
    loop {
        let fleet = fleet();
        let root = fleet.path();
        let disk = Mortal::after(operations);
        let killed = Folder::take(root).unwrap().commit_with(&disk, &changes()).is_err();
        assert_eq!(killed, disk.dead.get(), "operation {operations}");
        let pending = is_pending(root);
        if killed && !pending && visible(root) == before {
            untouched += 1;
            let folder = Folder::take(root).unwrap();
            assert!(!folder.finished);
            assert_eq!(tree(root), before, "operation {operations}");
            folder.commit(&changes()).unwrap();
        } else if killed {
            made += 1;
            // The second run is killed too, at each of its operations.
            for again in 0.. {
                let disk = Mortal::after(again);
                match Folder::take_with(&disk, root) {
                    Ok(folder) => {
                        assert!(folder.finished || !pending || again > 0, "operation {operations}, {again}");
                        break;
                    }
                    Err(_) => assert!(disk.dead.get()),
                }
            }
        }
        assert_eq!(tree(root), after, "operation {operations}");
        if !killed {
            break;
        }
        operations += 1;
    }
    assert!(untouched > 10 && made > 10, "{untouched} before the journal, {made} after it");
}

#[test]
fn two_at_once_do_not_mix() {
    let fleet = fleet();
    let first = Folder::take(fleet.path()).unwrap();
    let refused = Folder::take(fleet.path()).unwrap_err();
    assert!(matches!(refused, TransactionError::Busy(_)), "{refused}");
    drop(first);
    assert!(Folder::take(fleet.path()).is_ok());
}

#[test]
fn what_cannot_be_done_is_found_before_anything_is() {
    let fleet = fleet();
    let root = fleet.path();
    put(root, "vars/file", "");
    let before = tree(root);
    let folder = Folder::take(root).unwrap();
    let write = |path: &str| Change::Write { path: path.into(), contents: b"x".to_vec() };
    for (second, what) in [
        (write("vars/file/below/secret"), "in the way"),
        (write("vars/shared/ca"), "in the way"),
        (Change::Link { path: "vars/shared".into(), target: "x".into() }, "in the way"),
        (write("../outside"), "mistake"),
        (write("/outside"), "mistake"),
        (write("first"), "mistake"),
    ] {
        let error = folder.commit(&[write("first"), second]).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!(tree(root), before);
    }
    let below = [Change::RemoveTree { path: "vars".into() }, write("vars/shared/ca/key/secret")];
    assert!(matches!(folder.commit(&below).unwrap_err(), TransactionError::Twice(_)));
    assert_eq!(tree(root), before);
}

#[test]
fn a_journal_of_another_version_is_left_alone() {
    let fleet = fleet();
    put(fleet.path(), ".muster-vars/journal.json", r#"{"version":2,"steps":[]}"#);
    assert!(matches!(Folder::take(fleet.path()).unwrap_err(), TransactionError::Foreign(_)));
    assert!(is_pending(fleet.path()));
}
