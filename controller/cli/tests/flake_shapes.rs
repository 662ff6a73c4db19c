//! Every way to name a flake, compared with what `nix eval` makes of the same arguments, with a real Nix and
//! a real git.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Says everything about itself that a configuration could use, where `muster machines list` shows it.
const TELLS_ALL: &str = r#"{
  outputs = { self }: rec {
    facts = {
      commit = self.rev or null;
      short = self.shortRev or null;
      dirty = self.dirtyRev or null;
      count = self.revCount or null;
      time = self.lastModified or null;
      date = self.lastModifiedDate or null;
      hash = self.narHash or null;
      folder = self.outPath;
      files = builtins.attrNames (builtins.readDir ./.);
      drv = (derivation { name = "system"; system = "x86_64-linux"; builder = "/bin/sh"; src = self;
        }).drvPath;
    };
    muster.inventory.machines.tin = {
      class = "nixos";
      system = "x86_64-linux";
      description = builtins.unsafeDiscardStringContext (builtins.toJSON facts);
    };
  };
}
"#;

/// A folder with a Nix and a git that know only what is in it.
struct Bed {
    folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let bed = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir_all(bed.at("config/nix")).unwrap();
        bed.git(".", &["config", "--global", "protocol.file.allow", "always"]);
        bed.git(".", &["config", "--global", "init.defaultBranch", "main"]);
        bed
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(path)
    }

    fn text(&self, path: &str) -> String {
        self.at(path).to_str().unwrap().to_owned()
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>, folder: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.at(folder))
            .env("HOME", self.at("."))
            .env("XDG_CACHE_HOME", self.at("cache"))
            .env("XDG_CONFIG_HOME", self.at("config"))
            .env("NIX_REMOTE", format!("local?root={}", self.text("store")))
            .env(
                "NIX_CONFIG",
                "experimental-features = nix-command flakes\nsubstituters =\nbuild-users-group \
                 =\nflake-registry =\n",
            );
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), "x").env(format!("GIT_{role}_EMAIL"), "x@example.org");
        }
        command
    }

    fn git(&self, folder: &str, arguments: &[&str]) {
        let output = self.command("git", folder).args(arguments).output().unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn commit(&self, folder: &str) {
        self.git(folder, &["init", "--quiet"]);
        self.git(folder, &["add", "."]);
        self.git(folder, &["commit", "--quiet", "--message", "x"]);
    }

    fn flake(&self, folder: &str) {
        self.write(&format!("{folder}/flake.nix"), TELLS_ALL);
    }

    fn repository(&self, folder: &str) {
        self.flake(folder);
        self.commit(folder);
    }

    /// What Nix itself makes of these arguments.
    fn nix(&self, folder: &str, arguments: &[&str]) -> Output {
        self.command("nix", folder)
            .args(["eval", "--json", "--no-write-lock-file"])
            .args(arguments)
            .output()
            .unwrap()
    }

    fn list_by(&self, mut command: Command, arguments: &[&str]) -> Output {
        command.args(["machines", "list", "--json", "--flake"]).args(arguments).output().unwrap()
    }

    fn list(&self, folder: &str, arguments: &[&str]) -> Output {
        self.list_by(self.command(muster(), folder), arguments)
    }
}

