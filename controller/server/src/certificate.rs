//! The certificate that the controller shows. Its files are looked at while it runs: whoever renews them
//! restarts nothing.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::{TlsFiles, require_private};

/// The longest file that is read.
const MOST: u64 = 1024 * 1024;

/// It cannot be used: the file, and why.
#[derive(Debug, thiserror::Error)]
#[error("the certificate {0} cannot be used: {1}", files.certificate.display(), why)]
pub struct CertificateError {
    files: TlsFiles,
    why: String,
}

#[derive(Debug)]
pub struct Certificate {
    files: TlsFiles,
    provider: Arc<rustls::crypto::CryptoProvider>,
    shown: RwLock<Shown>,
    /// The newest contents of the files that could not be used, so that they are complained of once.
    refused: Mutex<Option<Contents>>,
}

#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    of: Contents,
    /// When the first certificate of its chain ends, in Unix seconds.
    ends: i64,
}

/// What is in the files; the key itself is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Contents([muster_protocol::ids::Sha256; 2]);

impl Certificate {
    pub fn open(files: &TlsFiles) -> Result<Arc<Self>, CertificateError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let wrong = |why| CertificateError { files: files.clone(), why };
        let (of, read) = read(files).map_err(wrong)?;
        let shown = RwLock::new(shown(of, &read, &provider).map_err(wrong)?);
        Ok(Arc::new(Self { files: files.clone(), provider, shown, refused: Mutex::default() }))
    }

    /// What connections are accepted with; it shows the newest certificate.
    pub fn config(self: &Arc<Self>) -> Result<Arc<rustls::ServerConfig>, CertificateError> {
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| CertificateError { files: self.files.clone(), why: error.to_string() })?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Looks whether the files have changed, and shows what is in them from then on if it can be used.
    /// Halfway through being replaced they cannot, and are looked at again. A certificate that has ended
    /// takes the place of none that has not.
    pub fn look(&self, now_s: i64) {
        let found = read(&self.files).map_err(|why| (None, why)).and_then(|(of, read)| {
            if of == self.with(|shown| shown.of) {
                return Ok(None);
            }
            let new = shown(of, &read, &self.provider).map_err(|why| (Some(of), why))?;
            match new.ends <= now_s && now_s < self.ends() {
                true => Err((Some(of), "it has ended".to_owned())),
                false => Ok(Some(new)),
            }
        });
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(None) => *refused = None,
            Ok(Some(new)) => {
                tracing::info!(ends = new.ends, "another certificate is shown from now on");
                *self.shown.write().unwrap_or_else(PoisonError::into_inner) = new;
                *refused = None;
            }
            Err((of, why)) => {
                let of = of.unwrap_or(Contents([muster_protocol::ids::Sha256::of(why.as_bytes()); 2]));
                if refused.replace(of) != Some(of) {
                    let file = self.files.certificate.display();
                    tracing::error!(
                        "the certificate {file} cannot be used, and the one before it is still shown: {why}"
                    );
                }
            }
        }
    }

    /// When it ends, in Unix seconds.
    pub fn ends(&self) -> i64 {
        self.with(|shown| shown.ends)
    }

    fn with<T>(&self, of: impl FnOnce(&Shown) -> T) -> T {
        of(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.with(|shown| shown.key.clone()))
    }
}

/// The bytes of both files.
type Read = (Vec<u8>, zeroize::Zeroizing<Vec<u8>>);

fn read(files: &TlsFiles) -> Result<(Contents, Read), String> {
    let named = |file: &Path, error: &dyn std::fmt::Display| format!("its key {}: {error}", file.display());
    let certificate = bounded(&files.certificate).map_err(|error| error.to_string())?;
    let key = bounded(&files.key).map_err(|error| named(&files.key, &error))?;
    let key = zeroize::Zeroizing::new(key);
    require_private(&files.key).map_err(|problem| format!("its key {problem}"))?;
    let hash = muster_protocol::ids::Sha256::of;
    Ok((Contents([hash(&certificate), hash(&key)]), (certificate, key)))
}

