//! The worst that an unauthenticated address can do.

use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use muster_protocol::announce::Announcement;
use muster_protocol::api;
use muster_protocol::enrol::{EnrolRequest, Enrolling, Secret, Token};
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::report::MAX_BATCH_BYTES;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::honest::check_in;
use super::service::{Identity, signature};
use super::stage::{Stage, request};

pub fn attack(stage: &Rc<Stage>) -> Result<()> {
    bodies(stage);
    heads(stage);
    connections(stage);
    guesses(stage)?;
    public_files(stage);
    operators(stage)
}

/// Bodies that do not arrive, or never end.
fn bodies(stage: &Rc<Stage>) {
    let signed = ("0".repeat(128), api::MACHINE_SIGNATURE);
    let chunked = {
        let head =
            request("GET", api::REPORTS, &[(signed.1, &signed.0), ("transfer-encoding", "chunked")], b"");
        [b"POST", &head[3..]].concat()
    };
    let (bytes, endless) = (chunked.clone(), chunked);
    stage.each("one-byte pieces", 6, async move |wire| {
        wire.send(&bytes).await?;
        let pieces = b"1\r\nx\r\n".repeat(10_000);
        loop {
            wire.more(&pieces).await?;
        }
    });
    stage.each("a body without end", 10, async move |wire| {
        wire.send(&endless).await?;
        let piece = [b"10000\r\n", vec![b'x'; 0x10000].as_slice(), b"\r\n"].concat();
        loop {
            wire.more(&piece).await?;
        }
    });
    let announced = request("POST", api::REPORTS, &[(signed.1, &signed.0)], &vec![b' '; MAX_BATCH_BYTES]);
    stage.each("a body that never comes", 300, async move |wire| {
        // Nearly all of it, and then nothing.
        wire.send(&announced[..announced.len() - MAX_BATCH_BYTES + 4096]).await?;
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            wire.more(b" ").await?;
        }
    });
}

fn heads(stage: &Rc<Stage>) {
    stage.each("a head that never ends", 1000, async |wire| {
        wire.send(b"GET /v1/fleet HTTP/1.1\r\nhost: x\r\nx-slow: ").await?;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            wire.more(b"x").await?;
        }
    });
    let many = {
        let lines: String = (0..90).map(|n| format!("x-header-{n}: {}\r\n", "y".repeat(600))).collect();
        [b"GET /v1/fleet HTTP/1.1\r\nhost: x\r\n", lines.as_bytes(), b"\r\n"].concat()
    };
    stage.each("huge heads", 10, async move |wire| wire.ask_without_end(|| many.clone()).await);
    stage.each("garbage", 10, async |wire| {
        wire.send(&b"\x16\x03\x01 POST /\r\r\n\0\0 HTTP/9 ".repeat(400)).await?;
        wire.answer().await?;
        Ok(())
    });
    stage.each("HTTP/2", 10, async |wire| {
        // The preface, settings, and streams that are opened and immediately reset.
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for stream in 0..200_u8 {
            bytes.extend([0, 0, 1, 1, 5, 0, 0, 0, stream, 0x82, 0, 0, 4, 3, 0, 0, 0, 0, stream, 0, 0, 0, 8]);
        }
        wire.send(&bytes).await?;
        wire.answer().await?;
        Ok(())
    });
}

fn connections(stage: &Rc<Stage>) {
    stage.each_bare("connections that come and go", 20, async |_| Ok(()));
    // A complete client hello, so that the controller does its part of the handshake, and half of one, for
    // which it waits.
    let hello = CLIENT_HELLO.concat();
    let half = hello[..hello.len() / 2].to_vec();
    stage.each_bare("handshakes that stop half-way", 20, async move |tcp| {
        tcp.write_all(&hello).await?;
        tcp.read_u8().await?;
        Ok(())
    });
    stage.each_bare("handshakes that never come", 500, async move |tcp| {
        tcp.write_all(&half).await?;
        tcp.read_u8().await?;
        Ok(())
    });
}

