//! What machines and controllers do, and the moment after something happened.

use muster_protocol::checkin::CheckInReply;
use muster_protocol::ids::{Epoch, Sha256};
use muster_protocol::machine::Class;
use muster_server::core::change::Decided;
use muster_server::core::checkin::{CheckInRefusal, ReceivedCheckIn};
use muster_server::core::publication::NewGeneration;
use muster_server::core::reports::Batch;

use super::cast::{MACHINES, OPERATORS, START_S, system};
use super::controller::Break;
use super::documents::{class, files_of, publication};
use super::happening::{Action, Way};
use super::machine::{CLONES, Content, Machine, Said};
use super::memory::Memory;
use super::properties;
use super::stage::Scene;
use super::world::{Kept, Message, Seen, World};

/// What came of a request.
enum Heard {
    Enrolled(bool),
    CheckIn(Box<Result<CheckInReply, CheckInRefusal>>),
    Report(Result<u64, muster_server::core::reports::ReportRefusal>),
    Published,
}

/// The first moment: the first machine has a token, and has enrolled where nobody else holds it.
pub fn first(scene: &Scene) -> World {
    let mut world = World {
        kept: Kept::new(Memory::new(&scene.cast.fleet)),
        backup: None,
        machines: Vec::new(),
        disk: None,
        wire: Vec::new(),
        hour: 0,
        epoch: 0,
        left: scene.may,
        seen: Seen::default(),
    };
    world.add(scene, 0, Class::Nixos, false);
    world.machines.push(Machine::new(0, 0, MACHINES, Some(0)));
    if scene.thief {
        world.machines.push(Machine::new(0, 1, MACHINES + 2, Some(0)));
    } else if let Some(next) = world.contact(scene, 0, What::Enrol, Way::Answered) {
        world = next;
    }
    world
}

/// What a machine sends.
#[derive(Clone, Copy)]
enum What {
    Enrol,
    CheckIn,
    Report,
}

/// The moment after `action`, or `None` where it cannot happen now.
pub fn after(world: &World, scene: &Scene, action: Action) -> Option<World> {
    let mut next = world.clone();
    match action {
        Action::Enrols(n, way) => return world.contact(scene, n, What::Enrol, way),
        Action::ChecksIn(n, way) => return world.contact(scene, n, What::CheckIn, way),
        Action::Reports(n, way) => return world.contact(scene, n, What::Report, way),
        Action::Updates(n) => next.update(scene, n)?,
        Action::Tells(n) => {
            let machine = next.machines.get_mut(usize::from(n)).filter(|machine| machine.token.is_none())?;
            next.left.events = next.left.events.checked_sub(1)?;
            let told = next.seen.told.entry(machine.name).or_default();
            *told += 1;
            machine.tell(*told);
        }
        Action::Arrives(n) => {
            if usize::from(n) >= next.wire.len() {
                return None;
            }
            let message = next.wire.remove(usize::from(n));
            next.take(scene, &message)?;
        }
        Action::ArrivesUnheard(n) => {
            next.left.faults = next.left.faults.checked_sub(1)?;
            let message = next.wire.get(usize::from(n))?.clone();
            next.take(scene, &message)?;
            if let Some(Message::Publication { checked, .. }) = next.wire.get_mut(usize::from(n)) {
                *checked = None;
            }
        }
        Action::IsChecked(n) => next.check(scene, n)?,
        Action::Signs => next.sign(scene)?,
        Action::NewEpoch => {
            next.left.epochs = next.left.epochs.checked_sub(1)?;
            next.epoch += 1;
        }
        Action::Replaces => {
            next.left.replacements = next.left.replacements.checked_sub(1)?;
            next.add(scene, 1, Class::Nixos, true)?;
            next.machines.push(Machine::new(0, 3, MACHINES + 4, Some(1)));
        }
        Action::Reclasses => {
            next.left.reclasses = next.left.reclasses.checked_sub(1)?;
            next.add(scene, 1, Class::Darwin, true)?;
        }
        Action::Revokes => {
            next.left.revocations = next.left.revocations.checked_sub(1)?;
            let machine = &scene.cast.names[0];
            next.operate(scene, |controller, context| controller.revoke(machine, context))?;
            next.seen.revoked = true;
        }
        Action::Asks => next.ask(scene)?,
        Action::SignsDraft(n) => next.sign_draft(scene, n)?,
        Action::BacksUp => {
            next.left.backups = next.left.backups.checked_sub(1)?;
            next.backup = Some(next.kept.clone());
        }
        Action::Restores => next.restore()?,
        Action::IsCloned => {
            next.left.clones = next.left.clones.checked_sub(1)?;
            let first = next.machines.first_mut().filter(|one| one.token.is_none())?;
            first.copy = CLONES;
            let copy = Machine { copy: CLONES + 1, ..first.clone() };
            next.machines.push(copy);
            next.seen.cloned = true;
        }
        Action::Acknowledges => {
            next.left.alarms = next.left.alarms.checked_sub(1)?;
            let machine = &scene.cast.names[0];
            next.operate(scene, |controller, context| controller.acknowledge(machine, context))?;
            next.seen.acknowledged = true;
        }
        Action::IsKept => {
            next.left.disks = next.left.disks.checked_sub(1)?;
            next.disk = next.machines.first().filter(|one| one.token.is_none()).cloned();
        }
        Action::IsBroughtBack => {
            // It has booted since: nothing that it says is what it said before.
            next.machines[0] = Machine { copy: 4, ..next.disk.take()? };
            next.seen.brought_back = true;
        }
        Action::HourPasses => {
            next.left.hours = next.left.hours.checked_sub(1)?;
            next.hour += 1;
        }
        Action::IsTakenOver => next.take_over(scene)?,
    }
    Some(next)
}

