//! One thing that was looked at.

/// What runs before this system can be gone back to; all generations but one need not go for a little space.
pub const FREE_SPACE: &str = "free some space, for example with nix-collect-garbage --delete-older-than 30d";

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Good,
    /// It works, but not for ever or not as it should.
    Doubtful,
    Bad,
}

/// One finding, with what to do unless it is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub about: &'static str,
    pub health: Health,
    pub detail: String,
    pub remedy: Option<String>,
}

pub fn good(about: &'static str, detail: impl Into<String>) -> Finding {
    Finding { about, health: Health::Good, detail: detail.into(), remedy: None }
}
pub fn doubtful(about: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { about, health: Health::Doubtful, detail: detail.into(), remedy: Some(remedy.into()) }
}
pub fn bad(about: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { about, health: Health::Bad, detail: detail.into(), remedy: Some(remedy.into()) }
}
