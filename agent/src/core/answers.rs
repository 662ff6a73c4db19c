//! What an answer means for what was sent. The controller decides nothing by it that outlasts the next answer.

use muster_protocol::api::ProblemCode;

/// Whether a check-in has had its answer, so that the next one may be made. Until then its very bytes are sent again: an answer
/// that was lost on the way is then given once more, and nothing is taken for a second machine with the same key.
///
/// An answer that speaks of who asks (401, 403, 404) or when (408, 425, 429, and all that fail on their side) says nothing of what
/// was said, and it is said again. One that refuses what was said ends it, since it would be refused for good.
pub fn ends_check_in(status: u16) -> bool {
    matches!(status, 200..=299 | 400 | 405..=407 | 409..=424 | 426..=428 | 431..=499)
}

/// What the answer to a batch of events asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// Nothing: the numbers are good.
    Good,
    /// Another name of the count: the controller has numbers of this one that were never used, or does not take them.
    Renamed,
}

/// Reads an answer to events whose count has used no number above `last`.
pub fn numbers(through: Option<u64>, code: Option<ProblemCode>, last: u64) -> Numbers {
    let more = through.is_some_and(|through| through > last);
    if more || code == Some(ProblemCode::EventNumbers) { Numbers::Renamed } else { Numbers::Good }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_in_ends_with_what_refuses_its_words_and_not_with_what_refuses_its_sender_or_the_moment() {
        for ends in [200, 400, 409, 413, 422] {
            assert!(ends_check_in(ends), "{ends}");
        }
        for goes_on in [0, 100, 301, 401, 403, 404, 408, 425, 429, 500, 502, 503, 504, 507, 999] {
            assert!(!ends_check_in(goes_on), "{goes_on}");
        }
    }

    #[test]
    fn a_controller_that_has_more_than_was_ever_used_gets_another_name_and_no_number() {
        assert_eq!(numbers(Some(7), None, 7), Numbers::Good);
        assert_eq!(numbers(Some(u64::MAX), None, 7), Numbers::Renamed);
        assert_eq!(numbers(None, Some(ProblemCode::EventNumbers), 7), Numbers::Renamed);
        assert_eq!(numbers(None, Some(ProblemCode::Sequence), 7), Numbers::Good);
    }
}
