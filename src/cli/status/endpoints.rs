//! The endpoints in `flagpost status`: what is queued for each, and what keeps it from being sent.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;

use crate::change::Micros;
use crate::cli::printable::one_line;
use crate::cli::{endpoint, moment, size};
use crate::config::Config;
use crate::delivery::redacted;
use crate::error::Result;
use crate::event::EndpointKey;
use crate::ledger::{BreakerState, Counts, Endpoint, LaneState, Pause, Reader};

/// So many attempts tell how well an endpoint does.
const RECENT: usize = 100;

#[derive(Clone, Serialize)]
pub(super) struct EndpointPart {
    pub(super) endpoint: String,
    /// Without userinfo and query; `None` where the endpoint was deleted.
    pub(super) url: Option<String>,
    enabled: bool,
    /// False where the configuration says `verify = false`: TLS is made with whoever answers.
    pub(super) tls_verified: bool,
    pub(super) paused: Option<PausedPart>,
    /// While it is open.
    pub(super) breaker: Option<BreakerPart>,
    pub(super) pending: u64,
    pub(super) retrying: u64,
    pub(super) dead: u64,
    delivered: u64,
    dropped: u64,
    shadowed: u64,
    replays: u64,
    oldest_pending_seconds: Option<u64>,
    pub(super) last_error: Option<String>,
    /// The attempts at the newest events, at most [`RECENT`].
    recent: RecentPart,
}

#[derive(Clone, Serialize)]
struct RecentPart {
    attempts: u64,
    delivered: u64,
}

#[derive(Clone, Serialize)]
pub(super) struct PausedPart {
    since: String,
    pub(super) by: String,
    pub(super) why: String,
}

#[derive(Clone, Serialize)]
pub(super) struct BreakerPart {
    open_since: String,
    failures: u32,
    failing_since: Option<String>,
    probes_failed: u32,
    next_probe: Option<String>,
    pub(super) next_probe_seconds: Option<u64>,
}

/// The endpoints of the mirror and of the configuration, and those that were deleted and have deliveries on record.
pub(super) fn read(config: &Config, reader: &Reader) -> Result<Vec<EndpointPart>> {
    let mut counts = reader.counts()?;
    let mut lanes: HashMap<String, LaneState> =
        reader.lanes()?.into_iter().map(|(key, lane)| (key.to_string(), lane)).collect();
    let now = Micros::now();
    let mut part = |key: String, endpoint: Option<&Endpoint>, counts: Counts| {
        let lane = lanes.remove(&key).unwrap_or_default();
        part(key, endpoint, counts, &lane, now)
    };
    let mut parts: Vec<EndpointPart> = Vec::new();
    for (key, endpoint) in endpoint::all(config, reader)? {
        let counts = counts.remove(&key.to_string()).unwrap_or_default();
        let options = config.endpoint_options(key, &endpoint.url);
        let tls_verified = options.is_none_or(|options| options.tls.verifies());
        let (attempts, delivered) = reader.recent_attempts(key, RECENT)?;
        let recent = RecentPart { attempts, delivered };
        parts.push(EndpointPart { tls_verified, recent, ..part(key.to_string(), Some(&endpoint), counts) });
    }
    parts.extend(counts.into_iter().map(|(key, counts)| part(key, None, counts)));
    parts.sort_by_cached_key(|part| (part.endpoint.parse::<EndpointKey>().ok(), part.endpoint.clone()));
    Ok(parts)
}

fn part(
    key: String,
    endpoint: Option<&Endpoint>,
    counts: Counts,
    lane: &LaneState,
    now: Micros,
) -> EndpointPart {
    EndpointPart {
        endpoint: key,
        url: endpoint.map(|endpoint| redacted(&endpoint.url)),
        enabled: endpoint.is_some_and(|endpoint| endpoint.enabled),
        tls_verified: true,
        paused: lane.pause.as_ref().map(paused),
        breaker: breaker(&lane.breaker, now),
        pending: counts.pending,
        retrying: counts.retrying,
        dead: counts.dead,
        delivered: counts.delivered,
        dropped: counts.dropped,
        shadowed: counts.shadowed,
        replays: counts.replays,
        oldest_pending_seconds: counts.oldest_pending.map(|since| seconds(since, now)),
        last_error: counts.last_error,
        recent: RecentPart { attempts: 0, delivered: 0 },
    }
}

