//! How often a security key is to be touched.

use muster_protocol::keys::PublicKey;

use crate::terminal::count::count;

/// A generation's targets and its snapshot.
pub const OF_A_GENERATION: usize = 2;

/// What to say before so many signatures; nothing where the key needs no touch.
pub fn announced(key: &PublicKey, signatures: usize) -> Option<String> {
    key.is_security_key().then(|| {
        format!(
            "Your security key waits for {}, and for a few more for the requests that follow.",
            count(signatures, "touch", "touches")
        )
    })
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::{Kind, SecretKey};

    use super::*;

    #[test]
    fn touches_are_announced_for_security_keys_alone() {
        let plain = SecretKey::generate().unwrap().public();
        assert_eq!(announced(&plain, 2), None);
        let security = PublicKey::of(Kind::Security, plain.as_bytes()).unwrap();
        let said = announced(&security, 3 * OF_A_GENERATION).unwrap();
        assert!(said.starts_with("Your security key waits for 6 touches"), "{said}");
    }
}
