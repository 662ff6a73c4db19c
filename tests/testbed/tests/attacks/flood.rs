//! Clients that take more than their share.

use anyhow::{Result, ensure};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::keys::Context;
use muster_protocol::report::Batch;
use muster_testbed::stolen::{NEIGHBOUR, VICTIM};
use reqwest::Method;

use crate::book::{Book, By};
use crate::identity::{refused, stolen_key};
use crate::siege::Siege;

pub fn run(siege: &Siege, book: &mut Book) -> Result<()> {
    let large = |path: &str, bytes: usize| {
        let headers = [(api::MACHINE_SIGNATURE, "0".repeat(128))];
        siege.caller.ask(&Method::POST, path, &headers, vec![b'x'; bytes])
    };
    for (name, attempt, path, bytes) in [
        ("an oversized enrolment", "17 KiB where 16 are allowed", api::ENROL, 17 * 1024),
        ("an oversized check-in", "65 KiB where 64 are allowed", api::CHECKIN, 65 * 1024),
        ("an oversized report", "more than a megabyte", api::REPORTS, 1025 * 1024),
    ] {
        let tried = large(path, bytes).and_then(|a| refused(siege, &a, 413, ProblemCode::TooLarge));
        book.attack(name, attempt, By::Controller, tried);
    }

    // An enrolled machine that sends requests without pause; its neighbour is not affected.
    let key = stolen_key(siege, NEIGHBOUR)?;
    let body =
        serde_json::to_vec(&Batch { machine: NEIGHBOUR.parse()?, stream: None, oldest: 1, events: vec![] })?;
    let flood = || {
        for _ in 0..5000 {
            let answered = siege.caller.post_as(&key, Context::Reports, api::REPORTS, body.clone())?;
            if answered.status == 429 {
                ensure!(
                    answered.retry_after.is_some_and(|wait| wait > 0),
                    "it says nothing of when to come again"
                );
                return refused(siege, &answered, 429, ProblemCode::TooMany);
            }
            ensure!(answered.is_good(), "{}", answered.text());
        }
        anyhow::bail!("5000 requests at once were all taken")
    };
    let tried = flood().and_then(|words| {
        siege.stolen.ask(VICTIM)?;
        let seen = siege.view(VICTIM)?.last_seen;
        siege.until("the other machine's check-in", || {
            Ok((siege.view(VICTIM)?.last_seen > seen).then_some(()))
        })?;
        Ok(format!("{words}, and when to come again"))
    });
    book.attack("a machine that floods", "requests without end, well signed", By::Controller, tried);
    Ok(())
}
