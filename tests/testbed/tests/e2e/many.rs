//! Many machines at once: their tokens in one request, their systems in a few Nix processes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Output;

use muster_testbed::fleet::{Fleet, Wishes, both, said};
use muster_testbed::programs;

use crate::operators::{flake, refused};

/// A fleet whose flake has many machines more, and a Nix that keeps a list of its calls.
struct Many {
    fleet: Fleet,
    tools: PathBuf,
}

impl Many {
    fn new() -> Self {
        let fleet = Fleet::prepare(&both(), &Wishes::default()).unwrap();
        let folder = fleet.fixture.flake();
        fs::copy(folder.join("machines.nix"), folder.join("original.nix")).unwrap();
        let tools = fleet.folder().join("tools");
        fs::create_dir(&tools).unwrap();
        for program in ["nix", "nix-store"] {
            let real = programs::of_the_host(program).unwrap();
            let text = format!(
                "#!/bin/sh\necho {program} >> '{}'\nexec '{}' \"$@\"\n",
                tools.join("calls").display(),
                real.display()
            );
            fs::write(tools.join(program), text).unwrap();
            fs::set_permissions(tools.join(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { fleet, tools }
    }

    /// Machines `m0`, `m1` … of class nixos, and what else is said of machines, in Nix.
    fn write(&self, machines: usize, more: &str) {
        let text = format!(
            "let original = import ./original.nix; in original // builtins.listToAttrs (builtins.genList \
             (n: {{ name = \"m${{toString n}}\"; value = original.cinnabar; }}) {machines}) // {{ {more} }}\n"
        );
        fs::write(self.fleet.fixture.flake().join("machines.nix"), text).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = self.fleet.muster(arguments).unwrap();
        command.env("PATH", format!("{}:{path}", self.tools.display()));
        command.args(["--flake", &flake(&self.fleet)]).output().unwrap()
    }

    fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        said(&output)
    }

    /// How many Nix processes a command that must succeed takes.
    fn processes(&self, arguments: &[&str]) -> usize {
        let calls = self.tools.join("calls");
        let _ = fs::remove_file(&calls);
        self.must(arguments);
        fs::read_to_string(&calls).unwrap_or_default().lines().count()
    }

    fn published(&self) -> BTreeMap<String, u64> {
        let views = self.fleet.status().unwrap();
        let published = views
            .into_iter()
            .filter_map(|view| Some((view.machine.to_string(), view.published?.target.generation.get())));
        published.collect()
    }
}

#[test]
fn machines_of_a_flake_are_added_in_one_request_and_updated_by_as_many_nix_processes_as_few() {
    let many = Many::new();
    let tokens = many.fleet.folder().join("tokens");
    let add = ["machines", "add", "--from-flake", "--tokens", tokens.to_str().unwrap()];
    let mac = "\"mac.local\" = original.stibnite;";
    many.write(10, mac);
    let told = many.must(&add);
    assert!(told.contains("13 machines may enrol"), "{told}");
    assert_eq!(fs::metadata(tokens.join("m7.token")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&tokens).unwrap().permissions().mode() & 0o777, 0o700);
    let few = many.processes(&["update", "--dry-run"]);

    many.write(60, mac);
    let told = many.must(&add);
    for words in ["50 machines may enrol", "left alone, they have tokens"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(many.must(&add).contains("no token was made"));
    let token = fs::read_to_string(tokens.join("cinnabar.token")).unwrap();
    assert!(many.fleet.enrol("cinnabar", token.trim()).unwrap().status.success());
    let again = many.must(&["machines", "add", "--from-flake", "--invited", "--json"]);
    assert!(again.contains("62 machines may enrol") && again.contains("left alone, enrolled"), "{again}");
    assert!(again.contains(r#"{"machine":"mac.local","token":"#), "{again}");

    assert_eq!(many.processes(&["update", "--dry-run"]), few, "it does not grow with the machines");
    let first = many.processes(&["update", "--yes"]);
    assert_eq!(many.published().len(), 63);
    many.fleet.fixture.say("greeting", "changed").unwrap();
    let second = many.processes(&["update", "--yes"]);
    let sources = few..=few + 1;
    assert!(
        sources.contains(&first) && sources.contains(&second),
        "one more may copy sources: {first} {second}"
    );
    assert!(many.published().values().all(|generation| *generation == 2));
    many.fleet.fixture.say("greeting", "changed again").unwrap();
    let told = many.must(&["update", "--dry-run", "m9"]);
    assert!(told.contains("generation 3: a new system with the same packages"), "{told}");
}

#[test]
fn machines_that_cannot_be_made_are_named_each_with_its_cause_among_many_others() {
    let many = Many::new();
    let linux = programs::host_system().replace("darwin", "linux");
    many.write(40, "");
    many.must(&["machines", "add", "--from-flake", "--json"]);
    // Nix can catch the first of these alone.
    many.write(
        40,
        "m3 = original.cinnabar // { root = throw \"m3 is not finished\"; };
         m20 = original.cinnabar // { root = original.cinnabar.no-such-setting; };
         m21 = original.cinnabar // { root = abort \"m21 gives up\"; };
         m39 = original.cinnabar // { system = \"riscv64-linux\"; };
         m4 = original.stibnite;",
    );
    let output = many.run(&["update", "--yes", "--keep-going"]);
    refused(
        &output,
        &[
            "config.system.build.toplevel of path:",
            ": m3 is not finished",
            ": attribute 'no-such-setting' missing",
            ": evaluation aborted with the following error message: 'm21 gives up'",
            &format!(
                "m39: the system of m39 cannot go to it: a {linux} machine cannot build a derivation for"
            ),
            "m4: m4 is a nixos machine, and the flake",
        ],
    );
    let published = many.published();
    assert_eq!(published.len(), 42 - 5, "{published:?}");
    assert!(!["m3", "m4", "m20", "m21", "m39"].iter().any(|name| published.contains_key(*name)));
}
