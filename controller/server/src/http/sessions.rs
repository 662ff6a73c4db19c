//! The keys of sessions in memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use muster_protocol::ids::MachineName;
use muster_protocol::session::SessionKey;

use crate::core::seals::SessionClaims;
use crate::keyring::Keys;

/// How many sessions' keys are kept in memory. With more, all are forgotten and derived again.
const MOST: usize = 65_536;

/// The keys of sessions, each with its token: deriving one costs about as much as checking a signature.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<MachineName, (String, SessionKey)>>);

impl Sessions {
    /// The key of this session; `None` if the machine's key is one that would make it known to anybody.
    pub fn key(&self, keys: &Keys, claims: &SessionClaims, token: &str) -> Option<SessionKey> {
        let held = {
            let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            held.get(&claims.machine).filter(|(of, _)| of == token).map(|(_, key)| key.clone())
        };
        if held.is_some() {
            return held;
        }
        let key = keys.exchange.of_machine(&claims.key, token)?;
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= MOST {
            held.clear();
        }
        held.insert(claims.machine.clone(), (token.to_owned(), key.clone()));
        Some(key)
    }
}
