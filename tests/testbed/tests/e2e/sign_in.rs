//! Reading signs in once; every change asks for the operator's own key.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use muster_testbed::fleet::{Fleet, both, said};

use crate::operators::{flake, refused};

/// An operator whose key has a passphrase.
struct Alice<'a> {
    fleet: &'a Fleet,
    folder: PathBuf,
    public: String,
}

impl<'a> Alice<'a> {
    fn new(fleet: &'a Fleet) -> Self {
        let folder = fleet.folder().join("alice");
        fs::create_dir_all(folder.join("keys")).unwrap();
        for file in ["muster.toml", "root.json"] {
            fs::copy(fleet.config_folder().join(file), folder.join(file)).unwrap();
        }
        let passphrase = folder.join("passphrase");
        fs::write(&passphrase, "correct horse battery staple\n").unwrap();
        let key = folder.join("keys/operator.pem");
        let (key, file) = (key.to_str().unwrap(), passphrase.to_str().unwrap());
        let public = fleet.must(&["keys", "generate", key, "--passphrase-file", file]).unwrap();
        let public = public.trim().to_owned();
        fleet.must(&["keys", "add", "operator", &public, "--name", "alice", "--yes"]).unwrap();
        Self { fleet, folder, public }
    }
    fn config(&self) -> PathBuf {
        self.folder.join("muster.toml")
    }
    /// Without anybody to type a passphrase.
    fn alone(&self, arguments: &[&str]) -> Output {
        let mut command = self.fleet.muster(arguments).unwrap();
        command.env("MUSTER_CONFIG", self.config()).output().unwrap()
    }
    /// With the passphrase typed whenever it is asked for.
    fn there(&self, arguments: &[&str]) -> Output {
        let mut command = self.fleet.muster(arguments).unwrap();
        command.env("MUSTER_PASSPHRASE_FILE", self.folder.join("passphrase"));
        command.env("MUSTER_CONFIG", self.config()).output().unwrap()
    }
    #[track_caller]
    fn asked(&self, arguments: &[&str]) {
        refused(&self.alone(arguments), &["a passphrase is needed"]);
    }
    /// The files of signed-in keys.
    fn kept(&self) -> Vec<PathBuf> {
        let folder = self.fleet.fixture.environment();
        let cache = folder.iter().find(|(name, _)| *name == "XDG_CACHE_HOME").unwrap().1.clone();
        match fs::read_dir(Path::new(&cache).join("muster/sessions")) {
            Ok(files) => files.flatten().map(|file| file.path()).collect(),
            Err(_) => Vec::new(),
        }
    }
}

#[track_caller]
fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn reading_asks_an_operator_once_and_everything_else_each_time_until_they_are_removed() {
    use std::os::unix::fs::MetadataExt as _;

    let fleet = Fleet::start(&both()[..1]).unwrap();
    let alice = Alice::new(&fleet);
    let flake = flake(&fleet);
    alice.asked(&["machines", "list"]);
    let printed = good(&alice.there(&["machines", "list"]));
    assert!(printed.contains("Signed in") && printed.contains("muster sign-out"), "{printed}");
    for reads in [
        &["machines", "list"][..],
        &["machines", "list", "--json"],
        &["machines", "show", "cinnabar"],
        &["status"],
        &["status", "--json"],
        &["history", "cinnabar"],
        &["audit"],
        &["drafts", "list"],
        &["update", "--dry-run", "--flake", &flake],
    ] {
        let printed = good(&alice.alone(reads));
        assert!(!printed.contains("Signed in"), "{reads:?}: {printed}");
    }
    let kept = alice.kept();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&kept[0]), mode(kept[0].parent().unwrap())), (0o600, 0o700));

    // Every change is signed by the operator, signed in or not.
    alice.asked(&["update", "--yes", "--flake", &flake]);
    alice.asked(&["machines", "revoke", "cinnabar"]);
    alice.asked(&["machines", "rotate-key", "cinnabar"]);
    alice.asked(&["machines", "add", "realgar", "--class", "nixos"]);
    alice.asked(&["drafts", "drop", "0123456789abcdef"]);
    good(&alice.there(&["update", "--yes", "--flake", &flake]));

    good(&alice.alone(&["sign-out"]));
    assert_eq!(alice.kept(), [] as [PathBuf; 0]);
    alice.asked(&["machines", "list"]);
    good(&alice.there(&["machines", "list"]));

    // A damaged file is reported and replaced.
    fs::write(&alice.kept()[0], "{\"sign_in\":").unwrap();
    alice.asked(&["machines", "list"]);
    let printed = good(&alice.there(&["machines", "list"]));
    assert!(printed.contains("Signed in"), "{printed}");
    good(&alice.alone(&["machines", "list"]));

    // Nothing is kept unless wanted, and nothing for longer than a working day.
    let text = fs::read_to_string(alice.config()).unwrap();
    fs::write(alice.config(), format!("session_hours = 0\n{text}")).unwrap();
    alice.asked(&["machines", "list"]);
    fs::write(alice.config(), format!("session_hours = 13\n{text}")).unwrap();
    refused(&alice.alone(&["machines", "list"]), &["at most 12"]);
    fs::write(alice.config(), text).unwrap();
    good(&alice.alone(&["machines", "list"]));

    fleet.must(&["keys", "remove", "operator", &alice.public, "--yes"]).unwrap();
    alice.asked(&["machines", "list"]);
    assert_eq!(alice.kept(), [] as [PathBuf; 0], "what the controller refused is not kept");
    refused(&alice.there(&["machines", "list"]), &["is not an operator key in the current root"]);
    assert_eq!(alice.kept(), [] as [PathBuf; 0]);
}
