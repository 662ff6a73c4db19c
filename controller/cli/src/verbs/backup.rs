//! `muster backup` and `muster restore`: a controller's database, roots and settings in a folder, and back.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_protocol::clock::SystemClock;
use muster_protocol::ids::MachineName;
use muster_protocol::moment;
use muster_server::backup;
use muster_server::config::{BlobsAt, ServerConfig};

use crate::config::controller_file;
use crate::terminal::error::WithHint as _;

/// Run it where the controller runs, as its user.
#[derive(Debug, Args)]
pub struct Backup {
    /// The folder to make; it must not exist
    folder: PathBuf,
    /// With the files of online_key and tls in controller.toml: then the folder is a secret
    #[arg(long)]
    with_keys: bool,
}

/// The controller must be stopped, and its database must be empty or not there.
#[derive(Debug, Args)]
pub struct Restore {
    /// The folder that `muster backup` made
    folder: PathBuf,
    /// Revoke this machine again, which was revoked after the backup was made; may be given several times
    #[arg(long, value_name = "MACHINE")]
    revoke: Vec<MachineName>,
}

impl Backup {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let file = controller_file(config)?;
        let made = backup::backup(&file, &self.folder, self.with_keys, &SystemClock::new())
            .await
            .context("no backup was made")
            .hint("fix what the message names and repeat; the controller goes on as before")?;
        say!(
            "{} is a backup, {} MiB; its audit log ends at entry {} {}.",
            self.folder.display(),
            made.bytes.div_ceil(1024 * 1024),
            made.log.id,
            made.log.hash
        );
        if !self.with_keys {
            say!("No key is in it: keep the files of online_key and tls elsewhere, or use --with-keys.");
        }
        match ServerConfig::load(&file)?.blobs {
            BlobsAt::Folder(folder) => say!(
                "Nor are the files of the cache, {}: copy them too, or have `muster update --force` push them \
                 again.",
                folder.display()
            ),
            BlobsAt::S3(_) => say!("Nor are the files of the cache, which are in the bucket."),
        }
        Ok(())
    }
}

impl Restore {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let file = controller_file(config)?;
        let restored = backup::restore(&file, &self.folder, &self.revoke, &SystemClock::new())
            .await
            .context("nothing was restored")
            .hint("fix what the message names and repeat")?;
        let made = moment::date(restored.made_at);
        say!("The backup of {made} is restored; its audit log ended at entry {}.", restored.log.id);
        if self.revoke.is_empty() {
            say!("Whoever was revoked after that is not now: `muster machines revoke` them first of all.");
        }
        say!("Tokens, bearers and sessions of before are void; machines get new bearers by themselves.");
        say!("\"When the controller is lost\" in docs/operators.md says what else was lost, and what to do.");
        Ok(())
    }
}
