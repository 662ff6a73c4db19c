//! What every request sees.

use std::sync::Arc;

use tokio::sync::watch;

use super::memory::Memory;
use crate::rates::Rates;
use crate::services::Services;

pub struct App {
    pub services: Arc<Services>,
    pub rates: Rates,
    /// What bodies may take while they arrive.
    pub memory: Memory,
    /// True once the server stops: long polls end.
    pub stopping: watch::Receiver<bool>,
}

pub type Shared = Arc<App>;

impl App {
    pub fn new(services: Arc<Services>, stopping: watch::Receiver<bool>) -> Self {
        let rates = Rates::new(&services.limits, services.clock.clone());
        let memory = Memory::new(services.limits.body_memory_mib * 1024 * 1024);
        Self { services, rates, memory, stopping }
    }

    /// Ends when the server is told to stop.
    pub async fn stopped(&self) {
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }
}
