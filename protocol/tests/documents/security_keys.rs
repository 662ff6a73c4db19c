//! Signatures of security keys, made by OpenSSH.
//!
//! The vectors are of OpenSSH 9.2: keys made with `ssh-keygen -t ed25519-sk`, and signatures that its
//! ssh-agent gave over [`MESSAGE`] (the last one: `ssh-keygen -Y sign`, over a file with a line `hi`). The
//! authenticator was the one in software of `tests/testbed/authenticator`, whose ed25519 is OpenSSL's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_protocol::keys::{Context, KeyError, Kind, PublicKey, SecretKey, Signature, Touch};
use sha2::Digest as _;

const MESSAGE: &[u8] = b"muster";
const KEY: &str = "sk-ed25519:5aeca48a8a308149d70690e96f41db908eedbdcb3b8732914a3e8c523c114f1f";
/// Touched, with the counter at 16909060.
const TOUCHED: &str = "6a205c3d73fe9337a87fad5f2726eaed3828536a843c3c7499012400f474b6dfa7887b9dfe8f2719c6626d22a05448\
                       e36915f8b14782ef8edba3d568678555090101020304";
/// By the same key, which says that nobody touched it.
const UNTOUCHED: &str = "0d9ecd5a0dfbeef93b4423bd67e1138cec10996b813679cf72cc1c38c33f7edcd258652882292412570c31ad11e6\
                         b6b6caa2d5ddff5b154b9dd380b5bf2bcf000001020306";
/// A key of `-O application=ssh:work`.
const AT_WORK: &str = "sk-ed25519:18946af679733bd1881ad2493d89b7923f336e8e5b0e3d93fa227baab4f4fe8d";
const BY_WORK: &str = "a9e627c1043ab6bbadb275ea66fe05e8622d37f654e711679aca12b110398e793555fe09d20a0e7887258788876abb\
                       0fd8a6abf7b90cf9add5fb8d998e53550c0101020305";
const ARMOURED: &str = "U1NIU0lHAAAAAQAAAEoAAAAac2stc3NoLWVkMjU1MTlAb3BlbnNzaC5jb20AAAAgWuykioowgUnXBpDpb0Hb\
                        kI7tvcs7hzKRSj6MUjwRTx8AAAAEc3NoOgAAAAR0ZXN0AAAAAAAAAAZzaGE1MTIAAABnAAAAGnNrLXNzaC1l\
                        ZDI1NTE5QG9wZW5zc2guY29tAAAAQAG4e1kL7Bb4kl3q3GoT6LeblJIPzI/VbmNKNwH2LejQZDaNOxsl/Ds8\
                        7ZPZN+HjbDCy5QUey2wc03mzP2WyswEBAAAAAQ==";

fn key(text: &str) -> PublicKey {
    text.parse().unwrap()
}
fn signature(text: &str) -> Signature {
    text.parse().unwrap()
}
/// What a security key signs: nothing of ours makes it.
fn stated(application: &str, flags: u8, counter: u32, message: &[u8]) -> Vec<u8> {
    let mut bytes = sha2::Sha256::digest(application).to_vec();
    bytes.push(flags);
    bytes.extend(counter.to_be_bytes());
    bytes.extend(sha2::Sha256::digest(message));
    bytes
}

#[test]
fn what_openssh_signs_with_a_security_key_is_verified() {
    let touched = signature(TOUCHED);
    assert_eq!(touched.touch(), Some(Touch { flags: 1, counter: 16_909_060 }));
    key(KEY).verify_raw(MESSAGE, &touched).unwrap();
    assert!(key(KEY).verify_raw(b"mustard", &touched).is_err());
    assert!(key(AT_WORK).verify_raw(MESSAGE, &touched).is_err());
}

#[test]
fn what_ssh_keygen_signs_is_verified_as_its_own_message() {
    let bytes = STANDARD.decode(ARMOURED).unwrap();
    let (head, blob) = bytes.split_at(bytes.len() - 103);
    assert_eq!(&head[..6], b"SSHSIG");
    let (bytes, touch) = blob[blob.len() - 69..].split_at(64);
    let signature = Signature::parse(&[bytes, touch].concat()).unwrap();
    let mut message = b"SSHSIG".to_vec();
    for part in [&b"test"[..], b"", b"sha512", &sha2::Sha512::digest(b"hi\n")] {
        message.extend((part.len() as u32).to_be_bytes());
        message.extend(part);
    }
    key(KEY).verify_raw(&message, &signature).unwrap();
}

