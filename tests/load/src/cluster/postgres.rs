//! PostgreSQL servers of our own: a primary, and a standby that follows it synchronously and can take over.

use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::server::free_address;

/// PostgreSQL refuses to run as root.
const USER: &str = "postgres";
/// Where Debian's packages put a version's programs.
const DEBIAN: &str = "/usr/lib/postgresql";
const SETTINGS: &str = "fsync = on\nsynchronous_commit = remote_apply\nmax_connections = 200\n\
                        unix_socket_directories = ''\nlisten_addresses = '127.0.0.1'\nmax_wal_senders = 8\n\
                        wal_keep_size = 256MB\nhot_standby = on\nwal_level = replica\n";

/// One server in a folder. Dropped, it is stopped at once.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    data: PathBuf,
    pub address: SocketAddr,
}

impl Postgres {
    /// A new primary. `folder` must be readable by everybody, up to the root.
    pub fn create(folder: &Path, name: &str) -> Result<Self> {
        let postgres = Self::place(folder, name)?;
        postgres
            .run("initdb", &["--auth=trust", "--username=muster", "--no-sync", "--encoding=UTF8", "-D"])?;
        postgres.configure("")?;
        Ok(postgres)
    }

    /// A standby that copies the primary and follows it.
    pub fn following(folder: &Path, name: &str, primary: &Self) -> Result<Self> {
        let postgres = Self::place(folder, name)?;
        let from = primary.address.port().to_string();
        let options = [
            "-h",
            "127.0.0.1",
            "-p",
            &from,
            "-U",
            "muster",
            "-X",
            "stream",
            "-R",
            "-c",
            "fast",
            "--no-sync",
            "-D",
        ];
        postgres.run("pg_basebackup", &options)?;
        let follows =
            format!("primary_conninfo = 'host=127.0.0.1 port={from} user=muster application_name={name}'\n");
        postgres.configure(&follows)?;
        Ok(postgres)
    }

    fn place(folder: &Path, name: &str) -> Result<Self> {
        let data = folder.join(name);
        // It refuses a folder that others may read.
        std::fs::DirBuilder::new().mode(0o700).create(&data)?;
        let (user, group) = (id("-u")?, id("-g")?);
        chown(&data, Some(user), Some(group))?;
        Ok(Self { programs: programs()?, data, address: free_address()? })
    }

    fn configure(&self, more: &str) -> Result<()> {
        let port = format!("port = {}\n", self.address.port());
        Ok(std::fs::write(self.data.join("postgresql.auto.conf"), format!("{SETTINGS}{port}{more}"))?)
    }

    pub fn start(&self) -> Result<()> {
        let log = self.data.join("server.log");
        let log = log.to_str().context("a folder's name is text")?;
        self.run("pg_ctl", &["start", "-w", "-t", "60", "-l", log, "-D"]).map(drop)
    }

    /// As if the power had failed.
    pub fn kill(&self) -> Result<()> {
        self.run("pg_ctl", &["stop", "-m", "immediate", "-D"]).map(drop)
    }

    /// Makes a standby the primary.
    pub fn promote(&self) -> Result<()> {
        self.run("pg_ctl", &["promote", "-w", "-t", "60", "-D"]).map(drop)
    }

    /// Commits wait for this standby from now on, or for none.
    pub fn wait_for(&self, standby: Option<&str>) -> Result<()> {
        let names = standby.unwrap_or_default();
        self.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"))?;
        self.sql("SELECT pg_reload_conf()").map(drop)
    }

    /// The first column of the first row, as text.
    pub fn sql(&self, statement: &str) -> Result<String> {
        let port = self.address.port().to_string();
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "muster", "-d", "postgres", "-XAtqc", statement]);
        let output =
            command.stdin(Stdio::null()).output().context("psql (package postgresql) does not start")?;
        Ok(String::from_utf8_lossy(&good("psql", output)?.stdout).trim().to_owned())
    }

    fn run(&self, program: &str, options: &[&str]) -> Result<Output> {
        let path = self.programs.join(program);
        let mut command = Command::new("setpriv");
        let as_user = [format!("--reuid={}", id("-u")?), format!("--regid={}", id("-g")?)];
        command.args(as_user).arg("--clear-groups").arg(path).args(options).arg(&self.data);
        // pg_ctl's server would keep a pipe open, and this would wait for it for ever.
        let quiet = program == "pg_ctl";
        command.current_dir("/").stdin(Stdio::null());
        if quiet {
            let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
            ensure!(
                status.success(),
                "{program} {} failed: {status}; see {}",
                options.join(" "),
                self.data.display()
            );
            return Ok(Output { status, stdout: vec![], stderr: vec![] });
        }
        good(program, command.output().context("setpriv (package util-linux) does not start")?)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // It fails where it has been stopped already.
        let _ = self.kill();
    }
}

fn good(program: &str, output: Output) -> Result<Output> {
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

/// The newest version's programs.
fn programs() -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(DEBIAN)
        .with_context(|| format!("there is no {DEBIAN}: install Debian's package postgresql"))?
        .filter_map(|entry| entry.ok())
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().map(|(_, bin)| bin).with_context(|| format!("{DEBIAN} has no initdb: install postgresql"))
}

fn id(option: &str) -> Result<u32> {
    let output = Command::new("id").args([option, USER]).output()?;
    Ok(String::from_utf8_lossy(&good("id", output)?.stdout).trim().parse()?)
}
