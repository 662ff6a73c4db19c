//! What a machine sends before its body: who it is and the body's hash, signed, so that the controller
//! knows whose share of its memory the body counts against. The body's own signature is checked as well.

use std::fmt;
use std::str::FromStr;

use crate::ids::{MachineName, Sha256};
use crate::keys::{Context, KeyError, PublicKey, SecretKey, Signature};

/// `NAME HASH SIGNATURE`, as the header [`crate::api::MACHINE_ANNOUNCES`] carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Whose share of the controller's memory the body takes.
    pub machine: MachineName,
    /// SHA-256 of the body.
    pub body: Sha256,
    signature: Signature,
}

impl Announcement {
    /// Announces a body that is sent to `path`.
    pub fn make(machine: &MachineName, path: &str, body: &[u8], key: &SecretKey) -> Self {
        let body = Sha256::of(body);
        let signature = key.sign(Context::Announcement, &message(machine, path, &body));
        Self { machine: machine.clone(), body, signature }
    }

    /// Checks that `key` announced this body for `path`.
    pub fn verify(&self, path: &str, key: &PublicKey) -> Result<(), KeyError> {
        key.verify(Context::Announcement, &message(&self.machine, path, &self.body), &self.signature)
    }
}

fn message(machine: &MachineName, path: &str, body: &Sha256) -> Vec<u8> {
    format!("{machine}\n{path}\n{body}").into_bytes()
}

impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.machine, self.body, self.signature.hex())
    }
}

impl FromStr for Announcement {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(' ');
        let (Some(machine), Some(body), Some(signature), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err("an announcement is a machine's name, a hash and a signature");
        };
        Ok(Self {
            machine: machine.parse().map_err(|_| "its first word is not a machine's name")?,
            body: body.parse().map_err(|_| "its second word is not a SHA-256")?,
            signature: signature.parse().map_err(|_| "its third word is not a signature")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_counts_for_its_machine_path_and_body_alone() {
        let (key, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let machine: MachineName = "cinnabar".parse().unwrap();
        let made = Announcement::make(&machine, "/v1/checkin", b"body", &key);
        let read: Announcement = made.to_string().parse().unwrap();
        assert_eq!(read, made);
        read.verify("/v1/checkin", &key.public()).unwrap();
        assert!(read.verify("/v1/reports", &key.public()).is_err());
        assert!(read.verify("/v1/checkin", &other.public()).is_err());
        let text = made.to_string();
        for bent in
            [text.replace("cinnabar", "stibnite"), text.replace(&made.body.to_string(), &"0".repeat(64))]
        {
            assert!(bent.parse::<Announcement>().unwrap().verify("/v1/checkin", &key.public()).is_err());
        }
        for bad in ["", "cinnabar", &format!("{text} x"), &text.replace("cinnabar", "../x"), "a b c"] {
            assert!(bad.parse::<Announcement>().is_err(), "{bad}");
        }
    }
}
