//! Garbage collection in the cache: what no signed generation, no draft and no recent upload needs is first
//! condemned and then removed ([`crate::core::garbage`] has the rule).
//!
//! Memory grows with what is needed, 64 bytes a path, and never with what the cache holds: that is listed in
//! a stream, three times (what came recently, then descriptions, then archives).

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use futures_util::{StreamExt as _, TryStreamExt as _};
use muster_protocol::cache::{Collect, Collection, Found};
use muster_protocol::clock::UnixMillis;
use muster_protocol::draft::Drafted;
use muster_protocol::ids::Sha256;
use muster_protocol::keys::PublicKey;
use muster_protocol::narinfo::{MAX_NARINFO_BYTES, NarFile, Narinfo, is_base32};
use muster_protocol::target::Target;
use tokio::sync::watch;

use crate::core::audit::AuditContext;
use crate::core::garbage::grace;
use crate::services::Services;
use crate::store::blobs::{BlobError, Listed};
use crate::store::{NeededPage, StoreError};

/// How many descriptions are read at the same time.
const READERS: usize = 16;
/// How many files one transaction decides about.
const AT_ONCE: usize = 100;

#[derive(Debug, thiserror::Error)]
enum CollectError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error("a stored target cannot be read, so nobody knows what it needs: {0}")]
    Target(serde_json::Error),
}

/// Starts a run, or joins the one that is under way. It goes on if nobody waits for it.
pub fn start(services: &Arc<Services>, asked: Collect, by: PublicKey) -> watch::Receiver<Collection> {
    let mut running = services.collecting.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = running.as_ref().filter(|running| !running.borrow().ended) {
        return running.clone();
    }
    let began_at = services.now();
    let begun = Collection { asked, began_at, ended: false, failed: None, found: Found::default() };
    let (told, run) = watch::channel(begun);
    *running = Some(run.clone());
    tokio::spawn(whole(services.clone(), asked, by, told));
    run
}

/// The newest run, if there was one since the controller started.
pub fn newest(services: &Services) -> Option<watch::Receiver<Collection>> {
    services.collecting.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

async fn whole(services: Arc<Services>, asked: Collect, by: PublicKey, told: watch::Sender<Collection>) {
    let now = services.now();
    let mut run = Run { services: &services, asked, now, told: &told, found: Found::default() };
    let ended = run.collect().await;
    let found = run.found;
    let failed = ended.err().map(|error| error.to_string());
    if let Some(error) = &failed {
        tracing::error!("the cache's garbage was not collected to the end: {error}");
    }
    if !asked.dry_run {
        let detail = format!(
            "keep {} days: {} condemned, {} removed, {} bytes{}",
            asked.keep_days,
            found.condemned,
            found.removed,
            found.removed_bytes,
            if failed.is_some() { ", ended early" } else { "" }
        );
        let context = AuditContext { operator: &by, at: services.now() };
        if let Err(error) = services.store.collected(&detail, &context).await {
            tracing::error!("the end of a collection could not be logged: {error}");
        }
        tracing::info!(operator = by.short(), "the cache's garbage was collected: {detail}");
    }
    told.send_modify(|told| {
        told.found = found;
        told.failed = failed;
        told.ended = true;
    });
}

struct Run<'a> {
    services: &'a Services,
    asked: Collect,
    now: UnixMillis,
    told: &'a watch::Sender<Collection>,
    found: Found,
}

/// What must stay: the hashes of paths, and of archives in Nix's base 32.
#[derive(Default)]
struct Needed {
    paths: BTreeSet<[u8; 32]>,
    archives: BTreeSet<[u8; 52]>,
}

impl Needed {
    fn has(&self, name: &str) -> bool {
        match Kind::of(name) {
            Some(Kind::Description(hash)) => self.paths.contains(&hash),
            Some(Kind::Archive(hash)) => self.archives.contains(&hash),
            None => true,
        }
    }
}

/// A file of the cache; whatever else lies beside it is left alone.
enum Kind {
    Description([u8; 32]),
    Archive([u8; 52]),
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        if let Some(file) = name.strip_prefix("nar/").and_then(NarFile::parse) {
            return file.hash().as_bytes().try_into().ok().map(Self::Archive);
        }
        let hash = name.strip_suffix(".narinfo").filter(|hash| is_base32(hash, 32))?;
        hash.as_bytes().try_into().ok().map(Self::Description)
    }
}

