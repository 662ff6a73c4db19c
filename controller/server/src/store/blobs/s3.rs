//! The client of an S3 store. Every wait has a limit, and no message has a credential.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{HttpClient, HttpConnector};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::error::BlobError;
use crate::config::{Encryption, S3};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

pub fn open(s3: &S3) -> Result<(AmazonS3, reqwest::Client), BlobError> {
    let wrong = |error: object_store::Error| BlobError::Settings(error.to_string());
    let client = client(s3)?;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&s3.bucket)
        .with_region(&s3.region)
        .with_access_key_id(&s3.credentials.id)
        .with_secret_access_key(s3.credentials.secret.as_str())
        .with_virtual_hosted_style_request(!s3.path_style)
        .with_disable_tagging(true)
        .with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(5),
                base: 2.0,
            },
            max_retries: s3.retries,
            retry_timeout: s3.timeout,
        })
        .with_http_connector(Ready(client.clone()));
    if let Some(token) = &s3.credentials.token {
        builder = builder.with_token(token.as_str());
    }
    if let Some(endpoint) = &s3.endpoint {
        // `object_store` wants the bucket in the name of the host already.
        let endpoint = match (s3.path_style, endpoint.split_once("://")) {
            (false, Some((scheme, host))) => format!("{scheme}://{}.{host}", s3.bucket),
            _ => endpoint.clone(),
        };
        builder = builder.with_endpoint(endpoint);
    }
    builder = match &s3.encryption {
        None => builder,
        Some(Encryption::Kms(key)) => builder.with_sse_kms_encryption(key),
        Some(Encryption::Store) => {
            let key: AmazonS3ConfigKey = "aws_server_side_encryption".parse().map_err(wrong)?;
            builder.with_config(key, "AES256")
        }
    };
    Ok((builder.build().map_err(wrong)?, client))
}

/// The one HTTP client that `object_store` gets, whatever its own settings are.
#[derive(Debug)]
struct Ready(reqwest::Client);

impl HttpConnector for Ready {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

fn client(s3: &S3) -> Result<reqwest::Client, BlobError> {
    let wrong = |error: &dyn std::fmt::Display| BlobError::Settings(error.to_string());
    let roots = roots(s3.ca.as_deref())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(CONNECT_LIMIT.min(s3.timeout))
        .read_timeout(s3.timeout)
        .redirect(reqwest::redirect::Policy::none());
    if s3.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://")) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| wrong(&error))
}

fn roots(ca: Option<&Path>) -> Result<rustls::RootCertStore, BlobError> {
    let mut roots = rustls::RootCertStore::empty();
    let Some(path) = ca else {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok(roots);
    };
    let wrong = |error: &dyn std::fmt::Display| {
        BlobError::Settings(format!("s3.ca names {}, which cannot be used: {error}", path.display()))
    };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
        roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    match roots.is_empty() {
        true => Err(wrong(&"it has no certificate")),
        false => Ok(roots),
    }
}
