//! Signatures, by a plain key or by a security key.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::KeyError;
use crate::ids::{from_hex, to_hex};

/// The bytes of an ed25519 signature, and of what a security key states beside it.
const PLAIN: usize = 64;
const TOUCHED: usize = PLAIN + 1 + 4;

/// What a security key states with a signature, and signs too (OpenSSH's PROTOCOL.u2f).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// Bit 0: somebody touched it. Bit 2: it verified who that was, with a PIN or a finger.
    pub flags: u8,
    /// How many signatures the security key has made.
    pub counter: u32,
}

impl Touch {
    /// Whether somebody touched the security key.
    pub fn is_present(self) -> bool {
        self.flags & 1 == 1
    }
    /// As they are signed: the flags, and the counter in big endian.
    pub(super) fn to_bytes(self) -> [u8; 5] {
        let [a, b, c, d] = self.counter.to_be_bytes();
        [self.flags, a, b, c, d]
    }
}

/// An ed25519 signature, written as 128 hexadecimal digits. A security key's has ten more: its flags and its
/// counter.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signature {
    bytes: [u8; PLAIN],
    touch: Option<Touch>,
}

impl Signature {
    /// A plain key's signature that was read elsewhere; it is checked when it is used.
    pub fn from_bytes(bytes: [u8; PLAIN]) -> Self {
        Self { bytes, touch: None }
    }
    /// A security key's; it is checked when it is used.
    pub fn of_security_key(bytes: [u8; PLAIN], touch: Touch) -> Self {
        Self { bytes, touch: Some(touch) }
    }
    /// What [`Self::to_bytes`] gave: 64 bytes, or 69.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        let (signature, rest) = bytes.split_first_chunk::<PLAIN>().ok_or(KeyError::NotASignature)?;
        let touch = match *rest {
            [] => None,
            [flags, a, b, c, d] => Some(Touch { flags, counter: u32::from_be_bytes([a, b, c, d]) }),
            _ => return Err(KeyError::NotASignature),
        };
        Ok(Self { bytes: *signature, touch })
    }
    /// The 64 bytes of ed25519 itself (RFC 8032, 5.1.6).
    pub fn as_bytes(&self) -> &[u8; PLAIN] {
        &self.bytes
    }
    /// What a security key states; `None` for a plain key's signature.
    pub fn touch(&self) -> Option<Touch> {
        self.touch
    }
    /// All of it: 64 bytes, or 69 of a security key.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        bytes.extend(self.touch.iter().flat_map(|touch| touch.to_bytes()));
        bytes
    }
    /// 128 lower-case hexadecimal digits, or 138 of a security key.
    pub fn hex(&self) -> String {
        to_hex(&self.to_bytes())
    }
}
impl FromStr for Signature {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        match from_hex::<PLAIN>(text) {
            Some(bytes) => Ok(Self::from_bytes(bytes)),
            None => Self::parse(&from_hex::<TOUCHED>(text).ok_or(KeyError::NotASignature)?),
        }
    }
}
impl TryFrom<String> for Signature {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}
impl From<Signature> for String {
    fn from(signature: Signature) -> String {
        signature.hex()
    }
}
impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_has_64_bytes_or_a_security_keys_69_and_nothing_between() {
        let plain = Signature::from_bytes([7; 64]);
        let touch = Touch { flags: 5, counter: 0x0102_0304 };
        let touched = Signature::of_security_key([7; 64], touch);
        for signature in [plain, touched] {
            assert_eq!(signature.hex().parse::<Signature>().unwrap(), signature);
            assert_eq!(Signature::parse(&signature.to_bytes()).unwrap(), signature);
        }
        assert_ne!(plain, touched);
        assert_eq!(touched.hex(), format!("{}0501020304", "07".repeat(64)));
        for length in (0..80).filter(|length| ![64, 69].contains(length)) {
            assert!(Signature::parse(&vec![7; length]).is_err(), "{length} bytes");
            assert!("07".repeat(length).parse::<Signature>().is_err(), "{length} bytes in hexadecimal");
        }
        assert!(format!("{}0A01020304", "07".repeat(64)).parse::<Signature>().is_err(), "one form only");
    }
}
