//! Keys in ssh-agent: the two requests of its protocol that are used (draft-ietf-sshm-ssh-agent), listing its
//! keys and signing with one.
//!
//! A plain ed25519 key signs the bytes as they are, so that its signatures are those of TUF. A security key
//! (FIDO2) signs their hash, with what it states of itself. No signature made here is valid for SSH, nor the
//! other way round: what SSH signs begins with the length of a session ID, or with `SSHSIG`; what is signed
//! here begins with `{` or `muster-`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{APPLICATION, KeyError, Kind, PublicKey, Signature, Signer, Touch};

/// Where ssh-agent listens (ssh-agent(1)).
const SOCKET: &str = "SSH_AUTH_SOCK";
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// The largest message that OpenSSH's agent sends.
const MAX_MESSAGE: usize = 256 * 1024;
/// The agent may ask its user before signing (`ssh-add -c`).
const PATIENCE: Duration = Duration::from_secs(120);
/// The name of a plain ed25519 key (RFC 8709).
pub const ED25519: &str = "ssh-ed25519";
/// The name of an ed25519 key in a security key (OpenSSH's PROTOCOL.u2f).
const SECURITY_KEY: &str = "sk-ssh-ed25519@openssh.com";

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("{SOCKET} is not set, so there is no ssh-agent to ask")]
    NoAgent,
    #[error("ssh-agent at {} does not answer: {error}", socket.display())]
    Silent { socket: PathBuf, error: std::io::Error },
    #[error("ssh-agent's answer is not understood")]
    Malformed,
    #[error("ssh-agent refused to sign with {0}: is it locked, or was the question declined?")]
    Declined(String),
    #[error("ssh-agent holds no key {wanted}; it holds {held}")]
    NotHeld { wanted: String, held: String },
    #[error("ssh-agent holds more than one key that can sign here: {0}")]
    Ambiguous(String),
    #[error(
        "{key} is a security key for the application {application}: only signatures for {APPLICATION} count \
         here"
    )]
    OtherApplication { key: String, application: String },
    #[error("{0} is a key of kind {1}: only ed25519 keys sign here, plain ones and those of security keys")]
    OtherKind(String, String),
    #[error("ssh-agent gave a signature that does not fit: nothing was signed")]
    BadSignature,
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A key as ssh-agent lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    blob: Vec<u8>,
    kind: String,
    comment: String,
}

impl Identity {
    fn read(blob: Vec<u8>, comment: &[u8]) -> Result<Self, AgentError> {
        let kind = Reader(&blob).text()?;
        Ok(Self { blob, kind, comment: String::from_utf8_lossy(comment).into_owned() })
    }
    /// As `ssh-add -l` prints it.
    fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::of(&self.blob).as_bytes()))
    }
    fn key(&self) -> Result<PublicKey, AgentError> {
        let mut blob = Reader(&self.blob);
        let kind = match blob.text()?.as_str() {
            ED25519 => Kind::Plain,
            SECURITY_KEY => Kind::Security,
            other => return Err(AgentError::OtherKind(self.described(), other.to_owned())),
        };
        let bytes = blob.string()?.try_into().map_err(|_| AgentError::Malformed)?;
        if kind == Kind::Security {
            let application = blob.text()?;
            if application != APPLICATION {
                return Err(AgentError::OtherApplication { key: self.described(), application });
            }
        }
        Ok(PublicKey::of(kind, &bytes)?)
    }
    fn described(&self) -> String {
        match self.comment.is_empty() {
            true => self.fingerprint(),
            false => format!("{} ({})", self.comment, self.fingerprint()),
        }
    }
    fn is(&self, wanted: &str) -> bool {
        let is_key = self.key().is_ok_and(|key| key.to_string() == wanted);
        is_key || self.comment == wanted || self.fingerprint() == wanted
    }
}

/// A key held by ssh-agent, which this process never sees.
#[derive(Debug)]
pub struct AgentKey {
    socket: PathBuf,
    blob: Vec<u8>,
    public: PublicKey,
    described: String,
}

impl AgentKey {
    /// The key with this fingerprint, comment or public key; without one, the only key that can sign here.
    pub fn find(wanted: Option<&str>) -> Result<Self, AgentError> {
        let socket = std::env::var_os(SOCKET).map(PathBuf::from).ok_or(AgentError::NoAgent)?;
        Self::find_at(socket, wanted)
    }

