//! `muster machines list --flake` on flakes of each kind, with a real Nix and no controller.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A flake in a folder, and a Nix that knows only its own store.
struct Flake {
    folder: tempfile::TempDir,
}

impl Flake {
    fn new(outputs: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flake = Self { folder };
        fs::create_dir(flake.path()).unwrap();
        flake.write("flake.nix", &format!("{{\n  outputs = {{ self }}: {outputs};\n}}\n"));
        flake
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("flake")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Copies the flake library into the flake: a pure evaluation reads nothing outside it.
    fn with_library(self) -> Self {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../nix");
        let copied = Command::new("cp").arg("-R").arg(library).arg(self.path().join("nix")).status();
        assert!(copied.unwrap().success());
        self
    }

    fn muster(&self, arguments: &[&str]) -> Output {
        let root = self.folder.path();
        Command::new(env!("CARGO_BIN_EXE_muster"))
            .args(["machines", "list", "--flake", &format!("path:{}", self.path().display())])
            .args(arguments)
            .env("HOME", root)
            .env("XDG_CACHE_HOME", root.join("cache"))
            .env("XDG_CONFIG_HOME", root.join("config"))
            .env("NIX_REMOTE", format!("local?root={}", root.join("store").display()))
            .env(
                "NIX_CONFIG",
                "experimental-features = nix-command flakes\nsubstituters =\nbuild-users-group =\n",
            )
            .output()
            .unwrap()
    }

    fn list(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.muster(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The one machine of this name.
    fn machine(&self, name: &str) -> Value {
        self.list(&[]).into_iter().find(|found| found["machine"] == name).unwrap()
    }

    fn refusal(&self) -> String {
        let output = self.muster(&[]);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }
}

/// Configurations, as far as they are read here: one has its platform, one only its packages', one only its
/// system's.
const PLAIN: &str = r#"{
    nixosConfigurations.tin = { config.nixpkgs.hostPlatform.system = "x86_64-linux";
      pkgs = throw "not asked"; };
    nixosConfigurations.lead = { config.nixpkgs.hostPlatform = throw "not defined";
      pkgs.stdenv.hostPlatform.system = "aarch64-linux"; };
    darwinConfigurations.iron = { system = derivation { name = "s"; builder = "/bin/sh";
      system = "aarch64-darwin"; }; };
}"#;

#[test]
fn a_plain_flake_is_read_as_it_is() {
    let flake = Flake::new(PLAIN);
    let machines = flake.list(&[]);
    let told: Vec<_> = machines
        .iter()
        .map(|m| json!([m["machine"], m["class"], m["system"], m["tags"], m["known_from"], m["notes"]]))
        .collect();
    assert_eq!(
        told,
        [
            json!(["iron", "darwin", "aarch64-darwin", ["all", "darwin"], ["darwinConfigurations"], []]),
            json!(["lead", "nixos", "aarch64-linux", ["all", "nixos"], ["nixosConfigurations"], []]),
            json!(["tin", "nixos", "x86_64-linux", ["all", "nixos"], ["nixosConfigurations"], []]),
        ]
    );
    let table = String::from_utf8(flake.muster(&[]).stdout).unwrap();
    assert!(table.contains("aarch64-darwin") && table.contains("darwinConfigurations"), "{table}");
}

#[test]
fn those_that_fail_among_many_are_notes_whatever_the_names() {
    let flake = Flake::new(
        r#"{
            nixosConfigurations = builtins.listToAttrs (builtins.genList (n: {
                name = "m${toString n}";
                value.config.nixpkgs.hostPlatform.system = "x86_64-linux";
            }) 60) // {
                m3.config = { }.nothing;
                m41.config = abort "no more";
                "me@host".config.nixpkgs.hostPlatform.system = "aarch64-linux";
                "a\"b\${c}\\".config.nixpkgs.hostPlatform.system = "aarch64-linux";
            };
        }"#,
    );
    let machines = flake.list(&[]);
    let named = |name: &str| machines.iter().find(|found| found["machine"] == name).unwrap();
    assert_eq!((named("me@host")["system"].as_str(), machines.len()), (Some("aarch64-linux"), 62));
    assert_eq!(named("a\"b${c}\\")["system"], "aarch64-linux");
    for (name, why) in [("m3", "attribute 'nothing' missing"), ("m41", "no more")] {
        let note = named(name)["notes"][0].as_str().unwrap();
        assert!(note.starts_with("its system is not known: ") && note.contains(why), "{note}");
    }
    let unknown = machines.iter().filter(|found| found["system"].is_null()).count();
    assert_eq!(unknown, 2, "{machines:?}");
}

#[test]
fn one_machine_that_fails_is_a_note_and_the_others_are_listed() {
    let flake = Flake::new(
        r#"{
            nixosConfigurations.tin.config.nixpkgs.hostPlatform.system = "x86_64-linux";
            nixosConfigurations.bad = { config = { }.nothing; };
            nixosConfigurations.worse = throw "the module of worse is not finished";
            nixosConfigurations.silent = { };
        }"#,
    );
    assert_eq!(flake.machine("tin")["system"], "x86_64-linux");
    let note = |name: &str| flake.machine(name)["notes"][0].as_str().unwrap().to_owned();
    assert!(
        note("bad").starts_with("its system is not known: attribute 'nothing' missing"),
        "{}",
        note("bad")
    );
    assert_eq!(
        note("worse").lines().next().unwrap(),
        "its system is not known: the module of worse is not finished"
    );
    assert_eq!(note("silent"), "its system is not known: it says no system");
    let output = flake.muster(&[]);
    assert!(output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("note: worse: its system is not known: the module of worse"), "{told}");
}

