//! One thing that was checked.

/// Keeps the generations needed for going back: a little space does not require deleting all but one.
pub const FREE_SPACE: &str = "free some space, for example with nix-collect-garbage --delete-older-than 30d";

/// The result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Good,
    /// It works, but not permanently or not as it should.
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