    fn find_at(socket: PathBuf, wanted: Option<&str>) -> Result<Self, AgentError> {
        let held = identities(&socket)?;
        let chosen = choose(&held, wanted)?;
        let public = chosen.key()?;
        Ok(Self { socket, blob: chosen.blob.clone(), public, described: chosen.described() })
    }

    fn sign(&self, message: &[u8]) -> Result<Signature, AgentError> {
        if self.public.is_security_key() {
            tell!("touch the security key {} when it blinks …", self.described);
        }
        let mut request = vec![SIGN_REQUEST];
        put(&mut request, &self.blob);
        put(&mut request, message);
        request.extend_from_slice(&0_u32.to_be_bytes());
        let answer = ask(&self.socket, &request)?;
        let Some((&SIGN_RESPONSE, body)) = answer.split_first() else {
            return Err(AgentError::Declined(self.described.clone()));
        };
        let signature = Reader(body).string()?;
        let signature = signature_in(&signature)?;
        // Reports here what everyone else would refuse.
        self.public.verify_raw(message, &signature).map_err(|why| match why {
            KeyError::Untouched => AgentError::Key(why),
            _ => AgentError::BadSignature,
        })?;
        Ok(signature)
    }
}

impl Signer for AgentKey {
    fn public(&self) -> PublicKey {
        self.public
    }
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError> {
        // The agent may wait for its user; other tasks keep running meanwhile.
        let sign = || self.sign(message).map_err(|error| KeyError::Signer(error.to_string()));
        match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(sign),
            _ => sign(),
        }
    }
}

/// The signature in a blob of either kind.
fn signature_in(blob: &[u8]) -> Result<Signature, AgentError> {
    let mut blob = Reader(blob);
    let kind = blob.text()?;
    let bytes = blob.string()?.try_into().map_err(|_| AgentError::BadSignature)?;
    let signature = match kind.as_str() {
        ED25519 => Signature::from_bytes(bytes),
        SECURITY_KEY => {
            let touch = Touch { flags: blob.byte()?, counter: blob.number()? };
            Signature::of_security_key(bytes, touch)
        }
        _ => return Err(AgentError::BadSignature),
    };
    if blob.0.is_empty() { Ok(signature) } else { Err(AgentError::BadSignature) }
}

fn choose<'a>(held: &'a [Identity], wanted: Option<&str>) -> Result<&'a Identity, AgentError> {
    let list = |identities: &[&Identity]| match identities {
        [] => "none".to_owned(),
        some => some.iter().map(|identity| identity.described()).collect::<Vec<_>>().join(", "),
    };
    let all: Vec<&Identity> = held.iter().collect();
    if let Some(wanted) = wanted {
        let found = held.iter().find(|identity| identity.is(wanted));
        return found.ok_or_else(|| AgentError::NotHeld { wanted: wanted.to_owned(), held: list(&all) });
    }
    let usable: Vec<&Identity> = all.iter().copied().filter(|identity| identity.key().is_ok()).collect();
    match (usable.as_slice(), all.as_slice()) {
        ([one], _) => Ok(one),
        // The only one cannot be used: its error says why.
        ([], [other]) => other.key().map(|_| *other),
        ([], _) => Err(AgentError::NotHeld { wanted: "of kind ed25519".into(), held: list(&all) }),
        (several, _) => Err(AgentError::Ambiguous(list(several))),
    }
}

fn identities(socket: &PathBuf) -> Result<Vec<Identity>, AgentError> {
    let answer = ask(socket, &[REQUEST_IDENTITIES])?;
    let Some((&IDENTITIES_ANSWER, body)) = answer.split_first() else { return Err(AgentError::Malformed) };
    let mut body = Reader(body);
    let count = body.number()?;
    let mut identities = Vec::new();
    for _ in 0..count {
        identities.push(Identity::read(body.string()?, &body.string()?)?);
    }
    Ok(identities)
}

/// One request and one answer, each prefixed with its length.
fn ask(socket: &PathBuf, request: &[u8]) -> Result<Vec<u8>, AgentError> {
    let silent = |error| AgentError::Silent { socket: socket.clone(), error };
    let mut stream = UnixStream::connect(socket).map_err(silent)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(silent)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(silent)?;
    let mut framed = Vec::new();
    put(&mut framed, request);
    stream.write_all(&framed).map_err(silent)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(silent)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length == 0 || length > MAX_MESSAGE {
        return Err(AgentError::Malformed);
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).map_err(silent)?;
    Ok(answer)
}

