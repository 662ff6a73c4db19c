//! Where the cache's files are stored: in a folder, or in a bucket of an S3 store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_protocol::api::is_loopback;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::private::require_private;

/// S3 takes at most this many parts in one upload, and no part but the last smaller than this.
const MAX_PARTS: u64 = 10_000;
const MIN_PART: u64 = 5 * 1024 * 1024;
const MAX_REGION: usize = 64;
/// An ARN of AWS has at most 2048 characters.
const MAX_KMS_KEY: usize = 2048;
const MAX_CREDENTIALS_BYTES: u64 = 16 * 1024;

#[derive(Debug, Clone)]
pub enum BlobsAt {
    Folder(PathBuf),
    S3(Box<S3>),
}

/// A bucket, or the part of one under a prefix.
#[derive(Debug, Clone)]
pub struct S3 {
    pub bucket: String,
    /// Without a slash at either end; may be empty.
    pub prefix: String,
    /// `None` is AWS.
    pub endpoint: Option<String>,
    pub region: String,
    /// Whether the bucket is in the path (`https://HOST/BUCKET`) or in the host's name.
    pub path_style: bool,
    pub credentials: Credentials,
    /// The certificate authority of the endpoint; `None` trusts the public ones.
    pub ca: Option<PathBuf>,
    pub encryption: Option<Encryption>,
    /// How long one request may take; with its repetitions, twice as long.
    pub timeout: Duration,
    pub retries: usize,
    /// The size of one part of an upload, in bytes: what an upload buffers.
    pub part_bytes: usize,
}

/// How the store encrypts what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// With a key of the store's own (SSE-S3).
    Store,
    /// With this key of its key service (SSE-KMS).
    Kms(String),
}

#[derive(Clone)]
pub struct Credentials {
    pub id: String,
    pub secret: Zeroizing<String>,
    pub token: Option<Zeroizing<String>>,
}

/// Never shows the secret.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.id)
    }
}

/// `[s3]` as written in the file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    endpoint: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
    credentials: Option<PathBuf>,
    ca: Option<PathBuf>,
    encryption: Option<String>,
    kms_key: Option<String>,
    timeout_seconds: Option<u64>,
    retries: Option<usize>,
}

/// The file that `s3.credentials` names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialsFile {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
}

