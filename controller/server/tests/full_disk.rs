//! A controller whose disk is full.
//!
//! The one test reruns itself in a mount namespace of its own, where a small disk is available. It is the
//! only test in its binary: a process between fork and exec briefly holds what it inherited, including the
//! locks of other tests' folders.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "server/support.rs"]
mod support;

use muster_protocol::api::ProblemCode;
use muster_protocol::checkin::CheckInReply;
use muster_protocol::ids::{Sha256, nix_base32};
use muster_protocol::machine::Class;
use reqwest::StatusCode;
use std::process::Command;
use support::{Answer, Fleet};

const INSIDE: &str = "MUSTER_TEST_SMALL_DISK";

#[tokio::test]
async fn a_full_disk_is_told_keeps_nothing_half_and_works_again_when_there_is_room() {
    match std::env::var_os(INSIDE) {
        Some(_) => inside().await,
        None => outside(),
    }
}

fn outside() {
    let dir = tempfile::tempdir().unwrap();
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--map-root-user"]);
    let script = "mount -t tmpfs -o size=6m none \"$1\" && TMPDIR=\"$1\" exec \"$2\" --exact --nocapture \
                  a_full_disk_is_told_keeps_nothing_half_and_works_again_when_there_is_room";
    let out = unshare
        .args(["sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(INSIDE, "1")
        .output()
        .expect("unshare of util-linux is installed");
    let words = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && words.contains("1 passed"), "{words}");
}

async fn inside() {
    // The disk should run out, not the machine's rate.
    let fleet = Fleet::start_with("[limits]\nmachine_per_second = 0").await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let operator = fleet.session().await;
    let put = async |nar: Vec<u8>| {
        let path = format!("/cache/nar/{}.nar", nix_base32(&Sha256::of(&nar)));
        let request = fleet.http.put(fleet.url(&path)).bearer_auth(&operator);
        Answer::of(request.body(nar)).await
    };
    // Larger than the remaining space; small enough to be sent completely before the response.
    let message = put(vec![1; 7_000_000]).await.refused(507, ProblemCode::StorageFull);
    assert!(message.contains("free some space"), "{message}");
    let nars = fleet.dir.path().join("data/blobs/nar");
    assert_eq!(std::fs::read_dir(&nars).unwrap().count(), 0);

    let filler = fleet.dir.path().join("filler");
    let mut size = 8 * 1024 * 1024_usize;
    let mut held = Vec::new();
    while size > 0 {
        let path = filler.with_extension(held.len().to_string());
        if std::fs::write(&path, vec![2; size]).is_err() {
            std::fs::remove_file(&path).unwrap();
            size /= 2;
            continue;
        }
        held.push(path);
    }
    // Some check-ins still fit in the write-ahead log; then one does not.
    let mut refused = None;
    for _ in 0..2000 {
        machine.seq += 1;
        let answer = machine.send_checkin(&fleet, &machine.checkin(&fleet, machine.seq)).await;
        if answer.status != StatusCode::OK {
            refused = Some(answer);
            break;
        }
    }
    refused.expect("the disk is full").refused(507, ProblemCode::StorageFull);
    fleet.clock.forward(2);
    let ready = async || Answer::of(fleet.http.get(fleet.url(muster_protocol::api::READY))).await;
    assert!(ready().await.refused(503, ProblemCode::Busy).contains("free some space"));
    for path in held {
        std::fs::remove_file(path).unwrap();
    }
    fleet.clock.forward(2);
    assert_eq!(ready().await.status, StatusCode::OK);
    // The same check-in again: it was not stored, so it is not a repetition.
    let again = machine.checkin(&fleet, machine.seq);
    machine.send_checkin(&fleet, &again).await.good::<CheckInReply>();
    assert_eq!(put(vec![1; 100_000]).await.status, StatusCode::CREATED);
    assert!(!fleet.view("cinnabar").await.clone_alarm);
}
