//! Drafts: metadata that too few have signed yet, on its way from one signer to the next.
//!
//! Only TUF metadata is signed; a draft carries it. Whoever carries or stores a draft (the controller, a
//! mail server) gains nothing: a signature they drop has to be made again, and anything they change no
//! longer matches the signatures. The rest of a draft (who made it, when it ends) is for people.

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

/// The largest draft, in bytes: 10,000 generations of 2 KiB, with room to spare.
pub const MAX_DRAFT_BYTES: usize = 32 * 1024 * 1024;
/// The most generations in one draft.
pub const MAX_GENERATIONS: usize = 10_000;
/// How long a draft is kept, in seconds: two weeks.
pub const DRAFT_SECONDS: i64 = 14 * 86_400;

/// One act of signing that waits for more signatures. Unknown fields are ignored.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// The fleet (SHA-256 of `1.root.json`); a draft for another fleet is refused.
    pub fleet: Sha256,
    /// When it was made, in Unix milliseconds of its maker's clock. Not signed.
    #[serde(deserialize_with = "bounded::time")]
    pub made_at: UnixMillis,
    /// The key of whoever made it. Not signed, and no proof.
    pub made_by: PublicKey,
    /// When whoever stores it may delete it, in Unix seconds. What is signed has its own expiry.
    #[serde(deserialize_with = "bounded::seconds")]
    pub ends: i64,
    /// What is to be signed.
    #[serde(flatten)]
    pub what: Drafted,
}

/// What a draft carries.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Drafted {
    /// The next generations of some machines.
    Generations {
        /// One for each machine; 1 to [`MAX_GENERATIONS`].
        generations: Vec<DraftedGeneration>,
    },
    /// The next root, `N.root.json`.
    Root {
        /// The metadata, a text of JSON.
        root: String,
    },
}

/// One machine's generation in a draft.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftedGeneration {
    /// The machine it is for.
    pub machine: MachineName,
    /// The class of that machine.
    pub class: Class,
    /// The metadata with its signatures so far, and the target.
    #[serde(flatten)]
    pub publication: Publication,
}

/// Why something is not a draft, or not a draft of this fleet.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// It is not the JSON of a draft.
    #[error("this is not a draft: {0}")]
    Format(#[from] serde_json::Error),
    /// It was made for another fleet.
    #[error("the draft is of fleet {}, not of {}", found.short(), wanted.short())]
    OtherFleet {
        /// This fleet.
        wanted: Sha256,
        /// The draft's fleet.
        found: Sha256,
    },
    /// It holds no generations, too many, or two for one machine.
    #[error("the draft holds {0} generations; 1 to {MAX_GENERATIONS} are allowed, each for another machine")]
    Count(usize),
    /// The machine would refuse this generation even with all signatures.
    #[error("the draft's generation for {machine} is not sound: {source}")]
    Generation {
        /// The machine it is for.
        machine: MachineName,
        /// What is wrong with it.
        source: TufError,
    },
    /// Clients would refuse this root even with all signatures.
    #[error("the draft's root is not sound: {0}")]
    Root(TufError),
    /// The root does not follow the current one.
    #[error("the draft's root is version {found}; the next one is {wanted}: make it again")]
    RootVersion {
        /// The current version plus one.
        wanted: u64,
        /// The draft's version.
        found: u64,
    },
    /// Two copies differ in more than their signatures.
    #[error("the two drafts say different things")]
    Different,
}

/// How many signatures a draft has and needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Who has signed everything in it.
    pub signed: Vec<PublicKey>,
    /// How many signatures are missing. A root may need some from its old holders and some from its new
    /// ones.
    pub missing: u32,
}

impl Progress {
    fn of(signed: Vec<PublicKey>, threshold: u32) -> Self {
        let missing = threshold.saturating_sub(u32::try_from(signed.len()).unwrap_or(u32::MAX));
        Self { signed, missing }
    }
    /// Whether enough have signed.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }
}

impl Draft {
    /// Reads a draft. Nothing in it is checked yet; see [`Draft::check`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DraftError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// What people compare: a hash of what is signed. Adding signatures does not change it.
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

    /// Checks everything but the signatures: that these are generations their machines would accept, or the
    /// root that follows `root`. `now` is in Unix seconds. Comparing them with what a machine holds and
    /// builds is up to the caller.
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

    /// Which holders have signed, and how many more must.
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

    /// The same draft with one more signature on everything in it.
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

    /// This draft with the valid signatures of another copy added. Signatures by keys other than `root`'s
    /// holders (or, for a root, its own) are dropped.
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

/// The content of a draft that passed [`Draft::check`].
#[derive(Clone)]
pub enum Checked {
    /// One for each machine, in the draft's order.
    Generations(Vec<CheckedPublication>),
    /// The next root; its signatures are not checked.
    Root(Box<Root>),
}

/// `GET /v1/operator/drafts`: what waits for signatures. Unsigned: the CLI fetches the draft itself before
/// it signs.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftView {
    /// [`Draft::id`] of it.
    pub id: Sha256,
    /// What it carries.
    pub kind: DraftKind,
    /// When it was made, in Unix milliseconds.
    #[serde(deserialize_with = "bounded::time")]
    pub made_at: UnixMillis,
    /// The operator's key that sent it.
    pub made_by: PublicKey,
    /// When the controller deletes it, in Unix seconds.
    #[serde(deserialize_with = "bounded::seconds")]
    pub ends: i64,
    /// The machines it is for; empty for a root.
    pub machines: Vec<MachineName>,
    /// Who has signed everything in it.
    pub signed: Vec<PublicKey>,
    /// How many signatures are missing.
    pub missing: u32,
    /// Why it can no longer be signed, if so.
    #[serde(default)]
    pub void: Option<String>,
}

/// What kind of metadata a draft carries.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DraftKind {
    /// Generations of machines, for operators to sign.
    Generations,
    /// A root, for root holders to sign.
    Root,
}

#[cfg(test)]
mod tests;
