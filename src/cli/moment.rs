//! Moments on the command line: as they are typed, and as they are shown. All are UTC.

use std::time::Duration;

use jiff::{SpanRelativeTo, Timestamp, fmt::strtime};

use super::size;
use crate::change::Micros;

/// Reads a moment: RFC 3339 (`2026-11-24T10:00:00Z`), or how long ago it was (`2h`, `3d`).
pub(super) fn parse(text: &str) -> Result<Micros, String> {
    let bad = || "write a moment as 2026-11-24T10:00:00Z, or as how long ago it was: 30m, 2h, 3d".to_owned();
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(Micros(at.as_microsecond()));
    }
    let span = text.parse::<jiff::Span>().map_err(|_| bad())?;
    let back = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| bad())?;
    if back.is_negative() {
        return Err(bad());
    }
    Timestamp::now().checked_sub(back).map(|at| Micros(at.as_microsecond())).map_err(|_| bad())
}

/// RFC 3339 to the microsecond.
pub(super) fn exact(at: Micros) -> String {
    format("%Y-%m-%dT%H:%M:%S.%6fZ", at.0)
}

/// `3 min ago`, `in 12 s`.
pub(super) fn relative(at: Micros, now: Micros) -> String {
    let span = size::span(Duration::from_micros(at.0.abs_diff(now.0)));
    if at > now { format!("in {span}") } else { format!("{span} ago") }
}

fn format(pattern: &str, micros: i64) -> String {
    let at = Timestamp::from_microsecond(micros).ok();
    at.and_then(|at| strtime::format(pattern, at).ok()).unwrap_or_else(|| "?".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_date_or_a_time_ago() {
        assert_eq!(parse("1970-01-01T00:00:01.5Z"), Ok(Micros(1_500_000)));
        assert_eq!(parse("1970-01-01T02:00:00+02:00"), Ok(Micros(0)));
        let now = Micros::now().0;
        for (text, seconds) in
            [("90s", 90), ("2h", 7200), ("1d", 86_400), ("1d 2h", 93_600), ("2w", 1_209_600)]
        {
            let back = now - parse(text).unwrap().0;
            assert!((back - seconds * 1_000_000).abs() < 10_000_000, "{text}: {back}");
        }
        for bad in ["", "yesterday", "2026-11-24", "-2h", "2", "1y", "99999999w"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn moments_are_shown_in_utc() {
        let at = Micros(1_795_478_400_123_456);
        assert_eq!(exact(at), "2026-11-24T00:00:00.123456Z");
        assert_eq!(relative(at, Micros(at.0 + 5_000_000)), "5 s ago");
        assert_eq!(relative(at, Micros(at.0 - 600_000_000)), "in 10 min");
    }
}
