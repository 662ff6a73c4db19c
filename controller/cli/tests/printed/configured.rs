//! A command that also works without a controller does not treat an invalid configuration as a missing one.

use super::*;

/// Run by an operator who has a configuration folder and names none.
fn plain(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(arguments).current_dir(folder).env("HOME", folder).stdin(Stdio::null());
    command.env("XDG_CONFIG_HOME", folder.join("config")).env_remove("MUSTER_CONFIG");
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_not_good_is_told_before_anything_changes() {
    let (folder, _, _) = fleet().await;
    let at = |name: &str| folder.path().join(name);
    let member = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    let commands: &[&[&str]] = &[
        &["machines", "remove", "tin", "--yes", "--flake", "path:."],
        &["machines", "remove", "tin", "--yes"],
        &["machines", "accept", "tin", "--recipient", member, "--yes"],
        &["vars", "list"],
    ];
    let good = std::fs::read_to_string(at("fleet/muster.toml")).unwrap();
    let configured = at("config/muster/muster.toml");
    std::fs::create_dir_all(configured.parent().unwrap()).unwrap();
    for arguments in commands {
        let run = |what: &str, wanted: &str, change: &dyn Fn(&mut Command)| {
            let mut command = plain(folder.path(), arguments);
            change(&mut command);
            let output = command.output().unwrap();
            let said = text(&output.stderr);
            assert!(!output.status.success() && said.contains(wanted), "{arguments:?}, {what}: {said}");
        };
        for (text, wanted) in [
            ("junk", "is not an operator's configuration"),
            (&*format!("{good}session_hours = 24\n"), "session_hours is 24"),
            (&*format!("{good}sesion_hours = 2\n"), "sesion_hours"),
        ] {
            std::fs::write(&configured, text).unwrap();
            run(wanted, wanted, &|_| ());
        }
        std::fs::write(&configured, &good).unwrap();
        run("a variable", "MUSTER_SESSION_HOURS is not a number", &|command| {
            command.env("MUSTER_SESSION_HOURS", "x");
        });
        std::fs::remove_file(&configured).unwrap();
        std::fs::create_dir(&configured).unwrap();
        run("a folder", "cannot read the operator's configuration", &|_| ());
        std::fs::remove_dir(&configured).unwrap();
        std::os::unix::fs::symlink("nowhere", &configured).unwrap();
        run("a link to nothing", "cannot read the operator's configuration", &|_| ());
        std::fs::remove_file(&configured).unwrap();
        // Named, but missing.
        run("--config", "cannot read the operator's configuration", &|command| {
            command.args(["--config", "typo.toml"]);
        });
        run("MUSTER_CONFIG", "cannot read the operator's configuration", &|command| {
            command.env("MUSTER_CONFIG", "typo.toml");
        });
        // An operator without a controller has no configuration, and needs none.
        let output = plain(folder.path(), arguments).output().unwrap();
        assert!(!text(&output.stderr).contains("configuration"), "{arguments:?}: {output:?}");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
