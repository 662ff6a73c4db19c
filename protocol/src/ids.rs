//! Names, hashes and store paths, each checked on construction.

mod error;
mod generation;
pub(crate) mod limits;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest;

pub use error::IdError;
pub use generation::{Epoch, Generation};
pub use limits::{MAX_JUMP, MAX_NUMBER};

pub(crate) fn is_plain_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.len(), 1..=63)
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
}

/// Defines a type for text that is checked on construction: by `str::parse`, and wherever serde reads one.
///
/// `text_id!(/// Its docs. Name, Error::Variant, check)`: `check` is a `fn(&str) -> bool`, and a text that
/// does not pass is refused as `Error::Variant(text)`. The crate that calls it needs `serde`.
#[macro_export]
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $error:ident :: $variant:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl ::std::str::FromStr for $name {
            type Err = $error;
            fn from_str(text: &str) -> Result<Self, $error> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err($error::$variant(text.to_owned())) }
            }
        }
        impl TryFrom<String> for $name {
            type Error = $error;
            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// A machine's name in the flake; safe as a path segment and in a URL.
    MachineName,
    IdError::MachineName,
    is_plain_name
);
text_id!(
    /// A tag in the inventory, written `@TAG` on the command line.
    Tag,
    IdError::Tag,
    is_plain_name
);
text_id!(
    /// An absolute path of the Nix store, as Nix writes it (`/nix/store/…`), wherever the files are.
    StorePath,
    IdError::StorePath,
    is_store_path
);

/// The digits of Nix's base 32 (`libutil/hash.cc`): no e, o, t, u.
pub const NIX_BASE32: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

fn is_store_path(text: &str) -> bool {
    let Some(base) = text.strip_prefix("/nix/store/") else { return false };
    let bytes = base.as_bytes();
    bytes.len() > 33
        && bytes.len() <= 33 + 211
        && bytes[..32].iter().all(|b| NIX_BASE32.contains(b))
        && bytes[32] == b'-'
        && bytes[33] != b'.'
        && bytes[33..].iter().all(|b| b.is_ascii_alphanumeric() || b"+-._?=".contains(b))
}

impl StorePath {
    /// The last segment: hash and name.
    pub fn base(&self) -> &str {
        &self.0["/nix/store/".len()..]
    }
    /// The 32 characters that name this path in a binary cache (`HASH.narinfo`).
    pub fn hash_part(&self) -> &str {
        &self.base()[..32]
    }
    /// What follows the hash, `bash-5.2` for example.
    pub fn name(&self) -> &str {
        &self.base()[33..]
    }
    /// Whether it ends in `.drv`.
    pub fn is_derivation(&self) -> bool {
        self.0.ends_with(".drv")
    }
    /// The same path if it is a derivation, otherwise an error.
    pub fn require_derivation(self) -> Result<Self, IdError> {
        if self.is_derivation() { Ok(self) } else { Err(IdError::NotADerivation(self.0)) }
    }
}

/// A SHA-256 hash, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }
    /// A hash that was computed elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// 64 lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        to_hex(&self.0)
    }
    /// The first twelve digits, for people to compare.
    pub fn short(&self) -> String {
        to_hex(&self.0[..6])
    }
}
impl FromStr for Sha256 {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        from_hex::<32>(text).map(Self).ok_or_else(|| IdError::Sha256(text.to_owned()))
    }
}
impl TryFrom<String> for Sha256 {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}
impl From<Sha256> for String {
    fn from(hash: Sha256) -> String {
        hash.hex()
    }
}
impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}
impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// A SHA-512 hash, written as 128 hexadecimal digits. Some TUF repositories use it; Muster's own do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Sha512(pub [u8; 64]);

impl TryFrom<String> for Sha512 {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        from_hex(&text).map(Self).ok_or(IdError::Sha512(text))
    }
}

/// Lower-case hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
    text
}

/// `N` bytes from exactly `2 N` lower-case hexadecimal digits.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// A SHA-256 hash in Nix's base 32, as narinfo files and cache URLs have it (52 digits, last bits first).
pub fn nix_base32(hash: &Sha256) -> String {
    nix_base32_of(hash.as_bytes())
}

/// Like [`nix_base32`], for any bytes: Nix starts at the end, five bits a digit.
pub fn nix_base32_of(bytes: &[u8]) -> String {
    (0..(bytes.len() * 8).div_ceil(5))
        .rev()
        .map(|n| {
            let bit = n * 5;
            let (byte, shift) = (bit / 8, bit % 8);
            let low = bytes[byte] >> shift;
            let high = if shift > 3 && byte + 1 < bytes.len() { bytes[byte + 1] << (8 - shift) } else { 0 };
            char::from(NIX_BASE32[usize::from((low | high) & 31)])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_names_are_safe_as_path_segments() {
        for good in ["cinnabar", "Mac-Studio.local", "a", "x_1"] {
            assert!(good.parse::<MachineName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "@macs", "-x", "a b", "é", &"x".repeat(64)] {
            assert!(bad.parse::<MachineName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn store_paths_are_checked_and_taken_apart() {
        let path: StorePath = "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-bash-5.2.drv".parse().unwrap();
        assert_eq!(path.hash_part(), "0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl");
        assert_eq!(path.name(), "bash-5.2.drv");
        assert!(path.is_derivation());
        for bad in [
            "/nix/store/short-x",
            "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl",
            "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-",
            "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-a/../../etc",
            "/nix/store/ec0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-a",
            "/etc/passwd",
            "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-a b",
        ] {
            assert!(bad.parse::<StorePath>().is_err(), "{bad}");
        }
    }

    #[test]
    fn base32_is_nixs() {
        // nix hash to-base32 --type sha256 of the empty string's hash
        let empty = Sha256::of(b"");
        assert_eq!(empty.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(nix_base32(&empty), "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
    }
}
