//! The session that proves routine check-ins in place of the machine's signature. It is in memory alone: the
//! next process signs its first check-in, and gets another.

use std::time::Duration;

use muster_protocol::checkin::CheckIn;
use muster_protocol::session::{ExchangeKey, ExchangeSecret, Session, SessionOffer};

/// How long before its end a session is replaced.
const EARLY: Duration = Duration::from_secs(300);

#[derive(Default)]
pub struct Sessions {
    /// The key that check-ins ask for a session with, until one is offered.
    asked: Option<ExchangeSecret>,
    /// The session, and its end in awake time.
    open: Option<(Session, Duration)>,
}

impl Sessions {
    /// The key that the next check-in asks for a session with; `None` while one lasts. A new key of the
    /// machine ends every session, and nothing that was offered before it is one of that key.
    pub fn ask(&mut self, brings_key: bool, now: Duration) -> Option<ExchangeKey> {
        if brings_key {
            self.asked = None;
        }
        let lasts = |end: Duration| now.saturating_add(EARLY) < end;
        if !brings_key && self.open.as_ref().is_some_and(|(_, end)| lasts(*end)) {
            return None;
        }
        if self.asked.is_none() {
            let made = ExchangeSecret::generate();
            self.asked = made.inspect_err(|error| tracing::debug!("no session is asked for: {error}")).ok();
        }
        self.asked.as_ref().map(ExchangeSecret::public)
    }

    /// The session that proves this check-in; `None` if it is to be signed.
    pub fn of(&self, check_in: &CheckIn, now: Duration) -> Option<&Session> {
        let routine = check_in.new_key.is_none() && check_in.session.is_none();
        self.open.as_ref().filter(|(_, end)| routine && now < *end).map(|(session, _)| session)
    }

    /// The reply to a check-in that was sent at this time. What is offered to a key of an earlier process is
    /// of no use.
    pub fn offered(&mut self, check_in: &CheckIn, offer: Option<&SessionOffer>, sent: Duration) {
        if check_in.new_key.is_some() {
            // A controller that only claims to have the new key would go on with the session of the old one.
            self.open = None;
        }
        let Some((offer, asked)) = offer.zip(self.asked.as_ref()) else { return };
        if check_in.session != Some(asked.public()) {
            return;
        }
        let until = sent.saturating_add(Duration::from_secs(offer.expires_in));
        self.open = asked.accept(offer).map(|session| (session, until));
        self.asked = None;
    }

    /// The controller does not know it, or not any more.
    pub fn ended(&mut self) {
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::checkin::{Health, Holds, Phase};
    use muster_protocol::ids::Sha256;

    use super::*;

    fn check_in(session: Option<ExchangeKey>) -> CheckIn {
        CheckIn {
            understands: vec![],
            signing: None,
            vouch: None,
            awaits: None,
            audience: Sha256::of(b"fleet"),
            machine: "tin".parse().unwrap(),
            class: muster_protocol::machine::Class::Nixos,
            system: "x86_64-linux".parse().unwrap(),
            boot_id: "boot".into(),
            seq: 1,
            clock: 0,
            agent: "0.1.0".into(),
            runs: None,
            holds: Holds::default(),
            phase: Phase::Idle,
            phase_generation: None,
            note: None,
            refused: None,
            health: Health::default(),
            new_key: None,
            age: None,
            followed: vec![],
            shown: None,
            session,
        }
    }

    const START: Duration = Duration::from_secs(1000);

    fn open() -> (Sessions, ExchangeSecret) {
        let (mut sessions, controller) = (Sessions::default(), ExchangeSecret::generate().unwrap());
        let asked = sessions.ask(false, START);
        let offer = SessionOffer { key: controller.public(), token: "t".into(), expires_in: 3600 };
        sessions.offered(&check_in(asked), Some(&offer), START);
        (sessions, controller)
    }

    #[test]
    fn one_is_asked_for_until_it_is_offered_and_again_before_it_ends() {
        let mut waits = Sessions::default();
        let asked = waits.ask(false, START);
        assert!(asked.is_some() && asked == waits.ask(false, START), "the same as long as nobody offers");
        waits.offered(&check_in(asked), None, START);
        assert_eq!(waits.ask(false, START), asked, "a controller that knows no sessions");
        let (mut sessions, _) = open();
        let late = START + Duration::from_secs(3600) - EARLY;
        assert_eq!(sessions.ask(false, late - Duration::from_secs(1)), None);
        assert!(sessions.ask(false, late).is_some());
        assert!(sessions.of(&check_in(None), late).is_some(), "the one before lasts until then");
        assert!(open().0.ask(true, START).is_some(), "a new key ends it");
    }

    #[test]
    fn a_new_key_that_is_said_to_be_taken_ends_the_session_of_the_old_one() {
        let key = muster_protocol::keys::SecretKey::generate().unwrap().public();
        let brings = |session| CheckIn { new_key: Some(key), ..check_in(session) };
        let (mut sessions, controller) = open();
        let asked = sessions.ask(true, START);
        sessions.offered(&brings(asked), None, START);
        assert!(sessions.of(&check_in(None), START).is_none());
        // Nor does one begin that was offered to the old key and held back.
        let mut sessions = Sessions::default();
        let before = sessions.ask(false, START);
        let after = sessions.ask(true, START);
        assert!(before.is_some() && after.is_some() && before != after);
        let held_back = SessionOffer { key: controller.public(), token: "t".into(), expires_in: 3600 };
        sessions.offered(&check_in(before), Some(&held_back), START);
        assert!(sessions.of(&check_in(None), START).is_none());
    }

    #[test]
    fn it_proves_routine_check_ins_until_it_ends() {
        let (mut sessions, _) = open();
        assert!(sessions.of(&check_in(None), START).is_some());
        assert!(sessions.of(&check_in(Some(ExchangeKey::from_bytes([1; 32]))), START).is_none());
        let key = muster_protocol::keys::SecretKey::generate().unwrap().public();
        let brings = CheckIn { new_key: Some(key), ..check_in(None) };
        assert!(sessions.of(&brings, START).is_none());
        assert!(sessions.of(&check_in(None), START + Duration::from_secs(3600)).is_none());
        sessions.ended();
        assert!(sessions.of(&check_in(None), START).is_none());
    }

    #[test]
    fn what_was_offered_to_another_key_is_no_session() {
        let (mut sessions, controller) = (Sessions::default(), ExchangeSecret::generate().unwrap());
        let offer = SessionOffer { key: controller.public(), token: "t".into(), expires_in: 3600 };
        sessions.offered(&check_in(None), Some(&offer), START);
        sessions.ask(false, START);
        sessions.offered(&check_in(Some(ExchangeKey::from_bytes([1; 32]))), Some(&offer), START);
        assert!(sessions.of(&check_in(None), START).is_none());
    }
}
