//! `flagpost shadow`: compares what Flagsmith sends with what flagpost would send, and sends nothing.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use crate::config::Config;
use crate::error::Result;
use crate::shadow;

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Address that Flagsmith's webhooks point to, with any path: plain HTTP
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// How Flagsmith's webhooks name that address: the beginning of their URLs, several if need be
    #[arg(
        long = "as",
        value_name = "URL",
        long_help = "How Flagsmith's webhooks name that address: the beginning of their URLs, \
        such as http://flagpost:8000; can be given several times. Only webhooks with one of them are compared. Without it: plain \
        HTTP to the port of ADDR, at localhost or one of this machine's own addresses"
    )]
    said: Vec<String>,
    /// How long something equal is waited for
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    grace: u32,
    /// Later than this after the commit is late
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    late: u32,
    /// Between two summaries; there is one at the end too
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..))]
    report: u32,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn shadow(config: &Config, options: &Options) -> Result<u8> {
    let seconds = |count: u32| Duration::from_secs(count.into());
    let said = options.said.iter().map(|text| shadow::Origin::parse(text)).collect::<Result<_>>()?;
    let options = shadow::Options {
        listen: options.listen,
        said,
        grace: seconds(options.grace),
        late: seconds(options.late),
        report: seconds(options.report),
        json: options.json,
    };
    let tell = |line: &str| {
        say!("{line}");
    };
    Box::pin(shadow::run(config, &options, tell)).await.map(|()| 0)
}
