//! Who sent the request being handled, and whether they proved it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::extract::Request;
use axum::response::Response;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::connection::parties::Held;
use super::connection::peer::{Peer, Proved, Waiting};
use super::connection::turns::{Away, Pace, Paced};
use super::payer::Payer;
use super::problem::Refused;
use crate::rates::Neighbourhood;

tokio::task_local! {
    static REQUEST_PEER: Arc<RequestPeer>;
}

struct RequestPeer {
    peer: Option<Arc<Peer>>,
    pace: Option<Pace>,
    /// Who it is, once proved.
    proved: OnceLock<Payer>,
    /// What is counted instead of the connection, where that is a proxy's.
    counted: Mutex<Option<Held>>,
}

/// The sender, as far as proved.
pub enum Asked {
    By(Payer),
    Stranger(Arc<Peer>),
    /// The request arrived over no connection.
    Nobody,
}

/// Handles a request; returns the response and who sent the request.
pub fn answering<F>(
    request: Request,
    answer: impl FnOnce(Request) -> F,
) -> BoxFuture<'static, (Response, Asked)>
where
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    let pace = peer.as_ref().map(|peer| Pace::new(peer.party()));
    let asking = RequestPeer { peer, pace: pace.clone(), proved: OnceLock::new(), counted: Mutex::default() };
    let asking = Arc::new(asking);
    let answer = Box::pin(answer(request));
    let answered = REQUEST_PEER.scope(asking, async {
        let response = answer.await.unwrap_or_else(|never| match never {});
        let asked = REQUEST_PEER.with(|asking| match (asking.proved.get(), &asking.peer) {
            (Some(who), _) => Asked::By(who.clone()),
            (None, Some(peer)) => Asked::Stranger(peer.clone()),
            (None, None) => Asked::Nobody,
        });
        (response, asked)
    });
    match pace {
        Some(pace) => Box::pin(Paced::new(answered, pace)),
        None => Box::pin(answered),
    }
}

/// Records that the sender is this machine or operator of the fleet. Refused if they hold too many
/// connections.
///
/// Waits for their turn, so hold nothing that others need.
pub async fn proved(who: &Payer) -> Result<(), Refused> {
    let known = REQUEST_PEER.try_with(|asking| {
        let _ = asking.proved.set(who.clone());
        asking.peer.as_ref().zip(asking.pace.clone()).map(|(peer, pace)| {
            let Proved { party, within, request } = peer.proved(who);
            *asking.counted.lock().unwrap_or_else(PoisonError::into_inner) = request;
            (party, within, pace)
        })
    });
    let Ok(Some((party, within, pace))) = known else { return Ok(()) };
    pace.change(&party).await;
    if within {
        return Ok(());
    }
    Err(Refused::too_many_connections())
}

/// Does work to its end, even if the client hangs up: what is stored has to be told to those who wait for it.
/// It takes a turn of the sender's, as if it were still the request. For those whose requests are limited:
/// what they leave behind is not.
pub async fn regardless<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Refused> {
    let Ok(asking) = REQUEST_PEER.try_with(Arc::clone) else { return work.await };
    let (answer, answered) = oneshot::channel();
    // One type for all of them: what is generic in a task would be compiled for each.
    let work: BoxFuture<'static, ()> = Box::pin(async move {
        let _ = answer.send(work.await);
    });
    let (outer, work) = (asking.pace.clone(), REQUEST_PEER.scope(asking, work));
    let answered = match outer {
        Some(outer) => {
            drop(tokio::spawn(Paced::new(work, Pace::new(outer.party()))));
            outer.away(answered).await
        }
        None => {
            drop(tokio::spawn(work));
            answered.await
        }
    };
    answered.unwrap_or_else(|_| Err(Refused::unfinished()))
}

/// Stops counting existing connections of this party as theirs.
pub fn forget(who: &Payer) {
    let _ = REQUEST_PEER.try_with(|asking| asking.peer.as_ref().map(|peer| peer.forget(who)));
}

/// Waits for the client without holding a turn.
pub async fn away<T>(wait: impl Future<Output = T>) -> T {
    match REQUEST_PEER.try_with(|asking| asking.pace.clone()) {
        Ok(Some(pace)) => pace.away(wait).await,
        _ => wait.await,
    }
}

/// The request waits for news, without a turn, until the value is dropped. Meanwhile the connection takes as
/// little memory as it can.
#[must_use]
pub fn waits_for_news() -> Option<(Waiting, Away)> {
    let asking = REQUEST_PEER.try_with(|asking| asking.peer.clone().zip(asking.pace.clone()));
    asking.ok().flatten().map(|(peer, pace)| (peer.waiting(), pace.leave()))
}

/// Who is charged for the request's memory while nothing is proved.
pub fn stranger() -> Payer {
    let address =
        REQUEST_PEER.try_with(|asking| asking.peer.as_ref().map(|peer| Neighbourhood::of(peer.address())));
    Payer::Address(address.ok().flatten().unwrap_or(Neighbourhood::NOWHERE))
}
