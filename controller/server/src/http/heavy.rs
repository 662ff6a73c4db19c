//! CPU-heavy work, and responses that take long to write.

use std::cell::Cell;

use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_protocol::api::ProblemCode;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};

use super::problem::{Refused, refuse};
pub use crate::threads::on;

/// A JSON response that may be long.
pub struct Long<T>(pub T);

impl<T: Serialize> IntoResponse for Long<T> {
    fn into_response(self) -> Response {
        written(&self.0).map(Written).into_response()
    }
}

/// A JSON response that is written already.
pub struct Written(pub Bytes);

impl IntoResponse for Written {
    fn into_response(self) -> Response {
        let kind = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, kind)], self.0).into_response()
    }
}

/// Writes JSON that may be long.
pub fn written<T: Serialize>(value: &T) -> Result<Bytes, Refused> {
    on(usize::MAX, || serde_json::to_vec(value)).map(Bytes::from).map_err(|error| {
        let message = format!("the answer cannot be written: {error}");
        refuse(StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal, message)
    })
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
