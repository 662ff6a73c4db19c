//! Why keys and signatures are refused.

use crate::random::RandomError;

/// Why a key or a signature is refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes in hexadecimal, or not a point of the curve.
    #[error("this is not an ed25519 public key of 64 hexadecimal digits, or of `sk-ed25519:` and 64")]
    NotAPublicKey,
    /// A point of small order: a signature can be made without the private key.
    #[error("this public key is weak: anybody can forge its signatures")]
    Weak,
    /// A security key where only a plain one will do.
    #[error(
        "this is a security key, which waits for a touch each time: a machine, a controller and a sign-in have \
         a plain ed25519 key"
    )]
    NotPlain,
    /// Neither 64 bytes in hexadecimal, nor the 69 of a security key.
    #[error("this is not a signature of 128 hexadecimal digits, or of a security key's 138")]
    NotASignature,
    /// The security key says that nobody touched it.
    #[error("nobody touched the security key for this signature, so it does not count")]
    Untouched,
    /// The signature is not this key's over this message and context.
    #[error("the signature does not match the key and the message")]
    BadSignature,
    /// Not PKCS#8 in PEM, or not of an ed25519 key.
    #[error("this is not a private key file (PKCS#8 in PEM, beginning with -----BEGIN)")]
    NotAPrivateKey,
    /// The file has a passphrase and none was given.
    #[error("this private key file is encrypted: give its passphrase")]
    PassphraseNeeded,
    /// The passphrase is another one, or the file is damaged.
    #[error("the passphrase does not open this private key file")]
    WrongPassphrase,
    /// The file's key derivation costs more than any that OpenSSL or Muster writes.
    #[error(
        "opening this private key file would take more memory or time than any honest one: have it made again"
    )]
    Costly,
    /// Encoding to PKCS#8 failed.
    #[error("the private key cannot be written: {0}")]
    Encode(String),
    /// Whoever holds the key did not sign; their message.
    #[error("{0}")]
    Signer(String),
    /// No key could be made.
    #[error(transparent)]
    Random(#[from] RandomError),
}
