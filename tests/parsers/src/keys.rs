//! Files of private keys, which people carry around and which may come from anywhere.

use muster_agent::identity::{parse_age, pem_of};
use muster_protocol::keys::{Context, SecretKey, is_encrypted};

use crate::input;

pub const PASSPHRASE: &str = "a good one";

pub fn files(data: &[u8]) -> bool {
    let Some(text) = input::text(data) else { return false };
    let age = parse_age(text).is_some();
    let plain = SecretKey::from_pem(text);
    let opened = SecretKey::from_encrypted_pem(text, PASSPHRASE);
    assert!(!is_encrypted(text) || plain.is_err(), "an encrypted key was read without its passphrase");
    for key in plain.iter().chain(&opened) {
        let again = SecretKey::from_pem(&key.to_pem().expect("a key can be written")).expect("and read");
        assert_eq!(again.public(), key.public());
        let signature = key.sign(Context::CheckIn, data);
        key.public().verify(Context::CheckIn, data, &signature).expect("a key verifies what it signs");
    }
    assert!(pem_of(text).starts_with("-----BEGIN CERTIFICATE-----\n"));
    age | plain.is_ok() | opened.is_ok()
}
