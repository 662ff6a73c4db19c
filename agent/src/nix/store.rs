//! What the runner needs from Nix, so that it can be tested without it.

use std::path::Path;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use muster_protocol::ids::StorePath;
use muster_protocol::report::ClosureChange;
use muster_protocol::target::Target;

use super::error::NixError;
use super::program::{BuildLimits, Nix};
use crate::client::Client;
use crate::core::prune::ProfileGeneration;
use crate::process::Listener;

/// See [`Nix`] for the meaning of each.
pub trait Store {
    fn fetch<'a>(
        &'a self,
        derivation: &'a StorePath,
        client: &'a Client,
        listener: &'a mut dyn Listener,
    ) -> LocalBoxFuture<'a, Result<(), NixError>>;

    fn realise<'a>(
        &'a self,
        target: &'a Target,
        client: &'a Client,
        root_link: &'a Path,
        limits: BuildLimits,
        listener: &'a mut dyn Listener,
    ) -> LocalBoxFuture<'a, Result<StorePath, NixError>>;

    fn closure_change<'a>(
        &'a self,
        old: &'a StorePath,
        new: &'a StorePath,
    ) -> LocalBoxFuture<'a, Result<ClosureChange, NixError>>;

    fn profile_generations(&self) -> Vec<ProfileGeneration>;

    fn forget_generations(&self, numbers: &[u64]) -> Result<(), NixError>;
}

impl Store for Nix {
    fn fetch<'a>(
        &'a self,
        derivation: &'a StorePath,
        client: &'a Client,
        listener: &'a mut dyn Listener,
    ) -> LocalBoxFuture<'a, Result<(), NixError>> {
        self.fetch(derivation, client, listener).boxed_local()
    }

    fn realise<'a>(
        &'a self,
        target: &'a Target,
        client: &'a Client,
        root_link: &'a Path,
        limits: BuildLimits,
        listener: &'a mut dyn Listener,
    ) -> LocalBoxFuture<'a, Result<StorePath, NixError>> {
        self.realise(target, client, root_link, limits, listener).boxed_local()
    }

    fn closure_change<'a>(
        &'a self,
        old: &'a StorePath,
        new: &'a StorePath,
    ) -> LocalBoxFuture<'a, Result<ClosureChange, NixError>> {
        self.closure_change(old, new).boxed_local()
    }

    fn profile_generations(&self) -> Vec<ProfileGeneration> {
        self.profile_generations()
    }

    fn forget_generations(&self, numbers: &[u64]) -> Result<(), NixError> {
        self.forget_generations(numbers)
    }
}