/// Whether it has only letters, digits and these.
fn is_plain(text: &str, more: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

/// What is wrong: the setting, and the problem.
pub(super) struct Wrong(pub &'static str, pub String);

/// Reads the settings; paths are relative to the folder.
pub(super) struct Read<'a> {
    pub folder: &'a Path,
}

impl Read<'_> {
    fn wrong(&self, key: &'static str, problem: String) -> Wrong {
        Wrong(key, problem)
    }

    /// The setting `blobs`, and `[s3]` where it names a bucket.
    pub(super) fn blobs(
        &self,
        setting: Option<&str>,
        table: Option<Table>,
        data: &Path,
        nar_bytes: u64,
    ) -> Result<BlobsAt, Wrong> {
        let rest = setting.and_then(|setting| setting.strip_prefix("s3://"));
        let Some(rest) = rest else {
            if table.is_some() {
                let problem = "has settings, and blobs names no bucket: write blobs = \"s3://BUCKET\"";
                return Err(self.wrong("s3", problem.into()));
            }
            return match setting {
                None => Ok(BlobsAt::Folder(data.join("blobs"))),
                Some(other) if other.is_empty() || other.contains("://") => {
                    let problem = format!("is '{other}': write a folder, or \"s3://BUCKET/PREFIX\"");
                    Err(self.wrong("blobs", problem))
                }
                Some(folder) => Ok(BlobsAt::Folder(self.folder.join(folder))),
            };
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let letters = |text: &str, more: &str| {
            text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c)) && !text.contains("..")
        };
        let segments = prefix.split('/').all(|one| letters(one, "-_.") && one != "." && !one.is_empty());
        if !(3..=63).contains(&bucket.len()) || !letters(bucket, "-.") || (!prefix.is_empty() && !segments) {
            let problem = format!(
                "is 's3://{rest}': write \"s3://BUCKET\" or \"s3://BUCKET/PREFIX\", with letters, digits, \
                 '-', '_' and '.'"
            );
            return Err(self.wrong("blobs", problem));
        }
        self.s3(bucket, prefix, table.unwrap_or_default(), nar_bytes).map(|s3| BlobsAt::S3(Box::new(s3)))
    }

    fn s3(&self, bucket: &str, prefix: &str, table: Table, nar_bytes: u64) -> Result<S3, Wrong> {
        if let Some(endpoint) = &table.endpoint {
            self.check_endpoint(endpoint)?;
        }
        let encryption = match (table.encryption.as_deref(), table.kms_key) {
            (None, None) => None,
            (Some("AES256"), None) => Some(Encryption::Store),
            (None | Some("aws:kms"), Some(key)) => Some(Encryption::Kms(key)),
            _ => {
                let problem = "must be \"AES256\", or \"aws:kms\" with kms_key = \"KEY\" beside it";
                return Err(self.wrong("s3.encryption", problem.into()));
            }
        };
        // What is sent in a header must be one, or the first request fails.
        let region = table.region.unwrap_or_else(|| "us-east-1".to_owned());
        if !is_plain(&region, "-_.", MAX_REGION) {
            let problem = format!("is '{region}': write it with letters, digits and '-', like eu-central-1");
            return Err(self.wrong("s3.region", problem));
        }
        if let Some(Encryption::Kms(key)) = &encryption
            && !is_plain(key, ":/_-.", MAX_KMS_KEY)
        {
            let problem = format!("is '{key}': write the key's ID, its alias or its ARN");
            return Err(self.wrong("s3.kms_key", problem));
        }
        let timeout = table.timeout_seconds.unwrap_or(30);
        if !(1..=600).contains(&timeout) {
            return Err(self.wrong("s3.timeout_seconds", "must be from 1 to 600".into()));
        }
        let retries = table.retries.unwrap_or(3);
        if retries > 10 {
            return Err(self.wrong("s3.retries", "must be from 0 to 10".into()));
        }
        let part = nar_bytes.div_ceil(MAX_PARTS).max(MIN_PART);
        Ok(S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            region,
            path_style: table.path_style.unwrap_or(table.endpoint.is_some()),
            endpoint: table.endpoint.map(|endpoint| endpoint.trim_end_matches('/').to_owned()),
            credentials: self.credentials(table.credentials.as_deref())?,
            ca: table.ca.map(|path| self.folder.join(path)),
            encryption,
            timeout: Duration::from_secs(timeout),
            retries,
            part_bytes: usize::try_from(part)
                .map_err(|_| self.wrong("limits.nar_bytes", "is too large".into()))?,
        })
    }

    /// Plain HTTP would show the archives, and every signature of a request, to the network.
    fn check_endpoint(&self, endpoint: &str) -> Result<(), Wrong> {
        let wrong = |why: &str| Err(self.wrong("s3.endpoint", format!("is '{endpoint}': {why}")));
        let Ok(url) = endpoint.parse::<reqwest::Url>() else {
            return wrong("write https://HOST or https://HOST:PORT");
        };
        let host = url.host_str().unwrap_or_default();
        let bare = url.path() == "/" && url.query().is_none() && url.username().is_empty();
        match url.scheme() {
            _ if host.is_empty() || !bare => {
                wrong("write https://HOST or https://HOST:PORT and nothing more")
            }
            "https" => Ok(()),
            "http" if is_loopback(host) => Ok(()),
            "http" => wrong("http is only for a store on this host; write https"),
            _ => wrong("write https://HOST or https://HOST:PORT"),
        }
    }

    /// From the file, or else from the environment, under the names that S3 programs agree on.
    fn credentials(&self, file: Option<&Path>) -> Result<Credentials, Wrong> {
        const KEY: &str = "s3.credentials";
        let found = match file {
            Some(path) => {
                let path = self.folder.join(path);
                require_private(&path).map_err(|problem| self.wrong(KEY, problem))?;
                let read = || -> std::io::Result<String> {
                    use std::io::Read as _;
                    let mut text = String::new();
                    std::fs::File::open(&path)?.take(MAX_CREDENTIALS_BYTES).read_to_string(&mut text)?;
                    Ok(text)
                };
                let name = path.display();
                let text = read().map(Zeroizing::new).map_err(|error| {
                    self.wrong(KEY, format!("names {name}, which cannot be read: {error}"))
                })?;
                // Not the parser's own message: it quotes the line.
                let file: CredentialsFile = toml::from_str(&text).map_err(|_| {
                    let problem = format!(
                        "names {name}, which must have two lines: access_key_id = \"…\" and \
                         secret_access_key = \"…\"; session_token = \"…\" may follow"
                    );
                    self.wrong(KEY, problem)
                })?;
                Credentials {
                    id: file.access_key_id,
                    secret: file.secret_access_key.into(),
                    token: file.session_token.map(Into::into),
                }
            }
            None => {
                let named = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
                let (id, secret) = (named("AWS_ACCESS_KEY_ID"), named("AWS_SECRET_ACCESS_KEY"));
                let Some((id, secret)) = id.zip(secret) else {
                    let problem = "is missing: name a file (mode 0600) with access_key_id and \
                                   secret_access_key, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
                    return Err(self.wrong(KEY, problem.into()));
                };
                let token = named("AWS_SESSION_TOKEN").map(Into::into);
                Credentials { id, secret: secret.into(), token }
            }
        };
        let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible(&found.id) || !found.token.as_ref().is_none_or(|token| visible(token)) {
            let problem = "has an access_key_id or session_token with a space or a character that is not \
                           ASCII: write it as the store gave it";
            return Err(self.wrong(KEY, problem.into()));
        }
        if found.id.is_empty() || found.secret.is_empty() {
            return Err(self.wrong(KEY, "has an empty access_key_id or secret_access_key".into()));
        }
        Ok(found)
    }
}
