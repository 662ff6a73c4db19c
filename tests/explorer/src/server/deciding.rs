//! How a controller's decisions change what is stored.

use std::rc::Rc;

use muster_protocol::ids::Sha256;
use muster_server::core::Change;
use muster_server::core::audit::AuditContext;
use muster_server::core::change::Decided;

use super::cast::{ONLINE, OPERATORS};
use super::controller::{Break, Controller};
use super::properties;
use super::stage::Scene;
use super::world::{Kept, World};

impl World {
    pub fn controller<'a>(&'a self, scene: &Scene) -> Controller<'a> {
        Controller { stored: &self.kept.memory, online: scene.cast.key(ONLINE), broken: scene.broken }
    }

    /// Applies the changes of a decision, all of them or none.
    pub fn keep(&mut self, scene: &Scene, mut changes: Vec<Change>) -> bool {
        let machine = &scene.cast.names[0];
        match scene.broken {
            Some(Break::KeepTokens) => changes.retain(|change| !matches!(change, Change::TokensEnded { .. })),
            Some(Break::KeepBearers) => {
                changes.retain(|change| !matches!(change, Change::BearersEnded { .. }));
            }
            Some(Break::ForgetCursor) => {
                changes.retain(|change| !matches!(change, Change::MachineChanged { .. }));
            }
            Some(Break::DropHandedOn)
                if changes.iter().any(|change| matches!(change, Change::RequestsHandedOn { .. })) =>
            {
                let ids = self.kept.memory.requests.keys().map(|(_, id)| *id).collect();
                changes.push(Change::RequestsDropped { machine: machine.clone(), ids });
            }
            _ => {}
        }
        if changes.is_empty() {
            return true;
        }
        let Ok(mut memory) = self.kept.memory.with(&changes) else { return false };
        if scene.broken == Some(Break::LogUnchained)
            && let Some(entry) = memory.log.entries.last_mut()
        {
            let entry = Rc::make_mut(entry);
            entry.hash = Sha256::of(entry.detail.as_bytes());
        }
        let before = std::mem::replace(&mut self.kept, Kept::new(memory));
        properties::of_changes(self, scene, &before.memory);
        true
    }

    /// As an operator; refused or not.
    pub fn operate<A, E>(
        &mut self,
        scene: &Scene,
        decide: impl FnOnce(&Controller<'_>, &AuditContext<'_>) -> Decided<Result<A, E>>,
    ) -> Option<A> {
        let operator = scene.cast.key(OPERATORS[0]);
        let context = AuditContext { operator: &operator, at: self.now() };
        let Decided { changes, answer } = decide(&self.controller(scene), &context);
        let kept = self.keep(scene, changes);
        answer.ok().filter(|_| kept)
    }
}
