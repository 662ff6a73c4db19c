//! `muster`: the server and the operators' command line.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = muster::cli::Arguments::parse();
    match muster::cli::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            muster::cli::error::print(&error);
            ExitCode::FAILURE
        }
    }
}
