//! `flagpost completions SHELL`: what a shell needs to complete our commands and options, on standard output.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::error::Result;

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The shell that is to read them
    shell: Shell,
}

pub(super) fn print(mut command: Command, options: &Options) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut command, "flagpost", &mut script);
    say!("{}", String::from_utf8_lossy(&script).trim_end());
    Ok(0)
}
