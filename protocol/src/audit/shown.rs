//! What a machine was shown of the log: the newest checkpoint in each reply, carried in its next check-ins.
//! A controller that keeps two histories is found out by whoever compares what two machines were shown.

use serde::{Deserialize, Serialize};

use super::Checkpoint;
use crate::bounded;
use crate::clock::UnixMillis;
use crate::ids::{MachineName, Sha256};
use crate::keys::{Context, KeyError, PublicKey, SecretKey, Signature};

/// The most checkpoints that a machine remembers. An older one is forgotten for a newer one, so that no lie
/// stays for ever.
pub const MAX_SHOWN: usize = 4;

/// The last different checkpoints that a machine was shown, signed by it, so that the controller that passes
/// them on cannot alter them. A machine obeys nothing about them: it carries and prints them.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownLog {
    /// In the order in which they were shown; not necessarily rising.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_SHOWN>")]
    pub log: Vec<Checkpoint>,
    /// When the last of them was first shown, in Unix milliseconds of the machine's clock.
    #[serde(deserialize_with = "bounded::time")]
    pub at: UnixMillis,
    /// By the machine's key, in `Context::ShownLog`.
    pub signature: Signature,
}

impl ShownLog {
    /// What `machine` was shown, signed with its key.
    pub fn sign(
        key: &SecretKey,
        fleet: &Sha256,
        machine: &MachineName,
        log: Vec<Checkpoint>,
        at: UnixMillis,
    ) -> Self {
        let signature = key.sign(Context::ShownLog, &message(fleet, machine, &log, at));
        Self { log, at, signature }
    }

    /// Checks that `machine` signed this with `key`.
    pub fn verify(&self, fleet: &Sha256, machine: &MachineName, key: &PublicKey) -> Result<(), KeyError> {
        key.verify(Context::ShownLog, &message(fleet, machine, &self.log, self.at), &self.signature)
    }
}

fn message(fleet: &Sha256, machine: &MachineName, log: &[Checkpoint], at: UnixMillis) -> Vec<u8> {
    let shown: String = log.iter().map(|shown| format!("{} {}\n", shown.id, shown.hash)).collect();
    format!("{fleet}\n{machine}\n{at}\n{shown}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_was_shown_is_its_own_statement() {
        let [key, other] = [(); 2].map(|()| SecretKey::generate().unwrap());
        let (fleet, tin): (Sha256, MachineName) = (Sha256::of(b"fleet"), "tin".parse().unwrap());
        let shown = |id: u64, of: &[u8]| Checkpoint { id, hash: Sha256::of(of) };
        let signed = ShownLog::sign(&key, &fleet, &tin, vec![shown(7, b"a"), shown(7, b"b")], 5);
        assert!(signed.verify(&fleet, &tin, &key.public()).is_ok());
        assert!(signed.verify(&fleet, &tin, &other.public()).is_err());
        assert!(signed.verify(&Sha256::of(b"other"), &tin, &key.public()).is_err());
        assert!(signed.verify(&fleet, &"zinc".parse().unwrap(), &key.public()).is_err());
        for bent in [
            ShownLog { log: vec![shown(7, b"a")], ..signed.clone() },
            ShownLog { log: vec![shown(7, b"b"), shown(7, b"a")], ..signed.clone() },
            ShownLog { at: 6, ..signed.clone() },
        ] {
            assert!(bent.verify(&fleet, &tin, &key.public()).is_err(), "{bent:?}");
        }
        let many = ShownLog { log: vec![shown(1, b"a"); MAX_SHOWN + 1], ..signed };
        let text = serde_json::to_string(&many).unwrap();
        assert!(serde_json::from_str::<ShownLog>(&text).is_err());
    }
}
