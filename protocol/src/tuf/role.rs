//! The top-level roles and their files (TUF 2.1, 4).

/// The top-level roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Which keys hold which role; signed by root holders.
    Root,
    /// That a snapshot is current; signed by the controller.
    Timestamp,
    /// Which targets metadata is current; signed by operators.
    Snapshot,
    /// Which generation a machine gets; signed by operators.
    Targets,
}

impl Role {
    /// Every top-level role.
    pub const ALL: [Self; 4] = [Self::Root, Self::Timestamp, Self::Snapshot, Self::Targets];

    /// The role's `_type` in metadata.
    pub fn as_str(self) -> &'static str {
        self.file().trim_end_matches(".json")
    }
    /// The file name without a version, as it is stored and as metadata names it.
    pub fn file(self) -> &'static str {
        match self {
            Self::Root => "root.json",
            Self::Timestamp => "timestamp.json",
            Self::Snapshot => "snapshot.json",
            Self::Targets => "targets.json",
        }
    }
}
