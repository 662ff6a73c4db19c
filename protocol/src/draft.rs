//! Drafts: metadata that too few have signed yet, on its way from one signer to the next.
//!
//! What is signed is TUF metadata and nothing else; a draft only carries it. Whoever carries or stores a draft (the
//! controller, a mail server) gains nothing by it: a signature that is left out has to be made again, and anything that is
//! changed no longer fits the signatures. The rest of a draft (who made it, when it ends) is for people.

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::clock::UnixMillis;
use crate::ids::{MachineName, Sha256};
use crate::keys::{PublicKey, Signer};
use crate::machine::Class;
use crate::operator::Publication;
use crate::tuf::TufError;
use crate::tuf::metadata::{Role, Root};
use crate::tuf::repository::{
    CheckedPublication, add_signature, check_draft, merge_signatures, signed_by, signed_bytes,
};

/// The largest draft, in bytes: 10,000 generations of 2 KiB, and room.
pub const MAX_DRAFT_BYTES: usize = 32 * 1024 * 1024;
/// The most generations that one draft holds.
pub const MAX_GENERATIONS: usize = 10_000;
/// How long a draft is kept, in seconds: two weeks.
pub const DRAFT_SECONDS: i64 = 14 * 86_400;

/// One act of signing, waiting for more signatures. Additive: unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    pub fleet: Sha256,
    #[serde(deserialize_with = "bounded::time")]
    pub made_at: UnixMillis,
    pub made_by: PublicKey,
    /// When whoever stores it may forget it, in Unix seconds. The end of a signature stands in what is signed.
    #[serde(deserialize_with = "bounded::seconds")]
    pub ends: i64,
    #[serde(flatten)]
    pub what: Drafted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Drafted {
    /// The next generations of some machines.
    Generations { generations: Vec<DraftedGeneration> },
    /// The next root, `N.root.json`.
    Root { root: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftedGeneration {
    pub machine: MachineName,
    pub class: Class,
    #[serde(flatten)]
    pub publication: Publication,
}

/// Why a draft is none, or not one of this fleet's.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    #[error("this is no draft: {0}")]
    Format(#[from] serde_json::Error),
    #[error("the draft is of fleet {}, not of {}", found.short(), wanted.short())]
    OtherFleet { wanted: Sha256, found: Sha256 },
    #[error("the draft holds {0} generations; 1 to {MAX_GENERATIONS} are allowed, each for another machine")]
    Count(usize),
    #[error("the draft's generation for {machine} is not sound: {source}")]
    Generation { machine: MachineName, source: TufError },
    #[error("the draft's root is not sound: {0}")]
    Root(TufError),
    #[error("the draft's root is version {found}; the next one is {wanted}: make it anew")]
    RootVersion { wanted: u64, found: u64 },
    #[error("the two drafts say different things")]
    Different,
}

/// How far a draft is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Who has signed all of it.
    pub signed: Vec<PublicKey>,
    /// How many signatures are still missing; a root may want some of old and some of new holders.
    pub missing: u32,
}

impl Progress {
    fn of(signed: Vec<PublicKey>, threshold: u32) -> Self {
        let missing = threshold.saturating_sub(u32::try_from(signed.len()).unwrap_or(u32::MAX));
        Self { signed, missing }
    }
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }
}

impl Draft {
    pub fn parse(bytes: &[u8]) -> Result<Self, DraftError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// What people compare: the hash of what is signed. It stays the same however many have signed.
    pub fn id(&self) -> Result<Sha256, DraftError> {
        let mut all = b"muster-draft-v1\0".to_vec();
        let mut add = |bytes: &[u8]| all.extend_from_slice(Sha256::of(bytes).as_bytes());
        add(self.fleet.as_bytes());
        match &self.what {
            Drafted::Root { root } => add(&signed_bytes(root).map_err(DraftError::Root)?),
            Drafted::Generations { generations } => {
                for one in generations {
                    let broken = |source| DraftError::Generation { machine: one.machine.clone(), source };
                    add(&signed_bytes(&one.publication.targets).map_err(broken)?);
                    add(&signed_bytes(&one.publication.snapshot).map_err(broken)?);
                    add(one.publication.target.as_bytes());
                }
            }
        }
        Ok(Sha256::of(&all))
    }

