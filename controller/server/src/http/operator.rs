//! What operators request, each request signed by one of them; one file per subject.

pub mod audit;
pub mod changes;
pub mod collect;
pub mod drafts;
pub mod history;
pub mod machines;
pub mod publish;
pub mod publish_all;
pub mod requests;
pub mod roots;
pub mod session;
mod view;
