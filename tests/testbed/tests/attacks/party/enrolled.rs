//! The worst that an enrolled machine can do to the others, whoever holds its key.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use muster_protocol::announce::Announcement;
use muster_protocol::api;
use muster_protocol::checkin::CheckIn;
use muster_protocol::ids::Generation;
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::report::{Attack, Event, EventKind, MAX_BATCH_BYTES};

use super::honest::check_in;
use super::service::Identity;
use super::stage::{Stage, Wire, request};

/// How many connections it holds on which its bearer was presented.
const HELD: usize = 2000;

struct Me {
    identity: RefCell<Identity>,
    seq: Cell<u64>,
    event: Cell<u64>,
    bearer: RefCell<String>,
}

impl Me {
    fn key(&self) -> SecretKey {
        self.identity.borrow().key.clone()
    }

    fn next_check_in(&self) -> CheckIn {
        self.seq.set(self.seq.get() + 1);
        check_in(&self.identity.borrow(), self.seq.get())
    }

    /// A body with its announcement and its signature.
    fn signed(&self, path: &str, context: Context, body: &[u8], more: &[(&str, &str)]) -> Vec<u8> {
        let key = self.key();
        let announcement = Announcement::make(&self.identity.borrow().name, path, body, &key).to_string();
        let signature = key.sign(context, body).hex();
        let own = [(api::MACHINE_ANNOUNCES, announcement.as_str()), (api::MACHINE_SIGNATURE, &signature)];
        request("POST", path, &[&own, more].concat(), body)
    }

    fn signed_check_in(&self) -> Vec<u8> {
        let body = serde_json::to_vec(&self.next_check_in()).unwrap_or_default();
        self.signed(api::CHECKIN, Context::CheckIn, &body, &[])
    }

    /// Takes the bearer from the reply to a check-in.
    fn took(&self, reply: &[u8]) {
        let reply = serde_json::from_slice::<serde_json::Value>(reply).unwrap_or_default();
        if let Some(bearer) = reply["bearer"].as_str() {
            bearer.clone_into(&mut self.bearer.borrow_mut());
        }
    }

    fn get(&self, path: &str) -> Vec<u8> {
        request("GET", path, &[("authorization", &format!("Bearer {}", self.bearer.borrow()))], b"")
    }

    /// A batch of about a megabyte, or with one event.
    fn batch(&self, kind: impl Fn(u64) -> serde_json::Value, bytes: usize) -> Vec<u8> {
        let (mut events, mut size) = (Vec::new(), 0);
        let first = self.event.get() + 1;
        while size < bytes {
            self.event.set(self.event.get() + 1);
            let event = kind(self.event.get());
            size += event.to_string().len();
            events.push(event);
        }
        let name = self.identity.borrow().name.clone();
        let body = serde_json::json!({ "machine": name, "oldest": first, "events": events }).to_string();
        self.signed(api::REPORTS, Context::Reports, body.as_bytes(), &[])
    }
}

pub fn attack(stage: &Rc<Stage>) -> Result<()> {
    let (name, key) = stage.plan.machine.clone().context("it is enrolled")?;
    let key = SecretKey::from_pem(&key)?;
    let me = Rc::new(Me {
        identity: RefCell::new(Identity { name, key, fleet: stage.plan.fleet }),
        seq: Cell::new(0),
        event: Cell::new(0),
        bearer: RefCell::default(),
    });
    // Everything else needs its bearer, which it gets like an honest machine.
    let (then, stage) = (me, stage.clone());
    tokio::task::spawn_local(async move {
        if let Err(error) = enter(&stage, &then).await {
            muster_protocol::tell!("the machine cannot check in: {error:#}");
            return;
        }
        reads(&stage, &then);
        reports(&stage, &then);
        check_ins(&stage, &then);
    });
    Ok(())
}

async fn enter(stage: &Rc<Stage>, me: &Rc<Me>) -> Result<()> {
    let body = serde_json::to_vec(&me.next_check_in())?;
    let url = stage.url(api::CHECKIN);
    let sent = stage
        .client()?
        .post(url)
        .header(api::MACHINE_SIGNATURE, me.key().sign(Context::CheckIn, &body).hex());
    let reply: serde_json::Value = sent.body(body).send().await?.json().await?;
    *me.bearer.borrow_mut() = reply["bearer"].as_str().context("no bearer")?.to_owned();
    Ok(())
}

