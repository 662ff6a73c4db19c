//! Why an activator cannot continue.

use std::io;
use std::path::PathBuf;

use crate::journal::JournalError;
use crate::platform::PlatformError;

#[derive(Debug, thiserror::Error)]
pub enum ActivatorError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error("{} cannot be locked: {source}; {}", path.display(), crate::durable::remedy(source))]
    Lock { path: PathBuf, source: io::Error },
}
