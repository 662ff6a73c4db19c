//! Muster's program on each machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_agent::cli::main()
}
