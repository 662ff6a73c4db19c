use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Request as HttpRequest;
use axum::response::{IntoResponse as _, Response};
use muster_protocol::keys::{KeyError, SecretKey, Signature};
use muster_protocol::operator::RequestSignature;
use muster_protocol::signin::SignIn;

use super::*;
use crate::api::signed_in::{Place, SignedIn};
use crate::api::signing::Reading;
use crate::keys::signers::KeySource;

/// A controller that answers every request with `answer`, on a port of its own.
pub async fn served(answer: impl Fn(&HttpRequest) -> Response + Send + Sync + 'static) -> Api {
    served_to(Signing::Own(Arc::new(SecretKey::generate().unwrap())), answer).await
}

async fn served_to(
    signing: Signing,
    answer: impl Fn(&HttpRequest) -> Response + Send + Sync + 'static,
) -> Api {
    let answer = Arc::new(answer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let app = Router::new().fallback(move |request: HttpRequest| {
        let answer = Arc::clone(&answer);
        async move { answer(&request) }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    let http = client(None).unwrap();
    Api { http, url, fleet: Sha256::of(b"fleet"), signing, clock: SystemClock::new() }
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
async fn a_failure_of_the_controller_names_the_request_in_its_log_and_a_refusal_does_not() {
    for (status, id, named) in [(500, "1a2b-7", true), (500, "two\twords", false), (409, "1a2b-7", false)] {
        let api = served(move |_| {
            let problem = Problem { code: ProblemCode::Internal, message: "the database failed".into() };
            let status = StatusCode::from_u16(status).unwrap();
            (status, [(api::REQUEST_ID, id)], serde_json::to_vec(&problem).unwrap()).into_response()
        })
        .await;
        let error = api.get::<Vec<u8>>("/v1/x").await.unwrap_err().to_string();
        assert!(error.starts_with("the database failed"), "{error}");
        assert_eq!(error.contains(&format!("request {id} in the controller's log")), named, "{error}");
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
        assert!(crate::terminal::error::causes(&error).contains("not as Muster does"), "{error}");
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

/// An operator's key that prompts, and counts how often.
struct CountingSigner(SecretKey, Arc<AtomicUsize>);

impl Signer for CountingSigner {
    fn public(&self) -> PublicKey {
        self.0.public()
    }
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(self.0.sign_raw(message))
    }
}

struct Desk {
    folder: tempfile::TempDir,
    operator: SecretKey,
    asked: Arc<AtomicUsize>,
    place: Place,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::at(folder.path().join("sessions"), Sha256::of(b"fleet"), Sha256::of(b"operator"));
        Self { folder, operator: SecretKey::generate().unwrap(), asked: Arc::default(), place }
    }
    /// A command that only reads, in its own process.
    async fn read(
        &self,
        answer: impl Fn(&HttpRequest) -> Response + Send + Sync + 'static,
    ) -> Result<Vec<u8>> {
        let own: Arc<dyn Signer> = Arc::new(CountingSigner(self.operator.clone(), Arc::clone(&self.asked)));
        let source = KeySource::File(self.folder.path().join("none.pem"));
        let reading = Reading::new(source, own.into(), self.place.clone(), 3600);
        served_to(Signing::Reading(Box::new(reading)), answer).await.get("/v1/operator/machines").await
    }
    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
    fn keep(&self, by: &SecretKey, seconds: i64) -> PublicKey {
        let (key, now) = (SecretKey::generate().unwrap(), SystemClock::new().unix_seconds());
        let sign_in = SignIn::make(by, &Sha256::of(b"fleet"), key.public(), now, seconds).unwrap();
        let public = key.public();
        self.place.keep(&SignedIn { sign_in, key }, now).unwrap();
        public
    }
    fn kept(&self) -> Option<SignIn> {
        self.place.load(SystemClock::new().unix_seconds()).unwrap().map(|kept| kept.sign_in)
    }
}

fn sign_in_of(request: &HttpRequest) -> Option<SignIn> {
    Some(request.headers().get(OPERATOR_SIGN_IN)?.to_str().unwrap().parse().unwrap())
}

fn problem(status: StatusCode, code: ProblemCode, message: &str) -> Response {
    let problem = Problem { code, message: message.into() };
    (status, serde_json::to_vec(&problem).unwrap()).into_response()
}

#[tokio::test]
async fn an_operators_key_is_asked_once_and_reading_goes_on_without_it() {
    let desk = Desk::new();
    for asked in [1, 0, 0] {
        let read = desk.read(|request| match sign_in_of(request) {
            Some(_) => "[1]".into_response(),
            None => problem(StatusCode::UNAUTHORIZED, ProblemCode::Unauthorised, "not signed in"),
        });
        assert_eq!(read.await.unwrap(), [1]);
        assert_eq!(desk.asked(), asked);
    }
    assert_eq!(desk.kept().unwrap().operator, desk.operator.public());
    // A session for one key is not used for another key in the agent's place.
    desk.keep(&SecretKey::generate().unwrap(), 3600);
    desk.read(|_| "[1]".into_response()).await.unwrap();
    assert_eq!(desk.asked(), 1);
}

#[tokio::test]
async fn an_older_controller_gets_the_operators_own_signature_and_nothing_is_kept() {
    let (desk, requests) = (Desk::new(), Arc::new(AtomicUsize::new(0)));
    let (counted, operator) = (Arc::clone(&requests), desk.operator.public());
    // An older controller ignores the header and looks only at the signer.
    let old = move |request: &HttpRequest| {
        counted.fetch_add(1, Ordering::SeqCst);
        let header = request.headers()[OPERATOR_SIGNATURE].to_str().unwrap();
        let signed: RequestSignature = serde_json::from_str(header).unwrap();
        match signed.key == operator {
            true => "[1]".into_response(),
            false => problem(StatusCode::FORBIDDEN, ProblemCode::Revoked, "the key is not an operator key"),
        }
    };
    assert_eq!(desk.read(old).await.unwrap(), [1]);
    assert_eq!((requests.load(Ordering::SeqCst), desk.asked()), (2, 2));
    assert!(desk.kept().is_none());
}

#[tokio::test]
async fn a_refused_key_is_replaced_once_and_then_the_controllers_own_words_are_told() {
    let desk = Desk::new();
    // The session ends soon here, and has ended there.
    let old = desk.keep(&desk.operator, 200);
    let read = desk.read(move |request| match sign_in_of(request) {
        Some(sign_in) if sign_in.key != old => "[1]".into_response(),
        _ => problem(StatusCode::UNAUTHORIZED, ProblemCode::Unauthorised, "it ended 3 s ago"),
    });
    assert_eq!(read.await.unwrap(), [1]);
    assert_eq!(desk.asked(), 1);
    assert_ne!(desk.kept().unwrap().key, old);

    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let error = desk.read(move |request| {
        // Whose fleet it is may be asked besides.
        counted.fetch_add(usize::from(request.uri().path() != FLEET), Ordering::SeqCst);
        problem(
            StatusCode::FORBIDDEN,
            ProblemCode::Revoked,
            "the key is not an operator key in the current root",
        )
    });
    let error = error.await.unwrap_err().to_string();
    assert!(error.contains("not an operator key in the current root"), "{error}");
    // The stored key, a new one, the operator's own: never more attempts, whatever the controller answers.
    assert_eq!(requests.load(Ordering::SeqCst), 3);
    assert!(desk.kept().is_none());
}

#[tokio::test]
async fn a_refusal_that_is_not_about_who_signed_ends_no_sign_in_and_is_told_at_once() {
    let desk = Desk::new();
    let kept = desk.keep(&desk.operator, 3600);
    for (status, code) in [
        (StatusCode::NOT_FOUND, ProblemCode::NotFound),
        (StatusCode::CONFLICT, ProblemCode::Sequence),
        (StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal),
        // Refusals about the clock, the address, the fleet, or of an unknown kind.
        (StatusCode::UNAUTHORIZED, ProblemCode::Unauthorised),
        (StatusCode::UNAUTHORIZED, ProblemCode::BadSignature),
        (StatusCode::FORBIDDEN, ProblemCode::WrongClass),
        (StatusCode::FORBIDDEN, ProblemCode::Other),
    ] {
        let error =
            desk.read(move |_| problem(status, code, "the controller's own words")).await.unwrap_err();
        assert!(error.to_string().contains("own words"), "{error}");
        assert_eq!((desk.kept().unwrap().key, desk.asked()), (kept, 0), "{code:?}");
    }
    // And an answer from something other than a controller.
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let error = desk.read(move |_| (status, "<html>log in</html>").into_response()).await.unwrap_err();
        assert!(crate::terminal::error::causes(&error).contains("not as Muster does"), "{error}");
        assert_eq!((desk.kept().unwrap().key, desk.asked()), (kept, 0));
    }
}
