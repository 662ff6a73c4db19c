//! The state that every handler shares.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use tokio::sync::watch;

use super::kept::Kept;
use super::memory::Memory;
use super::problem::Refused;
use super::sessions::Sessions;
use super::together::Together;
use crate::core::census::Census;
use crate::rates::Rates;
use crate::services::Services;

pub struct App {
    pub services: Arc<Services>,
    pub rates: Rates,
    /// The memory for bodies while they arrive.
    pub memory: Memory,
    pub sessions: Sessions,
    /// Becomes true when the server stops; long polls then end.
    pub stopping: watch::Receiver<bool>,
    /// The data folder, whose free space is watched.
    pub data: PathBuf,
    /// Whether it can serve requests, and why not.
    pub readiness: Kept<Result<(), &'static str>>,
    /// `None` if the database did not say.
    pub census: Kept<Option<Census>>,
    /// The list of all machines' summaries.
    pub summaries: Together<Result<Bytes, Refused>>,
}

pub type Shared = Arc<App>;

impl App {
    pub fn new(services: Arc<Services>, data: PathBuf, stopping: watch::Receiver<bool>) -> Self {
        let rates = Rates::new(&services.limits, services.clock.clone());
        let memory = Memory::new(services.limits.body_memory_mib * 1024 * 1024);
        Self {
            services,
            rates,
            memory,
            sessions: Sessions::default(),
            stopping,
            data,
            readiness: Default::default(),
            census: Default::default(),
            summaries: Default::default(),
        }
    }

    /// Whether the server is asked to stop.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Completes when the server is asked to stop.
    pub async fn stopped(&self) {
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }
}
