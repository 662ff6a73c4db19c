//! What machines said of a rollout, as they signed it: the controller only passes it on, and can hide some.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use muster_protocol::api::{OPERATOR_SESSION, statements_path};
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::operator::Session;
use muster_protocol::plan::{Claim, MAX_STATEMENTS_BYTES, Plan, Said, Statement, Statements};

use crate::api::client::Api;
use crate::terminal::error::WithHint as _;

/// How many gates are asked for at once.
const AT_ONCE: usize = 8;

/// The most that each machine is proven to have said, and did not withdraw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proven(BTreeMap<MachineName, Said>);

impl Proven {
    /// What of these statements the plan's keys signed. Pure.
    pub fn of((hash, plan): (Sha256, &Plan), statements: &[Statement]) -> Self {
        let mut all: BTreeMap<(&MachineName, Said), bool> = BTreeMap::new();
        for Statement { machine, said, signature } in statements {
            let Some(voucher) = plan.voucher(machine) else { continue };
            all.entry((machine, *said))
                .or_insert_with(|| Claim { hash, plan, voucher, said: *said }.verify(signature).is_ok());
        }
        let mut proven = Self::default();
        // In the order of what counts most.
        for ((machine, said), _) in all.into_iter().filter(|(_, is_signed)| *is_signed) {
            match said {
                Said::Confirmed | Said::Soaked => drop(proven.0.insert(machine.clone(), said)),
                Said::Withdrawn => drop(proven.0.remove(machine)),
            }
        }
        proven
    }

    /// Whether this machine has said so; who has soaked has confirmed, too.
    pub fn has(&self, machine: &MachineName, said: Said) -> bool {
        match (self.0.get(machine), said) {
            (Some(Said::Soaked), Said::Soaked | Said::Confirmed) => true,
            (Some(most), said) => *most == said,
            (None, _) => false,
        }
    }

    /// Whether it is proven to have run what the plan gave it.
    pub fn ran(&self, machine: &MachineName) -> bool {
        self.has(machine, Said::Confirmed)
    }
}

/// Asks for the statements of every gate of the plan, as its machines do.
pub async fn proven(api: &Api, hash: Sha256, plan: &Plan) -> Result<Proven> {
    let session: Session = api.post(OPERATOR_SESSION, &()).await?;
    let later = plan.waves.iter().enumerate().skip(1);
    let gates = later.filter_map(|(number, wave)| Some((wave.members.first()?, number)));
    let mut statements = fetch(api, hash, &session, gates.collect()).await?;
    // Who comes first for a machine is heard at that machine's own gate.
    let known = Proven::of((hash, plan), &statements);
    let waves = plan.waves_of();
    let mut asked = BTreeSet::new();
    let first = plan.after.iter().filter(|after| !known.ran(&after.first) && asked.insert(&after.first));
    let gates = first.filter_map(|after| Some((&after.machine, *waves.get(&after.machine)?)));
    statements.extend(fetch(api, hash, &session, gates.collect()).await?);
    Ok(Proven::of((hash, plan), &statements))
}

async fn fetch(
    api: &Api,
    hash: Sha256,
    session: &Session,
    gates: Vec<(&MachineName, usize)>,
) -> Result<Vec<Statement>> {
    let most = usize::try_from(MAX_STATEMENTS_BYTES)?;
    let mut paths = Vec::new();
    for (machine, wave) in gates {
        paths.push(statements_path(&hash, machine, u32::try_from(wave)?));
    }
    let each = futures_util::stream::iter(paths).map(|path| async move {
        let bytes = api.file(&path, most, Some(&session.bearer)).await?;
        let Some(bytes) = bytes else { return Ok(Statements::default()) };
        serde_json::from_slice::<Statements>(&bytes)
            .with_context(|| format!("{path} is not what a controller says"))
            .hint("find out who holds the controller, and sign nothing before")
    });
    let found: Vec<Result<Statements>> = each.buffered(AT_ONCE).collect().await;
    let mut all = Vec::new();
    for statements in found {
        all.extend(statements?.statements);
    }
    Ok(all)
}

#[cfg(test)]
pub mod tests {
    use muster_protocol::keys::SecretKey;
    use serde_json::json;

    use super::*;
    use crate::release::rollout::work::tests::plan_of;

    pub fn of(all: &[(&str, Said)]) -> Proven {
        Proven(all.iter().map(|(name, said)| (name.parse().unwrap(), *said)).collect())
    }

    #[test]
    fn only_what_a_key_of_the_plan_signed_and_nobody_withdrew_is_proven() {
        let mut plan = plan_of(
            &json!({ "waves": [{ "name": "a", "machines": ["tin", "lead", "zinc"] }] }),
            &["tin", "lead", "zinc", "iron"],
        );
        let keys = [(); 3].map(|()| SecretKey::generate().unwrap());
        for (voucher, key) in plan.waves[0].vouchers.iter_mut().zip(&keys) {
            voucher.key = key.public();
        }
        let hash = Sha256::of(&plan.to_bytes().unwrap());
        let said = |number: usize, said, hash, key: &SecretKey| {
            let voucher = &plan.waves[0].vouchers[number];
            let signature = Claim { hash, plan: &plan, voucher, said }.sign(key);
            Statement { machine: voucher.machine.clone(), said, signature }
        };
        let names: Vec<_> = plan.waves[0].vouchers.iter().map(|voucher| &voucher.machine).collect();
        let found = Proven::of(
            (hash, &plan),
            &[
                said(0, Said::Confirmed, hash, &keys[0]),
                said(0, Said::Soaked, hash, &keys[0]),
                // By another machine's key, and of another plan.
                said(1, Said::Soaked, hash, &keys[0]),
                said(1, Said::Confirmed, Sha256::of(b"another"), &keys[1]),
                said(2, Said::Withdrawn, hash, &keys[2]),
                said(2, Said::Soaked, hash, &keys[2]),
            ],
        );
        assert!(found.has(names[0], Said::Soaked) && found.ran(names[0]));
        assert!(!found.ran(names[1]) && !found.ran(names[2]));
        let confirmed = Proven::of((hash, &plan), &[said(1, Said::Confirmed, hash, &keys[1])]);
        assert!(confirmed.ran(names[1]) && !confirmed.has(names[1], Said::Soaked));
    }
}
