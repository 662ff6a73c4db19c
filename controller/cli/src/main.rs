//! `muster`: the operators' command line, and the server.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use muster_protocol::{tell, terminal};

/// The server has small and large blocks of thousands of connections among each other. The system's allocator
/// looks for a place through all the holes between them, which took a quarter of a check-in's time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

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
