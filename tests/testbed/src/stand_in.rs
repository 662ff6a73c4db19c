//! The stand-ins for systemd and launchd. Each file says what it leaves out.

pub mod init;
pub mod job;
pub mod launchctl;
pub mod plists;
pub mod processes;
pub mod supervise;
pub mod systemctl;
pub mod systemd_run;
pub mod units;
pub mod wire;
