//! Signing in: an operator's key states once that another key may read on the operator's behalf for some
//! hours.
//!
//! That other key is on the operator's computer, without a passphrase. It only reads: the operator's own
//! key signs everything that changes something, each time.

use std::fmt;
use std::str::FromStr;

use crate::ids::Sha256;
use crate::keys::{Context, KeyError, PublicKey, Signature, Signer, sign_in};
use crate::operator::REQUEST_WINDOW_SECONDS;

/// The longest that one is valid, in hours: a working day.
pub const MAX_HOURS: u32 = 12;
/// The same in seconds.
pub const MAX_SECONDS: i64 = MAX_HOURS as i64 * 3600;
/// The longest header that is read, in bytes.
pub const MAX_HEADER_BYTES: usize = 512;

/// Why a sign-in is refused. The messages follow its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignInError {
    /// The signature is not the operator's over these fields and this fleet.
    #[error("the operator's signature does not match it, or it was made for another fleet")]
    BadSignature,
    /// It expired this many seconds ago.
    #[error("it ended {0} s ago")]
    Ended(i64),
    /// It begins this many seconds from now; [`REQUEST_WINDOW_SECONDS`] are allowed.
    #[error("it begins in {0} s: one of the two clocks is wrong")]
    NotBegun(i64),
    /// The key that it signs in is a security key, which would wait for a touch at each request.
    #[error("the key that it is for is a security key: only a plain one reads on an operator's behalf")]
    NotPlain,
    /// It lasts for less than a second or more than [`MAX_SECONDS`].
    #[error("it is to last for longer than {MAX_HOURS} hours, or ends before it begins")]
    Length,
}

/// `OPERATOR KEY BEGINS ENDS SIGNATURE`, as the header [`crate::api::OPERATOR_SIGN_IN`] carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignIn {
    /// The operator's key, which signed this.
    pub operator: PublicKey,
    /// The key that reads on the operator's behalf.
    pub key: PublicKey,
    /// When it begins, in Unix seconds of the operator's clock.
    pub begins: i64,
    /// When it expires, in Unix seconds.
    pub ends: i64,
    signature: Signature,
}

impl SignIn {
    /// Asks `operator` to sign; valid for `seconds`, at most [`MAX_SECONDS`].
    pub fn make(
        operator: &dyn Signer,
        fleet: &Sha256,
        key: PublicKey,
        begins: i64,
        seconds: i64,
    ) -> Result<Self, KeyError> {
        let ends = begins.saturating_add(seconds.clamp(1, MAX_SECONDS));
        let message = message(fleet, &operator.public(), &key, begins, ends);
        let signature = sign_in(operator, Context::SignIn, &message)?;
        Ok(Self { operator: operator.public(), key, begins, ends, signature })
    }

    /// Checks that it is valid for this fleet at `now` (Unix seconds). Whether the operator is one of the
    /// current root is up to the caller.
    pub fn verify(&self, fleet: &Sha256, now: i64) -> Result<(), SignInError> {
        if self.key.is_security_key() {
            return Err(SignInError::NotPlain);
        }
        if !(1..=MAX_SECONDS).contains(&self.ends.saturating_sub(self.begins)) {
            return Err(SignInError::Length);
        }
        if self.ends <= now {
            return Err(SignInError::Ended(now.saturating_sub(self.ends)));
        }
        let ahead = self.begins.saturating_sub(now);
        if ahead > REQUEST_WINDOW_SECONDS {
            return Err(SignInError::NotBegun(ahead));
        }
        let message = message(fleet, &self.operator, &self.key, self.begins, self.ends);
        self.operator
            .verify(Context::SignIn, &message, &self.signature)
            .map_err(|_| SignInError::BadSignature)
    }
}

fn message(fleet: &Sha256, operator: &PublicKey, key: &PublicKey, begins: i64, ends: i64) -> Vec<u8> {
    format!("{fleet}\n{operator}\n{key}\n{begins}\n{ends}\n").into_bytes()
}

impl fmt::Display for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {} {}", self.operator, self.key, self.begins, self.ends, self.signature.hex())
    }
}

