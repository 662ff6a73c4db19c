//! What the operator sees and is asked: errors with hints, tables, JSON, a spinner, questions. Depends on no
//! other room.

pub mod ask;
pub mod count;
pub mod error;
pub mod json;
pub mod list;
pub mod spinner;
pub mod table;
