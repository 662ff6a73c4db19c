//! Why a file of the cache could not be read or written, in a sentence that may be sent to clients.

use std::error::Error as _;
use std::io::ErrorKind;

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("the controller's disk is full: nothing of this was stored; free some space and repeat")]
    Full,
    #[error("the controller's cache folder fails: {0}")]
    Other(object_store::Error),
    #[error("the controller's cache folder {0} cannot be used: {1}")]
    Open(String, std::io::Error),
    #[error("the object store cannot be used: {0}; fix [s3] in controller.toml")]
    Settings(String),
    #[error("the controller's object store does not answer, or fails: repeat in a moment")]
    Unreachable,
    #[error("the controller's object store does not accept its credentials: fix [s3] in controller.toml")]
    Denied,
    #[error("the controller's object store has no bucket {0}: make it, or fix blobs in controller.toml")]
    NoBucket(String),
    #[error("too many large archives arrive at the same time: repeat in a moment")]
    Crowded,
}

impl From<object_store::Error> for BlobError {
    /// Of a folder.
    fn from(error: object_store::Error) -> Self {
        let mut cause = error.source();
        while let Some(error) = cause {
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if matches!(kind, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) {
                return Self::Full;
            }
            cause = error.source();
        }
        Self::Other(error)
    }
}

impl BlobError {
    /// Of a bucket. `None` if the object is not there, which is no error to whoever looks for it. The details
    /// are logged; they name the address and the object, and never a credential.
    pub(super) fn of_bucket(error: &object_store::Error, bucket: &str) -> Option<Self> {
        let text = error.to_string();
        let found = match error {
            _ if text.contains("NoSuchBucket") => Self::NoBucket(bucket.to_owned()),
            object_store::Error::NotFound { .. } => return None,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::Denied
            }
            _ => Self::Unreachable,
        };
        let text: String = text.chars().take(1000).collect();
        tracing::warn!("the object store: {text}");
        Some(found)
    }
}