impl FromStr for SignIn {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_HEADER_BYTES {
            return Err("it is longer than any sign-in");
        }
        let words: Vec<&str> = text.split(' ').collect();
        let [operator, key, begins, ends, signature] = words[..] else {
            return Err("it is two keys, two times and a signature");
        };
        let read = Self {
            operator: operator.parse().map_err(|_| "its first word is not a public key")?,
            key: key.parse().map_err(|_| "its second word is not a public key")?,
            begins: begins.parse().map_err(|_| "its third word is not a time")?,
            ends: ends.parse().map_err(|_| "its fourth word is not a time")?,
            signature: signature.parse().map_err(|_| "its fifth word is not a signature")?,
        };
        // One text for each sign-in, so that comparing texts compares what they mean.
        if read.to_string() != text {
            return Err("it is not in the one form that is written");
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SecretKey;
    use crate::keys::soft::Soft;

    const NOW: i64 = 1_800_000_000;

    fn made() -> (SecretKey, SecretKey, SignIn) {
        let [operator, session] = [(); 2].map(|()| SecretKey::generate().unwrap());
        let made = SignIn::make(&operator, &Sha256::of(b"fleet"), session.public(), NOW, 3600).unwrap();
        (operator, session, made)
    }

    #[test]
    fn signing_in_counts_for_its_fleet_and_from_its_beginning_to_its_end() {
        let (_, _, made) = made();
        let (fleet, other) = (Sha256::of(b"fleet"), Sha256::of(b"other"));
        let read: SignIn = made.to_string().parse().unwrap();
        assert_eq!(read, made);
        for now in [NOW - REQUEST_WINDOW_SECONDS, NOW, NOW + 3599] {
            assert_eq!(read.verify(&fleet, now), Ok(()), "{now}");
        }
        assert_eq!(read.verify(&other, NOW), Err(SignInError::BadSignature));
        assert_eq!(read.verify(&fleet, NOW + 3600), Err(SignInError::Ended(0)));
        assert_eq!(read.verify(&fleet, NOW - 301), Err(SignInError::NotBegun(301)));
        assert!(read.verify(&fleet, i64::MAX).is_err() && read.verify(&fleet, i64::MIN).is_err());
    }

    #[test]
    fn nobody_signs_in_for_a_hundred_years() {
        let (operator, session, made) = made();
        let fleet = Sha256::of(b"fleet");
        let century = 100 * 365 * 86_400;
        let clamped = SignIn::make(&operator, &fleet, session.public(), NOW, century).unwrap();
        assert_eq!(clamped.ends - clamped.begins, MAX_SECONDS);
        assert_eq!(clamped.verify(&fleet, NOW), Ok(()));
        for (begins, ends) in [
            (NOW, NOW + century),
            (NOW, NOW + MAX_SECONDS + 1),
            (i64::MIN, i64::MAX),
            (NOW, NOW),
            (NOW, NOW - 1),
        ] {
            // Properly signed, by somebody with the key and another program.
            let message = message(&fleet, &operator.public(), &session.public(), begins, ends);
            let signature = operator.sign(Context::SignIn, &message);
            let long = SignIn { begins, ends, signature, ..made.clone() };
            assert_eq!(long.verify(&fleet, NOW), Err(SignInError::Length), "{begins} {ends}");
        }
    }

    #[test]
    fn a_security_key_signs_in_a_plain_one_and_is_itself_signed_in_by_nobody() {
        let (security, fleet) = (Soft::generate(), Sha256::of(b"fleet"));
        let (operator, session, _) = made();
        let made = SignIn::make(&security, &fleet, session.public(), NOW, 3600).unwrap();
        let text = made.to_string();
        assert!(text.len() <= MAX_HEADER_BYTES, "{} bytes", text.len());
        assert_eq!(text.parse::<SignIn>().unwrap().verify(&fleet, NOW), Ok(()));
        let read = SignIn::make(&operator, &fleet, security.public(), NOW, 3600).unwrap();
        assert_eq!(read.verify(&fleet, NOW), Err(SignInError::NotPlain));
    }

    #[test]
    fn a_bent_sign_in_and_one_that_was_signed_as_something_else_count_for_nothing() {
        let (operator, session, made) = made();
        let fleet = Sha256::of(b"fleet");
        let other = SecretKey::generate().unwrap().public();
        let text = message(&fleet, &made.operator, &made.key, made.begins, made.ends);
        for context in [
            Context::OperatorRequest,
            Context::SessionRequest,
            Context::MachineRequest,
            Context::CheckIn,
            Context::Enrolment,
            Context::Announcement,
        ] {
            let signature = operator.sign(context, &text);
            let bent = SignIn { signature, ..made.clone() };
            assert_eq!(bent.verify(&fleet, NOW), Err(SignInError::BadSignature), "{context:?}");
        }
        let by_itself = SignIn { signature: session.sign(Context::SignIn, &text), ..made };
        for bent in [
            SignIn { operator: other, ..made.clone() },
            SignIn { key: other, ..made.clone() },
            SignIn { begins: made.begins - 1, ..made.clone() },
            SignIn { ends: made.ends + 1, ..made.clone() },
            SignIn { signature: operator.sign_raw(&text), ..made },
            by_itself,
        ] {
            assert_eq!(bent.verify(&fleet, NOW), Err(SignInError::BadSignature), "{bent:?}");
        }
    }

    #[test]
    fn only_what_is_written_as_it_would_be_made_is_read() {
        let (_, _, made) = made();
        let text = made.to_string();
        assert!(text.len() <= MAX_HEADER_BYTES);
        for bad in [
            String::new(),
            format!("{text} x"),
            format!(" {text}"),
            text.replacen(' ', "  ", 1),
            text.replace(" 18", " +18"),
            text.replace(" 18", " 018"),
            text.replace(" 18", " 99999999999999999918"),
            text.to_uppercase(),
            text[1..].to_owned(),
            format!("{text}{}", "0".repeat(MAX_HEADER_BYTES)),
        ] {
            assert!(bad.parse::<SignIn>().is_err(), "{bad}");
        }
    }
}
