//! What the contact fetches for a rollout besides metadata: the plan that the target names, and, once the
//! controller gives leave, what proves that the gate is open. A failure delays nothing else.

use std::time::Duration;

use muster_protocol::api;
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::plan::{Gate, MAX_STATEMENTS_BYTES, Place, Plan, Statements};
use muster_protocol::report::Attack;

use super::chance::number;
use super::shared::Shared;
use super::turns::NOT_YET;
use crate::client::{Client, ClientError};
use crate::core::backoff::Backoff;
use crate::core::rollout::Says;
use crate::trust::{Trust, TrustError};

/// How long a plan is left alone that is the one signed, and wrong: only another target helps.
const SIGNED_SO: Duration = Duration::from_secs(3600);

#[derive(Default)]
pub(super) struct Errands {
    /// The target that all of this is about.
    about: Option<(Generation, Place)>,
    backoff: Backoff,
    /// In awake time, after a failure.
    not_before: Option<Duration>,
    /// The statements were fetched for the leave in force.
    asked: bool,
    /// The leave before the one in force lacked its proof.
    lacked: bool,
    /// What was refused, until it is right again, and of which plan.
    refused: Option<(Sha256, Attack)>,
    /// The last of these that was reported.
    reported: Option<(Sha256, Attack)>,
}

impl Errands {
    /// A check-in was answered: what the controller says of leave is new.
    pub fn heard(&mut self) {
        self.asked = false;
    }

    pub fn refused(&self) -> Option<Attack> {
        self.refused.map(|(_, attack)| attack)
    }

    /// When to try again what failed, in awake time.
    pub fn again(&self) -> Option<Duration> {
        self.not_before
    }

    /// Does what there is to do. Returns an attack that was not reported yet.
    pub async fn run(
        &mut self,
        trust: &mut Trust,
        shared: &Shared,
        client: &Client,
    ) -> Option<(Attack, String)> {
        let Some((place, generation)) = trust.held().and_then(|held| Some((held.rollout?, held.generation)))
        else {
            *self = Self { reported: self.reported, ..Self::default() };
            return None;
        };
        if self.about.replace((generation, place)) != Some((generation, place)) {
            // What was wrong with another target's plan delays nothing.
            (self.refused, self.not_before, self.backoff) = (None, None, Backoff::default());
            self.lacked = false;
            shared.turns.set_missing(NOT_YET.to_owned());
        }
        if self.not_before.is_some_and(|time| shared.clock.awake() < time) {
            return None;
        }
        self.not_before = None;
        if trust.lacks_plan() {
            tracing::debug!(plan = place.plan.short(), "fetching the plan of generation {generation}");
            let fetched = trust.fetch_plan(client).await;
            shared.turns.hold(trust);
            shared.wakes.wake_work();
            if let Err(error) = fetched {
                shared.turns.set_missing(error.to_string());
                let new =
                    self.failed(place.plan, error.attack(), error.to_string(), client_of(&error), shared);
                if error.is_final() {
                    self.not_before = Some(shared.clock.awake().saturating_add(SIGNED_SO));
                }
                return new;
            }
            self.backoff.succeeded();
            self.refused = None;
        }
        let (_, plan) = trust.plan()?;
        let held = trust.held()?;
        let turn = shared.turns.turn(&held, shared.clock.awake(), shared.clock.unix_ms())?;
        if turn.gate == Some(Gate::Open) || turn.says != Says::Go {
            // Either it is right now, or the controller no longer says anything else.
            self.refused = None;
            // Leave so short that it ends before it is said again is a lie like any other.
            self.lacked &= turn.says == Says::Lapsed && turn.gate != Some(Gate::Open);
            return None;
        }
        if self.asked {
            return None;
        }
        self.prove(place, &plan, shared, client).await
    }

    async fn prove(
        &mut self,
        place: Place,
        plan: &Plan,
        shared: &Shared,
        client: &Client,
    ) -> Option<(Attack, String)> {
        let path = api::statements_path(&place.plan, &shared.identity.machine, place.wave);
        let bytes = match client.get(&path, MAX_STATEMENTS_BYTES).await {
            Ok(bytes) => bytes,
            Err(error) => {
                let attack = matches!(error, ClientError::TooLarge { .. }).then_some(Attack::EndlessData);
                return self.failed(place.plan, attack, error.to_string(), Some(&error), shared);
            }
        };
        self.asked = true;
        self.backoff.succeeded();
        let read = bytes.map(|bytes| serde_json::from_slice::<Statements>(&bytes)).transpose();
        let statements = match read {
            Ok(read) => read.unwrap_or_default().statements,
            Err(error) => {
                let detail = format!("the statements of rollout {} cannot be read: {error}", plan.name);
                return self.refuse(place.plan, Attack::Malformed, detail);
            }
        };
        let gate = shared.turns.prove(place, plan, &statements);
        shared.wakes.wake_work();
        match gate {
            Gate::Open => {
                tracing::info!("the gate of its wave in rollout {} is open", plan.name);
                (self.refused, self.lacked) = (None, false);
                None
            }
            Gate::Closed(_) if !std::mem::replace(&mut self.lacked, true) => {
                // A statement may have been taken back since the controller gave leave. It is asked once
                // more, and called a liar when it says the same.
                shared.wakes.changed();
                None
            }
            Gate::Closed(lack) => {
                let detail = format!("the controller gave leave in rollout {}, but {lack}", plan.name);
                self.refuse(place.plan, Attack::SkippedWave, detail)
            }
        }
    }

    fn failed(
        &mut self,
        plan: Sha256,
        attack: Option<Attack>,
        detail: String,
        client: Option<&ClientError>,
        shared: &Shared,
    ) -> Option<(Attack, String)> {
        let wait = self.backoff.failed(number(), client.and_then(ClientError::retry_after));
        self.not_before = Some(shared.clock.awake().saturating_add(wait));
        tracing::debug!(wait_ms = wait.as_millis(), "{detail}");
        if client.is_some_and(ClientError::needs_new_bearer) {
            // A check-in brings a bearer before the next try.
            shared.wakes.changed();
        }
        self.refuse(plan, attack?, detail)
    }

    fn refuse(&mut self, plan: Sha256, attack: Attack, detail: String) -> Option<(Attack, String)> {
        self.refused = Some((plan, attack));
        (self.reported.replace((plan, attack)) != Some((plan, attack))).then_some((attack, detail))
    }
}

fn client_of(error: &TrustError) -> Option<&ClientError> {
    match error {
        TrustError::Client(error) => Some(error),
        _ => None,
    }
}
