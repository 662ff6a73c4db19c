use std::os::unix::fs::{MetadataExt as _, symlink};

use super::*;
use crate::platform::testing::{layout, script};

const SYSTEM: &str = "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system";

/// A machine with a stand-in for sops that prints what it is given: for a file whose name ends in
/// `unreadable` it fails as sops does without the key.
fn machine(class: Class) -> (tempfile::TempDir, Layout) {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(folder.path(), class);
    let store = layout.store_prefix();
    script(
        &store.join("11111111111111111111111111111111-sops/bin/sops"),
        "for file; do :; done\ncase $file in *unreadable) echo no key >&2; exit 128 ;; *broken) exit 51 ;; \
         esac\ncat \"$file\"",
    );
    std::fs::create_dir_all(layout.system("/run")).unwrap();
    std::fs::write(layout.state("age.txt"), "key").unwrap();
    (folder, layout)
}

/// Gives `system` a manifest of these files: name, value, mode. Its etc is a link, as on NixOS.
fn system(layout: &Layout, files: &[(&str, &str, &str)]) -> StorePath {
    let store = layout.store_prefix();
    let etc = store.join("22222222222222222222222222222222-etc/etc/muster");
    std::fs::create_dir_all(&etc).unwrap();
    let entries: Vec<serde_json::Value> = files
        .iter()
        .map(|(name, value, mode)| {
            let source = format!("33333333333333333333333333333333-{}", name.replace('/', "_"));
            std::fs::write(store.join(&source), value).unwrap();
            serde_json::json!({"name": name, "source": format!("/nix/store/{source}"),
                               "owner": "root", "group": "root", "mode": mode})
        })
        .collect();
    let manifest = serde_json::json!({
        "version": 1, "sops": "/nix/store/11111111111111111111111111111111-sops/bin/sops",
        "directory": "/run/muster/early", "files": entries, "a field of the future": true,
    });
    std::fs::write(etc.join("activation-secrets.json"), manifest.to_string()).unwrap();
    let system: StorePath = SYSTEM.parse().unwrap();
    let folder = layout.physical(&system);
    std::fs::create_dir_all(&folder).unwrap();
    let link = folder.join("etc");
    let _ = std::fs::remove_file(&link);
    symlink("/nix/store/22222222222222222222222222222222-etc/etc", link).unwrap();
    system
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn secrets_lie_where_the_system_says_with_the_mode_that_it_says() {
    let (_folder, layout) = machine(Class::Nixos);
    let system = system(&layout, &[("a/b/key", "value", "0400"), ("other", "more", "0440")]);
    check(&layout, &system).unwrap();
    assert!(!layout.system("/run/muster").exists(), "a look writes nothing");
    install(&layout, &system).unwrap();
    let place = layout.system("/run/muster/early");
    assert_eq!(std::fs::read_to_string(place.join("a/b/key")).unwrap(), "value");
    assert_eq!((mode(&place.join("a/b/key")), mode(&place.join("other"))), (0o400, 0o440));
    for folder in ["/run/muster", "/run/muster/early", "/run/muster/early/a"] {
        assert_eq!(mode(&layout.system(folder)), 0o711, "{folder}");
    }
    assert_eq!(std::fs::metadata(place.join("other")).unwrap().uid(), rustix::process::geteuid().as_raw());
}

#[test]
fn what_a_system_has_no_more_goes_and_what_it_has_is_replaced() {
    let (_folder, layout) = machine(Class::Nixos);
    install(&layout, &system(&layout, &[("one", "1", "0400"), ("two", "2", "0400")])).unwrap();
    install(&layout, &system(&layout, &[("two", "changed", "0444")])).unwrap();
    let place = layout.system("/run/muster/early");
    assert!(!place.join("one").exists());
    assert_eq!(std::fs::read_to_string(place.join("two")).unwrap(), "changed");
    assert_eq!(mode(&place.join("two")), 0o444);
    // A system of a flake without Muster's modules has no manifest at all.
    let without = system(&layout, &[]);
    std::fs::remove_file(layout.physical(&without).join("etc")).unwrap();
    install(&layout, &without).unwrap();
    assert!(!place.join("two").exists());
    install(&layout, &without).unwrap();
}

#[test]
fn a_system_whose_secrets_are_for_another_key_is_known_before_anything_changes() {
    let (_folder, layout) = machine(Class::Nixos);
    install(&layout, &system(&layout, &[("one", "1", "0400")])).unwrap();
    let bad = system(&layout, &[("two", "2", "0400"), ("unreadable", "", "0400")]);
    let error = check(&layout, &bad).unwrap_err();
    assert!(error.is_of_the_system());
    assert!(
        error.to_string().contains("key does not read unreadable: run `muster machines accept`"),
        "{error}"
    );
    assert!(install(&layout, &bad).is_err());
    let place = layout.system("/run/muster/early");
    assert!(place.join("one").exists() && !place.join("two").exists());
    let broken = check(&layout, &system(&layout, &[("broken", "", "0400")])).unwrap_err();
    assert!(matches!(broken, SecretsError::Decrypt { .. }), "{broken}");
}

#[test]
fn manifests_that_lead_elsewhere_or_come_from_the_future_are_refused() {
    let (_folder, layout) = machine(Class::Nixos);
    for name in ["../x", "/x", "", "a/../b"] {
        let system = system(&layout, &[(name, "", "0400")]);
        assert!(matches!(check(&layout, &system), Err(SecretsError::Manifest { .. })), "{name}");
    }
    let system = system(&layout, &[("x", "", "9999")]);
    assert!(matches!(check(&layout, &system), Err(SecretsError::Manifest { .. })));
    let path =
        layout.store_prefix().join("22222222222222222222222222222222-etc/etc/muster/activation-secrets.json");
    for (text, future) in [("{", false), (r#"{"version":2}"#, true)] {
        std::fs::write(&path, text).unwrap();
        let error = check(&layout, &system).unwrap_err();
        assert_eq!(matches!(error, SecretsError::Version(2)), future, "{error}");
    }
    for directory in ["/etc", "relative/x", "/", "/run/../etc"] {
        let text = serde_json::json!({"version": 1, "directory": directory, "sops": "/x", "files": [
            {"name": "x", "source": "/y", "owner": "root", "group": "root", "mode": "0400"}]});
        std::fs::write(&path, text.to_string()).unwrap();
        assert!(matches!(check(&layout, &system), Err(SecretsError::Manifest { .. })), "{directory}");
    }
}

#[test]
fn an_owner_that_does_not_exist_is_an_error_and_leaves_no_file_in_the_clear() {
    let (_folder, layout) = machine(Class::Nixos);
    let system = system(&layout, &[("x", "value", "0400")]);
    let path =
        layout.store_prefix().join("22222222222222222222222222222222-etc/etc/muster/activation-secrets.json");
    let text =
        std::fs::read_to_string(&path).unwrap().replace(r#""owner":"root""#, r#""owner":"nobody-at-all""#);
    std::fs::write(&path, text).unwrap();
    let error = install(&layout, &system).unwrap_err();
    assert!(matches!(error, SecretsError::Owner { .. }), "{error}");
    assert_eq!(std::fs::read_dir(layout.system("/run/muster/early")).unwrap().count(), 0);
}

#[test]
fn a_mac_has_them_on_a_disk_in_memory_that_is_made_once() {
    let (folder, layout) = machine(Class::Darwin);
    let log = folder.path().join("log");
    for (name, says) in [("hdiutil", "echo '/dev/disk9  '"), ("newfs_hfs", ":"), ("mount", ":")] {
        let text = format!("echo {name} \"$@\" >> {}\n{says}", log.display());
        script(&folder.path().join("programs").join(name), &text);
    }
    let system = system(&layout, &[("key", "value", "0400")]);
    install(&layout, &system).unwrap();
    install(&layout, &system).unwrap();
    let place = layout.system("/run/muster/early");
    assert_eq!(std::fs::read_to_string(place.join("key")).unwrap(), "value");
    assert_eq!(
        std::fs::read_to_string(&log).unwrap(),
        format!(
            "hdiutil attach -nomount ram://32768\nnewfs_hfs -s /dev/disk9\nmount -t hfs -o \
             nobrowse,nodev,nosuid,noexec,-m=0711 /dev/disk9 {}\n",
            place.display()
        )
    );
    // A machine whose memory was cleared by a reboot gets another disk.
    std::fs::remove_dir_all(layout.system("/run/muster")).unwrap();
    install(&layout, &system).unwrap();
    assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 6);
}
