//! CPU-heavy work, and responses that take long to write.

use std::cell::Cell;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_protocol::api::ProblemCode;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};

use super::problem::refuse;
pub use crate::threads::on;

/// A JSON response that may be long.
pub struct Long<T>(pub T);

impl<T: Serialize> IntoResponse for Long<T> {
    fn into_response(self) -> Response {
        match on(usize::MAX, || serde_json::to_vec(&self.0)) {
            Ok(bytes) => {
                let kind = HeaderValue::from_static("application/json");
                ([(header::CONTENT_TYPE, kind)], bytes).into_response()
            }
            Err(error) => {
                let message = format!("the answer cannot be written: {error}");
                refuse(StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal, message).into_response()
            }
        }
    }
}

/// A JSON list whose values are made one by one, as they are written: a long one is never whole in memory
/// beside its text.
pub struct Each<I>(Cell<Option<I>>);

impl<I: Iterator> Each<I> {
    pub fn of(values: I) -> Self {
        Self(Cell::new(Some(values)))
    }
}

impl<I: Iterator<Item: Serialize>> Serialize for Each<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let values = self.0.take().ok_or_else(|| S::Error::custom("the list was written already"))?;
        serializer.collect_seq(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_response_is_written_where_there_is_one_thread_too() {
        assert_eq!(Long(vec![1, 2]).into_response().status(), StatusCode::OK);
    }
}
