//! Machines in a folder, for the tests of every module.

use std::path::Path;

use muster_protocol::machine::Class;

use super::layout::Layout;
pub(crate) use crate::scripts::script;

/// The configuration of an agent whose machine is a folder, with its programs in `programs`.
pub(crate) fn stand_in(folder: &Path, settings: &str) -> crate::config::Config {
    let mut config = crate::config::Config::parse(settings, folder.join("agent.toml")).unwrap();
    config.state_dir = folder.join("state");
    config.stand_in = Some(crate::config::StandIn {
        root: folder.to_path_buf(),
        store: None,
        path: folder.join("programs"),
        system: "x86_64-linux".parse().unwrap(),
        nix_config: String::new(),
    });
    std::fs::create_dir_all(folder.join("state")).unwrap();
    config
}

pub(crate) fn layout(root: &Path, class: Class) -> Layout {
    let layout = Layout {
        class,
        root: root.to_path_buf(),
        store_root: Some(root.to_path_buf()),
        programs: Some(root.join("programs")),
        state: root.join("state"),
    };
    std::fs::create_dir_all(root.join("state")).unwrap();
    std::fs::create_dir_all(root.join("programs")).unwrap();
    layout
}
