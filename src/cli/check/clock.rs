//! The clocks: what is told and signed carries times, and receivers refuse what is too far from theirs.

use std::time::Duration;

use tokio_postgres::Client;

use super::code::Code;
use super::report::Report;
use crate::change::Micros;
use crate::cli::program;
use crate::config::Config;
use crate::source::server_clock;

/// Microseconds. Beyond it the times in the log and in `status` mislead.
const NOTICEABLE: u64 = 2_000_000;
/// Microseconds. Standard Webhooks' receivers refuse a `webhook-timestamp` that is further away than this.
const REFUSED: u64 = 300_000_000;
const ASK_WITHIN: Duration = Duration::from_secs(3);

/// Our clock beside the server's. The answer took a while: the skew is known but for half of that.
pub(super) async fn check_skew(config: &Config, client: &Client, report: &mut Report) {
    let before = Micros::now();
    match server_clock(client, &config.database).await {
        Err(error) => report.error(Code::ClockSkew, &error),
        Ok(server) => tell_skew(before, server, Micros::now(), report),
    }
}

fn tell_skew(before: Micros, server: Micros, after: Micros, report: &mut Report) {
    let code = Code::ClockSkew;
    let took = after.0.abs_diff(before.0);
    let middle = before.0 + i64::try_from(took / 2).unwrap_or(0);
    let skew = server.0.abs_diff(middle).saturating_sub(took / 2);
    let (seconds, tenths) = (skew / 1_000_000, skew / 100_000 % 10);
    let side = if server.0 > middle { "behind" } else { "ahead of" };
    let message = format!("this machine's clock is {seconds}.{tenths} s {side} the database server's");
    let mend = "synchronise both clocks: timedatectl set-ntp true";
    if skew > REFUSED {
        report.warn(
            code,
            format!("{message}: receivers refuse signatures that are more than 5 minutes off"),
            mend,
        );
    } else if skew > NOTICEABLE {
        report.warn(code, format!("{message}: times that are shown mislead"), mend);
    } else {
        report.ok(code, "this machine's clock and the database server's agree");
    }
}

/// Left out where nobody can be asked.
pub(super) async fn check_synchronised(report: &mut Report) {
    let code = Code::ClockSynchronised;
    let asked = program::ask("timedatectl", &["show", "--property=NTPSynchronized", "--value"], ASK_WITHIN);
    match asked.await.as_deref().map(str::trim) {
        Some("yes") => report.ok(code, "this machine's clock is synchronised"),
        Some("no") => report.warn(
            code,
            "this machine's clock is not synchronised: in time receivers refuse what is signed with it",
            "timedatectl set-ntp true",
        ),
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_is_no_skew() {
        let status = |before, server, after| {
            let mut report = Report::default();
            tell_skew(Micros(before), Micros(server), Micros(after), &mut report);
            let json = report.to_json();
            format!("{} {}", json["checks"][0]["status"], json["checks"][0]["message"])
        };
        let second = 1_000_000;
        assert!(status(0, 10, 20).contains("ok"));
        assert!(status(0, 9 * second, 10 * second).contains("ok"), "anywhere within the time that it took");
        assert!(status(0, 13 * second, 10 * second).contains("3.0 s behind"));
        assert!(status(10 * second, 0, 10 * second).contains("10.0 s ahead of"));
        assert!(status(0, 400 * second, 0).contains("refuse"));
    }
}
