//! Which boot this is, as Linux names it.

use super::layout::Layout;

/// Where Linux says it (random(4)).
pub const LINUX: &str = "/proc/sys/kernel/random/boot_id";
/// Changes at each boot of a stand-in, where the tests put it.
const STAND_IN: &str = "/proc-boot-id";

/// What a stand-in's tests call its boot; otherwise it is this computer's, of whichever class the stand-in is.
pub fn of_stand_in(layout: &Layout) -> Option<String> {
    if !layout.is_stand_in() {
        return None;
    }
    let named = std::fs::read_to_string(layout.system(STAND_IN));
    let text = named.or_else(|_| std::fs::read_to_string(LINUX)).ok()?;
    Some(text.trim().to_owned())
}
