//! The command line: what was typed, and which function does it. Every command is a file.

/// Prints a line to standard output. A reader that has gone away (`flagpost status | head`) is no reason to panic, as
/// `println!` would.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($part)*).ok();
    }};
}

mod bugreport;
mod check;
mod completions;
mod demo;
mod desk;
mod endpoint;
mod healthcheck;
mod leftovers;
mod log;
mod manuals;
mod moment;
mod pause;
mod printable;
mod program;
mod recover;
mod replay;
mod run;
mod setup;
mod shadow;
mod show;
mod size;
mod status;
mod switch_source;
mod test;
mod uninstall;
mod view;
mod wanted;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::fact::UnknownVariable;
use crate::ops::logging;

/// Correct, durable webhooks for any Flagsmith installation, read from its PostgreSQL change stream.
#[derive(Debug, Parser)]
#[command(name = "flagpost", version, about, arg_required_else_help = true)]
struct Cli {
    /// Configuration file [default: /etc/flagpost/flagpost.toml, if it exists]
    #[arg(long, value_name = "FILE", global = true, env = "FLAGPOST_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell what stands in the way, with the SQL that mends it
    Check(check::Options),
    /// Collect what a bug report needs into one file, without secrets and without values of flags
    Bugreport(bugreport::Options),
    /// Make publication and slot, or the outbox, and fill the mirror
    Setup(setup::Options),
    /// Capture changes and deliver webhooks until told to stop
    Run,
    /// Show lag, queues and endpoints
    Status(Json),
    /// Show what has happened, and what became of it
    Log(log::Options),
    /// Show one event: what changed, who got it, what they answered
    Show(show::Options),
    /// Send again what was delivered or given up
    Replay(replay::Options),
    /// Send nothing more to an endpoint; what comes for it waits
    Pause(pause::PauseOptions),
    /// End a pause, close the breaker, and send what waits
    Resume(pause::ResumeOptions),
    /// Send a made-up event to an endpoint, and say what was answered
    Test(test::Options),
    /// Compare what Flagsmith sends with what flagpost would send, and send nothing
    Shadow(shadow::Options),
    /// Show the daemon at work on a scratch database: real changes, real webhooks, a kill -9
    Demo(demo::Options),
    /// Change from replication to the outbox or back, without a lost or doubled event
    SwitchSource(switch_source::Options),
    /// After a lost slot or outbox: begin anew, and send receivers the difference to what they were told last
    Recover(recover::Options),
    /// Drop slot, publication and outbox
    Uninstall(uninstall::Options),
    /// Print the completions for a shell
    Completions(completions::Options),
    /// Ask the running daemon whether it is ready: for a container's health check
    #[command(hide = true)]
    Healthcheck,
    /// Write the man pages into a directory: for packages
    #[command(hide = true)]
    Manuals(manuals::Options),
}

/// For commands that a program may read.
#[derive(Debug, Args)]
struct Json {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command that was typed and returns the exit code of the contract: 0 done, 1 failed, 2 usage or configuration, 3
/// the database refuses or lacks something, 4 needs an operator.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            writeln!(std::io::stderr(), "flagpost: {error}").ok();
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn execute(cli: Cli) -> Result<u8> {
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    // They need no configuration and must not be disturbed by one.
    match &cli.command {
        Command::Demo(options) => return runtime()?.block_on(demo::demo(options)),
        Command::Completions(options) => return completions::print(Cli::command(), options),
        Command::Manuals(options) => return manuals::write(Cli::command(), options),
        _ => {}
    }
    if let Command::Check(options) = &cli.command
        && check::has_listed(options)
    {
        return Ok(0);
    }
    let file = cli.config;
    let load = move || Config::load(file.as_deref(), &environment);
    let config = load()?;
    logging::start(&config)?;
    for variable in &config.unknown_variables {
        UnknownVariable { variable: variable.clone() }.tell();
    }
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        match cli.command {
            Command::Check(options) => check::check(&config, &options).await,
            Command::Bugreport(options) => bugreport::bugreport(&config, &options).await,
            Command::Setup(options) => setup::setup(&config, &options).await,
            Command::SwitchSource(options) => switch_source::switch(&config, &options).await,
            Command::Run => run::run(&config, load).await,
            Command::Demo(options) => demo::demo(&options).await,
            Command::Shadow(options) => shadow::shadow(&config, &options).await,
            Command::Status(options) => status::status(&config, options.json).await,
            Command::Log(options) => log::log(&config, &options).await,
            Command::Show(options) => show::show(&config, &options),
            Command::Replay(options) => replay::replay(&config, &options).await,
            Command::Pause(options) => pause::pause(&config, &options),
            Command::Resume(options) => pause::resume(&config, &options),
            Command::Test(options) => test::test(&config, &options).await,
            Command::Recover(options) => recover::recover(&config, &options).await,
            Command::Uninstall(options) => uninstall::uninstall(&config, &options).await,
            Command::Healthcheck => healthcheck::ask(&config).await,
            Command::Completions(options) => completions::print(Cli::command(), &options),
            Command::Manuals(options) => manuals::write(Cli::command(), &options),
        }
    });
    // Whatever still hangs (a resolver's thread) must not keep the process.
    runtime.shutdown_background();
    code
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::internal(format!("the runtime cannot be started: {e}")))
}
