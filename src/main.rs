//! The `flagpost` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    flagpost::cli::main()
}
