//! What is said to a connection that cannot be served: an answer without a router, and whatever it sends is
//! read and dropped, since a socket that is closed with unread bytes loses its answer too.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::SocketAddr;

use axum::http::StatusCode;
use muster_protocol::api::{Problem, ProblemCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::seats::Full;
use crate::http::spread::later;

/// When those come back who found no place, in seconds, and over how many seconds more.
const BACK: (u64, u64) = (5, 15);
/// The same where the controller stops.
const SOON: (u64, u64) = (1, 5);
/// How many bytes are read at once, and how many in all before the connection is closed anyway.
const PIECE: usize = 4 * 1024;
const MOST: usize = 256 * 1024;

/// Why a connection is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Full(Full),
    /// It waited too long in the line of its address.
    Late,
    /// Its seat was given to another address, which has fewer.
    Displaced,
    Stopping,
}

/// The answer, all of it.
pub fn answer(why: Why, source: SocketAddr) -> String {
    let ((least, within), status, code, message) = match why {
        Why::Full(Full::All) => {
            let message = "the controller has as many connections as limits.connections allows: repeat later";
            (BACK, StatusCode::SERVICE_UNAVAILABLE, ProblemCode::Busy, message)
        }
        Why::Full(Full::Address) | Why::Late | Why::Displaced => {
            let message = "too many unauthenticated connections of this address are open: repeat later";
            (BACK, StatusCode::TOO_MANY_REQUESTS, ProblemCode::TooMany, message)
        }
        Why::Stopping => {
            let message = "the controller is about to stop: repeat in a moment";
            (SOON, StatusCode::SERVICE_UNAVAILABLE, ProblemCode::Busy, message)
        }
    };
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    let seconds = later(least, within, hasher.finish());
    let body = serde_json::to_string(&Problem { code, message: message.to_owned() }).unwrap_or_default();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: \
            {seconds}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Says it once a request begins to arrive.
pub async fn say<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answer: &str) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut read = stream.read(&mut piece).await?;
    if read == 0 {
        return Ok(());
    }
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    while read < MOST {
        match stream.read(&mut piece).await? {
            0 => break,
            more => read += more,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_is_an_http_answer_that_says_when_to_come_again() {
        let source = "192.0.2.1:4711".parse().unwrap();
        for (why, status, waits) in [
            (Why::Full(Full::All), "HTTP/1.1 503 Service Unavailable\r\n", 5..=20),
            (Why::Full(Full::Address), "HTTP/1.1 429 Too Many Requests\r\n", 5..=20),
            (Why::Displaced, "HTTP/1.1 429 Too Many Requests\r\n", 5..=20),
            (Why::Late, "HTTP/1.1 429 Too Many Requests\r\n", 5..=20),
            (Why::Stopping, "HTTP/1.1 503 Service Unavailable\r\n", 1..=6),
        ] {
            let (near, mut far) = tokio::io::duplex(64 * 1024);
            let text = answer(why, source);
            let said = tokio::spawn(async move { say(near, &text).await });
            far.write_all(&[b'x'; 10_000]).await.unwrap();
            let mut all = String::new();
            far.read_to_string(&mut all).await.unwrap();
            drop(far);
            said.await.unwrap().unwrap();
            let (head, body) = all.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(status), "{head}");
            let field = |name| head.split("\r\n").find_map(|line| line.strip_prefix(name)).unwrap();
            assert!(waits.contains(&field("retry-after: ").parse::<i32>().unwrap()), "{head}");
            assert_eq!(field("connection: "), "close");
            assert_eq!(field("content-length: ").parse::<usize>().unwrap(), body.len());
            let problem: Problem = serde_json::from_str(body).unwrap();
            assert!(problem.message.contains("repeat"), "{body}");
        }
    }

    #[tokio::test]
    async fn whoever_says_nothing_is_told_nothing() {
        let (near, far) = tokio::io::duplex(64);
        drop(far);
        say(near, "an answer").await.unwrap();
    }
}
