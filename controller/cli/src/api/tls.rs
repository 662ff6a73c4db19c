//! TLS: the certificate that `muster init` makes, and which authorities the client trusts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

/// The time limit for checking what a server sends.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// The fleet's own certificate authority and a server certificate that it issued, in PEM.
pub struct Made {
    pub ca: String,
    /// PKCS#8 DER; to be encrypted like the root key.
    pub ca_key: zeroize::Zeroizing<Vec<u8>>,
    pub server: String,
    pub server_key: zeroize::Zeroizing<String>,
}

/// Makes them for one host name or address. Validity is rcgen's default (to the year 4096): whoever holds the
/// controller holds its key, and what machines run depends on signatures, not on TLS.
pub fn make(host: &str) -> Result<Made> {
    let ca_key = KeyPair::generate().context("cannot make the key of the certificate authority")?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(DnType::CommonName, "Muster fleet CA");
    let ca_certificate = ca.self_signed(&ca_key).context("cannot sign the certificate authority")?;

    let server_key = KeyPair::generate().context("cannot make the server's TLS key")?;
    let mut server = CertificateParams::new([host.to_owned()])
        .with_context(|| format!("'{host}' is not a name for a certificate"))?;
    server.distinguished_name.push(DnType::CommonName, host);
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let ca_der = zeroize::Zeroizing::new(ca_key.serialize_der());
    let server_certificate = server
        .signed_by(&server_key, &Issuer::new(ca, ca_key))
        .context("cannot sign the server's certificate")?;
    Ok(Made {
        ca: ca_certificate.pem(),
        ca_key: ca_der,
        server: server_certificate.pem(),
        server_key: zeroize::Zeroizing::new(server_key.serialize_pem()),
    })
}

/// The first certificate of a PEM file, as DER.
pub fn certificate_der(pem: &[u8]) -> Result<Vec<u8>> {
    let certificate = CertificateDer::from_pem_slice(pem).context("it contains no PEM certificate")?;
    Ok(certificate.as_ref().to_vec())
}

/// Trusts one authority, or the public ones.
pub fn client_config(ca_der: Option<Vec<u8>>) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    match ca_der {
        Some(der) => roots.add(CertificateDer::from(der)).context("the certificate authority is unusable")?,
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("TLS cannot be set up")?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Whether the server at this address sends the authority in its chain; `false` if it does not answer.
pub async fn sends(url: &reqwest::Url, ca_der: &[u8]) -> bool {
    look(url, ca_der).await.unwrap_or(false)
}

async fn look(url: &reqwest::Url, ca_der: &[u8]) -> Result<bool> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(ca_der.to_vec()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let inner =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let looking = Arc::new(Looking { wanted: ca_der.to_vec(), inner, sent: AtomicBool::new(false) });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&looking) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .timeout(LOOK_LIMIT)
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    client.get(url.join(muster_protocol::api::FLEET)?).send().await?;
    Ok(looking.sent.load(Ordering::Relaxed))
}

/// Trusts what its authority vouches for, and notes whether the authority itself was sent.
#[derive(Debug)]
struct Looking {
    wanted: Vec<u8>,
    inner: Arc<WebPkiServerVerifier>,
    sent: AtomicBool,
}

impl ServerCertVerifier for Looking {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let sent = intermediates.iter().any(|sent| sent.as_ref() == self.wanted);
        self.sent.store(sent, Ordering::Relaxed);
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A private key in PKCS#8, without a passphrase.
pub fn plain_pem(der: &[u8]) -> Result<zeroize::Zeroizing<String>> {
    let key = KeyPair::try_from(der).context("the key cannot be read back")?;
    Ok(zeroize::Zeroizing::new(key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_certificate_is_by_the_made_authority() {
        let made = make("muster.example").unwrap();
        assert!(client_config(Some(certificate_der(made.ca.as_bytes()).unwrap())).is_ok());
        assert!(certificate_der(made.server.as_bytes()).is_ok());
        assert!(plain_pem(&made.ca_key).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
        assert!(certificate_der(b"hello").is_err());
    }
}
