//! The binary cache's files, in a folder or in a bucket of an S3 store. A file appears once it is complete
//! and durable, or not at all.

mod error;
mod place;
mod s3;
mod unfinished;
mod upload;

pub use error::BlobError;
pub use place::{Blobs, Listed, Reading};
pub use upload::Upload;

impl Blobs {
    /// Starts writing a file of any size.
    pub fn upload(&self, name: &str) -> Upload {
        Upload::new(self.clone(), self.key(name))
    }
}
