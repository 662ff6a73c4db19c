//! Keys as TUF metadata writes them: type, scheme and value (4.2).

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::KeyError;
use super::public::{APPLICATION, Kind, PublicKey, SECURITY_KEY};
use crate::ids::from_hex;

/// The type and the scheme of a plain key.
const PLAIN: &str = "ed25519";

/// A key of metadata, of whatever kind.
#[derive(Deserialize)]
pub struct Written {
    /// The kind of key.
    pub keytype: String,
    /// How it signs.
    pub scheme: String,
    keyval: Values,
}

#[derive(Deserialize)]
struct Values {
    public: String,
    /// Of a security key: what it signs for.
    application: Option<String>,
}

impl Written {
    /// The key itself, in the form of its type.
    pub fn value(&self) -> &str {
        &self.keyval.public
    }
    /// The key, if it is of a kind that is known; an error if it is not what its kind says.
    pub fn key(&self) -> Result<Option<PublicKey>, String> {
        let kind = match (self.keytype.as_str(), self.scheme.as_str()) {
            (PLAIN, PLAIN) => Kind::Plain,
            (SECURITY_KEY, SECURITY_KEY) => Kind::Security,
            _ => return Ok(None),
        };
        if kind == Kind::Security && self.keyval.application.as_deref() != Some(APPLICATION) {
            return Err(format!("a security key of it is not for the application {APPLICATION}"));
        }
        let point = from_hex::<32>(self.value()).ok_or(KeyError::NotAPublicKey);
        let key = point.and_then(|point| PublicKey::of(kind, &point));
        key.map(Some).map_err(|why| format!("a key of it is none: {why}"))
    }
}

/// The key as it is written; its key ID is a hash of this.
pub fn written(key: &PublicKey) -> Value {
    match key.kind() {
        Kind::Plain => json!({ "keytype": PLAIN, "scheme": PLAIN, "keyval": { "public": key.hex() } }),
        Kind::Security => json!({
            "keytype": SECURITY_KEY,
            "scheme": SECURITY_KEY,
            "keyval": { "application": APPLICATION, "public": key.hex() },
        }),
    }
}
