//! `muster rollout undo`: stops it, and signs for whoever began what they ran before.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::operator::{AskRollout, MachineView, RolloutState, RolloutView, Wish};

use super::ask::ask;
use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::rollouts::{self, Among};
use crate::release::rollback::choice::{NoWay, Wanted};
use crate::release::rollback::performed::{Performed, Terms, perform};
use crate::release::rollout::undo::{Undo as Selected, selected};
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;
use crate::trust::roots;

#[derive(Debug, Args)]
pub struct Undo {
    name: String,
    #[command(flatten)]
    terms: Terms,
}

impl Undo {
    pub async fn run(self, config: &Config) -> Result<ExitCode> {
        let api = self.terms.signing.api(config)?;
        let view = rollouts::find(&api, &self.name, Among::Newest).await?;
        let is_over = matches!(view.state, RolloutState::Stopped | RolloutState::Superseded);
        let view = match (is_over, self.terms.signing.dry_run) {
            (true, _) => view,
            (false, true) => {
                say!("{} ({}) would be stopped.", view.name, view.plan.short());
                view
            }
            // At once, before anything is asked or signed.
            (false, false) => {
                let why = self.terms.message.clone();
                let view = ask(&api, &view, &AskRollout { wish: Wish::Stop, forgive: false, why }).await?;
                say!("{} ({}) is stopped: it begins on no further machine.", view.name, view.plan.short());
                view
            }
        };
        let performed = self.bring_back(config, &api, &view, is_over).await;
        if !is_over && !self.terms.signing.dry_run {
            tell_open(&view, &performed);
        }
        Ok(performed?.map_or(ExitCode::SUCCESS, |performed| performed.code))
    }

    /// `None` if stopping it was enough. An error if nothing is left to do.
    async fn bring_back(
        &self,
        config: &Config,
        api: &Api,
        view: &RolloutView,
        is_over: bool,
    ) -> Result<Option<Performed>> {
        let trusted = roots::follow(api, config).await?;
        trusted.require_operator(&api.public()?)?;
        let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
        let Selected { back, stay, left } = selected(view, &machines);
        if !stay.is_empty() {
            say!("stay as they are, and wait for what is published next: {}", listed(&stay));
        }
        if !left.is_empty() {
            say!("have another generation already: {}", listed(&left));
        }
        if !back.is_empty() {
            let wanted = (&back[..], Wanted::Before(view.plan));
            return perform(config, api, &trusted, wanted, &self.terms).await.map(Some);
        }
        if is_over {
            return Err(anyhow!(
                "{} is {} already, and no machine runs what it brought",
                view.name,
                view.state.as_str()
            ))
            .hint("nothing is left to undo; `muster update` publishes what its machines should run");
        }
        say!("No machine of {} has begun: nothing is to be signed.", view.name);
        Ok(None)
    }
}

/// What was begun and not ended.
fn tell_open(view: &RolloutView, performed: &Result<Option<Performed>>) {
    let stays = format!("{} stays stopped, and what it brought still runs", view.name);
    match performed {
        Ok(None | Some(Performed { is_signed: true, .. })) => {}
        // To repeat it would end there again.
        Err(error) if error.is::<NoWay>() => tell!("{stays}."),
        _ => tell!("{stays}: `muster rollout undo {}` goes on.", view.plan.short()),
    }
}
