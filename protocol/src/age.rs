//! age keys (X25519), made where they are used and written as `age-keygen` writes them. Encrypting with
//! them is left to sops and age.

use bech32::{Bech32, Hrp};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::random::{self, RandomError};

/// The prefix of a secret key, in the upper case in which it is written.
const SECRET: &str = "AGE-SECRET-KEY-";

/// An age private key, wiped from memory when dropped.
#[derive(Clone)]
pub struct AgeKey(StaticSecret);

impl AgeKey {
    /// A new key from the system's random source.
    pub fn generate() -> Result<Self, RandomError> {
        Ok(Self(StaticSecret::from(*Zeroizing::new(random::bytes::<32>()?))))
    }

    /// Reads `AGE-SECRET-KEY-1…`; `None` for anything else.
    pub fn parse(line: &str) -> Option<Self> {
        let (prefix, bytes) = bech32::decode(line.trim()).ok()?;
        let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(Zeroizing::new(bytes).as_slice().try_into().ok()?);
        prefix.as_str().eq_ignore_ascii_case(SECRET).then(|| Self(StaticSecret::from(*bytes)))
    }

    /// What secrets are encrypted to, `age1…`.
    pub fn recipient(&self) -> String {
        encode("age", PublicKey::from(&self.0).as_bytes())
    }

    /// The key as a line of an identity file.
    fn line(&self) -> Zeroizing<String> {
        let mut line = Zeroizing::new(encode("age-secret-key-", self.0.as_bytes()));
        line.make_ascii_uppercase();
        line
    }

    /// The key with its recipient above it, as `age-keygen` writes it.
    pub fn entry(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("# public key: {}\n{}\n", self.recipient(), *self.line()))
    }
}

fn encode(prefix: &str, bytes: &[u8; 32]) -> String {
    // 32 bytes and a short prefix are within bech32's limits, so this cannot fail.
    bech32::encode::<Bech32>(Hrp::parse_unchecked(prefix), bytes).unwrap_or_default()
}

/// The keys of an identity file, in order. Other kinds of identities are skipped.
pub fn keys_in(text: &str) -> Vec<AgeKey> {
    text.lines().filter(|line| line.trim().starts_with(SECRET)).filter_map(AgeKey::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key made by age-keygen 1.1.1, with the recipient that it printed.
    #[test]
    fn keys_are_those_of_age() {
        let line = "AGE-SECRET-KEY-1QPF2SQ062UDCWC2FCLQUKPPPT5QWW5A5KQYF8TEUE7A8EG8KZZ4SQVZ5F9";
        let key = AgeKey::parse(line).unwrap();
        assert_eq!(key.recipient(), "age1npsd7vudzd3sxvtlf0all7slplcxmme43tkasahkwsqcgn6saydqj9sepa");
        assert_eq!(*key.line(), line);
        assert_eq!(*key.entry(), format!("# public key: {}\n{line}\n", key.recipient()));
    }

    #[test]
    fn a_file_may_hold_several_keys_and_other_things() {
        let (first, second) = (AgeKey::generate().unwrap(), AgeKey::generate().unwrap());
        let text = format!("# mine\n{}\nAGE-PLUGIN-X-1ABC\nnonsense\n  {}", *first.entry(), *second.entry());
        let found: Vec<String> = keys_in(&text).iter().map(AgeKey::recipient).collect();
        assert_eq!(found, [first.recipient(), second.recipient()]);
        assert!(AgeKey::parse(&first.recipient()).is_none(), "a recipient is not a key");
        assert!(keys_in("").is_empty());
    }
}
