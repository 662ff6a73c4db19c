//! The program of Muster on each machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_agent::cli::main()
}
