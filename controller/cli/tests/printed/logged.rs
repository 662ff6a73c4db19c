//! What the controller logs as JSON is JSON to its end.

use super::*;

#[test]
fn a_controller_that_stops_says_why_in_an_object_of_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("controller.toml");
    std::fs::write(&wrong, "listen = \"evil\u{202e}\"\n").unwrap();
    for (config, wanted) in [("nowhere.toml", "nowhere.toml"), ("controller.toml", "controller.toml")] {
        for level in ["info", "off"] {
            let mut serve = Command::new(env!("CARGO_BIN_EXE_muster"));
            serve.arg("serve").arg("--config").arg(folder.path().join(config)).stdin(Stdio::null());
            let output = serve.env("MUSTER_LOG_FORMAT", "json").env("MUSTER_LOG", level).output().unwrap();
            assert!(!output.status.success() && output.stdout.is_empty());
            let said = String::from_utf8(output.stderr).unwrap();
            let lines: Vec<Value> =
                said.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
            let last = lines.last().unwrap();
            assert_eq!(last["level"], "ERROR");
            assert!(last["message"].as_str().unwrap().contains(wanted), "{last}");
            assert!(last["timestamp"].as_str().unwrap().ends_with('Z'), "{last}");
            assert!(!said.contains('\u{202e}'), "{said}");
        }
    }
}