impl Run<'_> {
    async fn collect(&mut self) -> Result<(), CollectError> {
        let mut roots = self.signed().await?;
        // Whatever came recently may be about to be published, with all that it refers to.
        let mut listed = self.services.blobs.list().await;
        while let Some(file) = listed.try_next().await? {
            if let Some(Kind::Description(hash)) = Kind::of(&file.name)
                && file.modified > grace(self.now)
            {
                roots.insert(hash);
            }
        }
        let needed = self.closure(roots).await?;
        self.found.needed = (needed.paths.len() + needed.archives.len()) as u64 - self.found.missing;
        self.tell();
        if !self.asked.dry_run {
            self.spare(&needed).await?;
        }
        // A description is removed before its archive, so that none promises what is gone.
        self.sweep(&needed, |kind| matches!(kind, Kind::Description(_))).await?;
        self.sweep(&needed, |kind| matches!(kind, Kind::Archive(_))).await?;
        let blobs = &self.services.blobs;
        self.found.unfinished = blobs.remove_unfinished(grace(self.now), self.asked.dry_run).await?;
        Ok(())
    }

    fn tell(&self) {
        self.told.send_modify(|told| told.found = self.found);
    }

    /// The paths that signed generations and drafts name.
    async fn signed(&mut self) -> Result<BTreeSet<[u8; 32]>, CollectError> {
        let (mut roots, mut seen) = (BTreeSet::new(), BTreeSet::new());
        // Whether it is one that was not counted yet.
        let mut take = |target: &[u8]| -> Result<bool, CollectError> {
            let is_new = seen.insert(Sha256::of(target));
            let target: Target = serde_json::from_slice(target).map_err(CollectError::Target)?;
            for path in [&target.derivation, &target.output] {
                roots.extend(<[u8; 32]>::try_from(path.hash_part().as_bytes()).ok());
            }
            Ok(is_new)
        };
        let since = self.now.saturating_sub(i64::from(self.asked.keep_days) * 86_400_000);
        let mut page = NeededPage::default();
        loop {
            page = self.services.store.needed(since, &page).await?;
            for target in &page.targets {
                take(target)?;
            }
            self.found.generations += page.targets.len() as u64;
            if page.after.is_none() {
                break;
            }
        }
        // `muster rollback` may go back to any of these.
        let mut after = None;
        while let Some((last, targets)) = self.services.store.confirmed(after.as_ref()).await? {
            for target in &targets {
                self.found.generations += u64::from(take(target)?);
            }
            after = Some(last);
        }
        for stored in self.services.store.drafts(self.now.div_euclid(1000)).await? {
            if let Drafted::Generations { generations } = &stored.draft.what {
                self.found.generations += generations.len() as u64;
                generations.iter().try_for_each(|one| take(one.publication.target.as_bytes()).map(drop))?;
            }
        }
        Ok(roots)
    }

    /// Everything that these paths refer to. What the cache does not have is counted and left out; a
    /// description that cannot be read now ends the run.
    async fn closure(&mut self, roots: BTreeSet<[u8; 32]>) -> Result<Needed, CollectError> {
        let mut needed = Needed::default();
        let mut next: Vec<[u8; 32]> = roots.iter().copied().collect();
        needed.paths = roots;
        while !next.is_empty() {
            let services = self.services;
            let reads = next.drain(..).map(|hash| describe(services, hash));
            let mut reads = futures_util::stream::iter(reads).buffer_unordered(READERS);
            let mut found = Vec::new();
            while let Some(described) = reads.try_next().await? {
                match described {
                    None => self.found.missing += 1,
                    Some(info) => {
                        needed.archives.extend(<[u8; 52]>::try_from(info.file.hash().as_bytes()).ok());
                        for name in info.references.split(' ') {
                            let hash = name.as_bytes().get(..32).and_then(|hash| hash.try_into().ok());
                            found.extend(hash.filter(|hash| needed.paths.insert(*hash)));
                        }
                    }
                }
            }
            drop(reads);
            next = found;
        }
        Ok(needed)
    }

    /// Takes the mark from whatever is needed after all.
    async fn spare(&mut self, needed: &Needed) -> Result<(), CollectError> {
        let mut after = String::new();
        loop {
            let names = self.services.store.marked(&after, AT_ONCE as u32).await?;
            let Some(last) = names.last() else { return Ok(()) };
            after.clone_from(last);
            let spared: Vec<String> = names.into_iter().filter(|name| needed.has(name)).collect();
            if !spared.is_empty() {
                self.services.store.spare(&spared).await?;
            }
        }
    }

    async fn sweep(&mut self, needed: &Needed, of: impl Fn(&Kind) -> bool) -> Result<(), CollectError> {
        let mut batch: Vec<Listed> = Vec::new();
        let mut listed = self.services.blobs.list().await;
        while let Some(file) = listed.try_next().await? {
            if !Kind::of(&file.name).is_some_and(|kind| of(&kind)) || needed.has(&file.name) {
                continue;
            }
            if file.modified > grace(self.now) {
                self.found.recent += 1;
                continue;
            }
            batch.push(file);
            if batch.len() == AT_ONCE {
                self.judge(&std::mem::take(&mut batch)).await?;
            }
        }
        self.judge(&batch).await
    }

    /// Condemns or removes these files, which nothing needs.
    async fn judge(&mut self, files: &[Listed]) -> Result<(), CollectError> {
        if files.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
        // The time of the decision, not of the run's beginning: a run may take long.
        let now = self.services.now();
        let store = &self.services.store;
        let sentence = match self.asked.dry_run {
            true => store.dry_sentence(&names, now).await?,
            false => store.sentence(&names, now).await?,
        };
        let bytes = |names: &[String]| -> u64 {
            files.iter().filter(|file| names.contains(&file.name)).map(|file| file.size).sum()
        };
        let found = &mut self.found;
        found.condemned += sentence.condemned.len() as u64;
        found.condemned_bytes += bytes(&sentence.condemned);
        found.waiting += sentence.waiting.len() as u64;
        found.waiting_bytes += bytes(&sentence.waiting);
        if !self.asked.dry_run {
            for name in &sentence.removed {
                self.services.blobs.remove(name).await?;
            }
            if !sentence.removed.is_empty() {
                store.removed(&sentence.removed).await?;
            }
        }
        self.found.removed += sentence.removed.len() as u64;
        self.found.removed_bytes += bytes(&sentence.removed);
        self.tell();
        Ok(())
    }
}

/// `None` if the cache does not have it, or what it has is no description: then it refers to nothing.
async fn describe(services: &Services, hash: [u8; 32]) -> Result<Option<Narinfo>, BlobError> {
    let Ok(hash) = std::str::from_utf8(&hash) else { return Ok(None) };
    let Some(found) = services.blobs.read(&format!("{hash}.narinfo")).await? else { return Ok(None) };
    let mut stream = found.stream;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.try_next().await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_NARINFO_BYTES {
            return Ok(None);
        }
    }
    Ok(Narinfo::parse(&bytes).ok())
}
