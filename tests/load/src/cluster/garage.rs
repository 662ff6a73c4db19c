//! An S3 store of our own: garage, one node in a folder.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_protocol::ids::Sha256;
use muster_protocol::random;
use tokio::time::Instant;

use crate::server::free_address;

/// The longest that it may take to start.
const LIMIT: Duration = Duration::from_secs(60);
const BUCKET: &str = "cache";
const REGION: &str = "garage";

/// Dropped, it is killed.
pub struct Garage {
    program: PathBuf,
    folder: PathBuf,
    node: Option<Child>,
}

impl Drop for Garage {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

impl Garage {
    /// Starts one with a bucket; also returns the lines of a controller's configuration that name it.
    pub async fn create(program: &Path, folder: &Path) -> Result<(Self, String)> {
        let place = folder.join("garage");
        std::fs::create_dir(&place)?;
        let (at, rpc) = (free_address()?, free_address()?);
        let data = place.display();
        let secret = Sha256::of(&random::bytes::<32>()?).hex();
        // One node without a twin: what it answered must be on its disk.
        let config = format!(
            "metadata_dir = \"{data}/meta\"\ndata_dir = \"{data}/data\"\ndb_engine = \"sqlite\"\n\
             metadata_fsync = true\ndata_fsync = true\nreplication_factor = 1\nrpc_bind_addr = \"{rpc}\"\n\
             rpc_public_addr = \"{rpc}\"\nrpc_secret = \"{secret}\"\n[s3_api]\napi_bind_addr = \"{at}\"\n\
             s3_region = \"{REGION}\"\nroot_domain = \".localhost\"\n"
        );
        let file = place.join("garage.toml");
        std::fs::write(&file, config)?;
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600))?;
        let mut garage = Self { program: program.to_owned(), folder: place, node: None };
        garage.start()?;
        garage.once(&["status"]).await?;
        let node = garage.run(&["node", "id", "--quiet"])?;
        let (node, _) = node.trim().split_once('@').context("garage names its node as ID@ADDRESS")?;
        garage.run(&["layout", "assign", "--zone", "here", "--capacity", "10G", node])?;
        garage.run(&["layout", "apply", "--version", "1"])?;
        garage.once(&["bucket", "create", BUCKET]).await?;
        let made = garage.run(&["key", "create", "muster"])?;
        garage.run(&["bucket", "allow", "--read", "--write", "--owner", BUCKET, "--key", "muster"])?;
        let named = |name: &str| {
            let line = made.lines().find_map(|line| line.trim().strip_prefix(name));
            line.map(|value| value.trim().to_owned()).with_context(|| format!("garage tells no '{name}'"))
        };
        let credentials = format!(
            "access_key_id = \"{}\"\nsecret_access_key = \"{}\"\n",
            named("Key ID:")?,
            named("Secret key:")?
        );
        let file = folder.join("s3.toml");
        std::fs::write(&file, credentials)?;
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600))?;
        let settings = format!(
            "[s3]\nendpoint = \"http://{at}\"\nregion = \"{REGION}\"\ncredentials = \"s3.toml\"\n\
             timeout_seconds = 5\n"
        );
        Ok((garage, settings))
    }

    /// The setting `blobs` that goes with it.
    pub fn blobs() -> String {
        format!("blobs = \"s3://{BUCKET}\"\n")
    }

    /// It dies at once, and comes back after a while.
    pub async fn crash(&mut self, down: Duration) -> Result<()> {
        if let Some(mut node) = self.node.take() {
            node.kill()?;
            node.wait()?;
        }
        tokio::time::sleep(down).await;
        self.start()
    }

    /// Waits until it answers.
    pub async fn answers(&self) -> Result<()> {
        self.once(&["bucket", "info", BUCKET]).await
    }

    fn start(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("log"))?;
        let mut command = self.command();
        let command = command.arg("server").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.node = Some(command.spawn().context("garage does not start")?);
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("GARAGE_CONFIG_FILE", self.folder.join("garage.toml"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command().args(arguments).output().context("garage does not run")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "garage {}: {said}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs it again until that succeeds: a node needs a moment after each change.
    async fn once(&self, arguments: &[&str]) -> Result<()> {
        let began = Instant::now();
        while let Err(error) = self.run(arguments) {
            if began.elapsed() > LIMIT {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}
