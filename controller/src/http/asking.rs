//! Who asks in the request that is being answered, and whether that was proved.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::Request;
use axum::response::Response;
use futures_util::Future;

use super::connection::Peer;
use super::memory::Payer;
use super::rates::Neighbourhood;

tokio::task_local! {
    static ASKING: Asking;
}

struct Asking {
    peer: Option<Arc<Peer>>,
    proved: AtomicBool,
}

/// Answers a request; gives the answer, and its peer unless it proved who it is.
pub async fn answering<F: Future<Output = Response>>(
    request: Request,
    answer: impl FnOnce(Request) -> F,
) -> (Response, Option<Arc<Peer>>) {
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    let asking = Asking { peer, proved: AtomicBool::new(false) };
    let answer = answer(request);
    ASKING
        .scope(asking, async {
            let response = answer.await;
            let unproven =
                ASKING.with(|asking| asking.peer.clone().filter(|_| !asking.proved.load(Ordering::Relaxed)));
            (response, unproven)
        })
        .await
}

/// Whoever asks is a machine or an operator of this fleet.
pub fn proved() {
    let _ = ASKING.try_with(|asking| {
        asking.proved.store(true, Ordering::Relaxed);
        if let Some(peer) = &asking.peer {
            peer.proved();
        }
    });
}

/// Who is charged for what the request brings, as long as nothing is proved.
pub fn stranger() -> Payer {
    let address = ASKING.try_with(|asking| asking.peer.as_ref().map(|peer| Neighbourhood::of(peer.address)));
    Payer::Address(address.ok().flatten().unwrap_or(Neighbourhood::NOWHERE))
}
