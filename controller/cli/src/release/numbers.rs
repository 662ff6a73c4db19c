//! The number of each machine's next generation: counted from what the controller and the machine say, if
//! that fits what was seen signed.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use muster_protocol::ids::{Generation, IdError};
use muster_protocol::operator::MachineView;

use super::highest::{HighestSigned, Jump};
use crate::api::client::Api;
use crate::terminal::error::{self, Hint};
use crate::trust::roots::Trusted;

/// The machines that can be signed for.
pub struct Numbered<'a> {
    pub counted: Vec<(&'a MachineView, Generation)>,
    left_out: usize,
}

impl<'a> Numbered<'a> {
    /// A machine with an implausible number is reported and left out: it must not keep the others from their
    /// updates. An error if none is left.
    pub async fn of(
        api: &Api,
        trusted: &Trusted,
        highest: &mut HighestSigned,
        chosen: &[&'a MachineView],
        jump_to: Option<Generation>,
    ) -> Result<Self> {
        let (mut counted, mut refused) = (Vec::new(), Vec::new());
        for view in chosen {
            match view.next_generation(trusted.root.epoch()) {
                Ok(next) => counted.push((*view, next)),
                Err(error) => refused.push(beyond(view, error, highest)),
            }
        }
        let jumps = highest.refused(api, trusted, &counted, jump_to).await?;
        counted.retain(|(view, _)| !jumps.iter().any(|jump| jump.machine == view.machine));
        refused.extend(jumps.into_iter().map(Jump::into_error));
        if counted.is_empty()
            && let Some(last) = refused.pop()
        {
            refused.iter().for_each(error::print);
            return Err(last);
        }
        refused.iter().for_each(error::print);
        Ok(Self { counted, left_out: refused.len() })
    }

    /// The command's exit code: a failure if a machine was left out.
    pub fn or(&self, code: ExitCode) -> ExitCode {
        if self.left_out == 0 { code } else { ExitCode::FAILURE }
    }
}

/// The claim leaves no higher number.
fn beyond(view: &MachineView, error: IdError, highest: &HighestSigned) -> anyhow::Error {
    let published = view.published.as_ref().map_or(0, |published| published.target.generation.get());
    let claimed = published.max(view.holds.targets);
    let seen = highest.of(&view.machine).map_or_else(|| "none".to_owned(), |seen| seen.to_string());
    let what = format!(
        "the controller or the machine says that {} is at generation {claimed}, and the highest that was \
         seen signed here is {seen}",
        view.machine
    );
    let hint = "no machine takes such a number: find out who says it, the machine or the controller, and \
         sign nothing for it before";
    anyhow!(error).context(what).context(Hint(hint.to_owned()))
}
