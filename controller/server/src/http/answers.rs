//! Responses on their way out: a slow reader pays for the memory its response takes.

use axum::body::{Body, Bytes, HttpBody as _};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use muster_protocol::api::ProblemCode;

use super::memory::{Held, Memory};
use super::payer::Payer;
use super::problem::refuse;

/// Responses smaller than this many bytes are not charged.
const LARGE: usize = 16 * 1024;

fn size(response: &Response) -> Option<usize> {
    response.body().size_hint().exact().and_then(|size| usize::try_from(size).ok())
}

/// Whether it is charged.
pub fn is_large(response: &Response) -> bool {
    size(response).is_some_and(|size| size >= LARGE)
}

/// A response held whole in memory is charged to its reader until they have taken it. (Public files are held
/// once and shared by all readers.)
pub async fn charged(memory: &Memory, response: Response, who: Payer) -> Response {
    let Some(size) = size(&response).filter(|size| *size >= LARGE) else { return response };
    let mut held = memory.nothing(who);
    if let Err(refused) = held.grow_to(size) {
        return refused.into_response();
    }
    let (parts, body) = response.into_parts();
    match axum::body::to_bytes(body, size).await {
        Ok(bytes) => {
            Response::from_parts(parts, Body::from(Bytes::from_owner(Charged { bytes, _held: held })))
        }
        Err(error) => {
            let message = format!("the answer cannot be sent: {error}");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal, message).into_response()
        }
    }
}

/// A response body, and the memory charged for it.
struct Charged {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[tokio::test]
    async fn answers_that_nobody_takes_fill_a_share_of_memory_and_no_more() {
        let memory = Memory::new(64 * MIB);
        let (reader, other) = (Payer::Operator([1; 32]), Payer::Operator([2; 32]));
        let ask = async |who: &Payer| {
            charged(&memory, Response::new(Body::from(vec![b'x'; 2 * MIB])), who.clone()).await
        };
        let mut kept = Vec::new();
        let refused = loop {
            let response = ask(&reader).await;
            if response.status() != StatusCode::OK {
                break response.status();
            }
            kept.push(response);
            assert!(kept.len() < 100, "it was never refused");
        };
        assert_eq!((refused, kept.len()), (StatusCode::SERVICE_UNAVAILABLE, 16));
        assert_eq!(ask(&other).await.status(), StatusCode::OK);
        // Small responses are not counted.
        let small = charged(&memory, Response::new(Body::from("small")), reader.clone()).await;
        assert_eq!(small.status(), StatusCode::OK);
        // Once everything is sent, the charge is released.
        let taken = axum::body::to_bytes(kept.pop().unwrap().into_body(), usize::MAX).await.unwrap();
        assert_eq!(taken.len(), 2 * MIB);
        assert_eq!(ask(&reader).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(taken);
        assert_eq!(ask(&reader).await.status(), StatusCode::OK);
    }
}