/// A `string` of SSH: its length and its bytes (RFC 4251, section 5).
fn put(message: &mut Vec<u8>, bytes: &[u8]) {
    message.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    message.extend_from_slice(bytes);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, AgentError> {
        let (byte, rest) = self.0.split_first().ok_or(AgentError::Malformed)?;
        self.0 = rest;
        Ok(*byte)
    }
    fn number(&mut self) -> Result<u32, AgentError> {
        let (number, rest) = self.0.split_first_chunk::<4>().ok_or(AgentError::Malformed)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*number))
    }
    fn string(&mut self) -> Result<Vec<u8>, AgentError> {
        let length = usize::try_from(self.number()?).map_err(|_| AgentError::Malformed)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(AgentError::Malformed)?;
        self.0 = rest;
        Ok(bytes.to_vec())
    }
    fn text(&mut self) -> Result<String, AgentError> {
        String::from_utf8(self.string()?).map_err(|_| AgentError::Malformed)
    }
}

/// The key in a line of `id_ed25519.pub` or `id_ed25519_sk.pub`.
pub fn key_of_line(line: &str) -> Result<PublicKey, AgentError> {
    let mut words = line.split_whitespace();
    let (Some(kind), Some(base64)) = (words.next(), words.next()) else { return Err(AgentError::Malformed) };
    let blob = STANDARD.decode(base64).map_err(|_| AgentError::Malformed)?;
    let comment = words.collect::<Vec<_>>().join(" ");
    let identity = Identity::read(blob, comment.as_bytes())?;
    if identity.kind != kind { Err(AgentError::Malformed) } else { identity.key() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use muster_protocol::keys::SecretKey;

    use super::*;

    fn security_key(key: &PublicKey, application: &str, comment: &str) -> Identity {
        let mut blob = blob(SECURITY_KEY, key.as_bytes());
        put(&mut blob, application.as_bytes());
        Identity { blob, kind: SECURITY_KEY.into(), comment: comment.into() }
    }
    fn blob(kind: &str, key: &[u8]) -> Vec<u8> {
        let mut blob = Vec::new();
        put(&mut blob, kind.as_bytes());
        put(&mut blob, key);
        blob
    }
    fn identity(kind: &str, key: &PublicKey, comment: &str) -> Identity {
        Identity { blob: blob(kind, key.as_bytes()), kind: kind.into(), comment: comment.into() }
    }

    #[test]
    fn the_only_ed25519_key_is_taken_and_several_must_be_told_apart() {
        let [a, b] = [(); 2].map(|()| SecretKey::generate().unwrap().public());
        let (one, two) = (identity(ED25519, &a, "alice@home"), identity(ED25519, &b, "alice@work"));
        let other = identity("ssh-rsa", &a, "old");
        assert_eq!(choose(&[other, one.clone()], None).unwrap(), &one);
        let both = [one, two.clone()];
        let error = choose(&both, None).unwrap_err().to_string();
        assert!(error.contains("alice@home") && error.contains("alice@work"), "{error}");
        for wanted in ["alice@work".to_owned(), b.hex(), two.fingerprint()] {
            assert_eq!(choose(&both, Some(&wanted)).unwrap(), &two);
        }
        let error = choose(&both, Some("bob")).unwrap_err().to_string();
        assert!(error.contains("holds no key bob") && error.contains("alice@home"), "{error}");
        assert!(choose(&[], None).unwrap_err().to_string().contains("holds none"));
    }

    #[test]
    fn a_security_key_is_taken_like_any_other_key() {
        let [a, b] = [(); 2].map(|()| SecretKey::generate().unwrap().public());
        let (plain, security) = (identity(ED25519, &a, "alice@home"), security_key(&b, "ssh:", "yubikey"));
        let public = security.key().unwrap();
        assert_eq!((public.kind(), public.as_bytes()), (Kind::Security, b.as_bytes()));
        let useless = security_key(&a, "ssh:work", "other");
        assert_eq!(choose(&[useless, security.clone()], None).unwrap(), &security);
        let both = [plain, security.clone()];
        let error = choose(&both, None).unwrap_err().to_string();
        assert!(error.contains("alice@home") && error.contains("yubikey"), "{error}");
        for wanted in ["yubikey".to_owned(), public.to_string(), security.fingerprint()] {
            assert_eq!(choose(&both, Some(&wanted)).unwrap(), &security);
        }
        assert!(choose(&both, Some(&b.hex())).is_err(), "that would be a plain key");
    }

    #[test]
    fn other_kinds_are_refused_each_with_its_reason() {
        let key = SecretKey::generate().unwrap().public();
        for application in ["ssh:work", "ssh", "", "https://example.com"] {
            let security = security_key(&key, application, "yubikey");
            for wanted in [None, Some("yubikey")] {
                let chosen = choose(std::slice::from_ref(&security), wanted).and_then(|chosen| chosen.key());
                let error = chosen.unwrap_err().to_string();
                assert!(
                    error.contains("only signatures for ssh: count") && error.contains("yubikey"),
                    "{error}"
                );
            }
        }
        let nist = identity("sk-ecdsa-sha2-nistp256@openssh.com", &key, "older");
        assert!(matches!(nist.key(), Err(AgentError::OtherKind(..))));
        let rsa = identity("ssh-rsa", &key, "old");
        let error = rsa.key().unwrap_err().to_string();
        assert!(error.contains("ssh-rsa") && error.contains("only ed25519"), "{error}");
        let certificate = identity("ssh-ed25519-cert-v01@openssh.com", &key, "");
        assert!(matches!(certificate.key(), Err(AgentError::OtherKind(..))));
    }

    /// A line written by ssh-keygen 9.2.
    #[test]
    fn a_line_of_a_pub_file_is_read() {
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAmQV+lX5uH22syvz55hpRkPuy2W9BdkzbfyO3PZdJ1V \
             alice@example\n";
        let hex = "099057e957e6e1f6daccafcf9e61a5190fbb2d96f41764cdb7f23b73d9749d55";
        assert_eq!(key_of_line(line).unwrap().hex(), hex);
        let sk = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIFrspIqKMIFJ1waQ6W9B25CO\
                  7b3LO4cykUo+jFI8EU8fAAAABHNzaDo= key";
        let hex = "5aeca48a8a308149d70690e96f41db908eedbdcb3b8732914a3e8c523c114f1f";
        assert_eq!(key_of_line(sk).unwrap().to_string(), format!("sk-ed25519:{hex}"));
        let short = format!("{SECURITY_KEY} {}", STANDARD.encode(blob(SECURITY_KEY, &[1; 32])));
        assert!(matches!(key_of_line(&short), Err(AgentError::Malformed)), "it names no application");
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 !!!",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIAmQV+lX5uH22syvz55hpRkPuy2W9BdkzbfyO3PZdJ1V",
        ] {
            assert!(key_of_line(bad).is_err(), "{bad}");
        }
    }

    /// An agent that answers each connection with the next of these.
    fn agent(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut length = [0; 4];
                stream.read_exact(&mut length).unwrap();
                let mut request = vec![0; u32::from_be_bytes(length) as usize];
                stream.read_exact(&mut request).unwrap();
                let _ = stream.write_all(&answer);
            }
        });
        (folder, socket)
    }

    #[test]
    fn an_agent_that_lies_or_babbles_signs_nothing() {
        let key = SecretKey::generate().unwrap();
        let mut list = vec![IDENTITIES_ANSWER];
        list.extend_from_slice(&1_u32.to_be_bytes());
        put(&mut list, &blob(ED25519, key.public().as_bytes()));
        put(&mut list, b"alice");
        let framed = |body: &[u8]| {
            let mut framed = Vec::new();
            put(&mut framed, body);
            framed
        };
        let response = |signature: &[u8]| {
            let mut body = vec![SIGN_RESPONSE];
            put(&mut body, &blob(ED25519, signature));
            framed(&body)
        };
        let good = response(key.sign_raw(b"message").as_bytes());
        let other = response(key.sign_raw(b"another").as_bytes());
        let endless = u32::MAX.to_be_bytes().to_vec();
        let (_folder, socket) = agent(vec![
            framed(&list),
            good,
            other,
            framed(&[5]),
            endless,
            framed(&[]),
            framed(&[SIGN_RESPONSE, 0]),
        ]);
        let held = AgentKey::find_at(socket, None).unwrap();
        assert_eq!(held.public(), key.public());
        assert_eq!(held.sign(b"message").unwrap(), key.sign_raw(b"message"));
        assert!(matches!(held.sign(b"message"), Err(AgentError::BadSignature)));
        assert!(matches!(held.sign(b"message"), Err(AgentError::Declined(_))));
        for _ in 0..3 {
            assert!(matches!(held.sign(b"message"), Err(AgentError::Malformed)));
        }
        let gone = AgentKey::find_at("/nowhere/agent".into(), None).unwrap_err();
        assert!(gone.to_string().contains("/nowhere/agent"), "{gone}");
    }
}
