//! Which boot this is, as Linux names it.

use super::layout::Layout;

/// Linux's boot ID (random(4)).
pub const LINUX: &str = "/proc/sys/kernel/random/boot_id";
/// The boot ID of a stand-in, set by tests; changes at each boot.
const STAND_IN: &str = "/proc-boot-id";

/// The boot ID that a stand-in's tests set; otherwise this computer's, whatever class the stand-in has.
pub fn of_stand_in(layout: &Layout) -> Option<String> {
    if !layout.is_stand_in() {
        return None;
    }
    let named = std::fs::read_to_string(layout.system(STAND_IN));
    let text = named.or_else(|_| std::fs::read_to_string(LINUX)).ok()?;
    Some(text.trim().to_owned())
}
