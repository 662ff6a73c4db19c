//! Shortens events to what a report can hold.

use muster_protocol::report::{EventKind, MAX_LOG_TAIL};

/// The most names in a list of an event.
const MAX_NAMES: usize = 64;
/// The longest of them, in bytes.
const MAX_NAME: usize = 128;

/// The same event with its texts shortened to what a report can hold: the end of an output, the first of many
/// names.
pub(super) fn shortened(kind: EventKind) -> EventKind {
    use EventKind as K;
    match kind {
        K::Failed { step, detail, quarantined } => K::Failed { step, detail: tail(detail), quarantined },
        K::NeedsHuman { detail } => K::NeedsHuman { detail: tail(detail) },
        K::Refused { attack, detail } => K::Refused { attack, detail: tail(detail) },
        K::Deferred { why, until } => K::Deferred { why: tail(why), until },
        K::HookFailed { hook, detail } => K::HookFailed { hook: tail(hook), detail: tail(detail) },
        K::Rebooting { why } => K::Rebooting { why: tail(why) },
        K::Progress(mut progress) => {
            progress.current = progress.current.map(tail);
            K::Progress(progress)
        }
        K::Summary(mut summary) => {
            if let Some(closure) = &mut summary.closure {
                for names in [&mut closure.changed, &mut closure.added, &mut closure.removed] {
                    cut(names);
                }
            }
            K::Summary(summary)
        }
        K::RolledBack { running, reason, detail, quarantined } => {
            K::RolledBack { running, reason, detail: tail(detail), quarantined }
        }
        K::Confirmed { running, ms, mut degraded } => {
            cut(&mut degraded);
            K::Confirmed { running, ms, degraded }
        }
        K::Enrolled { .. }
        | K::AgentStarted { .. }
        | K::Verified
        | K::Fetched { .. }
        | K::Built { .. }
        | K::Activating { .. }
        | K::Activated { .. }
        | K::Drift { .. }
        | K::Retried { .. }
        | K::KeyRotated { .. }
        | K::Dropped { .. }
        | K::Unknown => kind,
    }
}

fn cut(names: &mut Vec<String>) {
    names.truncate(MAX_NAMES);
    names.iter_mut().for_each(|name| name.truncate(name.floor_char_boundary(MAX_NAME)));
}

/// The last [`MAX_LOG_TAIL`] bytes.
fn tail(text: String) -> String {
    match text.len().checked_sub(MAX_LOG_TAIL) {
        Some(over) if over > 0 => text[text.ceil_char_boundary(over)..].to_owned(),
        _ => text,
    }
}
