//! Pushes derivations to the controller's cache, before anything is signed.

use anyhow::{Context as _, Result};
use muster_protocol::api::OPERATOR_SESSION;
use muster_protocol::operator::Session;
use muster_protocol::target::Target;

use crate::api::client::Api;
use crate::flake::derivations::Derivations;
use crate::flake::push;
use crate::terminal::error::Hint;
use crate::terminal::spinner::spinner;

/// What to do about a failed push, judging by Nix's message.
fn push_hint(message: &str) -> &'static str {
    match message {
        message if message.contains("HTTP error 413") => {
            "a file of it is larger than the server at that address accepts: raise nar_bytes under [limits] \
             in controller.toml, or the limit of the proxy before it (client_max_body_size of nginx), then \
             run the command again"
        }
        message if message.contains("HTTP error 507") => {
            "make room on the controller's disk, then run the command again"
        }
        _ => "see that the controller runs and what it logs, then run the command again",
    }
}

/// Pushes what machines need to build these targets.
pub async fn push_closures(api: &Api, targets: &[&Target], files: &mut Derivations) -> Result<()> {
    let progress = spinner();
    progress.set_message("pushing derivations to the controller's cache");
    let session: Session = api.post(OPERATOR_SESSION, &()).await?;
    let derivations: Vec<_> = targets.iter().map(|target| target.derivation.clone()).collect();
    let pushed = push::push(&derivations, files, &api.cache(session.bearer)).await;
    pushed.context("nothing was signed").map_err(|error| {
        let hint = push_hint(&format!("{error:#}"));
        error.context(Hint(hint.to_owned()))
    })?;
    progress.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::push_hint;

    #[test]
    fn a_file_that_is_too_large_is_not_called_a_full_disk() {
        let large = push_hint("unable to upload: HTTP error 413 (Payload Too Large)");
        assert!(large.contains("nar_bytes") && !large.contains("room"), "{large}");
        assert!(push_hint("HTTP error 507").contains("room on the controller's disk"));
        assert!(push_hint("connection refused at 10.0.4.13").contains("controller runs"));
    }
}
