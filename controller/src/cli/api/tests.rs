use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Request as Asked;
use axum::response::{IntoResponse as _, Response};
use muster_protocol::keys::SecretKey;

use super::*;

/// A controller that answers every request with `answer`, on a port of its own.
async fn served(answer: impl Fn(&Asked) -> Response + Send + Sync + 'static) -> Api {
    let answer = Arc::new(answer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let app = Router::new().fallback(move |request: Asked| {
        let answer = Arc::clone(&answer);
        async move { answer(&request) }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    let http = client(None).unwrap();
    let key = Arc::new(SecretKey::generate().unwrap());
    Api { http, url, fleet: Sha256::of(b"fleet"), key, clock: SystemClock::new() }
}

fn busy(status: StatusCode, seconds: u64) -> Response {
    let problem = Problem { code: ProblemCode::TooMany, message: "too many requests".into() };
    (status, [("retry-after", seconds.to_string())], serde_json::to_vec(&problem).unwrap()).into_response()
}

#[tokio::test]
async fn a_controller_that_asks_for_patience_gets_it_and_each_try_is_signed_anew() {
    let (tries, signatures) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (counted, seen) = (Arc::clone(&tries), Arc::clone(&signatures));
    let api = served(move |request| {
        seen.lock().unwrap().push(request.headers()[OPERATOR_SIGNATURE].to_str().unwrap().to_owned());
        match counted.fetch_add(1, Ordering::SeqCst) {
            0 => busy(StatusCode::TOO_MANY_REQUESTS, 1),
            1 => busy(StatusCode::SERVICE_UNAVAILABLE, 1),
            _ => "[1]".into_response(),
        }
    })
    .await;
    let began = api.clock.awake();
    assert_eq!(api.get::<Vec<u8>>("/v1/x").await.unwrap(), [1]);
    assert!(api.clock.awake() - began >= Duration::from_secs(2), "it waited for as long as it was asked to");
    let mut signatures = signatures.lock().unwrap().clone();
    signatures.sort();
    signatures.dedup();
    assert_eq!(signatures.len(), 3, "none counts twice");
}

#[tokio::test]
async fn a_wait_that_nobody_would_sit_out_is_told_at_once() {
    for (status, seconds) in [(StatusCode::TOO_MANY_REQUESTS, 3600), (StatusCode::SERVICE_UNAVAILABLE, 60)] {
        let api = served(move |_| busy(status, seconds)).await;
        let began = api.clock.awake();
        let error = api.get::<Vec<u8>>("/v1/x").await.unwrap_err();
        assert!(error.to_string().contains("too many requests"), "{error}");
        assert!(api.clock.awake() - began < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn an_answer_without_end_is_given_up_at_its_limit() {
    let api = served(|_| {
        let block = axum::body::Bytes::from_static(&[b' '; 65_536]);
        let endless = futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(block.clone()));
        Body::from_stream(endless).into_response()
    })
    .await;
    let error = format!("{:#}", api.public_file("/v1/root/2.json", 100_000).await.unwrap_err());
    assert!(error.contains("more than 100000 bytes"), "{error}");
    let error = format!("{:#}", api.get::<Vec<u8>>("/v1/x").await.unwrap_err());
    assert!(error.contains("more than 67108864 bytes"), "{error}");
}

#[tokio::test]
async fn a_signed_request_goes_nowhere_else() {
    let trapped = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&trapped);
    let trap = served(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        "[1]".into_response()
    })
    .await;
    let to = trap.url.join("/v1/x").unwrap().to_string();
    for status in [301, 302, 303, 307, 308] {
        let to = to.clone();
        let status = StatusCode::from_u16(status).unwrap();
        let api = served(move |_| (status, [("location", to.clone())]).into_response()).await;
        let error = api.post::<Vec<u8>>("/v1/x", &1).await.unwrap_err();
        assert!(error.to_string().contains("not as Muster does"), "{error}");
        assert!(api.public_file("/v1/root/2.json", 1000).await.is_err());
    }
    assert_eq!(trapped.load(Ordering::SeqCst), 0, "somebody else saw the signature");
}

#[test]
fn http_is_for_this_machine_alone() {
    for good in ["https://muster.example:8443", "http://127.0.0.1:80", "http://[::1]:80", "http://localhost"]
    {
        assert!(parse_url(good).is_ok(), "{good}");
    }
    for bad in ["http://muster.example", "http://10.0.0.1", "ftp://127.0.0.1", "muster", "https://"] {
        assert!(parse_url(bad).is_err(), "{bad}");
    }
}
