//! CPU-heavy work, which must not block the other tasks of its thread.

use std::cell::Cell;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_protocol::api::ProblemCode;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::problem::refuse;

/// Work on fewer bytes than this runs inline.
const SMALL: usize = 32 * 1024;

/// Runs work on this many bytes; if it may take long, the thread's other tasks move to other threads first.
pub fn on<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let threads = Handle::try_current().is_ok_and(|at| at.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes > SMALL && threads { tokio::task::block_in_place(work) } else { work() }
}

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
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_waits_at_a_thread_goes_on_while_long_work_is_done_there() {
        let (went, goes) = mpsc::channel();
        let long = tokio::spawn(async move {
            tokio::spawn(async move { went.send(()).unwrap() });
            // Only another thread can run the task spawned here.
            on(1 << 20, || goes.recv().unwrap());
        });
        long.await.unwrap();
    }

    #[tokio::test]
    async fn it_is_done_at_once_where_there_is_one_thread() {
        assert_eq!(on(1 << 20, || 7), 7);
        assert_eq!(Long(vec![1, 2]).into_response().status(), StatusCode::OK);
    }
}
