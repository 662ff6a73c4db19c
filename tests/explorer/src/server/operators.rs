//! What operators do, and what becomes of the controller as a whole.

use muster_protocol::ids::{Epoch, Generation, Sha256};
use muster_protocol::machine::Class;
use muster_protocol::operator::next_generation;
use muster_server::core::Change;
use muster_server::core::restored::{Restored, restored};
use muster_server::core::rows::{Request, StoredGeneration, Timestamp};

use super::cast::{ONLINE, OPERATORS, STRANGER};
use super::documents::{asked, draft, files_of, publication, signed_by};
use super::machine::Content;
use super::stage::Scene;
use super::world::{Kept, Message, World};

impl World {
    pub fn add(&mut self, scene: &Scene, token: u8, class: Class, replace: bool) -> Option<()> {
        let new = scene.cast.addition(token, class, replace)?;
        self.operate(scene, |controller, context| controller.add(&new, context))?;
        self.seen.revoked = false;
        Some(())
    }

    /// As `muster update` does: the number after what the controller says.
    pub fn sign(&mut self, scene: &Scene) -> Option<()> {
        self.left.publications = self.left.publications.checked_sub(1)?;
        let epoch = Epoch::new(self.epoch.into()).ok()?;
        let facts = self.kept.memory.facts_of_publication(&scene.cast.names[0], Generation::FIRST)?;
        let generation = next_generation(epoch, facts.published, &facts.holds).ok()?;
        let variant = u8::try_from(self.seen.signed.len()).ok()?;
        let content = Content { machine: 0, generation, darwin: facts.class == Class::Darwin, variant };
        self.seen.signed.push(content.clone());
        self.wire.push(Message::Publication { content, checked: None });
        Some(())
    }

    pub fn ask(&mut self, scene: &Scene) -> Option<()> {
        self.left.requests = self.left.requests.checked_sub(1)?;
        let machine = &scene.cast.names[0];
        let key = self.kept.memory.machines.get(machine)?.key?;
        let request = asked(&scene.cast, key);
        let signed = signed_by(&scene.cast, OPERATORS[0], &request)?;
        self.operate(scene, |controller, context| controller.ask(&signed, &request, context))?;
        self.seen.asked.insert(signed.id());
        Some(())
    }

    /// Both operators have the same draft, and each sends a copy with the own signature alone.
    pub fn sign_draft(&mut self, scene: &Scene, n: u8) -> Option<()> {
        self.left.drafts = self.left.drafts.checked_sub(1)?;
        let draft = draft(&scene.cast)?;
        let signed = draft.sign(scene.cast.secret(OPERATORS[usize::from(n)])).ok()?;
        let root = &scene.cast.root;
        self.operate(scene, |controller, context| controller.keep_draft(&signed, root, context))?;
        self.seen.drafted.insert(OPERATORS[usize::from(n)]);
        Some(())
    }

    /// That takes an hour at least.
    pub fn restore(&mut self) -> Option<()> {
        let backup = self.backup.take()?;
        self.hour += 1;
        let log = backup.memory.log.newest();
        let (now, revoked) = (self.now(), &[]);
        let restored = restored(&[], &Restored { made_at: now, log: &log, revoked, now }).ok()?;
        self.kept = Kept::new(backup.memory.with(&restored.changes).ok()?);
        let seen = &mut self.seen;
        (seen.restored, seen.revoked) = (true, false);
        seen.published.clear();
        seen.highest.clear();
        seen.replies.clear();
        seen.bearers.clear();
        seen.tokens.clear();
        seen.spoke.clear();
        seen.drafted.clear();
        seen.asked.clear();
        Some(())
    }

    /// Everything but the operators' keys is somebody else's: what is stored, and the key that signs
    /// timestamps.
    pub fn take_over(&mut self, scene: &Scene) -> Option<()> {
        self.left.takeovers = self.left.takeovers.checked_sub(1)?;
        let machine = scene.cast.names[0].clone();
        let row = self.kept.memory.machines.get(&machine)?;
        let generation = row.published.map_or(Ok(Generation::FIRST), Generation::next).ok()?;
        let content = Content { machine: 0, generation, darwin: false, variant: u8::MAX };
        let publication = publication(&machine, &content)?;
        let bytes = publication.snapshot.clone().into_bytes();
        let (version, key) = (row.timestamp_version + 1_000_000_000_000, scene.cast.key(ONLINE));
        let request = asked(&scene.cast, row.key?);
        let document = signed_by(&scene.cast, STRANGER, &request)?;
        let forged = vec![
            Change::GenerationStored(Box::new(StoredGeneration {
                machine: machine.clone(),
                generation,
                files: files_of(&publication),
                target_sha256: Sha256::of(publication.target.as_bytes()),
                expires: i64::MAX,
                published_at: 0,
                published_by: scene.cast.key(STRANGER),
                signers: vec![],
                plan: None,
            })),
            Change::Published { machine: machine.clone(), generation, turn: None },
            Change::TimestampStored {
                machine: machine.clone(),
                timestamp: Timestamp { bytes, version, expires: i64::MAX / 1000, key },
            },
            Change::RequestKept {
                machine,
                request: Request {
                    id: document.id(),
                    asks: request.asked.as_str().to_owned(),
                    document: Some(document),
                    ends: request.ends,
                    handed_on: false,
                },
            },
        ];
        self.kept = Kept::new(self.kept.memory.with(&forged).ok()?);
        self.seen.taken_over = true;
        Some(())
    }
}
