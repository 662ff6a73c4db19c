//! What operators ask, each request signed by one of them; one file a subject.

pub mod audit;
pub mod changes;
pub mod drafts;
pub mod history;
pub mod machines;
pub mod publish;
pub mod requests;
pub mod roots;
pub mod session;
mod view;
