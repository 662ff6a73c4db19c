//! CPU-heavy work, and responses that take long to write.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_protocol::api::ProblemCode;
use serde::Serialize;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_response_is_written_where_there_is_one_thread_too() {
        assert_eq!(Long(vec![1, 2]).into_response().status(), StatusCode::OK);
    }
}