/// Another Nix may be in a tree without Rust, which names where the programs were built.
fn muster() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_BIN_EXE_muster"));
    std::env::var_os("MUSTER_BIN_DIR").map_or(here, |folder| Path::new(&folder).join("muster"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the flake says about itself in the description of its machine.
fn facts(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    let machines: Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_str(machines[0]["description"].as_str().unwrap()).unwrap()
}

#[test]
fn every_way_to_name_a_flake_is_what_nix_itself_makes_of_it() {
    let bed = Bed::new();
    for name in ["plain", "with space", "Büro", "100%", "dirty", "lib", "read-only", "outer/nix/fleet"] {
        bed.flake(name);
    }
    for name in ["plain", "with space", "Büro", "100%", "dirty", "lib", "read-only", "outer"] {
        bed.commit(name);
    }
    bed.write("dirty/flake.nix", &format!("{TELLS_ALL}# changed\n"));
    bed.flake("outer-dirty/nix/fleet");
    bed.commit("outer-dirty");
    bed.write("outer-dirty/nix/fleet/flake.nix", &format!("{TELLS_ALL}# changed\n"));
    bed.flake("no-git");
    bed.flake("no git, 100% Büro");
    bed.repository("with-submodule");
    bed.git("with-submodule", &["submodule", "--quiet", "add", &bed.text("lib"), "lib"]);
    bed.git("with-submodule", &["commit", "--quiet", "--message", "y"]);
    bed.git(".", &["clone", "--quiet", "--depth", "1", &format!("file://{}", bed.text("plain")), "shallow"]);
    bed.git("plain", &["worktree", "add", "--quiet", "../worktree"]);
    fs::create_dir(bed.at("outer/nix/fleet/below")).unwrap();
    symlink("plain", bed.at("linked")).unwrap();
    symlink("no-git", bed.at("linked-no-git")).unwrap();
    for (path, mode) in [("read-only/flake.nix", 0o444), ("read-only", 0o555)] {
        fs::set_permissions(bed.at(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let registry = format!(
        r#"{{"version":2,"flakes":[{{"from":{{"type":"indirect","id":"fleet"}},"to":{{"type":"git",
        "url":"file://{}"}}}}]}}"#,
        bed.text("plain")
    );
    bed.write("config/nix/registry.json", &registry);

    let at = |path: &str| bed.text(path);
    let git = |path: &str| format!("git+file://{}", bed.text(path));
    let shapes: Vec<(&str, String)> = vec![
        ("plain", ".".into()),
        ("with space", ".".into()),
        ("Büro", ".".into()),
        ("100%", ".".into()),
        ("dirty", ".".into()),
        ("no-git", ".".into()),
        ("no git, 100% Büro", ".".into()),
        ("read-only", ".".into()),
        ("worktree", ".".into()),
        ("shallow", ".".into()),
        ("linked", ".".into()),
        ("outer/nix/fleet", ".".into()),
        ("outer/nix/fleet/below", ".".into()),
        ("outer-dirty/nix/fleet", ".".into()),
        ("with-submodule", ".".into()),
        ("with-submodule", ".?submodules=1".into()),
        ("with-submodule", git("with-submodule?submodules=1")),
        ("with-submodule", at("with-submodule?submodules=1")),
        ("plain", at("with space")),
        ("plain", at("with%20space")),
        ("plain", git("with%20space")),
        ("plain", at("Büro")),
        ("plain", git("B%C3%BCro")),
        ("plain", at("100%")),
        ("plain", git("100%25")),
        ("plain", git("plain?ref=main")),
        ("plain", git("shallow?shallow=1")),
        ("plain", git("outer?dir=nix/fleet")),
        ("plain", at("outer?dir=nix/fleet")),
        ("plain", git("outer-dirty?dir=nix/fleet")),
        ("plain", format!("path:{}", at("outer?dir=nix/fleet"))),
        ("plain", format!("path:{}", at("plain"))),
        ("plain", format!("path:{}", at("with%20space"))),
        ("plain", format!("path:{}", at("with space"))),
        ("plain", "path:../no-git".into()),
        ("plain", "../no-git".into()),
        ("plain", "../dirty".into()),
        ("plain", at("linked")),
        ("plain", at("linked-no-git")),
        ("plain", git("linked")),
        ("plain", "fleet".into()),
        ("plain", "flake:fleet".into()),
        ("plain", "no-such-name".into()),
        ("plain", at("nothing-there")),
    ];
    let (mut read, mut wrong) = (0, Vec::new());
    for (folder, reference) in &shapes {
        let nix = bed.nix(folder, &[&format!("{reference}#facts")]);
        let ours = bed.list(folder, &[reference]);
        if nix.status.success() != ours.status.success() {
            wrong.push(format!("{folder}: {reference}: {}\n  and nix: {}", said(&ours), said(&nix)));
        } else if nix.status.success() {
            read += 1;
            let theirs: Value = serde_json::from_slice(&nix.stdout).unwrap();
            if facts(&ours) != theirs {
                wrong.push(format!("{folder}: {reference}: {}\n  and nix: {theirs}", facts(&ours)));
            }
            let is_dirty =
                theirs["hash"].is_string() && folder.contains("dirty") || reference.contains("dirty");
            if is_dirty != said(&ours).contains("changes that are not committed") {
                wrong.push(format!(
                    "{folder}: {reference}: dirty is {is_dirty}, and it says: {}",
                    said(&ours)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), shapes.len(), wrong.join("\n"));
    // Nix 2.8 itself refuses some of them.
    assert!(read >= 20, "Nix reads {read} of {} alone", shapes.len());
}

/// A `nix` that changes the folder before its first evaluation.
fn meddling(bed: &Bed, file: &str) -> Command {
    let real = Command::new("sh").args(["-c", "command -v nix"]).output().unwrap();
    let real = String::from_utf8(real.stdout).unwrap().trim().to_owned();
    bed.write(
        "bin/nix",
        &format!(
            "#!/bin/sh\ncase \" $* \" in *' eval '*) [ -e '{0}.done' ] || {{ touch '{0}.done'; echo '# \
             meddled' >> '{0}'; }} ;; esac\n\
             exec {real} \"$@\"\n",
            bed.text(file)
        ),
    );
    fs::set_permissions(bed.at("bin/nix"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = bed.command(muster(), ".");
    command.env("PATH", format!("{}:{}", bed.text("bin"), std::env::var("PATH").unwrap()));
    command
}

#[test]
fn one_run_sees_one_tree_whatever_becomes_of_the_folder() {
    for (name, dirty) in [("committed", false), ("changed", true)] {
        let bed = Bed::new();
        bed.repository(name);
        if dirty {
            bed.write(&format!("{name}/flake.nix"), &format!("{TELLS_ALL}# changed\n"));
        }
        let before = bed.nix(".", &[&format!("{}#facts", bed.text(name))]);
        let before: Value = serde_json::from_slice(&before.stdout).unwrap();
        let ours = bed.list_by(meddling(&bed, &format!("{name}/flake.nix")), &[&bed.text(name)]);
        let after = fs::read_to_string(bed.at(&format!("{name}/flake.nix"))).unwrap();
        assert!(after.contains("# meddled"), "the folder was not changed meanwhile");
        // Newer versions tell a dirty tree the commit that it began from, which a tree in the store cannot
        // say.
        if before["dirty"].is_string() {
            assert!(!ours.status.success());
            assert!(said(&ours).contains("was changed while it was read"), "{}", said(&ours));
        } else {
            assert_eq!(facts(&ours), before);
        }
    }
}

#[test]
fn reading_writes_nothing() {
    let bed = Bed::new();
    bed.write("words/flake.nix", "{ outputs = _: { own = \"x\"; }; }");
    bed.write(
        "fleet/flake.nix",
        &format!(
            "{{ inputs.words.url = \"path:{}\"; outputs = {{ self, words }}: {{\n\
             muster.inventory.machines.tin = {{ class = \"nixos\"; description = builtins.toJSON words.own; \
             }};\n\
             nixosConfigurations.tin.config.nixpkgs.hostPlatform.system = \"x86_64-linux\"; }}; }}",
            bed.text("words")
        ),
    );
    bed.commit("fleet");
    let index = fs::read(bed.at("fleet/.git/index")).unwrap();
    for reference in [bed.text("fleet"), format!("path:{}", bed.text("fleet"))] {
        let listed = bed.list(".", &[&reference]);
        assert_eq!(facts(&listed), "x");
        assert!(!bed.at("fleet/flake.lock").exists(), "{reference} was locked");
        assert_eq!(fs::read(bed.at("fleet/.git/index")).unwrap(), index, "something was added to git");
        assert!(said(&listed).contains("not writing modified lock file"), "{}", said(&listed));
    }
}

#[test]
fn options_reach_nix_and_an_override_takes_an_inputs_place() {
    let bed = Bed::new();
    bed.write("words/flake.nix", "{ outputs = _: { own = \"of the lock\"; }; }");
    bed.write("elsewhere/flake.nix", "{ outputs = _: { own = \"from elsewhere\"; }; }");
    bed.commit("elsewhere");
    bed.write("plain-files/own", "x");
    bed.write(
        "fleet/flake.nix",
        &format!(
            "{{ inputs.words.url = \"path:{}\"; outputs = {{ self, words }}: {{\n\
             muster.inventory.machines.tin = {{ class = \"nixos\"; description = builtins.toJSON {{ inherit \
             (words) own; user = builtins.getEnv \"WHO\"; }}; }}; }}; }}",
            bed.text("words")
        ),
    );
    bed.commit("fleet");
    let fleet = bed.text("fleet");
    let listed = |folder: &str, more: &[&str]| {
        let mut command = bed.command(muster(), folder);
        command.env("WHO", "me");
        facts(&bed.list_by(command, &[&[fleet.as_str()], more].concat()))
    };
    assert_eq!(listed(".", &[]), serde_json::json!({ "own": "of the lock", "user": "" }));
    let of_both = listed("elsewhere", &["--override-input", "words", ".", "--impure"]);
    assert_eq!(of_both, serde_json::json!({ "own": "from elsewhere", "user": "me" }));
    assert_eq!(listed(".", &["--option", "pure-eval", "false"])["user"], "me");

    let refused = bed.list(".", &[&fleet, "--override-input", "words", "/nothing/there"]);
    assert!(said(&refused).contains("take the place of the input words"), "{}", said(&refused));
    let refused = bed.list(".", &[&fleet, "--option", "access-tokens", "github.com=secret"]);
    assert!(
        said(&refused).contains("signed and published") && !said(&refused).contains("secret"),
        "{}",
        said(&refused)
    );
}

#[test]
fn what_git_and_nix_say_of_the_cause_is_shown() {
    let bed = Bed::new();
    let refusal = |reference: &str| {
        let output = bed.list(".", &[reference]);
        assert!(!output.status.success(), "{reference} is read");
        said(&output)
    };
    let unreachable = refusal("git+http://127.0.0.1:9/x");
    assert!(unreachable.contains("127.0.0.1") && unreachable.contains("onnect"), "{unreachable}");
    let unknown = refusal("git+https://no-such-host.invalid/x");
    assert!(unknown.contains("Could not resolve host"), "{unknown}");

    bed.write(
        "input/flake.nix",
        "{ inputs.a.url = \"git+http://127.0.0.1:9/x\"; outputs = { self, a }: { }; }",
    );
    bed.commit("input");
    let of_input = refusal(&bed.text("input"));
    assert!(of_input.contains("127.0.0.1:9"), "{of_input}");

    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if is_root {
        bed.repository("others");
        assert!(
            Command::new("chown").args(["-R", "1234:1234"]).arg(bed.at("others")).status().unwrap().success()
        );
        let foreign = refusal(&bed.text("others"));
        assert!(foreign.contains("owned by another user") && foreign.contains("safe.directory"), "{foreign}");
    }
}

#[test]
fn a_file_that_git_does_not_know_is_named_with_what_to_do() {
    let bed = Bed::new();
    bed.write(
        "fleet/flake.nix",
        "{ outputs = _: { muster.inventory = import ./inventory.nix; nixosConfigurations = { }; }; }",
    );
    bed.commit("fleet");
    bed.write("fleet/inventory.nix", "{ }");
    let output = bed.list("fleet", &["."]);
    let root = bed.text("fleet");
    assert!(said(&output).contains("inventory.nix is in the folder, but not in git"), "{}", said(&output));
    assert!(said(&output).contains(&format!("`git -C {root} add inventory.nix`")), "{}", said(&output));
    bed.git("fleet", &["add", "inventory.nix"]);
    assert!(bed.list("fleet", &["."]).status.success());

    // A flake that git does not know at all.
    bed.write("new/flake.nix", TELLS_ALL);
    bed.git("new", &["init", "--quiet"]);
    let output = bed.list(".", &[&bed.text("new")]);
    assert!(said(&output).contains("add flake.nix`"), "{}", said(&output));
}

#[test]
fn what_nix_warns_of_is_shown_once() {
    let bed = Bed::new();
    bed.write(
        "fleet/flake.nix",
        "{ nixConfig.extra-substituters = [ \"https://cache.example.org\" ]; outputs = _: {\n\
         nixosConfigurations = builtins.trace \"warning: the option x is old\" { }; }; }",
    );
    bed.commit("fleet");
    let told = said(&bed.list(".", &[&bed.text("fleet")]));
    let ignored = "ignoring untrusted flake configuration setting 'extra-substituters'";
    assert_eq!(told.matches(ignored).count(), 1, "{told}");
    assert_eq!(told.matches("warning: the option x is old").count(), 1, "{told}");
}
