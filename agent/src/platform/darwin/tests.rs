use std::path::Path;

use muster_protocol::machine::Class;

use super::super::testing::{layout, script};
use super::*;

fn darwin(root: &Path) -> Darwin {
    let activator = ["/bin/muster-agent", "activate"];
    Darwin::new(layout(root, Class::Darwin), activator.map(str::to_owned).to_vec())
}

fn system() -> StorePath {
    "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-darwin-system".parse().unwrap()
}

fn asked(root: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(root.join("programs/launchctl.asked")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_activator_is_a_one_shot_job_from_a_plist_outside_launch_daemons() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    script(&folder.path().join("programs/launchctl"), "echo \"$@\" >> $0.asked; test $1 != bootout");
    darwin(folder.path()).start_activator(Generation::FIRST).unwrap();
    let file = folder.path().join("state/activator.plist");
    let plist: plist::Dictionary = plist::from_file(&file).unwrap();
    assert_eq!(plist["Label"].as_string(), Some("org.muster.activator"));
    assert_eq!(plist["ProgramArguments"].as_array().unwrap().len(), 2);
    assert_eq!(plist["AbandonProcessGroup"].as_boolean(), Some(true));
    assert_eq!(plist["RunAtLoad"].as_boolean(), Some(true));
    let again = plist["KeepAlive"].as_dictionary().unwrap();
    assert_eq!(again["SuccessfulExit"].as_boolean(), Some(false), "one that ended well is not started again");
    let at_boot = folder.path().join("Library/LaunchDaemons/org.muster.activator.plist");
    std::fs::create_dir_all(at_boot.parent().unwrap()).unwrap();
    darwin(folder.path()).activator_begins();
    assert_eq!(std::fs::read(at_boot).unwrap(), std::fs::read(&file).unwrap());
    assert!(plist["EnvironmentVariables"].as_dictionary().unwrap().contains_key("PATH"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    let expected =
        ["bootout system/org.muster.activator".to_owned(), format!("bootstrap system {}", file.display())];
    assert_eq!(asked(folder.path()), expected);
}

#[test]
fn the_checks_run_only_in_a_script_that_knows_to_stop_after_them() {
    let folder = tempfile::tempdir().unwrap();
    let darwin = darwin(folder.path());
    assert!(matches!(darwin.preflight(&system(), Action::Switch).unwrap(), Preflight::Failed(_)));
    let touched = folder.path().join("touched");
    script(&darwin.script(&system()), &format!("touch {}", touched.display()));
    assert_eq!(darwin.preflight(&system(), Action::Switch).unwrap(), Preflight::Passed);
    assert!(!touched.exists(), "an older script really activates");
    let text = "test \"$checkActivation\" = 1 && exit 0; exit 9";
    script(&darwin.script(&system()), text);
    assert_eq!(darwin.preflight(&system(), Action::Switch).unwrap(), Preflight::Passed);
    let text = "# checkActivation\necho 'error: Unexpected files in /etc, aborting activation' >&2\n\
        echo '  /etc/nix/nix.conf'\necho '  /etc/zshrc'\nexit 2";
    script(&darwin.script(&system()), text);
    let Preflight::NeedsHuman(words) = darwin.preflight(&system(), Action::Switch).unwrap() else {
        panic!("a person has to look at the files");
    };
    assert!(words.contains("/etc/nix/nix.conf, /etc/zshrc"), "{words}");
    script(&darwin.script(&system()), "# checkActivation\necho 'error: bad build users'; exit 1");
    assert!(matches!(darwin.preflight(&system(), Action::Switch).unwrap(), Preflight::Failed(words)
        if words.contains("bad build users")));
}

#[test]
fn activation_runs_as_root_with_the_environment_that_older_scripts_want() {
    let folder = tempfile::tempdir().unwrap();
    let darwin = darwin(folder.path());
    script(&darwin.script(&system()), "env | sort | cut -d= -f1; echo $HOME $USER; exit 3");
    let finished = darwin.activate(&system(), Action::Switch, Way::Forth, SHORT).unwrap();
    assert_eq!(finished.exit, 3);
    assert!(finished.output.contains("/var/root root"), "{}", finished.output);
    for name in finished.output.lines().take_while(|line| !line.starts_with('/')) {
        assert!(["HOME", "PATH", "USER", "PWD", "SHLVL", "OLDPWD", "_"].contains(&name), "{name}");
    }
    assert!(darwin.activate(&system(), Action::Boot, Way::Forth, SHORT).is_err());
}

const SHORT: Duration = Duration::from_secs(60);

#[test]
fn the_users_part_of_an_older_closure_runs_as_the_one_at_the_screen() {
    let folder = tempfile::tempdir().unwrap();
    let darwin = darwin(folder.path());
    script(&folder.path().join("programs/launchctl"), "echo \"$@\" >> $0.asked");
    script(&darwin.script(&system()), "exit 0");
    let user = darwin.layout.physical(&system()).join("activate-user");
    script(&user, "# nix-darwin: deprecated\nexit 1");
    let console = folder.path().join("dev/console");
    std::fs::create_dir_all(console.parent().unwrap()).unwrap();
    std::fs::write(&console, "").unwrap();
    std::os::unix::fs::chown(&console, Some(1), None).unwrap();
    assert_eq!(darwin.activate(&system(), Action::Switch, Way::Forth, SHORT).unwrap().exit, 0);
    assert!(asked(folder.path()).is_empty());
    script(&user, "exit 0");
    assert_eq!(darwin.activate(&system(), Action::Switch, Way::Forth, SHORT).unwrap().exit, 0);
    let asked = asked(folder.path());
    assert!(asked[0].starts_with("asuser 1 sudo --user daemon --set-home -- "), "{asked:?}");
    assert!(asked[0].ends_with("activate-user"));
}

#[test]
fn failure_mode_15_an_agent_that_was_booted_out_is_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let darwin = darwin(folder.path());
    let plist = folder.path().join("Library/LaunchDaemons/org.muster.agent.plist");
    let launchctl = folder.path().join("programs/launchctl");
    let service = "system/org.muster.agent";
    script(&launchctl, "echo \"$@\" >> $0.asked");
    darwin.ensure_agent(None, &system());
    assert_eq!(asked(folder.path()), [format!("print {service}"), format!("kickstart {service}")]);
    // It is not loaded, and without a plist it cannot be.
    script(&launchctl, "echo \"$@\" >> $0.asked; test $1 != print");
    darwin.ensure_agent(None, &system());
    assert_eq!(asked(folder.path()).len(), 3);
    // launchd is still stopping the old one when it is first asked.
    script(&plist, "");
    let text = "echo \"$@\" >> $0.asked; case $1 in print) test -e $0.loaded;; \
        bootstrap) test -e $0.busy && touch $0.loaded || { touch $0.busy; exit 37; };; esac";
    script(&launchctl, text);
    darwin.ensure_agent(None, &system());
    let (load, enable) = (format!("bootstrap system {}", plist.display()), format!("enable {service}"));
    let expected = [
        format!("print {service}"),
        enable.clone(),
        load.clone(),
        format!("print {service}"),
        enable,
        load,
        format!("print {service}"),
        format!("kickstart {service}"),
    ];
    assert_eq!(asked(folder.path())[3..], expected);
}

#[test]
fn failure_mode_33_the_boot_of_a_mac_is_asked_of_sysctl() {
    let folder = tempfile::tempdir().unwrap();
    let darwin = darwin(folder.path());
    let text = "test \"$2\" = kern.bootsessionuuid && echo 5D0D9F3A-0000-0000-0000-000000000001";
    script(&folder.path().join("programs/sysctl"), text);
    assert_eq!(darwin.boot_session().unwrap(), "5D0D9F3A-0000-0000-0000-000000000001");
    script(&folder.path().join("programs/sysctl"), "exit 1");
    assert!(darwin.boot_session().is_err());
}

#[test]
fn failure_mode_20_a_darwin_rebuild_or_its_script_is_somebody_else_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let darwin = darwin(folder.path());
    assert_eq!(darwin.busy().unwrap(), None);
    for program in [folder.path().join("sw/bin/darwin-rebuild"), darwin.script(&system())] {
        script(&program, "touch $0.runs; sleep 300 & wait");
        // Not a child of this process: it would be taken for its own.
        let start = format!("setsid {} </dev/null >/dev/null 2>&1 & echo $!", program.display());
        let started = Command::new("/bin/sh").arg("-c").arg(start).output().unwrap();
        let pid: i32 = String::from_utf8_lossy(&started.stdout).trim().parse().unwrap();
        while !PathBuf::from(format!("{}.runs", program.display())).exists() {
            std::thread::yield_now();
        }
        let who = darwin.busy().unwrap();
        process::end_leftovers(&program).unwrap();
        assert!(who.is_some_and(|who| who.contains(&program.display().to_string())), "{pid}");
    }
}
