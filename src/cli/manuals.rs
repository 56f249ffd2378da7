//! `flagpost manuals DIRECTORY`: the man pages, for whoever makes a package: one for each command, made of what `--help` is made
//! of, and flagpost.toml(5), made of the commented example configuration. So none of them can say what the binary does not know.

mod settings;

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::error::{Error, Result};

/// In each page's head and foot. A date would be a second version that somebody has to keep; an empty one is left out by `roff`, and
/// then the others move up.
const MANUAL: &str = "flagpost manual";
const SOURCE: &str = concat!("flagpost ", env!("CARGO_PKG_VERSION"));
const NO_DATE: &str = " ";

/// The exit codes of the contract, for flagpost(1).
const EXIT_CODES: [(&str, &str); 5] = [
    ("0", "Done; of check: nothing stands in the way."),
    ("1", "Failed: the ledger cannot be read or written, or a bug."),
    ("2", "Usage or configuration."),
    ("3", "The database cannot be reached, refuses or lacks something: flagpost check tells what."),
    (
        "4",
        "Needs an operator: slot lost, changes missed, ledger of another database or source, another flagpost on the same ledger.",
    ),
];

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Where they are written to; it is made if it is not there
    directory: PathBuf,
}

pub(super) fn write(command: Command, options: &Options) -> Result<u8> {
    let directory = &options.directory;
    let made = || -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        let mut command = command.disable_help_subcommand(true);
        command.build();
        pages(&command, directory)?;
        std::fs::write(directory.join("flagpost.toml.5"), settings::page())
    };
    made().map_err(|e| {
        Error::config(format!("man pages cannot be written into {}: {e}", directory.display()))
    })?;
    Ok(0)
}

/// The pages of a command and of those below it.
fn pages(command: &Command, directory: &Path) -> std::io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(below, directory)?;
    }
    let is_first = command.get_name() == "flagpost";
    let man = Man::new(command.clone()).date(NO_DATE).source(SOURCE).manual(MANUAL);
    let mut page = Vec::new();
    man.render(&mut page)?;
    end(is_first).to_writer(&mut page)?;
    std::fs::write(directory.join(man.get_filename()), page)
}

/// What stands below the options: of the first page more than of the others.
fn end(is_first: bool) -> Roff {
    let mut roff = Roff::default();
    if is_first {
        roff.control("SH", ["EXIT STATUS"]);
        for (code, meaning) in EXIT_CODES {
            roff.control("TP", []).text([bold(code)]).text([roman(meaning)]);
        }
        roff.control("SH", ["FILES"]);
        roff.control("TP", []).text([bold(crate::config::DEFAULT_FILE)]);
        roff.text([roman("The configuration, where --config names no other: see flagpost.toml(5).")]);
    }
    roff.control("SH", ["SEE ALSO"]);
    if !is_first {
        roff.text([bold("flagpost"), roman("(1),")]);
    }
    roff.text([bold("flagpost.toml"), roman("(5)")]);
    roff
}
