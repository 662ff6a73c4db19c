//! Where a key lives, as written in muster.toml and in options: a file, or ssh-agent.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{PublicKey, Signer, is_encrypted};

use crate::keys::keyfile;
use crate::keys::ssh_agent::{AgentError, AgentKey, key_of_line};
use crate::terminal::error::WithHint as _;

const AGENT: &str = "ssh-agent";
/// The most bytes read from a public key file.
const MAX_PUB_BYTES: u64 = 16 * 1024;

/// What is known of a key without prompting for it.
pub enum Look {
    /// It signs without prompting.
    Open(Arc<dyn Signer>),
    /// It needs a passphrase, or is in an agent, which may prompt. `identity` distinguishes it from others.
    Asks { identity: Sha256, key: Option<Arc<dyn Signer>> },
}

/// A private key, wherever it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// PKCS#8 in PEM, with a passphrase or without.
    File(PathBuf),
    /// In ssh-agent: the key with this fingerprint, comment or public key, or the only one.
    Agent(Option<String>),
}

impl FromStr for KeySource {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.strip_prefix(AGENT) {
            Some("") => Self::Agent(None),
            Some(rest) if rest.starts_with(':') => {
                Self::Agent(Some(rest[1..].to_owned()).filter(|key| !key.is_empty()))
            }
            _ => Self::File(text.into()),
        })
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Agent(None) => f.write_str(AGENT),
            Self::Agent(Some(key)) => write!(f, "{AGENT}:{key}"),
        }
    }
}

impl KeySource {
    /// The same, with a file's path relative to a folder.
    pub fn relative_to(self, folder: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(folder.join(path)),
            agent => agent,
        }
    }

    /// Opens the key, asking for its passphrase if it has one. A `.pub` file means the key in ssh-agent.
    pub fn open(&self) -> Result<Arc<dyn Signer>> {
        match self {
            Self::File(path) if is_pub(path) => open_agent(Some(&read_pub(path)?.to_string())),
            Self::File(path) => Ok(Arc::new(keyfile::read(path)?)),
            Self::Agent(wanted) => open_agent(wanted.as_deref()),
        }
    }
}

impl KeySource {
    /// Opens the key if that needs no prompt.
    pub fn look(&self) -> Result<Look> {
        match self {
            Self::File(path) if !is_pub(path) => {
                let text = keyfile::text(path)?;
                Ok(match is_encrypted(&text) {
                    true => Look::Asks { identity: Sha256::of(text.as_bytes()), key: None },
                    false => Look::Open(Arc::new(keyfile::open(path, &text)?)),
                })
            }
            _ => {
                let key = self.open()?;
                Ok(Look::Asks { identity: Sha256::of(&key.public().to_bytes()), key: Some(key) })
            }
        }
    }
}

fn open_agent(wanted: Option<&str>) -> Result<Arc<dyn Signer>> {
    let key = AgentKey::find(wanted);
    let hint = match &key {
        Err(AgentError::Ambiguous(_)) => {
            "write ssh-agent:FINGERPRINT or ssh-agent:COMMENT, as `ssh-add -l` prints them"
        }
        Err(AgentError::OtherKind(..)) => "make one with `ssh-keygen -t ed25519` and add it with `ssh-add`",
        Err(AgentError::OtherApplication { .. }) => {
            "make one with `ssh-keygen -t ed25519-sk`, without -O application, and add it with `ssh-add`"
        }
        Err(AgentError::NotHeld { .. }) => "add the key with `ssh-add`, and see `ssh-add -l`",
        _ => "start ssh-agent and add the key with `ssh-add`",
    };
    Ok(Arc::new(key.hint(hint)?))
}

fn is_pub(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "pub")
}

fn read_pub(path: &Path) -> Result<PublicKey> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_PUB_BYTES).read_to_string(&mut text))
        .with_context(|| format!("cannot read the public key {}", path.display()))?;
    key_of_line(&text).with_context(|| path.display().to_string())
}

/// A public key as people pass it on: 64 hexadecimal digits, a security key's `sk-ed25519:` and 64, an
/// OpenSSH line, or a file with one.
pub fn public_key(text: &str) -> Result<PublicKey> {
    let text = text.trim();
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    if text.starts_with("ssh-") || text.starts_with("sk-") || text.starts_with("ecdsa-") {
        return Ok(key_of_line(text)?);
    }
    let path = Path::new(text);
    if is_pub(path) {
        return read_pub(path);
    }
    if path.is_file() {
        return Ok(keyfile::read(path)?.public());
    }
    Err(anyhow!("'{text}' is not a public key")).hint(
        "give 64 hexadecimal digits (`muster keys public` prints them), an ssh-ed25519 or sk-ssh-ed25519 \
             line, or its .pub file",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_file_or_the_agent() {
        let parse = |text: &str| text.parse::<KeySource>().unwrap();
        assert_eq!(parse("keys/operator.pem"), KeySource::File("keys/operator.pem".into()));
        assert_eq!(parse("ssh-agent"), KeySource::Agent(None));
        assert_eq!(parse("ssh-agent:"), KeySource::Agent(None));
        assert_eq!(parse("ssh-agent:SHA256:abc"), KeySource::Agent(Some("SHA256:abc".into())));
        assert_eq!(parse("ssh-agents.pem"), KeySource::File("ssh-agents.pem".into()));
        for text in ["keys/operator.pem", "ssh-agent", "ssh-agent:alice@home"] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(parse("a.pem").relative_to(Path::new("/f")), KeySource::File("/f/a.pem".into()));
    }

    #[test]
    fn a_public_key_comes_in_any_of_its_forms() {
        let folder = tempfile::tempdir().unwrap();
        let key = muster_protocol::keys::SecretKey::generate().unwrap();
        assert_eq!(public_key(&format!(" {} \n", key.public())).unwrap(), key.public());
        let file = folder.path().join("key.pem");
        keyfile::write_private(&file, &key.to_pem().unwrap()).unwrap();
        assert_eq!(public_key(&file.display().to_string()).unwrap(), key.public());
        assert!(
            public_key("alice")
                .unwrap_err()
                .chain()
                .any(|cause| cause.to_string().contains("not a public key"))
        );
        assert!(public_key("ssh-rsa AAAA").is_err());
    }
}
