//! Finds the programs under test, and Nix's.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

/// The folder with `muster`, `muster-agent` and `muster-machine`: `MUSTER_BIN_DIR`, or the folder of this
/// build.
pub fn folder() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("MUSTER_BIN_DIR") {
        return Ok(PathBuf::from(folder));
    }
    let own = env::current_exe().context("this program cannot find itself")?;
    let folder = own.parent().context("a program lies in a folder")?;
    // Tests are in `deps`, below the programs.
    Ok(if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder }.to_path_buf())
}

/// The path of one of them, or an error that says what to do.
pub fn find(name: &str) -> Result<PathBuf> {
    let program = folder()?.join(name);
    anyhow::ensure!(
        program.is_file(),
        "there is no {}: run `cargo build --workspace --features muster-agent/stand-in` first, or \
         set MUSTER_BIN_DIR",
        program.display()
    );
    Ok(program)
}

/// A program of the host, found in `PATH`.
pub fn of_the_host(name: &str) -> Option<PathBuf> {
    let nix = ["/run/current-system/sw/bin", "/nix/var/nix/profiles/default/bin"];
    env::var_os("PATH")
        .iter()
        .flat_map(env::split_paths)
        .chain(nix.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// A statically linked shell, to be `/bin/sh` in the sandbox of a machine's own store.
pub fn static_shell() -> Option<PathBuf> {
    env::var_os("MUSTER_BUSYBOX")
        .map(PathBuf::from)
        .into_iter()
        .chain(["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from))
        .find(|file| file.is_file())
}

/// Whether Nix can build in a store of its own, which needs namespaces. Containers and Macs do not have them.
pub fn can_sandbox() -> bool {
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "true"]);
    let quiet = unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    cfg!(target_os = "linux") && quiet.status().is_ok_and(|status| status.success())
}

/// The Nix system of this host.
pub fn host_system() -> String {
    let kernel = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
    format!("{}-{kernel}", env::consts::ARCH)
}

/// Settings for every Nix process of the tests: no cache but the fleet's, and nothing from the host's own
/// configuration.
pub fn nix_config(more: &str) -> String {
    format!(
        "experimental-features = nix-command flakes\nsubstituters =\nbuild-users-group =\n\
         warn-dirty = false\nflake-registry =\n{more}"
    )
}
