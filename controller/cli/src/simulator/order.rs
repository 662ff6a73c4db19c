//! The orders that are compared, each as a plan.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use muster_protocol::ids::{Epoch, MachineName, Sha256, StorePath};
use muster_protocol::keys::SecretKey;
use muster_protocol::plan::{Failure, MAX_VOUCHERS, Plan, Voucher, Wave};

/// How a publication reaches a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    /// Canaries, a tenth, the rest: each gate asks for soaked machines, and the budget is small
    Waves,
    /// Every machine as soon as it can
    AtOnce,
    /// 1, 5, 15, 40, 60, 90 and 100 percent, each when most of the one before took it
    Percent,
    /// Five canaries, then two groups: each when every machine of the one before that answers took it
    Groups,
}

impl Order {
    pub const ALL: [Self; 4] = [Self::AtOnce, Self::Percent, Self::Groups, Self::Waves];

    pub fn describe(self) -> &'static str {
        match self {
            Self::Waves => "canaries, 10 %, rest; soak 2 h and 1 h; budget 0.1 %",
            Self::AtOnce => "all at once",
            Self::Percent => "1/5/15/40/60/90 %; no soak; budget 1 %",
            Self::Groups => "5 canaries, 2 groups; no soak; budget 1 %",
        }
    }

    /// The waves: name, share of the fleet up to its end in thousandths, seconds of soak.
    fn waves(self, count: usize) -> Vec<(String, usize, u64)> {
        let part = |thousandths: usize| (count * thousandths).div_ceil(1000).max(1);
        let canaries = count.min(5);
        let all: Vec<(&str, usize, u64)> = match self {
            Self::Waves => {
                vec![
                    ("canaries", part(2).max(canaries), 7200),
                    ("early", part(100), 3600),
                    ("rest", count, 900),
                ]
            }
            Self::AtOnce => vec![("all", count, 0)],
            Self::Percent => {
                [10, 50, 150, 400, 600, 900, 1000].map(|share| ("part", part(share), 0)).to_vec()
            }
            Self::Groups => vec![("canaries", canaries, 0), ("group", part(500), 0), ("group", count, 0)],
        };
        let mut from = 0;
        let mut waves = Vec::new();
        for (number, (name, to, soak)) in all.into_iter().enumerate() {
            if to > from {
                waves.push((format!("{name}-{}", number + 1), to, soak));
                from = to;
            }
        }
        waves
    }

    /// How many failures are allowed, and how many may switch at once, of this many machines.
    fn limits(self, count: usize) -> (usize, usize) {
        match self {
            Self::AtOnce => (count, count),
            Self::Waves => (count / 1000, count.div_ceil(20)),
            Self::Percent | Self::Groups => (count / 100, count),
        }
    }

    /// The plan for these machines, in this order. Any of a wave's machines may vouch, up to 64.
    pub(super) fn plan(self, machines: &[MachineName]) -> Result<Plan> {
        let output: StorePath =
            "/nix/store/0000000000000000000000000000000a-system".parse().context("the output is fixed")?;
        let (budget, max_in_flight) = self.limits(machines.len());
        let shapes = self.waves(machines.len());
        let last = shapes.len().saturating_sub(1);
        let (mut waves, mut from) = (Vec::new(), 0);
        for (number, (name, to, soak_seconds)) in shapes.into_iter().enumerate() {
            let members = machines[from..to].to_vec();
            from = to;
            let mut vouchers = Vec::new();
            for machine in members.iter().take(MAX_VOUCHERS) {
                let key = SecretKey::generate()?.public();
                vouchers.push(Voucher { machine: machine.clone(), key, output: output.clone() });
            }
            let at_least = if number == last { 0 } else { (vouchers.len() * 7).div_ceil(10) };
            waves.push(Wave {
                name,
                at_least: u32::try_from(at_least)?,
                percent: if number == last { 0 } else { 90 },
                soak_seconds,
                max_in_flight: u32::try_from(max_in_flight.max(1))?,
                windows: Vec::new(),
                members,
                vouchers,
            });
        }
        let plan = Plan {
            fleet: Sha256::of(b"a simulated fleet"),
            epoch: Epoch::default(),
            name: "simulated".parse().context("the name is fixed")?,
            nonce: Sha256::of(b"a simulated rollout"),
            waves,
            after: Vec::new(),
            budget: u32::try_from(budget)?,
            failures: vec![Failure::RolledBack, Failure::NeedsHuman, Failure::Degraded],
        };
        plan.check()?;
        Ok(plan)
    }
}

/// Names of this many machines.
pub(super) fn names(count: usize) -> Result<Vec<MachineName>> {
    (0..count).map(|number| format!("m{number:05}").parse().context("the name is fixed")).collect()
}

/// Which wave each machine is in, by its place in the plan's order.
pub(super) fn places(plan: &Plan) -> BTreeMap<MachineName, usize> {
    plan.waves_of().into_iter().map(|(name, wave)| (name.clone(), wave)).collect()
}
