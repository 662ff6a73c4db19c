//! `muster-agent uninstall`: removes the agent from a machine. The running system and its profile stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use muster_protocol::machine::Class;

use crate::config::Config;
use crate::durable;
use crate::identity::Identity;
use crate::platform::{ACTIVATOR_PLIST, Layout};
use crate::process;
use crate::service::{LABEL, UNIT};

const LIMIT: Duration = Duration::from_secs(60);
/// What `packaging/launchd/install` leaves on a Mac besides the job, now and in earlier versions.
const INSTALLED: [&str; 3] = [
    "/Library/PrivilegedHelperTools/muster-agent",
    "/etc/paths.d/muster-agent",
    "/usr/local/bin/muster-agent",
];

/// Where the service manager keeps the agent's job, and where NixOS or nix-darwin would install it from.
fn job(layout: &Layout) -> (PathBuf, PathBuf) {
    let running = layout.current_system();
    match layout.class() {
        Class::Nixos => {
            (layout.system("/etc/systemd/system").join(UNIT), running.join("etc/systemd/system").join(UNIT))
        }
        Class::Darwin => {
            let name = format!("{LABEL}.plist");
            (
                layout.system("/Library/LaunchDaemons").join(&name),
                running.join("Library/LaunchDaemons").join(name),
            )
        }
    }
}

fn layout(config: &Config) -> Result<Layout> {
    let class = match Identity::load(config)? {
        Some(identity) => identity.class,
        None if cfg!(target_os = "macos") => Class::Darwin,
        None => Class::Nixos,
    };
    Ok(Layout::new(config, class))
}

/// Stops the agent, unless its system would bring it back or a switch is under way.
pub fn stop(config: &Config) -> Result<()> {
    let layout = layout(config)?;
    if config.state("transaction.json").exists() {
        bail!(
            "a switch is under way: wait until 'muster-agent status' says that it is over; nothing was \
             removed"
        );
    }
    let (job, managed) = job(&layout);
    if managed.exists() {
        bail!(
            "the system that runs brings the agent itself: take services.muster-agent out of its configuration and \
             publish that; nothing was removed"
        );
    }
    if !job.exists() {
        return Ok(());
    }
    match layout.class() {
        Class::Nixos => run(&layout, "systemctl", &["disable", "--now", UNIT])?,
        Class::Darwin => run(&layout, "launchctl", &["bootout", &format!("system/{LABEL}")])?,
    }
    fs::remove_file(&job).with_context(|| format!("{} cannot be removed", job.display()))?;
    if layout.class() == Class::Darwin {
        let activator = layout.system(ACTIVATOR_PLIST);
        for file in [activator].into_iter().chain(INSTALLED.map(|file| layout.system(file))) {
            durable::remove(&file).with_context(|| format!("{} cannot be removed", file.display()))?;
        }
    }
    if layout.class() == Class::Nixos {
        run(&layout, "systemctl", &["daemon-reload"])?;
    }
    Ok(())
}

/// Removes what the agent kept.
pub fn remove(config: &Config) -> Result<()> {
    let layout = layout(config)?;
    let name = Identity::load(config)?.map(|identity| identity.machine);
    // The roots first: only systems that nothing else keeps become garbage.
    for folder in [layout.gcroots(), config.state_dir.clone()] {
        remove_folder(&folder)?;
    }
    say!("The agent, its keys and its state are removed; the system that runs was not touched.");
    if let Some(name) = name {
        say!("An operator ends its access with 'muster machines revoke {name}'.");
    }
    if config.source.exists() {
        say!("Its settings in {} are yours to remove.", config.source.display());
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", folder.display()))
        }
        _ => Ok(()),
    }
}

fn run(layout: &Layout, program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = layout.command(program);
    command.args(arguments);
    let finished = process::run(&mut command, LIMIT, &layout.state(""))
        .with_context(|| format!("{program} cannot be run"))?;
    if finished.exit != 0 {
        bail!("{program} {}: {}", arguments.join(" "), finished.output.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::testing::stand_in;

    #[test]
    fn an_agent_that_was_set_up_by_hand_is_stopped_and_everything_of_it_goes() {
        let folder = tempfile::tempdir().unwrap();
        let config = stand_in(folder.path(), "");
        let layout = layout(&config).unwrap();
        let asked = folder.path().join("programs/systemctl.asked");
        crate::scripts::script(&folder.path().join("programs/systemctl"), "echo \"$@\" >> $0.asked");
        let (job, _) = job(&layout);
        fs::create_dir_all(job.parent().unwrap()).unwrap();
        fs::write(&job, "").unwrap();
        fs::create_dir_all(layout.gcroots()).unwrap();
        fs::write(config.state("machine.pem"), "secret").unwrap();
        stop(&config).unwrap();
        remove(&config).unwrap();
        let asked = fs::read_to_string(asked).unwrap();
        assert_eq!(asked, format!("disable --now {UNIT}\ndaemon-reload\n"));
        assert!(!job.exists() && !config.state_dir.exists() && !layout.gcroots().exists());
        remove(&config).unwrap();
    }

    #[test]
    fn nothing_is_removed_in_the_middle_of_a_switch_or_where_the_system_would_bring_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let config = stand_in(folder.path(), "");
        let layout = layout(&config).unwrap();
        fs::write(config.state("transaction.json"), "{}").unwrap();
        assert!(stop(&config).unwrap_err().to_string().contains("under way"));
        fs::remove_file(config.state("transaction.json")).unwrap();
        let (_, managed) = job(&layout);
        fs::create_dir_all(managed.parent().unwrap()).unwrap();
        fs::write(&managed, "").unwrap();
        assert!(stop(&config).unwrap_err().to_string().contains("services.muster-agent"));
        assert!(config.state_dir.exists());
    }
}
