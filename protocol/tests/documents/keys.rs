//! Keys and signatures as they are written, and what each signature is for.

use muster_protocol::keys::{Context, KeyError, PublicKey, SecretKey, Signature};
use serde_json::json;

#[test]
fn keys_and_signatures_are_written_and_read_in_one_way() {
    let secret = SecretKey::generate().unwrap();
    let key = secret.public();
    assert_eq!(key.hex().parse::<PublicKey>().unwrap(), key);
    assert_eq!((key.to_string(), format!("{key:?}"), json!(key)), (key.hex(), key.hex(), json!(key.hex())));
    assert_eq!(serde_json::from_value::<PublicKey>(json!(key)).unwrap(), key);
    assert_eq!(PublicKey::from_bytes(key.as_bytes()).unwrap(), key);
    assert_eq!(key.short(), key.hex()[..12]);
    assert_eq!(format!("{secret:?}"), format!("SecretKey of {}", key.short()));
    assert_ne!(SecretKey::generate().unwrap().public(), key);

    let signature = secret.sign_raw(b"message");
    assert_eq!(signature.hex().parse::<Signature>().unwrap(), signature);
    assert_eq!((format!("{signature:?}"), json!(signature)), (signature.hex(), json!(signature.hex())));
    assert_eq!(serde_json::from_value::<Signature>(json!(signature)).unwrap(), signature);
    assert_eq!(Signature::from_bytes(*signature.as_bytes()), signature);

    for bad in ["", &key.hex()[1..], &key.hex().to_uppercase(), &format!("{key}00")] {
        assert!(matches!(bad.parse::<PublicKey>(), Err(KeyError::NotAPublicKey)), "{bad}");
        assert!(serde_json::from_value::<PublicKey>(json!(bad)).is_err(), "{bad}");
        assert!(matches!(bad.parse::<Signature>(), Err(KeyError::NotASignature)), "{bad}");
    }
    // No point of the curve has y = 2.
    let mut nowhere = [0; 32];
    nowhere[0] = 2;
    assert!(matches!(PublicKey::from_bytes(&nowhere), Err(KeyError::NotAPublicKey)));
}

#[test]
fn a_signature_of_another_message_or_key_is_none() {
    let (secret, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    let signature = secret.sign_raw(b"message");
    assert!(secret.public().verify_raw(b"message", &signature).is_ok());
    for (key, message) in [(&secret, b"massage".as_slice()), (&secret, b""), (&other, b"message")] {
        let verified = key.public().verify_raw(message, &signature);
        assert!(matches!(verified, Err(KeyError::BadSignature)));
    }
}

/// The context in front of each message is part of the protocol: machines of any release must be understood.
#[test]
fn each_context_signs_under_its_own_word() {
    let secret = SecretKey::generate().unwrap();
    for (context, word) in [
        (Context::Enrolment, "muster-enrolment-v1\0"),
        (Context::CheckIn, "muster-check-in-v1\0"),
        (Context::Reports, "muster-reports-v1\0"),
        (Context::OperatorRequest, "muster-operator-request-v1\0"),
    ] {
        let signature = secret.sign(context, b"body");
        let message = [word.as_bytes(), b"body"].concat();
        assert!(secret.public().verify_raw(&message, &signature).is_ok(), "{word}");
        assert!(secret.public().verify(context, b"body", &signature).is_ok());
        assert!(secret.public().verify_raw(b"body", &signature).is_err());
    }
}

#[cfg(feature = "passphrase")]
mod passphrase {
    use super::*;

    macro_rules! file {
        ($name:literal) => {
            include_str!(concat!("../../../fuzz/corpus/key_files/", $name))
        };
    }

    #[test]
    fn key_files_of_openssl_are_opened_by_their_passphrase_alone() {
        let plain = SecretKey::from_pem(file!("ok-plain")).unwrap();
        for text in [file!("ok-encrypted-by-openssl"), file!("ok-encrypted-with-pbkdf2")] {
            let opened = SecretKey::from_encrypted_pem(text, "a good one").unwrap();
            assert_eq!(opened.public(), plain.public());
            assert!(matches!(
                SecretKey::from_encrypted_pem(text, "a bad one"),
                Err(KeyError::WrongPassphrase)
            ));
            assert!(matches!(SecretKey::from_pem(text), Err(KeyError::PassphraseNeeded)));
        }
        // One without a passphrase needs none.
        assert!(SecretKey::from_encrypted_pem(file!("ok-plain"), "any").is_ok());
    }

    #[test]
    fn a_key_file_that_would_take_all_memory_or_time_is_refused_before_it_does() {
        for text in [
            file!("scrypt-of-a-petabyte"),
            file!("scrypt-of-half-a-gigabyte"),
            file!("scrypt-of-142-megabytes"),
            file!("scrypt-without-end"),
            file!("pbkdf2-without-end"),
        ] {
            assert!(matches!(SecretKey::from_encrypted_pem(text, "a good one"), Err(KeyError::Costly)));
        }
    }

    /// Found by fuzzing: the library panics at an N of 0.
    #[test]
    fn a_key_file_whose_cost_is_no_power_of_two_is_none() {
        let opened = SecretKey::from_encrypted_pem(file!("scrypt-of-nothing"), "a good one");
        assert!(matches!(opened, Err(KeyError::NotAPrivateKey)));
    }
}
