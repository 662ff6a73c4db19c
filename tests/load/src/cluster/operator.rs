//! An operator who publishes generation after generation, each with its archive, until it is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, bail};
use muster_protocol::api;
use muster_protocol::ids::MachineName;

use super::agent::Run;
use tokio::time::Instant;

use super::blobs;
use super::controllers::Controllers;
use super::dice::Dice;
use super::speed::What;
use crate::fleet::Fleet;

const LIMIT: Duration = Duration::from_secs(12);
const PAUSE_MS: usize = 200;

/// Publishes to machines at random. Returns the highest generation of each that a controller said to have
/// stored.
pub async fn publish(
    fleet: Arc<Fleet>,
    controllers: Arc<Controllers>,
    names: Vec<MachineName>,
    run: Arc<Run>,
    mut dice: Dice,
) -> Result<BTreeMap<MachineName, u64>> {
    let mut published: BTreeMap<MachineName, u64> = BTreeMap::new();
    let mut bearer = String::new();
    while !run.ends.load(Ordering::Relaxed) {
        let Some(name) = names.get(dice.below(names.len())) else { bail!("there are no machines") };
        let number = published.get(name).map_or(1, |last| last + 1);
        upload(&fleet, &controllers, &run, name, number, &mut bearer, &mut dice).await?;
        let publication = fleet.generation(name, number)?;
        let path = format!("{}/generations", api::operator_machine(name));
        run.speed.sends(name, number);
        // Once it is signed it goes out: another one under its number would be an attack to the machine.
        loop {
            let request = fleet.signed("POST", &path, serde_json::to_vec(&publication)?)?;
            let asked = Instant::now();
            let answer = match controllers.connect(&mut dice).await {
                Some(mut connection) => {
                    tokio::time::timeout(LIMIT, connection.send(request)).await.ok().and_then(Result::ok)
                }
                None => None,
            };
            match answer {
                Some(answer) if answer.status == 200 => {
                    run.speed.took(What::Publication, asked.elapsed());
                    break;
                }
                Some(answer) if answer.status < 500 && answer.status != 429 => bail!(
                    "generation {number} of {name} was refused with {}: {}",
                    answer.status,
                    String::from_utf8_lossy(&answer.body)
                ),
                _ => tokio::time::sleep(dice.up_to_ms(PAUSE_MS)).await,
            }
        }
        published.insert(name.clone(), number);
        tokio::time::sleep(dice.up_to_ms(PAUSE_MS)).await;
    }
    Ok(published)
}

/// Uploads the archive of a generation until that is answered.
async fn upload(
    fleet: &Fleet,
    controllers: &Controllers,
    run: &Run,
    name: &MachineName,
    number: u64,
    bearer: &mut String,
    dice: &mut Dice,
) -> Result<()> {
    let archive = blobs::archive(name, number);
    loop {
        if let Some(mut connection) = controllers.connect(dice).await {
            if bearer.is_empty() {
                let asked = tokio::time::timeout(LIMIT, blobs::bearer(fleet, &mut connection)).await;
                *bearer = asked.ok().and_then(Result::ok).unwrap_or_default();
            }
            let asked = Instant::now();
            let request = blobs::put(archive.clone(), bearer)?;
            match tokio::time::timeout(LIMIT, connection.send(request)).await {
                Ok(Ok(answer)) if answer.status == 201 => {
                    run.speed.took(What::Upload, asked.elapsed());
                    return Ok(());
                }
                Ok(Ok(answer)) if answer.status == 401 => bearer.clear(),
                Ok(Ok(answer)) if answer.status < 500 && answer.status != 429 => bail!(
                    "the archive of generation {number} of {name} was refused with {}: {}",
                    answer.status,
                    String::from_utf8_lossy(&answer.body)
                ),
                _ => {}
            }
        }
        tokio::time::sleep(dice.up_to_ms(PAUSE_MS)).await;
    }
}
