//! Values that cost something to find: those who ask within a time share one.

use std::future::Future;
use std::time::Duration;

use muster_protocol::clock::Clock;
use tokio::sync::Mutex;

/// A value, and until when it is kept.
#[derive(Debug)]
pub struct Kept<T>(Mutex<Option<(Duration, T)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Kept<T> {
    /// The value, or what `find` finds, with how long to keep that. Those who ask meanwhile wait for it. What
    /// could not be found is not kept.
    pub async fn get<E>(
        &self,
        clock: &dyn Clock,
        find: impl Future<Output = Result<(Duration, T), E>>,
    ) -> Result<T, E> {
        let mut last = self.0.lock().await;
        if let Some((until, value)) = &*last
            && clock.awake() < *until
        {
            return Ok(value.clone());
        }
        let (keep, value) = find.await?;
        *last = Some((clock.awake() + keep, value.clone()));
        Ok(value)
    }
}
