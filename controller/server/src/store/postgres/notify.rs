//! What one controller tells the others: which machines have news. It is sent with the commit, in as few
//! notifications as fit, and only where somebody may be waiting: a check-in or a report sends none.

use std::collections::BTreeSet;

use muster_protocol::ids::MachineName;
use sqlx::PgConnection;

use super::columns::query;
use crate::core::change::Change;
use crate::store::error::StoreError;

pub const CHANNEL: &str = "muster";
/// PostgreSQL refuses payloads of 8000 bytes.
const MOST_BYTES: usize = 7_900;
/// Beyond this many notifications of one transaction, everybody looks at everything.
const MOST: usize = 64;
/// The payload that says so. No machine has this name.
pub const EVERYTHING: &str = "*";

pub async fn announce(sql: &mut PgConnection, changes: &[Change]) -> Result<(), StoreError> {
    for payload in payloads(&concerned(changes)) {
        send(sql, &payload).await?;
    }
    Ok(())
}

pub async fn everything(sql: &mut PgConnection) -> Result<(), StoreError> {
    send(sql, EVERYTHING).await
}

async fn send(sql: &mut PgConnection, payload: &str) -> Result<(), StoreError> {
    query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(payload).execute(sql).await?;
    Ok(())
}

/// The machines that may be waiting for one of these, or that are believed in memory.
fn concerned(changes: &[Change]) -> BTreeSet<&MachineName> {
    let concerned = changes.iter().filter_map(|change| match change {
        Change::Published { machine, .. }
        | Change::MachineRevoked { machine, .. }
        | Change::RequestKept { machine, .. }
        | Change::KeyReplaced { machine, .. } => Some(machine),
        Change::TurnChanged(new) if new.rings => Some(&new.machine),
        Change::MachineInvited(invited) => Some(&invited.machine),
        Change::Enrolled(enrolled) => Some(&enrolled.machine),
        _ => None,
    });
    concerned.collect()
}

fn payloads(machines: &BTreeSet<&MachineName>) -> Vec<String> {
    let mut payloads: Vec<String> = Vec::new();
    for machine in machines {
        match payloads.last_mut() {
            Some(last) if last.len() + 1 + machine.as_str().len() <= MOST_BYTES => {
                last.push(' ');
                last.push_str(machine.as_str());
            }
            _ => payloads.push(machine.as_str().to_owned()),
        }
    }
    if payloads.len() > MOST { vec![EVERYTHING.to_owned()] } else { payloads }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_machines_fit_into_few_notifications_and_very_many_into_one() {
        let names = |count: usize| -> Vec<MachineName> {
            (0..count).map(|n| format!("a-machine-with-a-rather-long-name-{n:08}").parse().unwrap()).collect()
        };
        let few = names(500);
        let told = payloads(&few.iter().collect());
        assert!(told.len() == 3 && told.iter().all(|payload| payload.len() < 8_000), "{}", told.len());
        let heard: Vec<&str> = told.iter().flat_map(|payload| payload.split(' ')).collect();
        assert_eq!(heard, few.iter().map(MachineName::as_str).collect::<Vec<_>>());
        assert_eq!(payloads(&names(20_000).iter().collect()), ["*"]);
        assert!(payloads(&BTreeSet::new()).is_empty());
    }
}
