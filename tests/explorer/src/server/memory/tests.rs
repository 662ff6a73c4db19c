//! The store in memory against the one in SQLite and the one in PostgreSQL: the same decisions leave the
//! same in all of them. So what the explorer finds of the one holds for the others.

use muster_protocol::audit::{CutLog, Possession};
use muster_protocol::checkin::CheckIn;
use muster_protocol::draft::{DRAFT_SECONDS, Draft, Drafted, DraftedGeneration};
use muster_protocol::ids::Epoch;
use muster_protocol::keys::{Context, Signature};
use muster_protocol::operator::{Publication, Readmit, RequestSignature};
use muster_protocol::report::{Attack, Event, EventKind, Stream};
use muster_protocol::request::{Asked, MachineRequest};
use muster_protocol::session::ExchangeKey;
use muster_protocol::signed_cut::SignedCut;
use muster_protocol::tuf::repository::draft_generation;
use muster_server::config::{DatabaseSettings, PostgresSettings};
use muster_server::core::audit::AuditContext;
use muster_server::core::change::Decided;
use muster_server::core::checkin::ReceivedCheckIn;
use muster_server::core::log::Reading;
use muster_server::core::publication::{NewGeneration, timestamp_version};
use muster_server::core::reports::{Batch, NewEvent};
use muster_server::core::restored::{Restored, restored};
use muster_server::core::rows::Outcome;
use muster_server::core::{access, machines, retention, roots};
use muster_server::store::{Arrived, Failed, Store};

mod rolling;

use super::super::cast::{Cast, MACHINES, ONLINE, OPERATORS, START_S, system, target};
use super::super::controller::Controller;
use super::*;

/// How many sequences of decisions, and how many decisions each has.
const SEQUENCES: u64 = 8;
const DECISIONS: u32 = 250;

#[test]
fn the_same_decisions_leave_the_same_in_memory_and_in_sqlite() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for seed in 1..=SEQUENCES {
        runtime.block_on(both(seed, &DatabaseSettings::Sqlite));
    }
}

/// `tests/run postgres` names the cluster and makes a database for each seed.
#[test]
fn the_same_decisions_leave_the_same_in_memory_and_in_postgresql() {
    let Ok(cluster) = std::env::var("MUSTER_TEST_POSTGRES") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for seed in 1..=SEQUENCES {
        let settings = PostgresSettings::at(&format!("{cluster}/explorer_{seed}"));
        runtime.block_on(both(seed, &DatabaseSettings::Postgres(settings)));
    }
}

