//! The program `kalamdb`; its code is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    kalamdb_server::cli::run()
}
