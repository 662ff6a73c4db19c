//! One simulated machine: when it is awake and online, and what it does with the time.

use muster_server::rollout::engine::Stage;

use super::dice::Dice;

/// Seconds.
pub(super) type Time = i64;

pub(super) const MINUTE: Time = 60;
pub(super) const HOUR: Time = 60 * MINUTE;
pub(super) const DAY: Time = 24 * HOUR;

/// For how long signatures hold, in seconds: `signature_days` as `muster init` writes it.
const SIGNED: Time = 90 * DAY;

/// Of a thousand machines, how many are so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shares {
    pub laptops: u64,
    /// The generation fails on them.
    pub bad: u64,
    /// Of those: only after its checks have passed.
    pub late: u64,
    /// Their clock is wrong by up to a year.
    pub clocks: u64,
}

/// What the new generation does on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It runs well.
    Well,
    /// A check finds it ill, and the machine goes back by itself.
    Undone,
    /// It passes its checks; a unit of it fails after so much time awake.
    FailsAfter(Time),
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    Preparing,
    /// Its clock is so far ahead that the signatures look expired: it does not ask for its turn.
    Expired,
    /// Waits for its turn.
    Ready,
    Switching,
    /// Runs it; the soak of a voucher is running.
    Soaking,
    /// Runs it, and nothing more is to come.
    Runs,
    /// Runs it with a failed unit.
    Degraded,
    Undone,
}

#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub wave: usize,
    pub vouches: bool,
    pub fate: Fate,
    pub doing: Doing,
    /// What is left of what it does, in time awake.
    pub left: Time,
    /// When it went on with it.
    pub since: Time,
    pub awake: bool,
    /// When it was last awake and online.
    pub seen: Time,
    /// Tells this step's timer from those of earlier ones.
    pub step: u32,
    /// A laptop, with the hour of the day at which it is opened, in its own zone.
    pub laptop: Option<Laptop>,
    /// How much it was awake while it ran the new generation.
    pub ran: Time,
    /// How far its clock is ahead, in seconds; negative: behind.
    ahead: Time,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Laptop {
    opens: Time,
    hours: Time,
    /// Away for all of the simulated time.
    gone: bool,
    weekends: bool,
}

impl Machine {
    pub(super) fn new(wave: usize, vouches: bool, shares: Shares, dice: &mut Dice) -> Self {
        let laptop = dice.in_thousand(shares.laptops).then(|| Laptop {
            opens: dice.between(5, 20) * HOUR + dice.between(0, 59) * MINUTE,
            hours: dice.between(3, 11) * HOUR,
            gone: dice.in_thousand(30),
            weekends: dice.in_thousand(250),
        });
        let fate = match dice.in_thousand(shares.bad) {
            false => Fate::Well,
            true if dice.in_thousand(shares.late) => Fate::FailsAfter(dice.between(5 * MINUTE, 4 * HOUR)),
            true => Fate::Undone,
        };
        Self {
            wave,
            vouches,
            fate,
            doing: Doing::Preparing,
            left: dice.between(2, 45) * MINUTE,
            since: 0,
            awake: false,
            seen: -DAY,
            step: 0,
            laptop,
            ran: 0,
            ahead: if dice.in_thousand(shares.clocks) { dice.between(-365 * DAY, 365 * DAY) } else { 0 },
        }
    }

    /// Takes the time from the network, which succeeds now and then. Returns whether the target holds again.
    pub(super) fn sets_clock(&mut self, dice: &mut Dice) -> bool {
        if self.ahead != 0 && dice.in_thousand(200) {
            self.ahead = 0;
        }
        self.doing == Doing::Expired && self.ahead < SIGNED
    }

    /// What a machine does that has built the generation.
    pub(super) fn prepared(&self) -> Doing {
        if self.ahead < SIGNED { Doing::Ready } else { Doing::Expired }
    }

    /// When it is awake next and until when, at this time or later; `None`: never again.
    pub(super) fn next_awake(&self, now: Time, dice: &mut Dice) -> Option<(Time, Time)> {
        let Some(laptop) = self.laptop else {
            // A server, whose network is lost for some minutes every few days.
            return Some((now + dice.between(2, 20) * MINUTE, now + dice.between(1, 6) * DAY));
        };
        if laptop.gone {
            return None;
        }
        let mut day = now.div_euclid(DAY);
        loop {
            let opens = day * DAY + laptop.opens + dice.between(-20, 40) * MINUTE;
            // Day 0 is a Monday. A person stays at home now and then.
            let works = (day.rem_euclid(7) < 5 || laptop.weekends) && !dice.in_thousand(60);
            if works && opens > now {
                return Some((opens, opens + laptop.hours));
            }
            day += 1;
        }
    }

    /// Puts what it does to rest, or takes it up again.
    pub(super) fn set_awake(&mut self, awake: bool, now: Time) {
        self.rest(now);
        (self.awake, self.since) = (awake, now);
    }

    /// Accounts for the time that it was awake.
    fn rest(&mut self, now: Time) {
        if self.awake {
            let spent = now - self.since;
            self.left = (self.left - spent).max(0);
            if matches!(self.doing, Doing::Soaking | Doing::Runs) {
                self.ran += spent;
            }
            self.seen = now;
        }
        self.since = now;
        self.step += 1;
    }

    pub(super) fn begins(&mut self, doing: Doing, left: Time, now: Time) {
        self.rest(now);
        (self.doing, self.left) = (doing, left);
    }

    /// In how much time awake a unit of it fails, if it does.
    pub(super) fn fails_in(&self) -> Option<Time> {
        match (self.fate, self.doing) {
            (Fate::FailsAfter(after), Doing::Soaking | Doing::Runs) => Some((after - self.ran).max(0)),
            _ => None,
        }
    }

    /// What the controller sees of it.
    pub(super) fn stage(&self) -> Stage {
        match self.doing {
            Doing::Preparing | Doing::Expired => Stage::Behind,
            Doing::Ready => Stage::Ready,
            Doing::Switching => Stage::Switching,
            Doing::Soaking | Doing::Runs | Doing::Degraded => Stage::Confirmed,
            Doing::Undone => Stage::Failed,
        }
    }

    /// Whether the new generation has run here, if only for a moment.
    pub(super) fn is_exposed(&self) -> bool {
        !matches!(self.doing, Doing::Preparing | Doing::Expired | Doing::Ready)
    }
}
