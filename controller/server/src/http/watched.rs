//! What those who watch the controller ask and read: its health, its numbers, and a log in which each request
//! has an ID.

mod access;
mod health;
mod scrape;

pub use access::Access;
pub use health::{healthz, readyz};
pub use scrape::metrics;