fn reads(stage: &Rc<Stage>, me: &Rc<Me>) {
    let name = me.identity.borrow().name.clone();
    let repository = api::tuf_path(&name);
    for (trick, connections, path) in [
        ("polls by the hundred", 300, api::poll_path(&name, Some(Generation::FIRST), 600)),
        ("archives without end", 20, stage.plan.archive.clone()),
        ("the cache's small files", 20, "/cache/nix-cache-info".to_owned()),
        ("its own repository", 20, format!("{repository}/timestamp.json")),
        ("roots by its bearer", 20, format!("{repository}/1.root.json")),
    ] {
        // With the bearer that is then valid: each new key revokes the earlier ones.
        let mine = me.clone();
        stage.each(trick, connections, async move |wire| wire.ask_without_end(|| mine.get(&path)).await);
    }
    // The bearer is presented once on each, which is then held open.
    let mine = me.clone();
    stage.each("connections held", HELD, async move |wire| {
        loop {
            wire.send(&mine.get("/cache/nix-cache-info")).await?;
            wire.answer().await?;
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
    });
}

fn reports(stage: &Rc<Stage>, me: &Rc<Me>) {
    let large = |seq| {
        let detail = "y".repeat(4000);
        serde_json::json!({
            "seq": seq, "at": 1, "generation": 1, "kind": "hook-failed", "hook": "x", "detail": detail
        })
    };
    let mine = me.clone();
    stage.each("events by the megabyte", 4, async move |wire| {
        wire.ask_without_end(|| mine.batch(large, MAX_BATCH_BYTES - 64 * 1024)).await
    });
    let mine = me.clone();
    let one = |seq| {
        let detail = "y".repeat(MAX_BATCH_BYTES - 512);
        serde_json::json!({
            "seq": seq, "at": 1, "generation": 1, "kind": "needs-human", "detail": detail
        })
    };
    stage.each("one event of a megabyte", 2, async move |wire| {
        wire.ask_without_end(|| mine.batch(one, 1)).await
    });
    let mine = me.clone();
    stage.each("deep and many", 4, async move |wire| {
        let nested = format!("{}{}", "[".repeat(100), "]".repeat(100));
        let list = format!("[{}]", vec![nested.as_str(); 4000].join(","));
        let body = format!(
            r#"{{"machine":"{}","oldest":1,"events":[{{"seq":1,"at":1,"kind":"x","more":{list}}}]}}"#,
            mine.identity.borrow().name
        );
        wire.ask_without_end(|| mine.signed(api::REPORTS, Context::Reports, body.as_bytes(), &[])).await
    });
    let mine = me.clone();
    stage.each("attacks that are none", 8, async move |wire| {
        let attack = |seq| {
            let kinds = [Attack::Rollback, Attack::Freeze, Attack::ForgedSignature, Attack::Clone];
            let kind =
                EventKind::Refused { attack: kinds[(seq % 4) as usize], detail: format!("wolf {seq}") };
            serde_json::to_value(Event { seq, at: 1, generation: None, kind }).unwrap_or_default()
        };
        wire.ask_without_end(|| mine.batch(attack, 1)).await
    });
    // Announced with its key, so that it is read, but not signed: a megabyte to hash and parse for nothing.
    let mine = me.clone();
    stage.each("announced and not signed", 4, async move |wire| {
        let name = mine.identity.borrow().name.clone();
        let body =
            format!(r#"{{"machine":"{name}","oldest":1,"events":[{}]}}"#, vec!["{}"; 300_000].join(","));
        let announcement = Announcement::make(&name, api::REPORTS, body.as_bytes(), &mine.key()).to_string();
        let headers =
            [(api::MACHINE_ANNOUNCES, announcement.as_str()), (api::MACHINE_SIGNATURE, &"0".repeat(128))];
        let asked = request("POST", api::REPORTS, &headers, body.as_bytes());
        wire.ask_without_end(|| asked.clone()).await
    });
}

fn check_ins(stage: &Rc<Stage>, me: &Rc<Me>) {
    let mine = me.clone();
    stage.each("check-ins without end", 600, async move |wire| {
        loop {
            wire.send(&mine.signed_check_in()).await?;
            wire.answer().await?;
            mine.took(&wire.body);
        }
    });
    let same = me.signed_check_in();
    stage.each("the same check-in again", 20, async move |wire| wire.ask_without_end(|| same.clone()).await);
    let mine = me.clone();
    stage.each("a new key each time", 1, async move |wire| rotate(&mine, wire).await);
}

async fn rotate(me: &Me, wire: &mut Wire) -> Result<()> {
    loop {
        let next = SecretKey::generate()?;
        let checkin = CheckIn { new_key: Some(next.public()), ..me.next_check_in() };
        let body = serde_json::to_vec(&checkin)?;
        let by_new = next.sign(Context::KeyRotation, &body).hex();
        let asked =
            me.signed(api::CHECKIN, Context::CheckIn, &body, &[(api::MACHINE_NEW_SIGNATURE, &by_new)]);
        wire.send(&asked).await?;
        // Kept if it was accepted; otherwise everything later would be signed with the wrong key.
        if wire.answer().await? == 200 {
            me.identity.borrow_mut().key = next;
            me.took(&wire.body);
        }
    }
}
