//! Whether a log was cut as it says. A controller that hides entries would call the rest a cut too; so the
//! entry about a cut keeps the request that an operator signed, and no anchor is believed without it.

use std::collections::BTreeSet;

use anyhow::Result;
use muster_protocol::audit::{CUT_DAYS, Checkpoint, Entry};
use muster_protocol::clock::{Clock as _, UnixMillis};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::PublicKey;
use muster_protocol::signed_cut::SignedCut;

use super::beginning::{Cut, Proven, Why};
use super::follow::{self, Followed};
use super::seen::Seen;
use crate::api::client::Api;
use crate::config::Config;
use crate::trust::roots;

const CUT_MS: i64 = CUT_DAYS * 86_400_000;
/// How far the controller's clock and this one may be apart.
const CLOCKS_MS: i64 = 3_600_000;

/// Walks along the controller's log, from the entry `from` on (0: from where it begins), and finds out
/// whether it was cut as it says.
pub async fn follow(
    api: &Api,
    config: &Config,
    seen: Option<&Seen>,
    from: u64,
    wanted: &BTreeSet<u64>,
    each: &mut dyn FnMut(&Entry),
) -> Result<Followed> {
    let mut found = follow::walk(api, &config.file.fleet, from, wanted, each).await?;
    found.cut = judge(api, config, seen, &found).await?;
    Ok(found)
}

/// Whether the log that was found was cut as it says.
async fn judge(api: &Api, config: &Config, seen: Option<&Seen>, found: &Followed) -> Result<Cut> {
    if matches!(found.cut, Cut::Whole) {
        return Ok(Cut::Whole);
    }
    if let Some(before) = seen.and_then(|seen| seen.cut.as_ref()).filter(|cut| cut.at_entry == found.anchor) {
        return Ok(Cut::Proven(Box::new(before.clone())));
    }
    if let Some(why) = young(seen, found.anchor.id, api.clock.unix_ms()) {
        return Ok(Cut::Unproven(why));
    }
    let fleet = &config.file.fleet;
    let told = match &found.told {
        Some(told) => Some(told.clone()),
        None => earlier(api, fleet, found).await?,
    };
    let Some(told) = told else { return Ok(Cut::Unproven(Why::Untold)) };
    let trusted = roots::follow(api, config).await?;
    let now = proven(&told, &found.anchor, fleet, &trusted.operators().0);
    Ok(match now {
        Cut::Unproven(_) => {
            let ever = roots::operators_ever(api, config, &trusted).await?;
            proven(&told, &found.anchor, fleet, &ever)
        }
        now => now,
    })
}

/// The entry about the cut, where the walk began after it. It must lie in the same log.
async fn earlier(api: &Api, fleet: &Sha256, found: &Followed) -> Result<Option<Entry>> {
    let wanted: BTreeSet<u64> = found.head.iter().map(|head| head.id).collect();
    let whole = follow::walk(api, fleet, 0, &wanted, &mut |_| ()).await?;
    let is_same = found.head.is_none_or(|head| whole.known.get(&head.id) == Some(&head.hash));
    Ok(whole.told.filter(|_| is_same && whole.anchor == found.anchor))
}

fn proven(told: &Entry, anchor: &Checkpoint, fleet: &Sha256, operators: &[PublicKey]) -> Cut {
    let signed = SignedCut::of(told).filter(|cut| cut.asked.through == *anchor && cut.is_signed(fleet));
    match signed.filter(|cut| operators.contains(&cut.signature.key)) {
        None => Cut::Unproven(Why::Forged(told.id)),
        Some(cut) => Cut::Proven(Box::new(Proven {
            at_entry: *anchor,
            by: Some(cut.signature.key),
            at: cut.signature.at.saturating_mul(1000),
        })),
    }
}

/// What was seen lately cannot have been cut yet: the controller keeps entries for [`CUT_DAYS`].
fn young(seen: Option<&Seen>, anchor: u64, now: UnixMillis) -> Option<Why> {
    let seen = seen.filter(|seen| seen.at.id <= anchor)?;
    let made = seen.made?;
    (now < made.saturating_add(CUT_MS - CLOCKS_MS)).then_some(Why::Young(seen.at.id, made))
}

#[cfg(test)]
mod tests {
    use muster_protocol::api::OPERATOR_AUDIT_CUT;
    use muster_protocol::audit::{CutLog, LOG_CUT};
    use muster_protocol::keys::SecretKey;
    use muster_protocol::operator::{Request, RequestSignature};

    use super::*;

    #[test]
    fn a_cut_is_believed_only_with_the_request_that_an_operator_signed() {
        let (alice, mallory) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let (fleet, anchor) = (Sha256::of(b"fleet"), Checkpoint { id: 7, hash: Sha256::of(b"seven") });
        let entry = |key: &SecretKey, through| {
            let asked = CutLog { through, holds: Sha256::of(b"held"), export: Sha256::of(b"file") };
            let body = serde_json::to_vec(&asked).unwrap();
            let request = Request { audience: &fleet, method: "POST", path: OPERATOR_AUDIT_CUT, body: &body };
            let signature = RequestSignature::make(key, request, 1_700_000_000, [7; 16]);
            let (by, action) = (Some(key.public()), LOG_CUT.to_owned());
            let detail = SignedCut { asked, signature }.detail();
            Entry { id: 9, at: 5, by, action, machine: None, detail, hash: anchor.hash }
        };
        let judged = |told: &Entry| proven(told, &anchor, &fleet, &[alice.public()]);
        let by = Some(alice.public());
        let good = Proven { at_entry: anchor, by, at: 1_700_000_000_000 };
        assert_eq!(judged(&entry(&alice, anchor)), Cut::Proven(Box::new(good)));
        let forged = Cut::Unproven(Why::Forged(9));
        assert_eq!(judged(&entry(&mallory, anchor)), forged, "no operator");
        assert_eq!(judged(&Entry { by, ..entry(&mallory, anchor) }), forged, "in another's name");
        assert_eq!(judged(&entry(&alice, Checkpoint { id: 6, ..anchor })), forged, "another cut");
    }

    #[test]
    fn what_was_seen_lately_was_not_cut() {
        const DAY: i64 = 86_400_000;
        let at = Checkpoint { id: 7, hash: Sha256::of(b"seven") };
        let seen = Seen { made: Some(100 * DAY), ..Seen::of(at) };
        let young = |anchor, days: i64| young(Some(&seen), anchor, days * DAY);
        assert_eq!(young(7, 101), Some(Why::Young(7, 100 * DAY)), "the very entry");
        assert_eq!(young(9, 101), Some(Why::Young(7, 100 * DAY)), "and more");
        assert_eq!(young(6, 101), None, "entries before it");
        assert_eq!(young(7, 130), None, "it is old");
        assert_eq!(super::young(Some(&Seen::of(at)), 7, 0), None, "nobody noted when it was made");
    }
}