#[test]
fn a_signature_without_a_touch_does_not_count() {
    let refused = key(KEY).verify_raw(MESSAGE, &signature(UNTOUCHED));
    assert!(matches!(refused, Err(KeyError::Untouched)), "{refused:?}");
    // Setting the flag afterwards bends what was signed.
    let set = UNTOUCHED.replace("0001020306", "0101020306");
    assert!(matches!(key(KEY).verify_raw(MESSAGE, &signature(&set)), Err(KeyError::BadSignature)));
    // Verifying who touched it (PIN, finger) is not a touch by itself.
    let secret = SecretKey::generate().unwrap();
    let public = PublicKey::of(Kind::Security, secret.public().as_bytes()).unwrap();
    for (flags, counts) in [(1, true), (5, true), (0, false), (4, false), (0xfe, false), (0xff, true)] {
        let bytes = *secret.sign_raw(&stated("ssh:", flags, 7, MESSAGE)).as_bytes();
        let made = Signature::of_security_key(bytes, Touch { flags, counter: 7 });
        assert_eq!(public.verify_raw(MESSAGE, &made).is_ok(), counts, "{flags:#x}");
    }
}

#[test]
fn a_changed_counter_or_another_application_does_not_count() {
    for counter in ["0101020305", "0100000000", "01ffffffff", "0104030201"] {
        let changed = TOUCHED.replace("0101020304", counter);
        assert!(matches!(key(KEY).verify_raw(MESSAGE, &signature(&changed)), Err(KeyError::BadSignature)));
    }
    assert!(matches!(key(AT_WORK).verify_raw(MESSAGE, &signature(BY_WORK)), Err(KeyError::BadSignature)));
    // It is a good signature, of the application that it is for.
    let point = ed25519_dalek::VerifyingKey::from_bytes(key(AT_WORK).as_bytes()).unwrap();
    let bytes = ed25519_dalek::Signature::from_bytes(signature(BY_WORK).as_bytes());
    point.verify_strict(&stated("ssh:work", 1, 16_909_061, MESSAGE), &bytes).unwrap();
}

#[test]
fn a_plain_signature_never_counts_for_a_security_key_nor_the_other_way_round() {
    let secret = SecretKey::generate().unwrap();
    let plain = secret.public();
    let security = PublicKey::of(Kind::Security, plain.as_bytes()).unwrap();
    let by_plain = secret.sign_raw(MESSAGE);
    let touch = Touch { flags: 1, counter: 1 };
    let stated = stated("ssh:", 1, 1, MESSAGE);
    let by_security = Signature::of_security_key(*secret.sign_raw(&stated).as_bytes(), touch);
    assert!(
        plain.verify_raw(MESSAGE, &by_plain).is_ok() && security.verify_raw(MESSAGE, &by_security).is_ok()
    );
    assert!(plain.verify_raw(MESSAGE, &by_security).is_err());
    assert!(security.verify_raw(MESSAGE, &by_plain).is_err());
    // With the five bytes cut off, or added.
    let cut = Signature::from_bytes(*by_security.as_bytes());
    let added = Signature::of_security_key(*by_plain.as_bytes(), touch);
    for key in [plain, security] {
        assert!(key.verify_raw(MESSAGE, &cut).is_err() && key.verify_raw(MESSAGE, &added).is_err());
    }
    // What a plain key signed is what a security key would state: it is that message, and no other.
    let bare = secret.sign_raw(&stated);
    assert!(plain.verify_raw(&stated, &bare).is_ok() && security.verify_raw(MESSAGE, &bare).is_err());
    assert!(security.verify_raw(&stated, &bare).is_err());
}

#[test]
fn a_security_keys_signature_serves_one_context_only() {
    let secret = SecretKey::generate().unwrap();
    let security = PublicKey::of(Kind::Security, secret.public().as_bytes()).unwrap();
    let message = [b"muster-operator-request-v1\0".as_slice(), b"body"].concat();
    let bytes = *secret.sign_raw(&stated("ssh:", 1, 1, &message)).as_bytes();
    let made = Signature::of_security_key(bytes, Touch { flags: 1, counter: 1 });
    assert!(security.verify(Context::OperatorRequest, b"body", &made).is_ok());
    for other in [Context::MachineRequest, Context::SignIn, Context::SessionRequest, Context::CheckIn] {
        assert!(security.verify(other, b"body", &made).is_err(), "{other:?}");
    }
}