fn paused(pause: &Pause) -> PausedPart {
    PausedPart { since: moment::exact(pause.at), by: pause.by.clone(), why: pause.why.clone() }
}

fn breaker(breaker: &BreakerState, now: Micros) -> Option<BreakerPart> {
    Some(BreakerPart {
        open_since: moment::exact(breaker.opened_at?),
        failures: breaker.failures,
        failing_since: breaker.failing_since.map(moment::exact),
        probes_failed: breaker.probes,
        next_probe: breaker.probe_at.map(moment::exact),
        next_probe_seconds: breaker.probe_at.map(|at| seconds(now, at)),
    })
}

/// From one moment to a later one; 0 where it is earlier.
fn seconds(from: Micros, to: Micros) -> u64 {
    u64::try_from(to.0.saturating_sub(from.0) / 1_000_000).unwrap_or(0)
}

const COLUMNS: usize = 10;
const HEAD: [&str; COLUMNS] =
    ["endpoint", "state", "pending", "retrying", "dead", "delivered", "shadowed", "replays", "oldest", "url"];

pub(super) fn print(endpoints: &[EndpointPart]) {
    if endpoints.is_empty() {
        return;
    }
    let rows: Vec<[String; COLUMNS]> = endpoints.iter().map(cells).collect();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(HEAD.get(column).map(|head| head.len())).max().unwrap_or(0)
    });
    say!();
    print_row(HEAD, widths);
    for (row, endpoint) in rows.iter().zip(endpoints) {
        print_row(row.each_ref().map(String::as_str), widths);
        endpoint.remarks().iter().for_each(|remark| say!("    {remark}"));
    }
}

impl EndpointPart {
    /// What an operator must see beside the numbers.
    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if let Some(paused) = &self.paused {
            remarks.push(format!(
                "PAUSED by the {} since {}: {}; \"flagpost resume {}\" ends that",
                paused.by,
                paused.since,
                one_line(&paused.why),
                self.endpoint
            ));
        }
        if let Some(breaker) = &self.breaker {
            let probe = breaker.next_probe_seconds.map_or_else(
                || "it is probed".to_owned(),
                |seconds| format!("next probe in {}", size::span(Duration::from_secs(seconds))),
            );
            remarks.push(format!(
                "BREAKER OPEN since {}, {} failures in a row: {probe}",
                breaker.open_since, breaker.failures
            ));
        }
        remarks.extend(self.last_error.as_deref().map(one_line));
        remarks
    }

    fn state(&self) -> &'static str {
        match self {
            EndpointPart { url: None, .. } => "deleted",
            EndpointPart { paused: Some(_), .. } => "PAUSED",
            EndpointPart { breaker: Some(_), .. } => "OPEN",
            EndpointPart { enabled: false, .. } => "disabled",
            _ => "enabled",
        }
    }
}

fn cells(part: &EndpointPart) -> [String; COLUMNS] {
    let oldest = part.oldest_pending_seconds.map(|s| size::span(Duration::from_secs(s)));
    [
        part.endpoint.clone(),
        part.state().to_owned(),
        part.pending.to_string(),
        part.retrying.to_string(),
        part.dead.to_string(),
        part.delivered.to_string(),
        part.shadowed.to_string(),
        part.replays.to_string(),
        oldest.unwrap_or_else(|| "-".into()),
        format!(
            "{}{}",
            part.url.as_deref().unwrap_or("(deleted)"),
            if part.tls_verified { "" } else { "  TLS IS NOT VERIFIED" }
        ),
    ]
}

fn print_row(cells: [&str; COLUMNS], widths: [usize; COLUMNS]) {
    let padded: Vec<String> =
        cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    say!("{}", padded.join("  ").trim_end());
}
