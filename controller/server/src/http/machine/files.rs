//! The files of a machine's latest generation, sent along with the news of it.
//!
//! They must belong together and be no older than what the machine could have fetched before: it would call
//! them an attack. Where that is in doubt none are sent, and the machine fetches them.

use muster_protocol::checkin::{Files, MAX_SENT_BYTES, MAX_SENT_ROOTS, PollReply};
use muster_protocol::ids::MachineName;

use crate::http::problem::Refused;
use crate::http::state::{App, Shared};
use crate::roots::Chain;
use crate::wakers::Fresh;

/// The reply to a poll that waits for what was published now. `None` if another root is in force since: it
/// may have begun a new epoch, or have replaced the key of the timestamp.
pub fn reply(app: &App, fresh: &Fresh, wanted: Option<u64>) -> Option<PollReply> {
    let chain = app.services.roots.current();
    if chain.newest().version() != fresh.root {
        return None;
    }
    let publication = fresh.publication.clone();
    let files = wanted.and_then(|root| {
        let texts = [publication.targets, publication.snapshot, publication.target];
        together(&chain, root, fresh.timestamp.clone(), texts)
    });
    Some(PollReply { generation: Some(fresh.generation()), check_in: false, files })
}

/// The stored files of the latest generation, for a machine that trusts this version of the root.
pub async fn stored(app: &Shared, machine: &MachineName, root: u64) -> Result<Option<Box<Files>>, Refused> {
    let (services, now) = (&app.services, app.services.now_s());
    if root > services.roots.current().newest().version() {
        // Another controller has shown the machine a root that is not known here yet.
        services.roots.refresh().await?;
    }
    let chain = services.roots.current();
    if root > chain.newest().version() {
        return Ok(None);
    }
    let Ok(signer) = services.signer() else { return Ok(None) };
    let latest = services.store.latest(machine, chain.newest().epoch()).await?;
    let named = |key: &_| chain.may_sign_timestamps(key);
    // One that is to be signed again is signed when it is fetched.
    let Some(latest) = latest.filter(|latest| signer.is_good(&latest.timestamp, named, now)) else {
        return Ok(None);
    };
    if services.roots.current().newest().version() != chain.newest().version() {
        return Ok(None);
    }
    let texts = [latest.files.targets, latest.files.snapshot, latest.files.target].map(String::from_utf8);
    let [Ok(targets), Ok(snapshot), Ok(target)] = texts else { return Ok(None) };
    Ok(together(&chain, root, latest.timestamp.bytes, [targets, snapshot, target]))
}

fn together(
    chain: &Chain,
    root: u64,
    timestamp: Vec<u8>,
    [targets, snapshot, target]: [String; 3],
) -> Option<Box<Files>> {
    let timestamp = String::from_utf8(timestamp).ok()?;
    let newest = chain.newest().version();
    let (mut roots, mut left) = (Vec::new(), MAX_SENT_BYTES / 2);
    for version in root.saturating_add(1)..=newest {
        let file = chain.file(version).and_then(|file| std::str::from_utf8(file).ok());
        let Some(file) = file.filter(|file| roots.len() < MAX_SENT_ROOTS && file.len() <= left) else {
            break;
        };
        left -= file.len();
        roots.push(file.to_owned());
    }
    Files { root: newest, roots, timestamp, snapshot, targets, target }.if_small().map(Box::new)
}
