//! Lets a test stop this process exactly at a durable step, to interfere there.
//!
//! Only builds with the feature `stand-in` do this; otherwise these functions are empty. Beside the state
//! folder is `stop-at`, one line such as `after activation.json undoing`. A process that reaches that point
//! writes `stopped-at` and waits until `stop-at` changes. `write-failed` appears when a document could not be
//! written.

#[cfg(feature = "stand-in")]
pub use real::{failed, reached};

#[cfg(not(feature = "stand-in"))]
pub fn reached(_state_dir: &std::path::Path, _when: &str, _document: &str, _bytes: &[u8]) {}
#[cfg(not(feature = "stand-in"))]
pub fn failed(_state_dir: &std::path::Path) {}

#[cfg(feature = "stand-in")]
mod real {
    use std::path::Path;
    use std::time::Duration;

    use serde_json::Value;

    /// `when` is `before` or `after` the document was written (or removed, if there are no bytes).
    pub fn reached(state_dir: &Path, when: &str, document: &str, bytes: &[u8]) {
        let Some(beside) = state_dir.parent() else { return };
        let file = beside.join("stop-at");
        let Ok(wanted) = std::fs::read_to_string(&file) else { return };
        let here = format!("{when} {document} {}", word(bytes)).trim().to_owned();
        if wanted.trim() != here {
            return;
        }
        let _ = std::fs::write(beside.join("stopped-at"), std::process::id().to_string());
        while std::fs::read_to_string(&file).is_ok_and(|text| text == wanted) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn failed(state_dir: &Path) {
        if let Some(beside) = state_dir.parent() {
            let _ = std::fs::write(beside.join("write-failed"), "");
        }
    }

    /// The state of a transaction, the phase of an activation, or the verdict.
    fn word(bytes: &[u8]) -> String {
        let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let places = ["/state/state", "/phase", "/verdict/verdict"];
        let found = places.iter().find_map(|place| document.pointer(place)?.as_str());
        found.unwrap_or_default().to_owned()
    }
}