impl World {
    /// A machine sends something.
    fn contact(&self, scene: &Scene, n: u8, what: What, way: Way) -> Option<Self> {
        let mut next = self.clone();
        let machine = next.machines.get_mut(usize::from(n))?;
        if way != Way::Answered {
            next.left.faults = next.left.faults.checked_sub(1)?;
        }
        let message = match what {
            What::Enrol => Message::Enrolment { token: machine.token?, key: machine.key },
            What::CheckIn if machine.token.is_some() => return None,
            What::CheckIn => {
                let new = machine.unanswered.is_none();
                // What it is asked it hears of at any time.
                let waits = !self.kept.memory.requests.is_empty() && !self.seen.taken_over;
                if new && machine.seq >= scene.check_ins && !waits {
                    return None;
                }
                Message::CheckIn(machine.next_check_in())
            }
            What::Report => Message::Report(machine.next_report().filter(|_| machine.token.is_none())?),
        };
        if way == Way::Delayed {
            if next.wire.len() >= 2 {
                return None;
            }
            next.wire.push(message);
            return Some(next);
        }
        let heard = next.take(scene, &message)?;
        if way == Way::Unheard {
            return Some(next);
        }
        let machine = next.machines.get_mut(usize::from(n))?;
        match (heard, &message) {
            (Heard::CheckIn(answer), _) if answer.is_ok() && way == Way::Forgotten => {
                machine.unanswered = None;
            }
            (Heard::Enrolled(true), _) => machine.token = None,
            (Heard::CheckIn(answer), Message::CheckIn(said)) => machine.hear(said, &answer, &scene.cast),
            (Heard::Report(answer), _) => machine.hear_of_report(&answer),
            _ => {}
        }
        Some(next)
    }

    /// A controller takes a request.
    fn take(&mut self, scene: &Scene, message: &Message) -> Option<Heard> {
        match message {
            Message::Enrolment { token, key } => {
                let request = scene.cast.enrolment(*token, *key);
                let Decided { changes, answer } = self.controller(scene).enrol(request, self.now());
                let done = self.keep(scene, changes) && answer.is_ok();
                if done {
                    properties::of_enrolment(self, *token, *key);
                }
                Some(Heard::Enrolled(done))
            }
            Message::CheckIn(said) => self.take_check_in(scene, said),
            Message::Report(sent) => {
                let name = &scene.cast.names[usize::from(sent.name)];
                let (key, events) = (scene.cast.key(sent.by), sent.events());
                let stream = format!("{:016x}", u64::from(sent.stream) + 1).parse().ok();
                let oldest = events.first()?.seq;
                let batch = Batch { machine: name, stream, oldest, events: &events };
                let decided = self.controller(scene).report(&batch, &key, 1 << 20, self.now());
                let kept = self.keep(scene, decided.changes);
                properties::of_access(self, decided.answer.is_ok());
                kept.then_some(Heard::Report(decided.answer))
            }
            Message::Publication { content, checked } => {
                let at_check = checked.as_ref()?;
                self.publish(scene, content, at_check);
                Some(Heard::Published)
            }
        }
    }