fn bounded(file: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    // A pipe is not waited for.
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = std::fs::File::options().read(true).custom_flags(nonblock).open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    opened.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn shown(
    of: Contents,
    (certificate, key): &Read,
    provider: &rustls::crypto::CryptoProvider,
) -> Result<Shown, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let ends: Option<Vec<i64>> = chain.iter().map(|one| end(one)).collect();
    let ends = ends.and_then(|ends| ends.into_iter().min()).ok_or("it is not an X.509 certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("its key: {error}"))?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| error.to_string())?;
    Ok(Shown { key: Arc::new(key), of, ends })
}

/// When a certificate ends, in Unix seconds: RFC 5280, section 4.1. Nothing else of it is read here.
fn end(certificate: &[u8]) -> Option<i64> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    const UTC: u8 = 0x17;
    const GENERALIZED: u8 = 0x18;
    let (SEQUENCE, certificate, _) = element(certificate)? else { return None };
    let (SEQUENCE, mut rest, _) = element(certificate)? else { return None };
    if let (VERSION, _, after) = element(rest)? {
        rest = after;
    }
    // Its number, the signature's algorithm, and who issued it.
    for _ in 0..3 {
        (_, _, rest) = element(rest)?;
    }
    let (SEQUENCE, validity, _) = element(rest)? else { return None };
    let (_, _, after) = element(validity)?;
    let (kind, time, _) = element(after)?;
    let time = std::str::from_utf8(time).ok()?;
    let time = match kind {
        // Two digits of the year: 1950 to 2049.
        UTC => format!("{}{time}", if time < "50" { "20" } else { "19" }),
        GENERALIZED => time.to_owned(),
        _ => return None,
    };
    let moment = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", time).ok()?;
    // 99991231235959Z stands for no end (RFC 5280, section 4.1.2.5), and is after jiff's last timestamp.
    Some(jiff::tz::Offset::UTC.to_timestamp(moment).map_or(i64::MAX, jiff::Timestamp::as_second))
}

/// The first element of some DER: its tag, its contents, and what is after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, short], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = match short {
        0..=0x7f => (usize::from(short), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(short - 0x80))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Before 2030.
    const NOW: i64 = 1_800_000_000;

    /// A certificate of this year for `localhost`, and its key.
    fn made(year: i32) -> (String, String) {
        made_until(year, 3, 4)
    }

    fn made_until(year: i32, month: u8, day: u8) -> (String, String) {
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, month, day);
        let key = rcgen::KeyPair::generate().unwrap();
        (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn put(files: &TlsFiles, (certificate, key): &(String, String)) {
        std::fs::write(&files.certificate, certificate).unwrap();
        std::fs::write(&files.key, key).unwrap();
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn at(year: i16) -> i64 {
        let day = jiff::civil::date(year, 3, 4).at(0, 0, 0, 0);
        jiff::tz::Offset::UTC.to_timestamp(day).unwrap().as_second()
    }

    #[test]
    fn files_that_are_renewed_are_shown_and_such_that_cannot_be_used_leave_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let [certificate, key] = ["server.pem", "server-key.pem"].map(|name| folder.path().join(name));
        let files = TlsFiles { certificate, key };
        let [first, second, third] = [2030, 2049, 2050].map(made);
        put(&files, &first);
        let held = Certificate::open(&files).unwrap();
        let shown = || held.with(|shown| shown.key.cert[0].clone());
        let before = shown();
        assert_eq!(held.ends(), at(2030));
        held.look(NOW);
        assert_eq!(shown(), before);

        // Halfway, damaged, open to others, gone.
        put(&files, &(second.0.clone(), first.1.clone()));
        held.look(NOW);
        put(&files, &("-----BEGIN CERTIFICATE-----\n".into(), first.1.clone()));
        held.look(NOW);
        put(&files, &second);
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o644)).unwrap();
        held.look(NOW);
        std::fs::remove_file(&files.certificate).unwrap();
        held.look(NOW);
        assert_eq!((shown(), held.ends()), (before.clone(), at(2030)));

        put(&files, &second);
        held.look(NOW);
        assert_ne!(shown(), before);
        assert_eq!(held.ends(), at(2049), "the last year with two digits");
        put(&files, &third);
        held.look(NOW);
        assert_eq!(held.ends(), at(2050));
        // Of a chain, what ends first.
        put(&files, &(third.0 + &first.0, third.1));
        held.look(NOW);
        assert_eq!(held.ends(), at(2030));
        // One that has ended takes the place of another that has ended, and of no other.
        put(&files, &made(2020));
        held.look(NOW);
        assert_eq!(held.ends(), at(2030));
        held.look(at(2030));
        assert_eq!(held.ends(), at(2020));
        // A pipe is no file, and nobody waits for whoever might write to it.
        std::fs::remove_file(&files.certificate).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(&files.certificate).status().unwrap();
        assert!(pipe.success());
        held.look(NOW);
        assert_eq!(held.ends(), at(2020));
    }

    #[test]
    fn a_certificate_without_an_end_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let [certificate, key] = ["server.pem", "server-key.pem"].map(|name| folder.path().join(name));
        let files = TlsFiles { certificate, key };
        put(&files, &made_until(9999, 12, 31));
        assert_eq!(Certificate::open(&files).unwrap().ends(), i64::MAX);
    }

    #[test]
    fn what_is_no_certificate_has_no_end_and_does_no_harm() {
        let (pem, _) = made(2030);
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(end(&der), Some(at(2030)));
        for length in 0..der.len() {
            end(&der[..length]);
        }
        for place in 0..120 {
            let mut bent = der.to_vec();
            bent[place] ^= 0xff;
            end(&bent);
        }
        assert_eq!(end(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
