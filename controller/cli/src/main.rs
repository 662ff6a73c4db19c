//! `muster`: the operators' command line, and the server.

use std::process::ExitCode;

use muster_protocol::{tell, terminal};

fn main() -> ExitCode {
    let arguments = muster::verbs::Arguments::of_program();
    let code = match muster::verbs::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            muster::terminal::error::print(&error);
            ExitCode::FAILURE
        }
    };
    match terminal::finish() {
        Ok(()) => code,
        Err(error) => {
            tell!("error: the output cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}
