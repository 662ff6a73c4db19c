//! Uploads that were never finished: a controller that was killed leaves parts behind.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use muster_protocol::clock::UnixMillis;
use object_store::aws::AmazonS3;
use object_store::multipart::MultipartStore as _;
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer as _};
use quick_xml::de::from_str;
use serde::Deserialize;

use super::error::BlobError;

/// How many of S3's pages, of up to a thousand uploads, one run looks at.
const PAGES: usize = 100;
/// The largest page, in bytes.
const MAX_PAGE: usize = 4 * 1024 * 1024;
const SIGNED_FOR: Duration = Duration::from_secs(300);

/// Removes what `object_store` staged in this folder before `before`; only counts it if `dry`.
pub fn in_folder(folder: &Path, before: UnixMillis, dry: bool) -> std::io::Result<u64> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if !is_staged(&entry.file_name()) {
            continue;
        }
        let modified = entry.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        if i64::try_from(modified.as_millis()).is_ok_and(|modified| modified < before) {
            count += 1;
            if !dry {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(count)
}

/// `object_store` writes next to the final path, with `#` and a number appended to the name.
pub fn is_staged(name: &std::ffi::OsStr) -> bool {
    let staged = name.to_str().and_then(|name| name.rsplit_once('#'));
    staged.is_some_and(|(_, number)| number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_upload_id_marker: Option<String>,
    #[serde(default, rename = "Upload")]
    uploads: Vec<Begun>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Begun {
    key: String,
    upload_id: String,
    initiated: String,
}

/// Aborts the uploads under `prefix` that began before `before`. `object_store` does not list them, but signs
/// the request that does. A store that cannot list them has none for us to find.
pub async fn in_bucket(
    client: &AmazonS3,
    http: &reqwest::Client,
    prefix: &str,
    before: UnixMillis,
    dry: bool,
) -> Result<u64, BlobError> {
    let (mut count, mut markers) = (0, None);
    for _ in 0..PAGES {
        let Some(page) = page(client, http, prefix, markers.take()).await? else { return Ok(count) };
        for Begun { key, upload_id, initiated } in page.uploads {
            let began = initiated.parse::<jiff::Timestamp>();
            if !key.starts_with(prefix) || !began.is_ok_and(|began| began.as_millisecond() < before) {
                continue;
            }
            count += 1;
            if !dry {
                let key = Key::from(key);
                match client.abort_multipart(&key, &upload_id).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => {
                        return Err(BlobError::of_bucket(&error, "").unwrap_or(BlobError::Unreachable));
                    }
                }
            }
        }
        match (page.is_truncated, page.next_key_marker, page.next_upload_id_marker) {
            (true, Some(key), Some(id)) => markers = Some((key, id)),
            _ => return Ok(count),
        }
    }
    Ok(count)
}

/// `None` if the store does not know the request.
async fn page(
    client: &AmazonS3,
    http: &reqwest::Client,
    prefix: &str,
    markers: Option<(String, String)>,
) -> Result<Option<Page>, BlobError> {
    let mut query = vec![("uploads".to_owned(), String::new())];
    if !prefix.is_empty() {
        query.push(("prefix".to_owned(), prefix.to_owned()));
    }
    if let Some((key, id)) = markers {
        query.push(("key-marker".to_owned(), key));
        query.push(("upload-id-marker".to_owned(), id));
    }
    let unreachable = |error: &dyn std::fmt::Display| {
        tracing::warn!("the object store does not list unfinished uploads: {error}");
        BlobError::Unreachable
    };
    let (options, whole) = (SignedUrlOptions::new().with_query(query), Key::default());
    let url = client.signed_url_opts(reqwest::Method::GET, &whole, SIGNED_FOR, &options);
    let url = url.await.map_err(|error| unreachable(&error))?;
    // Without the address: it is signed.
    let sent = http.get(url).send().await.map_err(|error| unreachable(&error.without_url()))?;
    let status = sent.status();
    if matches!(status.as_u16(), 400 | 404 | 405 | 501) {
        return Ok(None);
    }
    if !status.is_success() {
        return Err(unreachable(&status));
    }
    let (mut sent, mut bytes) = (sent, Vec::new());
    while let Some(piece) = sent.chunk().await.map_err(|error| unreachable(&error.without_url()))? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_PAGE {
            return Err(unreachable(&"its list is too long"));
        }
    }
    let page = from_str(&String::from_utf8_lossy(&bytes)).map_err(|error| unreachable(&error))?;
    Ok(Some(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_unfinished_uploads_is_read() {
        let upload = "<Upload><Key>nar/x</Key><UploadId>7</UploadId>\
                      <Initiated>2026-11-28T10:00:00.000Z</Initiated></Upload>";
        let text = format!(
            "<?xml version=\"1.0\"?><ListMultipartUploadsResult><Bucket>cache</Bucket>\
             <IsTruncated>true</IsTruncated><NextKeyMarker>nar/x</NextKeyMarker>\
             <NextUploadIdMarker>7</NextUploadIdMarker>{upload}{upload}</ListMultipartUploadsResult>"
        );
        let page: Page = from_str(&text).unwrap();
        assert!(page.is_truncated && page.uploads.len() == 2);
        let began: jiff::Timestamp = page.uploads[0].initiated.parse().unwrap();
        assert_eq!(began.as_millisecond(), 1_795_860_000_000);
        let empty: Page = from_str("<ListMultipartUploadsResult></ListMultipartUploadsResult>").unwrap();
        assert!(!empty.is_truncated && empty.uploads.is_empty());
    }
}
