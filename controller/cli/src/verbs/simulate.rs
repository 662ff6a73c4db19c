//! `muster simulate`: how a publication would go through a fleet, in simulated time.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use crate::simulator::{Controller, Course, Fleet, Order, clock, draw, run};
use crate::terminal::count::count;
use crate::terminal::json::print_json;
use crate::terminal::table;

/// The shares of machines on which a generation fails that are compared, in thousandths.
const BAD: [u64; 3] = [10, 100, 1000];

#[derive(Debug, Args)]
pub struct Simulate {
    /// How many machines
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    machines: u32,
    /// How many days
    #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u32).range(1..=60))]
    days: u32,
    /// The same seed gives the same course
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// In which order machines get the generation
    #[arg(long, value_enum, default_value_t = Order::Waves)]
    order: Order,
    /// What the controller is like
    #[arg(long, value_enum, default_value_t = Controller::Honest)]
    controller: Controller,
    /// On how many of a thousand machines the generation fails
    #[arg(long, value_name = "PER MILLE", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1000))]
    bad: u64,
    /// Of those, on how many of a thousand it fails only after its checks have passed
    #[arg(long, value_name = "PER MILLE", default_value_t = 300, value_parser = clap::value_parser!(u64).range(0..=1000))]
    late: u64,
    /// How many of a thousand machines are laptops, which sleep
    #[arg(long, value_name = "PER MILLE", default_value_t = 600, value_parser = clap::value_parser!(u64).range(0..=1000))]
    laptops: u64,
    /// On how many of a thousand machines the clock is wrong by up to a year
    #[arg(long, value_name = "PER MILLE", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=1000))]
    clocks: u64,
    /// Draw the course as a picture (SVG)
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    svg: Option<PathBuf>,
    /// Compare the orders, with a generation that fails on 1, 10 and 100 percent of the machines
    #[arg(long, conflicts_with_all = ["order", "bad"])]
    compare: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One row of the comparison.
#[derive(Debug, Serialize)]
struct Row {
    order: &'static str,
    bad_per_mille: u64,
    exposed: u32,
    broken: u32,
    halted_seconds: Option<i64>,
    /// A wave never began, since its gate was not proven.
    waits: bool,
    reached_99_seconds: Option<i64>,
}

impl Simulate {
    pub fn run(self) -> Result<()> {
        if self.compare {
            return self.tell_comparison();
        }
        let course = run(self.fleet(self.order, self.bad))?;
        if let Some(path) = &self.svg {
            let title = format!(
                "{} machines, {}; the generation fails on {} %",
                self.machines,
                self.order.describe(),
                percent(self.bad)
            );
            std::fs::write(path, draw(&course, &title)).with_context(|| {
                format!("cannot write {}: name a file in a folder that exists", path.display())
            })?;
        }
        if self.json { print_json(&course) } else { self.tell(&course) }
    }

    fn fleet(&self, order: Order, bad: u64) -> Fleet {
        Fleet {
            machines: self.machines as usize,
            days: self.days,
            seed: self.seed,
            order,
            controller: self.controller,
            bad,
            late: self.late,
            laptops: self.laptops,
            clocks: self.clocks,
        }
    }

    fn tell(&self, course: &Course) -> Result<()> {
        let machines = count(course.machines, "machine", "machines");
        let days = count(self.days, "day", "days");
        say!("{machines} for {days}: {}.", self.order.describe());
        for (at, what) in &course.told {
            say!("{:>12}  {what}", clock(*at));
        }
        say!(
            "At most {} of a wave switched at the same time; {} may.",
            course.most_in_flight,
            course.max_in_flight
        );
        if course.refused > 0 {
            say!(
                "{} times a machine was told to begin and did not: its gate was not proven.",
                course.refused
            );
        }
        say!("In the end: {} ({}).", course.state, course.why);
        Ok(())
    }

    fn tell_comparison(&self) -> Result<()> {
        let mut rows = Vec::new();
        for bad in BAD {
            for order in Order::ALL {
                let course = run(self.fleet(order, bad))?;
                rows.push(Row {
                    order: order.describe(),
                    bad_per_mille: bad,
                    exposed: course.exposed,
                    broken: course.broken,
                    halted_seconds: course.halted,
                    waits: course.began.iter().any(Option::is_none),
                    reached_99_seconds: course.reached[2],
                });
            }
        }
        if self.json {
            return print_json(&rows);
        }
        let end = |row: &Row| match (row.halted_seconds, row.waits) {
            (Some(seconds), _) => format!("after {}", clock(seconds)),
            (None, true) => "no: its gate stays shut".to_owned(),
            (None, false) => "no".to_owned(),
        };
        let mut table = table::table(["FAILS ON", "ORDER", "HAD RUN IT", "FAILED", "HALTED"]);
        for row in &rows {
            table.add_row(vec![
                format!("{} %", percent(row.bad_per_mille)),
                row.order.to_owned(),
                row.exposed.to_string(),
                row.broken.to_string(),
                end(row),
            ]);
        }
        table.print();
        Ok(())
    }
}

/// Thousandths as percent.
fn percent(per_mille: u64) -> String {
    match per_mille % 10 {
        0 => (per_mille / 10).to_string(),
        rest => format!("{}.{rest}", per_mille / 10),
    }
}
