//! What an answer means for what was sent. Nothing that the controller causes here outlasts its next answer.

use muster_protocol::api::ProblemCode;

/// Whether a check-in is answered, so that the next one may be made. Until then the same bytes are sent
/// again: a lost answer is simply given once more, and the machine is never mistaken for a second one with
/// the same key.
///
/// Answers about who asks (401, 403, 404) or when (408, 425, 429, every server error) say nothing about the
/// content, so it is sent again. An answer that rejects the content ends the check-in, since it would be
/// rejected every time.
pub fn ends_check_in(status: u16) -> bool {
    matches!(status, 200..=299 | 400 | 405..=407 | 409..=424 | 426..=428 | 431..=499)
}

/// What the answer to a batch of events calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// Nothing: the numbers agree.
    Good,
    /// A new stream name: the controller has numbers of this stream that were never used, or rejects them.
    Renamed,
}

/// Evaluates the answer to events of a stream whose highest used number is `last`.
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
