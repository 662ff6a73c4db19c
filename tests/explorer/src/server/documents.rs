//! What operators write and sign.

use muster_protocol::draft::{DRAFT_SECONDS, Draft, Drafted, DraftedGeneration};
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::keys::{Context, PublicKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::Publication;
use muster_protocol::request::{Asked, MachineRequest, SignedRequest};
use muster_protocol::tuf::repository::draft_generation;
use muster_server::core::rows::GenerationFiles;

use super::cast::{Cast, OPERATORS, START_S, target};
use super::machine::Content;

pub fn class(content: &Content) -> Class {
    if content.darwin { Class::Darwin } else { Class::Nixos }
}

/// The documents of a generation. Their signatures are left out: what is signed is what operators are known
/// to have signed.
pub fn publication(machine: &MachineName, content: &Content) -> Option<Publication> {
    let target = target(machine, class(content), content.generation, content.variant)?;
    let text = format!("{content:?}");
    Some(Publication {
        generation: content.generation,
        targets: text.clone(),
        snapshot: text,
        target: serde_json::to_string(&target).ok()?,
    })
}

pub fn files_of(publication: &Publication) -> GenerationFiles {
    GenerationFiles {
        targets: publication.targets.clone().into_bytes(),
        snapshot: publication.snapshot.clone().into_bytes(),
        target: publication.target.clone().into_bytes(),
    }
}

pub fn asked(cast: &Cast, key: PublicKey) -> MachineRequest {
    MachineRequest {
        fleet: cast.fleet,
        machine: cast.names[0].clone(),
        asked: Asked::RotateKey { key },
        made_at: START_S,
        ends: START_S + 86_400,
        nonce: String::new(),
    }
}

pub fn signed_by(cast: &Cast, key: u8, request: &MachineRequest) -> Option<SignedRequest> {
    let request = serde_json::to_string(request).ok()?;
    let signature = cast.secret(key).sign(Context::MachineRequest, request.as_bytes());
    Some(SignedRequest { request, key: cast.key(key), signature })
}

pub fn draft(cast: &Cast) -> Option<Draft> {
    let target = target(&cast.names[0], Class::Nixos, Generation::FIRST, 0)?;
    let publication = draft_generation(&target, START_S + 86_400).ok()?;
    let one = DraftedGeneration { machine: cast.names[0].clone(), class: Class::Nixos, publication };
    Some(Draft {
        fleet: cast.fleet,
        made_at: START_S * 1000,
        made_by: cast.key(OPERATORS[0]),
        ends: START_S + DRAFT_SECONDS,
        what: Drafted::Generations { generations: vec![one] },
    })
}