/// Invalid tokens, signatures and bearers.
fn guesses(stage: &Rc<Stage>) -> Result<()> {
    let key = SecretKey::generate()?;
    let victim = stage.plan.victims[0].clone();
    let token = Token {
        url: "http://127.0.0.1".into(),
        machine: victim.clone(),
        class: Class::Nixos,
        fleet: stage.plan.fleet,
        root: stage.plan.fleet,
        root_version: 1,
        lowest_generation: Generation::FIRST,
        expires: i64::MAX / 2,
        secret: Secret::generate()?,
        tls_ca: None,
    };
    let enrolling =
        Enrolling { system: "x86_64-linux".parse()?, age: "age1example".into(), agent: "0.1.0".into() };
    let body = serde_json::to_vec(&EnrolRequest::make(&token, &key, enrolling))?;
    let enrol = request("POST", api::ENROL, &[], &body);
    stage.each("tokens that are none", 20, async move |wire| wire.ask_without_end(|| enrol.clone()).await);
    let deep = request("POST", api::ENROL, &[], "[".repeat(16 * 1024).as_bytes());
    stage.each("deep JSON", 5, async move |wire| wire.ask_without_end(|| deep.clone()).await);

    let said = Identity { name: victim.clone(), key: key.clone(), fleet: stage.plan.fleet };
    let body = serde_json::to_vec(&check_in(&said, 1_000_000))?;
    let announcement = Announcement::make(&victim, api::CHECKIN, &body, &key).to_string();
    let signed = key.sign(Context::CheckIn, &body).hex();
    let headers = [(api::MACHINE_ANNOUNCES, announcement.as_str()), (api::MACHINE_SIGNATURE, &signed)];
    let forged = request("POST", api::CHECKIN, &headers, &body);
    stage.each("forged check-ins", 20, async move |wire| wire.ask_without_end(|| forged.clone()).await);

    let body = vec![b' '; MAX_BATCH_BYTES];
    let announcement = Announcement::make(&victim, api::REPORTS, &body, &key).to_string();
    let headers = [(api::MACHINE_ANNOUNCES, announcement.as_str()), (api::MACHINE_SIGNATURE, &signed)];
    let reports = request("POST", api::REPORTS, &headers, &body);
    stage.each("forged reports", 5, async move |wire| wire.ask_without_end(|| reports.clone()).await);

    let path = format!("{}/timestamp.json", api::tuf_path(&victim));
    let bearer = format!("Bearer {}", Sha256::of(b"a guess"));
    let guess = request("GET", &path, &[("authorization", &bearer)], b"");
    stage.each("guesses at bearers", 20, async move |wire| wire.ask_without_end(|| guess.clone()).await);
    Ok(())
}

fn public_files(stage: &Rc<Stage>) {
    for (trick, path) in [("the fleet's name", api::FLEET.to_owned()), ("roots", api::root_path(1))] {
        let asked = request("GET", &path, &[], b"").repeat(50);
        stage.each(trick, 20, async move |wire| {
            loop {
                wire.send(&asked).await?;
                for _ in 0..50 {
                    wire.answer().await?;
                }
            }
        });
    }
}

/// Requests as an operator would sign them, signed with an unknown key.
fn operators(stage: &Rc<Stage>) -> Result<()> {
    let key = SecretKey::generate()?;
    let root = serde_json::to_vec(&serde_json::json!({ "root": "[".repeat(900_000) }))?;
    let signed = signature(&key, &stage.plan.fleet, "POST", api::OPERATOR_ROOT, &root)?;
    let roots = request("POST", api::OPERATOR_ROOT, &[(api::OPERATOR_SIGNATURE, &signed)], &root);
    stage.each("roots of nobody's", 3, async move |wire| wire.ask_without_end(|| roots.clone()).await);
    let signed = signature(&key, &stage.plan.fleet, "GET", api::OPERATOR_MACHINES, b"")?;
    let lists = request("GET", api::OPERATOR_MACHINES, &[(api::OPERATOR_SIGNATURE, &signed)], b"");
    stage.each("requests of nobody's", 20, async move |wire| wire.ask_without_end(|| lists.clone()).await);
    Ok(())
}

/// A TLS 1.3 client hello with one X25519 share (RFC 8446, 4.1.2), the same each time.
const CLIENT_HELLO: [&[u8]; 7] = [
    // Record and handshake, their lengths counted from what follows.
    b"\x16\x03\x01\x00\x8d\x01\x00\x00\x89\x03\x03",
    &[0x55; 32],
    // No session; TLS_AES_128_GCM_SHA256; no compression; extensions of 94 bytes, padded below.
    b"\x00\x00\x02\x13\x01\x01\x00\x00\x5e",
    // supported_versions, supported_groups, signature_algorithms.
    b"\x00\x2b\x00\x03\x02\x03\x04\x00\x0a\x00\x04\x00\x02\x00\x1d\x00\x0d\x00\x06\x00\x04\x04\x03\x08\x07",
    // key_share.
    b"\x00\x33\x00\x26\x00\x24\x00\x1d\x00\x20",
    &[0x09; 32],
    // padding.
    &[0x00, 0x15, 0x00, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
];
