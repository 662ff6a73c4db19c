//! Runs the matrix of faults and prints it as a table.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use clap::Parser;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::machine::Class;
use muster_testbed::faults::cell::Bench;
use muster_testbed::faults::steps::{DurableStep, Fault, LEFT_OUT, STEPS};

#[derive(Parser)]
#[command(about = "Every durable step of agent and activator, every fault, both classes of machines")]
struct Arguments {
    /// Only steps with this in their names
    #[arg(long)]
    only: Option<String>,
    /// Only this fault: "kill agent", "kill activator", "kill both", "disk full", "controller gone" or
    /// "reboot"
    #[arg(long)]
    fault: Option<String>,
    /// How many fleets of two machines work at once
    #[arg(long, default_value_t = 2)]
    fleets: usize,
    /// Every Nth round alone, spread over steps and faults
    #[arg(long, default_value_t = 1)]
    every: usize,
}

/// The result of a cell.
enum Cell {
    /// The state in which the machine ended.
    Well(&'static str),
    Senseless(&'static str),
    Bad,
}

type Table = BTreeMap<(usize, usize, Class), Cell>;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("muster-faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let clock = SystemClock::new();
    let mut table = Table::new();
    let mut rounds = Vec::new();
    for (row, step) in STEPS.iter().enumerate() {
        if arguments.only.as_ref().is_some_and(|only| !step.at.contains(only.as_str())) {
            continue;
        }
        for (column, fault) in Fault::ALL.into_iter().enumerate() {
            if arguments.fault.as_ref().is_some_and(|only| only != fault.name()) {
                continue;
            }
            if let Some((class, why)) = step.never {
                table.insert((row, column, class), Cell::Senseless(why));
            }
            match fault.senseless(step) {
                Some(why) => {
                    for class in Class::ALL {
                        table.entry((row, column, class)).or_insert(Cell::Senseless(why));
                    }
                }
                None => rounds.push((row, column, *step, fault)),
            }
        }
    }
    let all = rounds.len();
    // Neighbouring rounds share a step or a fault, so every Nth round still covers all of both.
    let chosen: Vec<_> = rounds.into_iter().step_by(arguments.every.max(1)).collect();
    let left_out = all - chosen.len();
    let queue = Mutex::new(chosen);
    let table = Mutex::new(table);
    std::thread::scope(|scope| {
        for _ in 0..arguments.fleets {
            scope.spawn(|| work(&queue, &table));
        }
    });
    let table = table.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(print(&table, left_out, clock.awake().as_secs()))
}

/// Runs round after round; a fleet that cannot be restored is replaced by another.
fn work(queue: &Mutex<Vec<(usize, usize, DurableStep, Fault)>>, table: &Mutex<Table>) {
    let lock = |cell: Cell, key| {
        table.lock().unwrap_or_else(PoisonError::into_inner).insert(key, cell);
    };
    let mut bench: Option<Bench> = None;
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some((row, column, step, fault)) = next else { return };
        let classes =
            || Class::ALL.into_iter().filter(|class| step.never.is_none_or(|(never, _)| never != *class));
        let taken = match bench.take() {
            Some(bench) => Ok(bench),
            None => Bench::new(),
        };
        let mut taken = match taken {
            Ok(bench) => bench,
            Err(error) => {
                eprintln!("no fleet can be made: {error:#}");
                classes().for_each(|class| lock(Cell::Bad, (row, column, class)));
                continue;
            }
        };
        if let (Fault::DiskFull, Some(_)) = (fault, &taken.no_disks) {
            let why = "no small disk can be mounted here";
            classes().for_each(|class| lock(Cell::Senseless(why), (row, column, class)));
            bench = Some(taken);
            continue;
        }
        match taken.cells(&step, fault) {
            Ok(results) => {
                let mut well = true;
                for (class, result) in results {
                    let cell = match result {
                        Ok(end) => Cell::Well(end),
                        Err(error) => {
                            eprintln!("{class}, {}, {}: {error:#}\n", step.at, fault.name());
                            well = false;
                            Cell::Bad
                        }
                    };
                    lock(cell, (row, column, class));
                }
                bench = well.then_some(taken);
            }
            Err(error) => {
                eprintln!("{}, {}: afterwards: {error:#}\n", step.at, fault.name());
                classes().for_each(|class| lock(Cell::Bad, (row, column, class)));
            }
        }
    }
}

#[allow(clippy::print_stdout)]
fn print(table: &Table, left_out: usize, seconds: u64) -> bool {
    let (mut well, mut senseless, mut bad) = (0, 0, 0);
    let mut reasons: BTreeMap<&str, u32> = BTreeMap::new();
    for class in Class::ALL {
        println!("\n{class}: where the machine ended, stopped at each step");
        print!("{:46}", "");
        for fault in Fault::ALL {
            print!("{:>16}", fault.name());
        }
        println!();
        for (row, step) in STEPS.iter().enumerate() {
            let cells: Vec<Option<&Cell>> =
                (0..Fault::ALL.len()).map(|column| table.get(&(row, column, class))).collect();
            if cells.iter().all(Option::is_none) {
                continue;
            }
            print!("{:46}", step.at);
            for cell in cells {
                let text = match cell {
                    Some(Cell::Well(end)) => {
                        well += 1;
                        *end
                    }
                    Some(Cell::Senseless(why)) => {
                        senseless += 1;
                        *reasons.entry(why).or_default() += 1;
                        "n/a"
                    }
                    Some(Cell::Bad) => {
                        bad += 1;
                        "WRONG"
                    }
                    None => "not run",
                };
                print!("{text:>16}");
            }
            println!();
        }
    }
    println!();
    for (why, count) in reasons {
        println!("n/a in {count} cells: {why}");
    }
    for (step, why) in LEFT_OUT {
        println!("no row for {step}: {why}");
    }
    if left_out > 0 {
        println!("{left_out} rounds of up to two cells were not run: this is a part of the matrix");
    }
    println!("{} cells: {well} well, {bad} wrong, {senseless} n/a, in {seconds} s", well + bad + senseless);
    bad == 0 && well > 0
}
