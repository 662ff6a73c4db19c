//! A reader that requests the largest responses and takes nothing, or a byte a second: unauthenticated, as a
//! machine, and as an operator.

use std::rc::Rc;

use anyhow::{Context as _, Result};
use muster_protocol::api;
use muster_protocol::ids::Generation;
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::operator::Session;

use super::honest::check_in;
use super::service::{Identity, signature};
use super::stage::{Stage, Wire, request};

pub fn attack(stage: &Rc<Stage>) -> Result<()> {
    let stage = stage.clone();
    tokio::task::spawn_local(async move {
        // The bearers come first: later they would queue behind everything that is not read.
        match (operators_bearer(&stage).await, machines_bearer(&stage).await) {
            (Ok(operator), Ok(machine)) => read_nothing(&stage, &operator, &machine),
            (operator, machine) => {
                muster_protocol::tell!("the slow reader: {:?} {:?}", operator.err(), machine.err());
                Ok(())
            }
        }
    });
    Ok(())
}

async fn wait_for_more(wire: &mut Wire, asked: &[u8]) -> Result<()> {
    wire.send(asked).await?;
    wire.sip().await
}

async fn machines_bearer(stage: &Rc<Stage>) -> Result<String> {
    let (name, key) = stage.plan.machine.clone().context("it is enrolled")?;
    let key = SecretKey::from_pem(&key)?;
    let me = Identity { name: name.clone(), key, fleet: stage.plan.fleet };
    let body = serde_json::to_vec(&check_in(&me, 1))?;
    let client = stage.client()?;
    let signature = me.key.sign(Context::CheckIn, &body).hex();
    let sent = client.post(stage.url(api::CHECKIN)).header(api::MACHINE_SIGNATURE, signature).body(body);
    let reply: serde_json::Value = sent.send().await?.json().await?;
    let bearer = format!("Bearer {}", reply["bearer"].as_str().context("no bearer")?);
    // A history of some length, for the operator to read slowly.
    let event = |seq: u64| {
        let detail = "y".repeat(30_000);
        serde_json::json!({
            "seq": seq, "at": 1, "generation": 1, "kind": "needs-human", "detail": detail
        })
    };
    for first in [1, 26, 51, 76] {
        let events: Vec<_> = (first..first + 25).map(event).collect();
        let body = serde_json::json!({ "machine": name, "oldest": 1, "events": events }).to_string();
        let signature = me.key.sign(Context::Reports, body.as_bytes()).hex();
        let sent = client.post(stage.url(api::REPORTS)).header(api::MACHINE_SIGNATURE, signature).body(body);
        anyhow::ensure!(sent.send().await?.status() == 200, "the events are not taken");
    }
    Ok(bearer)
}

async fn operators_bearer(stage: &Rc<Stage>) -> Result<String> {
    let key = SecretKey::from_pem(stage.plan.operator.as_deref().context("it is an operator")?)?;
    let signed = signature(&key, &stage.plan.fleet, "POST", api::OPERATOR_SESSION, b"null")?;
    let sent = stage.client()?.post(stage.url(api::OPERATOR_SESSION)).header(api::OPERATOR_SIGNATURE, signed);
    let session: Session = sent.body("null").send().await?.json().await?;
    Ok(format!("Bearer {}", session.bearer))
}

fn read_nothing(stage: &Rc<Stage>, operator: &str, machine: &str) -> Result<()> {
    let (name, _) = stage.plan.machine.clone().context("it is enrolled")?;
    let get = |bearer: &str, path: &str| request("GET", path, &[("authorization", bearer)], b"");
    let repository = api::tuf_path(&name);
    for (trick, connections, asked) in [
        ("archives, not read", 300, get(machine, &stage.plan.archive)),
        ("archives as an operator, not read", 300, get(operator, &stage.plan.archive)),
        ("its repository, not read", 300, get(machine, &format!("{repository}/1.targets.json")).repeat(100)),
        (
            "roots by its bearer, not read",
            300,
            get(machine, &format!("{repository}/1.root.json")).repeat(100),
        ),
        ("polls, not read", 50, get(machine, &api::poll_path(&name, Some(Generation::FIRST), 600))),
        ("roots, not read", 500, request("GET", &api::root_path(1), &[], b"").repeat(200)),
    ] {
        stage.each_with(trick, connections, true, async move |wire| wait_for_more(wire, &asked).await);
    }
    let key = SecretKey::from_pem(stage.plan.operator.as_deref().context("it is an operator")?)?;
    let (path, fleet) = (format!("{}/{name}/history?limit=100", api::OPERATOR_MACHINES), stage.plan.fleet);
    stage.each_with("histories, not read", 200, true, async move |wire| {
        let signed = signature(&key, &fleet, "GET", &path, b"")?;
        wait_for_more(wire, &request("GET", &path, &[(api::OPERATOR_SIGNATURE, &signed)], b"")).await
    });
    Ok(())
}
