//! Ed25519 keys, their files and their signatures.
//!
//! A key file is PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519` writes it; with a passphrase it is
//! the encrypted form (RFC 5958 with PBES2 and scrypt, RFC 7914), which OpenSSL reads too. An operator's key
//! may be in a security key instead ([`Kind::Security`]), which signs more than what it is given.

mod context;
mod error;
mod public;
mod secret;
mod signature;
mod signer;
#[cfg(test)]
pub(crate) mod soft;
mod written;

pub use context::Context;
pub use error::KeyError;
pub use public::{APPLICATION, Kind, PublicKey, SECURITY_KEY};
#[cfg(feature = "passphrase")]
pub use secret::encrypt_pkcs8;
pub use secret::{SecretKey, is_encrypted};
pub use signature::{Signature, Touch};
pub use signer::{Signer, sign_in};
pub(crate) use written::{Written, written};