    /// Everything but the signatures: whether these are generations that their machines would take, or the root that
    /// follows `root`. What a machine holds and builds is the caller's to compare.
    pub fn check(&self, fleet: &Sha256, root: &Root, now: i64) -> Result<Checked, DraftError> {
        if self.fleet != *fleet {
            return Err(DraftError::OtherFleet { wanted: *fleet, found: self.fleet });
        }
        match &self.what {
            Drafted::Root { root: text } => {
                let next = Root::draft(text.as_bytes()).map_err(DraftError::Root)?;
                let wanted = root.version().saturating_add(1);
                if next.version() != wanted {
                    return Err(DraftError::RootVersion { wanted, found: next.version() });
                }
                root.require_epoch_of(&next).map_err(DraftError::Root)?;
                Ok(Checked::Root(Box::new(next)))
            }
            Drafted::Generations { generations } => {
                let names: std::collections::BTreeSet<&MachineName> =
                    generations.iter().map(|one| &one.machine).collect();
                if generations.is_empty()
                    || generations.len() > MAX_GENERATIONS
                    || names.len() < generations.len()
                {
                    return Err(DraftError::Count(generations.len()));
                }
                let checked = generations.iter().map(|one| {
                    check_draft(root, &one.machine, one.class, &one.publication, now)
                        .map_err(|source| DraftError::Generation { machine: one.machine.clone(), source })
                });
                Ok(Checked::Generations(checked.collect::<Result<_, _>>()?))
            }
        }
    }

    /// Who of the holders has signed, and how many more must.
    pub fn progress(&self, root: &Root) -> Result<Progress, DraftError> {
        match &self.what {
            Drafted::Root { root: text } => {
                let next = Root::draft(text.as_bytes()).map_err(DraftError::Root)?;
                let of = |root: &Root| {
                    let signed = signed_by(text, &root.keys_of(Role::Root)).map_err(DraftError::Root)?;
                    Ok::<_, DraftError>(Progress::of(signed, root.threshold(Role::Root)))
                };
                let (old, new) = (of(root)?, of(&next)?);
                let mut signed = old.signed;
                signed.extend(new.signed.into_iter().filter(|key| !signed.contains(key)).collect::<Vec<_>>());
                Ok(Progress { signed, missing: old.missing.max(new.missing) })
            }
            Drafted::Generations { generations } => {
                let mut signed = root.keys_of(Role::Targets);
                for one in generations {
                    for document in [&one.publication.targets, &one.publication.snapshot] {
                        signed = signed_by(document, &signed).map_err(|source| DraftError::Generation {
                            machine: one.machine.clone(),
                            source,
                        })?;
                    }
                }
                Ok(Progress::of(signed, root.threshold(Role::Targets)))
            }
        }
    }

    /// The same draft with one signature more on everything in it.
    pub fn sign(&self, signer: &dyn Signer) -> Result<Self, TufError> {
        let mut signed = self.clone();
        match &mut signed.what {
            Drafted::Root { root } => *root = add_signature(root, signer)?,
            Drafted::Generations { generations } => {
                for DraftedGeneration { publication, .. } in generations {
                    publication.targets = add_signature(&publication.targets, signer)?;
                    publication.snapshot = add_signature(&publication.snapshot, signer)?;
                }
            }
        }
        Ok(signed)
    }

    /// This draft with the good signatures of another copy of it. Those that are not of `root`'s holders (or, for a root,
    /// of its own) are dropped.
    pub fn merge(&self, copy: &Self, root: &Root) -> Result<Self, DraftError> {
        let mut merged = self.clone();
        match (&mut merged.what, &copy.what) {
            (Drafted::Root { root: text }, Drafted::Root { root: other }) => {
                let mut keys = root.keys_of(Role::Root);
                keys.extend(Root::draft(text.as_bytes()).map_err(DraftError::Root)?.keys_of(Role::Root));
                *text = merge_signatures(text, other, &keys).map_err(DraftError::Root)?;
            }
            (Drafted::Generations { generations }, Drafted::Generations { generations: others }) => {
                if generations.len() != others.len() {
                    return Err(DraftError::Different);
                }
                let keys = root.keys_of(Role::Targets);
                for (one, other) in generations.iter_mut().zip(others) {
                    if one.machine != other.machine || one.publication.target != other.publication.target {
                        return Err(DraftError::Different);
                    }
                    let broken = |source| DraftError::Generation { machine: other.machine.clone(), source };
                    let (mine, theirs) = (&mut one.publication, &other.publication);
                    mine.targets = merge_signatures(&mine.targets, &theirs.targets, &keys).map_err(broken)?;
                    mine.snapshot =
                        merge_signatures(&mine.snapshot, &theirs.snapshot, &keys).map_err(broken)?;
                }
            }
            _ => return Err(DraftError::Different),
        }
        Ok(merged)
    }
}

/// What a draft says, once it is known to be sound.
#[derive(Clone)]
pub enum Checked {
    Generations(Vec<CheckedPublication>),
    Root(Box<Root>),
}

/// `GET /v1/operator/drafts`: what waits for signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftView {
    pub id: Sha256,
    pub kind: DraftKind,
    #[serde(deserialize_with = "bounded::time")]
    pub made_at: UnixMillis,
    pub made_by: PublicKey,
    #[serde(deserialize_with = "bounded::seconds")]
    pub ends: i64,
    /// The machines that it is for; none for a root.
    pub machines: Vec<MachineName>,
    pub signed: Vec<PublicKey>,
    pub missing: u32,
    /// Why it can no longer be signed, if so.
    #[serde(default)]
    pub void: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DraftKind {
    Generations,
    Root,
}

#[cfg(test)]
mod tests;
