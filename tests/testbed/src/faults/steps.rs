//! The durable steps, and the kind of update that reaches each.

use muster_protocol::machine::Class;

/// The kind of update that reaches a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It is confirmed.
    Good,
    /// Its health check fails, and it is undone.
    Ill,
    BuildFails,
    /// The action `boot`, and the reboot that it waits for.
    Boot,
    /// The action `dry-activate`.
    Dry,
    /// The update is unhealthy, and OLD cannot be activated again.
    OldFails,
    /// A file in `/etc` that nix-darwin did not make; somebody moves it away.
    Foreign,
    /// Updates were paused, and are resumed.
    Paused,
}

/// One durable step.
#[derive(Debug, Clone, Copy)]
pub struct DurableStep {
    /// The step's name in `stop-at`.
    pub at: &'static str,
    pub way: Way,
    /// Whether an activator is running there.
    pub activator: bool,
    /// Why one of the classes does not reach this step.
    pub never: Option<(Class, &'static str)>,
}

const fn step(at: &'static str, way: Way, activator: bool) -> DurableStep {
    DurableStep { at, way, activator, never: None }
}
const fn nixos(at: &'static str, way: Way, activator: bool) -> DurableStep {
    let never = Some((Class::Darwin, "a Mac only supports the action switch"));
    DurableStep { at, way, activator, never }
}
const fn darwin(at: &'static str, way: Way, activator: bool) -> DurableStep {
    let never = Some((Class::Nixos, "NixOS' activation asks no person"));
    DurableStep { at, way, activator, never }
}

const fn stage(at: &'static str, way: Way) -> DurableStep {
    let never = Some((Class::Nixos, "the stages of a Mac's activation"));
    DurableStep { at, way, activator: true, never }
}

/// Every state of a transaction (`TRANSITIONS` in `agent/src/core/state.rs`), every phase of an activator
/// (`ActivationPhase::ALL`), every verdict, and the removal of the documents; before and after the write if
/// the machine is changed in between; and every stage of a Mac's activation, forwards and backwards. A test
/// checks this list against them.
pub const STEPS: &[DurableStep] = &[
    step("after transaction.json verified", Way::Good, false),
    step("after transaction.json fetched", Way::Good, false),
    step("after transaction.json built", Way::Good, false),
    step("after transaction.json checked", Way::Good, false),
    step("after transaction.json deferred", Way::Paused, false),
    darwin("after transaction.json needs-human", Way::Foreign, false),
    step("after transaction.json activating", Way::Good, false),
    step("after activation.json recorded", Way::Good, true),
    step("before activation.json profile-set", Way::Good, true),
    step("after activation.json profile-set", Way::Good, true),
    step("after activation.json activating", Way::Good, true),
    step("before activation.json activated", Way::Good, true),
    step("after activation.json activated", Way::Good, true),
    step("after transaction.json probing", Way::Good, true),
    step("after confirmation.json confirm", Way::Good, false),
    step("before activation.json confirmed", Way::Good, true),
    step("after activation.json confirmed", Way::Good, true),
    step("after transaction.json confirmed", Way::Good, false),
    step("after journal.json", Way::Good, false),
    step("after transaction.json", Way::Good, false),
    step("after confirmation.json undo", Way::Ill, false),
    step("after activation.json undoing", Way::Ill, true),
    step("before activation.json undone", Way::Ill, true),
    step("after activation.json undone", Way::Ill, true),
    step("after transaction.json rolling-back", Way::Ill, false),
    step("after transaction.json rolled-back", Way::Ill, false),
    step("after activation.json undo-failed", Way::OldFails, true),
    step("after transaction.json undo-failed", Way::OldFails, false),
    step("after transaction.json failed", Way::BuildFails, false),
    nixos("after activation.json awaiting-reboot", Way::Boot, true),
    nixos("after transaction.json awaiting-reboot", Way::Boot, false),
    nixos("after activation.json finished", Way::Dry, true),
    nixos("after transaction.json finished", Way::Dry, false),
    stage("during activate preActivation", Way::Good),
    stage("during activate checks", Way::Good),
    stage("during activate createRun", Way::Good),
    stage("during activate extraActivation", Way::Good),
    stage("during activate groups", Way::Good),
    stage("during activate users", Way::Good),
    stage("during activate applications", Way::Good),
    stage("during activate pam", Way::Good),
    stage("during activate patches", Way::Good),
    stage("during activate openssh", Way::Good),
    stage("during activate etc", Way::Good),
    stage("during activate defaults", Way::Good),
    stage("during activate userDefaults", Way::Good),
    stage("during activate launchd", Way::Good),
    stage("during activate userLaunchd", Way::Good),
    stage("during activate nix-daemon", Way::Good),
    stage("during activate time", Way::Good),
    stage("during activate networking", Way::Good),
    stage("during activate power", Way::Good),
    stage("during activate keyboard", Way::Good),
    stage("during activate fonts", Way::Good),
    stage("during activate nvram", Way::Good),
    stage("during activate homebrew", Way::Good),
    stage("during activate postActivation", Way::Good),
    stage("during undo checks", Way::Ill),
    stage("during undo users", Way::Ill),
    stage("during undo etc", Way::Ill),
    stage("during undo launchd", Way::Ill),
    stage("during undo userLaunchd", Way::Ill),
    stage("during undo homebrew", Way::Ill),
];

/// Steps without cells, with the reason; printed with the table.
pub const LEFT_OUT: &[(&str, &str)] = &[
    (
        "activation.json untouched",
        "written only after somebody else has switched the machine for ten minutes",
    ),
    ("transaction.json unknown", "never written: it is how a state of a later version is read"),
    ("activation.json unknown", "never written: it is how a phase of a later version is read"),
    ("confirmation.json waiting", "an intermediate verdict, replaced while the controller is not reached"),
];

/// What is done to a machine that is stopped at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillAgent,
    KillActivator,
    KillBoth,
    DiskFull,
    ControllerGone,
    Reboot,
}

impl Fault {
    pub const ALL: [Self; 6] = [
        Self::KillAgent,
        Self::KillActivator,
        Self::KillBoth,
        Self::DiskFull,
        Self::ControllerGone,
        Self::Reboot,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::KillAgent => "kill agent",
            Self::KillActivator => "kill activator",
            Self::KillBoth => "kill both",
            Self::DiskFull => "disk full",
            Self::ControllerGone => "controller gone",
            Self::Reboot => "reboot",
        }
    }

    /// Why this fault makes no sense at a step, if it does not.
    pub fn senseless(self, step: &DurableStep) -> Option<&'static str> {
        match self {
            Self::KillActivator | Self::KillBoth if !step.activator => {
                Some("no activator is at work, or it has gone on to a row of its own (activation.json)")
            }
            Self::KillAgent | Self::DiskFull | Self::ControllerGone if step.at.starts_with("during ") => {
                Some(
                    "a running script needs none of them; the rows of activation.json activating and \
                     undoing have it",
                )
            }
            _ => None,
        }
    }
}