#[test]
fn systems_are_not_evaluated_where_nobody_wants_them() {
    let flake = Flake::new(r#"{ nixosConfigurations.tin = throw "nobody asks for it"; }"#);
    let machines = flake.list(&["--without-systems"]);
    assert_eq!(machines[0]["system"], Value::Null);
    assert_eq!(machines[0]["notes"], json!([]));
}

#[test]
fn a_clan_inventory_is_read_in_each_shape_that_it_had() {
    let inventory = r#"{
        machines.iron = { machineClass = "darwin"; tags = [ "all" "laptop" ]; description = "A Mac";
          deploy.buildHost = null; };
        machines.new = { machineClass = "nixos"; tags = [ ]; };
        tags = { all = [ "iron" "new" ]; lab = [ "iron" ]; };
        instances = throw "settings are not asked for";
    }"#;
    for place in ["inventoryClass.inventorySerialization", "inventoryClass.inventory", "inventory"] {
        let flake = Flake::new(&format!(
            r#"{{
                clanInternals = {{ {place} = {inventory}; machines = throw "not asked"; }};
                darwinConfigurations.iron.config.nixpkgs.hostPlatform.system = "aarch64-darwin";
            }}"#
        ));
        let iron = flake.machine("iron");
        assert_eq!(iron["tags"], json!(["all", "darwin", "lab", "laptop"]), "{place}");
        assert_eq!(iron["known_from"], json!(["darwinConfigurations", "clanInternals"]));
        assert_eq!(iron["description"], "A Mac");
        let new = flake.machine("new");
        assert_eq!(new["class"], "nixos");
        assert_eq!(
            new["notes"],
            json!(["neither nixosConfigurations nor darwinConfigurations has its system"])
        );
    }
}

const LIBRARY: &str = r#"(import ./nix { }).mkFleet {
    inherit self;
    modules.sshd = { };
    nixpkgs = throw "a list of machines needs no nixpkgs";
    nix-darwin = { };
    machines = builtins.mapAttrs (_: _: { }) (import ./inventory.nix).machines;
    inventory = import ./inventory.nix;
}"#;

#[test]
fn a_fleet_of_our_library_is_listed_without_nixpkgs() {
    let flake = Flake::new(LIBRARY).with_library();
    flake.write(
        "inventory.nix",
        r#"{
            machines.tin = { system = "x86_64-linux"; tags = [ "servers" ]; };
            machines.iron = { machineClass = "darwin"; system = "aarch64-darwin"; };
            # Every fact that the library lets through is one that the command line reads.
            machines.lead = { system = "x86_64-linux"; muster = {
                deadlineSeconds = 60;
                action = "boot";
                trustedNixKeys = [ "builder-1:AAAA" ];
                checks.ssh = { tcp = "127.0.0.1:22"; timeoutSeconds = 5; tries = 3; };
                checks.web.http = "http://127.0.0.1/";
                checks.data.command = [ "/bin/true" ];
            }; };
            tags.lab = [ "iron" ];
            instances.sshd = {
                module = { input = "self"; name = "sshd"; };
                roles.server.tags = [ "lab" ];
            };
        }"#,
    );
    let iron = flake.machine("iron");
    assert_eq!(iron["system"], "aarch64-darwin");
    assert_eq!(iron["tags"], json!(["all", "darwin", "lab"]));
    assert_eq!(iron["roles"], json!({"sshd": ["server"]}));
    assert_eq!(iron["known_from"], json!(["darwinConfigurations", "muster.inventory", "muster.machines"]));
    assert_eq!(iron["notes"], json!([]));
    assert_eq!(flake.machine("tin")["tags"], json!(["all", "nixos", "servers"]));
}

#[test]
fn what_is_wrong_with_a_flake_is_told_in_short() {
    let wrong_inventory = Flake::new(LIBRARY).with_library();
    wrong_inventory.write(
        "inventory.nix",
        r#"{
            machines.tin = { system = "x86_64-linux"; deploy.buildHost = "iron"; };
            machines.iron = { machineClass = "darwin"; tags = [ "nixos" ]; };
        }"#,
    );
    let said = wrong_inventory.refusal();
    assert!(said.contains("the inventory has 2 mistakes:"), "{said}");
    assert!(said.contains("- machines.iron.tags: the tag `nixos` is for machines of that class"), "{said}");
    assert!(
        said.contains("- machines.tin.deploy.buildHost: iron is a Mac and cannot build for tin"),
        "{said}"
    );
    assert!(said.lines().last().unwrap().starts_with("hint: fix the flake until `nix eval path:"), "{said}");

    let said = Flake::new("{ muster.machine = { }; }").refusal();
    assert!(said.contains("muster of path:") && said.contains("unknown field `machine`"), "{said}");
    let said = Flake::new(r#"{ nixosConfigurations = throw "not today"; }"#).refusal();
    assert!(
        said.contains("cannot evaluate nixosConfigurations of path:") && said.contains("not today"),
        "{said}"
    );
    let said = Flake::new("{ this is no Nix }").refusal();
    assert!(said.starts_with("error: cannot read the flake path:"), "{said}");
    assert!(said.contains("syntax error"), "{said}");

    let empty = Flake::new("{ }").muster(&[]);
    assert!(empty.status.success());
    assert!(String::from_utf8(empty.stdout).unwrap().contains("describes no machines"));
}