    fn take_check_in(&mut self, scene: &Scene, said: &Said) -> Option<Heard> {
        let checkin = said.check_in(&scene.cast)?;
        let body = serde_json::to_vec(&checkin).ok()?;
        let hash = Sha256::of(&body);
        // A controller reads the machine's key, and sees that the check-in is signed by it.
        let known = self.kept.memory.machines.get(&checkin.machine)?.key;
        let key = known.filter(|key| said.is_by(key, &scene.cast)).unwrap_or(scene.cast.key(said.by));
        let received = ReceivedCheckIn {
            checkin: &checkin,
            body: &body,
            body_sha256: hash,
            key: &key,
            signature: None,
            now: self.now(),
            poll_seconds: 60,
            log: None,
            vouches: false,
        };
        let decided = self.controller(scene).check_in(&received, scene.cast.seals());
        if !self.keep(scene, decided.changes) {
            return Some(Heard::CheckIn(Box::new(Err(CheckInRefusal::CachedReply))));
        }
        properties::of_check_in(self, said, &hash, &decided.answer);
        Some(Heard::CheckIn(Box::new(decided.answer)))
    }

    /// Before its transaction: the signatures are good for the root in force, and the class is the machine's.
    fn check(&mut self, scene: &Scene, n: u8) -> Option<()> {
        let (kept, epoch) = (self.kept.clone(), u64::from(self.epoch));
        let Some(Message::Publication { content, checked: checked @ None }) =
            self.wire.get_mut(usize::from(n))
        else {
            return None;
        };
        let row = kept.memory.machines.get(&scene.cast.names[usize::from(content.machine)])?;
        let fits = row.class == class(content) && content.generation.epoch().get() == epoch;
        if fits && row.revoked_at.is_none() {
            *checked = Some(kept);
        } else {
            self.wire.remove(usize::from(n));
        }
        Some(())
    }

    fn publish(&mut self, scene: &Scene, content: &Content, at_check: &Kept) {
        let name = &scene.cast.names[usize::from(content.machine)];
        let Some(publication) = publication(name, content) else { return };
        let Some(system) = system(class(content)) else { return };
        let (sha256, signers) = (Sha256::of(publication.target.as_bytes()), [scene.cast.key(OPERATORS[0])]);
        let new = NewGeneration {
            machine: name,
            class: class(content),
            system: &system,
            publication: &publication,
            target_sha256: sha256,
            expires: START_S + 86_400,
            signers: signers.to_vec(),
            turn: None,
        };
        let memory = &at_check.memory;
        let done = self.operate(scene, |controller, context| controller.publish(&new, memory, context));
        if done.is_some() {
            properties::of_publication(self, content, scene);
        }
    }

    /// A machine fetches a timestamp and what it names. It takes what operators signed for it, and never an
    /// older one (TUF,
    /// whose own tests say so).
    fn update(&mut self, scene: &Scene, n: u8) -> Option<()> {
        let machine = self.machines.get(usize::from(n)).filter(|machine| machine.token.is_none())?;
        let name = &scene.cast.names[usize::from(machine.name)];
        let row = self.kept.memory.machines.get(name)?;
        if row.key != Some(scene.cast.key(machine.key)) || row.revoked_at.is_some() {
            return None;
        }
        let epoch = Epoch::new(self.epoch.into()).ok()?;
        let decided = self.controller(scene).timestamp(name, epoch, self.now());
        let timestamp = decided.answer.ok()??;
        self.keep(scene, decided.changes);
        let stored = self.kept.memory.machines.get(name)?.published?;
        let files = &self.kept.memory.generations.get(&(name.clone(), stored))?.files;
        let of_it =
            |content: &&Content| publication(name, content).is_some_and(|one| files_of(&one) == *files);
        let signed = self.seen.signed.iter().find(of_it).cloned();
        let content = match signed {
            Some(signed) => signed,
            None if scene.broken == Some(Break::TrustStore) => {
                Content { machine: 0, generation: stored, darwin: false, variant: u8::MAX }
            }
            None => return None,
        };
        let machine = self.machines.get_mut(usize::from(n))?;
        let held = machine.held.as_ref().map(|held| held.generation);
        if timestamp.version <= machine.timestamp || held.is_some_and(|held| content.generation <= held) {
            return None;
        }
        (machine.timestamp, machine.held) = (timestamp.version, Some(content.clone()));
        properties::of_update(self, scene, &content);
        Some(())
    }
}