async fn both(seed: u64, database: &DatabaseSettings) {
    let folder = tempfile::tempdir().unwrap();
    let cast = Cast::new().unwrap();
    let store = Store::open_in(database, folder.path(), &cast.fleet).await.unwrap();
    let memory = Memory::new(&cast.fleet);
    let mut both = Both { cast, store, memory, random: Random(seed), now: START_S * 1000, bearers: vec![] };
    for step in 0..DECISIONS {
        let what = both.decide().await;
        both.compare(&format!("seed {seed}, step {step}: {what}")).await;
    }
    both.store.close().await;
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
    fn yes(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

struct Both {
    cast: Cast,
    store: Store,
    memory: Memory,
    random: Random,
    now: i64,
    /// The bearers of operators' sessions, as each has them.
    bearers: Vec<(String, Sha256)>,
}

/// What came of it, as it is compared: refusals by what they say.
fn answer<A, E: std::fmt::Display>(answer: Result<A, E>) -> Result<A, String> {
    answer.map_err(|refusal| refusal.to_string())
}

fn of_store<A, E: std::fmt::Display>(answer: Result<A, Failed<E>>) -> Result<A, String> {
    answer.map_err(|failed| match failed {
        Failed::Refused(refusal) => refusal.to_string(),
        Failed::Store(error) => panic!("the store failed: {error}"),
    })
}

impl Both {
    fn controller(&self) -> Controller<'_> {
        Controller { stored: &self.memory, online: self.cast.key(ONLINE), broken: None }
    }

    fn keep<A>(&mut self, decided: Decided<A>) -> A {
        self.memory = self.memory.with(&decided.changes).unwrap();
        decided.answer
    }

    fn name(&mut self) -> MachineName {
        self.cast.names[usize::from(self.random.yes(3))].clone()
    }

    fn any_key(&mut self) -> PublicKey {
        let key = self.machine_key();
        self.cast.key(key)
    }

    fn machine_key(&mut self) -> u8 {
        MACHINES + u8::try_from(self.random.below(4)).unwrap()
    }

    async fn decide(&mut self) -> &'static str {
        self.now += i64::try_from(self.random.below(4)).unwrap() * 400;
        let operator = self.cast.key(OPERATORS[0]);
        let context = AuditContext { operator: &operator, at: self.now };
        match self.random.below(28) {
            0 | 1 => self.add(&context).await,
            2..=4 => self.enrol().await,
            5 if self.random.yes(3) => {
                let machine = self.name();
                let decided = self.controller().revoke(&machine, &context);
                let here = answer(self.keep(decided));
                assert_eq!(here, of_store(self.store.revoke(&machine, &context).await).map(drop));
                "revoke"
            }
            6 => {
                let machine = self.name();
                let decided = self.controller().acknowledge(&machine, &context);
                let here = answer(self.keep(decided));
                assert_eq!(here, of_store(self.store.acknowledge(&machine, &context).await).map(drop));
                "acknowledge"
            }
            7..=12 => self.check_in().await,
            13..=16 => self.report().await,
            17 | 18 => self.publish(&context).await,
            19 => self.timestamp().await,
            20 => self.ask(&context).await,
            21 => self.draft(&context).await,
            22 => self.forget(&context).await,
            23 => self.admit(&context).await,
            24..=26 => self.roll(&context).await,
            _ => self.session_or_root(&context).await,
        }
    }

    async fn add(&mut self, context: &AuditContext<'_>) -> &'static str {
        let token = u8::try_from(self.random.below(4)).unwrap();
        // Mostly a token of its own: one that was made before is refused.
        let class = if self.random.yes(5) { Class::Darwin } else { Class::Nixos };
        let mut new = self.cast.addition(token, class, self.random.yes(2)).unwrap();
        new.expires += self.now / 1000 - START_S;
        if self.random.yes(4) {
            new.token = Sha256::of(&self.now.to_be_bytes());
        }
        let decided = self.controller().add(&new, context);
        let here = answer(self.keep(decided));
        assert_eq!(here, of_store(self.store.add_machine(&new, context).await).map(drop));
        "add"
    }

    /// By a key that a lost database knew; or, rarely, this is another database's backup.
    async fn admit(&mut self, context: &AuditContext<'_>) -> &'static str {
        if self.random.yes(4) {
            let (log, revoked) = (self.memory.log.newest(), &[self.name()]);
            let backup = Restored { made_at: self.now - 5000, log: &log, revoked, now: self.now };
            let stored = [self.memory.facts_of_machine(&revoked[0])];
            let decided = restored(&stored, &backup);
            let here = decided.map(|decided| self.keep(decided)).map_err(|refusal| refusal.to_string());
            assert_eq!(here, of_store(self.store.restored(&backup).await));
            return "restored";
        }
        let (machine, key) = (self.name(), self.any_key());
        let (class, tags, replace) = (Class::Nixos, BTreeSet::new(), self.random.yes(2));
        let known = Readmit { class, system: system(class).unwrap(), tags, key, replace };
        let stored = self.memory.facts_of_machine(&machine);
        let taken = self.memory.another_has(&machine, &key);
        let decided = machines::readmit(stored.as_ref(), taken, &machine, &known, context);
        let here = decided.map(|decided| self.keep(decided)).map_err(|refusal| refusal.to_string());
        assert_eq!(here, of_store(self.store.readmit(&machine, &known, context).await));
        "readmit"
    }

    async fn enrol(&mut self) -> &'static str {
        let (token, key) = (u8::try_from(self.random.below(4)).unwrap(), self.machine_key());
        let request = self.cast.enrolment(token, key).clone();
        let decided = self.controller().enrol(&request, self.now);
        let here = answer(self.keep(decided));
        assert_eq!(here, of_store(self.store.enrol(&request, self.now).await).map(drop));
        "enrol"
    }

    async fn check_in(&mut self) -> &'static str {
        let machine = u8::from(self.random.yes(3));
        let name = self.cast.names[usize::from(machine)].clone();
        let row = self.memory.machines.get(&name);
        let last = row.map_or(0, |row| row.seq);
        let known = row.and_then(|row| row.key);
        let seq = (last + 1).saturating_sub(self.random.below(8).saturating_sub(4));
        let mut checkin: CheckIn = self.cast.check_in(machine, seq).unwrap();
        // Some come again byte by byte, and some say something else under the same number.
        checkin.boot_id = if self.random.yes(6) { "another".to_owned() } else { String::new() };
        checkin.refused = seq.is_multiple_of(5).then_some(Attack::Rollback);
        checkin.holds.targets = seq % 3;
        if self.random.yes(4) {
            checkin.new_key = Some(self.any_key());
        }
        if self.random.yes(3) {
            checkin.understands = vec![muster_protocol::plan::FEATURE.to_owned()];
        }
        checkin.vouch = self.vouch();
        checkin.session = self.random.yes(3).then_some(ExchangeKey::from_bytes([9; 32]));
        let waits = self.memory.requests.keys().filter(|(of, _)| *of == name);
        checkin.followed = waits.map(|(_, id)| *id).filter(|_| seq.is_multiple_of(2)).take(1).collect();
        let body = serde_json::to_vec(&checkin).unwrap();
        let key = match self.random.yes(10) {
            true => self.any_key(),
            false => known.unwrap_or_else(|| self.cast.key(MACHINES)),
        };
        let received = ReceivedCheckIn {
            checkin: &checkin,
            body: &body,
            body_sha256: Sha256::of(&body),
            key: &key,
            signature: None,
            now: self.now,
            poll_seconds: 60,
            log: None,
            vouches: checkin.vouch.is_some(),
        };
        let seals = self.cast.seals().clone();
        let decided = self.controller().check_in(&received, &seals);
        let here = answer(self.keep(decided));
        let arrived = Arrived {
            body: body.clone().into(),
            body_sha256: received.body_sha256,
            checkin: Box::new(checkin.clone()),
            key,
            signature: None,
            now: self.now,
            poll_seconds: 60,
            log: None,
            vouches: received.vouches,
            seals: seals.into(),
        };
        let there = answer(self.store.check_in(Box::new(arrived)).await.unwrap());
        assert_eq!(here, there, "with its bearer and its session");
        "check in"
    }

    async fn report(&mut self) -> &'static str {
        let name = self.name();
        let row = self.memory.machines.get(&name);
        let through = row.map_or(0, |row| row.reports_through);
        let known = row.and_then(|row| row.key).unwrap_or_else(|| self.cast.key(MACHINES));
        let stream: Option<Stream> = match self.random.below(12) {
            0 => None,
            1 => Some("00000000000000ff".parse().unwrap()),
            _ => Some("0000000000000001".parse().unwrap()),
        };
        let first = (through + 1 + self.random.below(2)).saturating_sub(self.random.below(4)).max(1);
        let count = self.random.below(5);
        let mut events: Vec<NewEvent> = (first..first + count).map(|seq| self.event(seq)).collect();
        if self.random.yes(12) {
            events.reverse();
        }
        let oldest = first + self.random.below(3) * self.random.below(2);
        let batch = Batch { machine: &name, stream, oldest, events: &events };
        let keep = if self.random.yes(3) { 4096 } else { 1 << 20 };
        let decided = self.controller().report(&batch, &known, keep, self.now);
        let here = answer(self.keep(decided));
        let there = self.store.report(&batch, &known, keep, self.now).await;
        assert_eq!(here, of_store(there));
        "report"
    }

    fn event(&mut self, seq: u64) -> NewEvent {
        let generation = Generation::new(1 + self.random.below(3)).ok();
        let pad = "x".repeat(usize::try_from(self.random.below(300)).unwrap());
        let kind = match self.random.below(5) {
            0 => EventKind::NeedsHuman { detail: pad },
            1 => EventKind::Refused { attack: Attack::Freeze, detail: pad },
            2 => EventKind::Refused { attack: Attack::Rollback, detail: pad },
            3 => EventKind::Retried {
                derivation: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv".parse().unwrap(),
                quarantined: self.random.yes(2),
                by: muster_protocol::report::Asker::Unknown,
            },
            _ => EventKind::Verified,
        };
        let event = Event { seq, at: self.now, generation, kind };
        NewEvent::new(seq, generation, serde_json::to_string(&event).unwrap())
    }

    async fn publish(&mut self, context: &AuditContext<'_>) -> &'static str {
        let name = self.name();
        let row = self.memory.machines.get(&name);
        let (class, held) = row.map_or((Class::Nixos, None), |row| (row.class, row.published));
        let epoch = Epoch::new(u64::from(self.random.yes(8))).unwrap();
        let next = held.filter(|held| held.epoch() == epoch).map_or(0, Generation::get);
        let number = (next + 2).saturating_sub(self.random.below(3)).max(1);
        let generation = Generation::of(epoch, number).unwrap();
        let target = target(&name, class, generation, u8::from(self.random.yes(4))).unwrap();
        let publication = Publication {
            generation,
            targets: format!("targets {number}"),
            snapshot: format!("snapshot {number}"),
            target: serde_json::to_string(&target).unwrap(),
        };
        let class = if self.random.yes(8) { Class::Darwin } else { class };
        let (system, sha256) = (system(class).unwrap(), Sha256::of(publication.target.as_bytes()));
        let signers = OPERATORS.map(|n| self.cast.key(n));
        let new = NewGeneration {
            machine: &name,
            class,
            system: &system,
            publication: &publication,
            target_sha256: sha256,
            expires: START_S + 86_400,
            signers: signers.to_vec(),
            turn: self.turn_of(&name),
        };
        let decided = self.controller().publish(&new, &self.memory, context);
        let here = answer(self.keep(decided));
        let there = self.store.publish(&new, context, self.sign()).await;
        assert_eq!(here, of_store(there));
        "publish"
    }

    fn sign(&self) -> impl Fn(u64, &[u8]) -> Result<Timestamp, muster_protocol::tuf::TufError> + use<> {
        let (now_s, key) = (self.now.div_euclid(1000), self.cast.key(ONLINE));
        move |last, snapshot| {
            let version = timestamp_version(last, now_s);
            let expires = now_s + super::super::cast::TIMESTAMP_SECONDS;
            Ok(Timestamp { bytes: snapshot.to_vec(), version, expires, key })
        }
    }

    async fn timestamp(&mut self) -> &'static str {
        let name = self.name();
        let epoch = Epoch::new(u64::from(self.random.yes(4))).unwrap();
        if self.random.yes(4) {
            self.now += 90_000_000;
        }
        let decided = self.controller().timestamp(&name, epoch, self.now);
        let here = answer(self.keep(decided));
        let now = self.now;
        let good = move |held: &Timestamp| held.expires * 1000 > now;
        assert_eq!(here, of_store(self.store.timestamp(&name, epoch, good, self.sign()).await));
        "timestamp"
    }

    async fn ask(&mut self, context: &AuditContext<'_>) -> &'static str {
        let machine = self.name();
        let key = self.any_key();
        let asked = match self.random.yes(2) {
            true => Asked::RotateKey { key },
            false => Asked::Retry {
                derivation: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv".parse().unwrap(),
                generation: None,
            },
        };
        let (made_at, nonce) = (self.now / 1000, self.random.below(1 << 40).to_string());
        let ends = made_at + 1 + i64::try_from(self.random.below(100_000)).unwrap();
        let request = MachineRequest { fleet: self.cast.fleet, machine, asked, made_at, ends, nonce };
        let text = serde_json::to_string(&request).unwrap();
        let operator = self.cast.secret(OPERATORS[0]);
        let signature = operator.sign(Context::MachineRequest, text.as_bytes());
        let signed =
            muster_protocol::request::SignedRequest { request: text, key: operator.public(), signature };
        let decided = self.controller().ask(&signed, &request, context);
        let here = answer(self.keep(decided));
        assert_eq!(here, of_store(self.store.ask(&signed, &request, context).await).map(drop));
        "ask"
    }

    async fn draft(&mut self, context: &AuditContext<'_>) -> &'static str {
        let generation = Generation::new(1 + self.random.below(3)).unwrap();
        let target = target(&self.cast.names[0], Class::Nixos, generation, 0).unwrap();
        let publication = draft_generation(&target, START_S + 86_400).unwrap();
        let one = DraftedGeneration { machine: self.cast.names[0].clone(), class: Class::Nixos, publication };
        let draft = Draft {
            fleet: self.cast.fleet,
            made_at: self.now,
            made_by: self.cast.key(OPERATORS[0]),
            ends: self.now / 1000 + DRAFT_SECONDS / 10,
            what: Drafted::Generations { generations: vec![one] },
        };
        let by = OPERATORS[usize::from(self.random.yes(2))];
        let draft = draft.sign(self.cast.secret(by)).unwrap();
        let id = draft.id().unwrap();
        if self.random.yes(5) {
            let decided = muster_server::core::drafts::drop(&self.memory.facts_of_draft(&id), &id, context);
            let here = match decided {
                Ok(decided) => {
                    self.keep(decided);
                    Ok(())
                }
                Err(refusal) => Err(refusal.to_string()),
            };
            assert_eq!(here, of_store(self.store.drop_draft(&id, context).await));
            return "drop a draft";
        }
        let decided = self.controller().keep_draft(&draft, &self.cast.root, context);
        let here = answer(self.keep(decided));
        assert_eq!(here, of_store(self.store.keep_draft(&draft, &self.cast.root, context).await));
        "draft"
    }

    async fn forget(&mut self, context: &AuditContext<'_>) -> &'static str {
        if self.random.yes(3) {
            return self.cut(context).await;
        }
        if self.random.yes(2) {
            let kept = retention::Kept { newest: 2, since: self.now - 20_000 };
            for name in self.cast.names.clone() {
                if let Some(old) = self.memory.facts_of_generations(&name, kept) {
                    self.keep(retention::forget_generations(&name, &old));
                }
            }
            self.store.forget_generations(kept).await.unwrap();
            let (now_s, before) = (self.now / 1000 + retention::TOKENS_KEPT_S + 3000, self.now - 10_000);
            self.keep(retention::forget_tokens(now_s));
            self.store.forget_tokens(now_s).await.unwrap();
            self.keep(retention::forget_attacks(before));
            self.store.forget_attacks(before).await.unwrap();
            self.keep(retention::forget_plans(before));
            self.store.forget_plans(before).await.unwrap();
            return "forget plans, generations, tokens and attacks";
        }
        if self.random.yes(2) {
            let now_s = self.now / 1000 + 60;
            self.keep(retention::sweep(now_s));
            self.store.sweep(now_s).await.unwrap();
            return "sweep";
        }
        let before = self.now - 10_000;
        self.keep(retention::forget_events(before));
        self.store.forget_events(before).await.unwrap();
        "forget events"
    }

    /// Cuts the log somewhere, as an operator who holds the entries or one who does not.
    async fn cut(&mut self, context: &AuditContext<'_>) -> &'static str {
        let anchor = self.memory.log.origin;
        let through = anchor.id + self.random.below(12);
        let stored = self.memory.facts_of_log(through);
        let entries: Vec<Entry> = self.memory.log.entries.iter().map(|entry| Entry::clone(entry)).collect();
        let mut reading = Reading::from(anchor);
        let mut holds = Possession::default();
        let through = stored.entry.unwrap_or(stored.newest);
        reading.add(&entries, through.id).unwrap();
        entries.iter().filter(|entry| entry.id <= through.id).for_each(|entry| holds.add(entry));
        let asked = CutLog {
            through,
            holds: if self.random.yes(4) { Sha256::of(b"no") } else { holds.finish() },
            export: Sha256::of(b"export"),
        };
        // The server has verified it, so it is any.
        let (nonce, signature) = ("00".repeat(16), Signature::from_bytes([7; 64]));
        let signature = RequestSignature { key: *context.operator, at: 5, nonce, signature, body: None };
        let asked = SignedCut { asked, signature };
        let now = self.now + i64::try_from(self.random.below(2)).unwrap() * 40 * 86_400_000;
        let stored = self.memory.facts_of_log(asked.asked.through.id);
        let decided = muster_server::core::log::cut(&stored, &reading.done(), &asked, context, now);
        let here = match decided {
            Ok(decided) => Ok(self.keep(decided)),
            Err(refusal) => Err(refusal.to_string()),
        };
        assert_eq!(here, of_store(self.store.cut_log(&asked, context, now).await));
        if self.random.yes(2) {
            self.store.forget_cut_entries().await.unwrap();
        }
        "cut the log"
    }

    async fn session_or_root(&mut self, context: &AuditContext<'_>) -> &'static str {
        if self.random.yes(2) {
            let there = self.store.open_session(context).await.unwrap();
            let here = format!("session {}", self.now);
            if self.memory.bearers.contains_key(&Sha256::of(here.as_bytes())) {
                // The entry alone: two sessions of one moment have one name here.
                let Decided { mut changes, .. } = access::open_session(&here, context);
                changes.remove(0);
                self.keep(Decided { changes, answer: () });
                return "session";
            }
            self.keep(access::open_session(&here, context));
            self.bearers.push((there, Sha256::of(here.as_bytes())));
            return "session";
        }
        let version = self.random.below(20);
        self.keep(roots::in_force(self.memory.root_logged, version, None, self.now));
        self.store.log_root(version, None, self.now).await.unwrap();
        let name = self.name();
        let known = self.memory.facts_of_machine(&name);
        self.keep(muster_server::core::machines::seen(known.as_ref(), &name, self.now));
        self.store.seen(&name, self.now).await.unwrap();
        "root, seen"
    }

    /// Everything that the two give as facts.
    async fn compare(&self, at: &str) {
        let machines: Vec<_> = self.cast.names.iter().filter_map(|name| self.memory.machine(name)).collect();
        let there = self.store.machines(muster_server::store::Keys::Parsed).await.unwrap();
        assert_eq!(format!("{machines:#?}"), format!("{there:#?}"), "{at}");
        for name in &self.cast.names {
            let known = self.store.machine_key(name).await.unwrap();
            assert_eq!(known, self.memory.known_machine(name), "{at}");
            let history = self.store.history(name, None, 100).await.unwrap();
            let generations = self.memory.generations.iter().rev().filter(|((of, _), _)| of == name);
            let generations: Vec<_> = generations
                .map(|((_, generation), _)| self.memory.published(name, *generation).unwrap())
                .collect();
            let events: Vec<Vec<Event>> =
                generations.iter().map(|one| self.events(name, one.target.generation)).collect();
            assert_eq!(
                history.into_iter().map(|entry| (entry.published, entry.events)).collect::<Vec<_>>(),
                generations.into_iter().zip(events).collect::<Vec<_>>(),
                "{at}"
            );
            let mut attacks: Vec<_> = self.memory.attacks.values().rev().collect();
            attacks.retain(|attack| attack.machine == *name);
            let attacks: Vec<_> = attacks.into_iter().take(100).map(super::facts::view).collect();
            assert_eq!(self.store.attacks(name, 100).await.unwrap(), attacks, "{at}");
            let news = self.store.news(name).await.unwrap();
            let waits =
                |((of, _), request): (&(MachineName, Sha256), &Request)| of == name && !request.handed_on;
            let rings = self.memory.machines.get(name).is_some_and(|row| row.turn_changed);
            assert_eq!(news.check_in, rings || self.memory.requests.iter().any(waits), "{at}");
            let published = self.memory.machines.get(name).and_then(|row| row.published);
            assert_eq!(news.generation, published, "{at}");
        }
        self.compare_rollouts(at).await;
        let mut drafts: Vec<_> = self.memory.drafts.values().cloned().collect();
        drafts.sort_by_key(|kept| (kept.draft.made_at, kept.id));
        drafts.retain(|kept| kept.draft.ends > self.now / 1000);
        assert_eq!(self.store.drafts(self.now / 1000).await.unwrap(), drafts, "{at}");
        let page = self.store.audit(0, 1000).await.unwrap();
        let anchor = page.anchor.unwrap_or(origin(&self.cast.fleet));
        assert_eq!(anchor, self.memory.log.origin, "{at}");
        let newest = self.memory.log.newest();
        assert_eq!(self.store.newest_entry(), (newest.id > 0).then_some(newest), "{at}");
        let log = page.entries;
        let here: Vec<_> = self.memory.log.entries.iter().map(|entry| Entry::clone(entry)).collect();
        assert_eq!(log, here, "{at}");
        assert_eq!(self.store.logged_root().await.unwrap(), self.memory.root_logged, "{at}");
        for (there, here) in self.bearers.iter().rev().take(20) {
            let there = self.store.principal(there, self.now / 1000).await.unwrap();
            assert_eq!(there, self.memory.principal(here, self.now / 1000), "{at}");
        }
    }

    fn events(&self, machine: &MachineName, generation: Generation) -> Vec<Event> {
        let of_it = self.memory.events.values();
        let of_it = of_it.filter(|event| event.machine == *machine && event.generation == Some(generation));
        of_it.map(|event| serde_json::from_str(&event.raw).unwrap()).collect()
    }
}

/// Facts of decisions that the explorer does not make.
impl Memory {
    /// For a cut of the log at this entry.
    pub fn facts_of_log(&self, through: u64) -> muster_server::core::log::Stored {
        let entry = self.log.entries.iter().find(|entry| entry.id == through);
        let entry = entry.map(|entry| Checkpoint { id: entry.id, hash: entry.hash });
        muster_server::core::log::Stored { anchor: self.log.origin, newest: self.log.newest(), entry }
    }

    /// For forgetting a machine's old generations.
    pub fn facts_of_generations(
        &self,
        machine: &MachineName,
        kept: retention::Kept,
    ) -> Option<retention::Old> {
        let row = self.machines.get(machine)?;
        let of_it = self.generations.iter().filter(|((of, _), _)| of == machine);
        let old = of_it.rev().skip(kept.newest as usize);
        let old = old.filter(|(_, stored)| stored.published_at < kept.since);
        let mut generations: Vec<Generation> = old.map(|((_, generation), _)| *generation).collect();
        generations.reverse();
        let decided = self.events.values().rev().filter(|event| event.machine == *machine && event.decides);
        let outcome = |event: &StoredEvent| {
            let told: Event = serde_json::from_str(&event.raw).ok()?;
            Outcome::of(event.generation, &told.kind)
        };
        let decisions = decided.filter_map(|event| outcome(event)).collect();
        let (published, observed) = (row.published, super::facts::observed(row));
        Some(retention::Old { published, observed, generations, decisions })
    }
}
