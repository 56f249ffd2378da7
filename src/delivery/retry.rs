//! When a failed delivery is tried again. Pure: history, clock and randomness are handed in.

use std::time::Duration;

use crate::change::Micros;
use crate::ledger::Verdict;

/// The longest waits between attempts, and when to give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The longest wait after the first, second, … failure; the last one repeats.
    pub waits: Vec<Duration>,
    /// A delivery is given up when its event is older than this.
    pub max_age: Duration,
}

impl Default for Schedule {
    /// About 5 s, 30 s, 2 min, 10 min, 30 min, 2 h, 5 h, 10 h, then every 12 h for three days.
    fn default() -> Self {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        let waits = [5, 30, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 12 * HOUR];
        Schedule {
            waits: waits.into_iter().map(Duration::from_secs).collect(),
            max_age: Duration::from_secs(72 * HOUR),
        }
    }
}

/// What is known of a delivery when an attempt has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Attempts made since it was queued, this one included.
    pub attempt: u32,
    /// When it was queued: when its event was recorded, or when an operator asked for it again.
    pub queued_at: Micros,
}

/// What an endpoint answered, as far as it decides what is done next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The status code, if there was an answer.
    pub status: Option<u16>,
    /// The header `Retry-After` (RFC 9110, 10.2.3), as it came.
    pub retry_after: Option<&'a str>,
}

impl Reply<'_> {
    /// Whether the endpoint says that it is being asked too much (RFC 6585, 4; RFC 9110, 15.6.4).
    pub fn is_overload(&self) -> bool {
        matches!(self.status, Some(429 | 503))
    }

    /// How long the endpoint wants to be left alone: a number of seconds, or a date.
    fn wanted_wait(&self, now: Micros) -> Option<Duration> {
        let text = self.retry_after?.trim();
        if let Ok(seconds) = text.parse::<u64>() {
            return Some(Duration::from_secs(seconds));
        }
        let at = httpdate::parse_http_date(text).ok()?;
        let since_1970 = at.duration_since(std::time::UNIX_EPOCH).ok()?;
        let now = Duration::from_micros(u64::try_from(now.0).ok()?);
        Some(since_1970.saturating_sub(now))
    }
}

/// An endpoint that wants to be asked again at once is asked after this.
const SHORTEST_WANTED: Duration = Duration::from_secs(1);

/// An endpoint may want a wait as long as the schedule's longest, and in any case this one.
const LONGEST_WANTED: Duration = Duration::from_secs(3600);

impl Schedule {
    /// What follows an attempt that failed at `now`. `random` is uniform in 0..1.
    ///
    /// Without `Retry-After`: full jitter, so that what failed together does not come back together. At least a tenth of the wait
    /// is kept, or an unlucky draw would hammer an endpoint that is down. With it: what the endpoint wants, within limits,
    /// and up to a tenth more.
    pub fn after_failure(&self, history: History, reply: Reply<'_>, now: Micros, random: f64) -> Verdict {
        if reply.status == Some(410) {
            return Verdict::Pause;
        }
        let random = random.clamp(0.0, 1.0);
        let wait = match reply.wanted_wait(now) {
            Some(wanted) => {
                let wanted = wanted.min(self.longest_wanted()).max(SHORTEST_WANTED);
                wanted.mul_f64(1.0 + random / 10.0)
            }
            None => self.wait_after(history.attempt).mul_f64(random.max(0.1)),
        };
        let next = now.plus(wait);
        if next > history.queued_at.plus(self.max_age) { Verdict::Dead } else { Verdict::Retry(next) }
    }

    fn wait_after(&self, attempt: u32) -> Duration {
        let index = usize::try_from(attempt).unwrap_or(usize::MAX).saturating_sub(1);
        self.waits.get(index).or(self.waits.last()).copied().unwrap_or(Duration::from_secs(60))
    }

    /// The longest wait that an endpoint may want.
    fn longest_wanted(&self) -> Duration {
        self.waits.iter().copied().chain([LONGEST_WANTED]).max().unwrap_or(LONGEST_WANTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3600;

    fn failed(attempt: u32) -> History {
        History { attempt, queued_at: Micros(0) }
    }

    proptest! {
        #[test]
        fn a_retry_lies_within_the_wait_of_its_attempt(attempt in 1u32..40, random in 0.0f64..1.0) {
            let schedule = Schedule { max_age: Duration::from_secs(u32::MAX.into()), ..Schedule::default() };
            let longest = schedule.waits[(attempt as usize - 1).min(schedule.waits.len() - 1)];
            let verdict = schedule.after_failure(failed(attempt), Reply::default(), Micros(1_000), random);
            let Verdict::Retry(at) = verdict else { panic!("given up") };
            prop_assert!(at >= Micros(1_000).plus(longest / 10));
            prop_assert!(at <= Micros(1_000).plus(longest));
        }

        #[test]
        fn an_old_delivery_is_given_up(age in 0u64..500, random in 0.0f64..1.0) {
            let schedule = Schedule::default();
            let now = Micros(0).plus(Duration::from_secs(age * HOUR));
            let verdict = schedule.after_failure(failed(9), Reply::default(), now, random);
            if age >= 72 {
                prop_assert_eq!(verdict, Verdict::Dead);
            }
            if age < 60 {
                prop_assert!(matches!(verdict, Verdict::Retry(_)));
            }
        }

        #[test]
        fn what_the_endpoint_wants_is_kept_within_limits(
            seconds in prop_oneof![0u64..100_000, any::<u64>()], attempt in 1u32..20, random in 0.0f64..1.0
        ) {
            let schedule = Schedule { max_age: Duration::from_secs(u32::MAX.into()), ..Schedule::default() };
            let text = seconds.to_string();
            let reply = Reply { status: Some(503), retry_after: Some(&text) };
            let Verdict::Retry(at) = schedule.after_failure(failed(attempt), reply, Micros(0), random) else {
                panic!("given up");
            };
            let kept = Duration::from_secs(seconds.clamp(1, 12 * HOUR));
            prop_assert!(at >= Micros(0).plus(kept));
            prop_assert!(at <= Micros(0).plus(kept.mul_f64(1.101)));
        }

        #[test]
        fn any_header_is_a_wait_or_none(text in ".{0,60}", random in 0.0f64..1.0) {
            let reply = Reply { status: Some(429), retry_after: Some(&text) };
            let now = Micros(1_800_000_000_000_000);
            let history = History { attempt: 1, queued_at: now };
            let verdict = Schedule::default().after_failure(history, reply, now, random);
            let is_later = matches!(verdict, Verdict::Retry(at) if at > now);
            prop_assert!(is_later);
        }
    }

    #[test]
    fn retry_after_can_be_a_date() {
        // 2026-11-24 00:00:00 UTC
        let now = Micros(1_795_478_400_000_000);
        let history = History { attempt: 1, queued_at: now };
        let at = |text: &str| {
            let reply = Reply { status: Some(503), retry_after: Some(text) };
            match Schedule::default().after_failure(history, reply, now, 0.0) {
                Verdict::Retry(at) => (at.0 - now.0) / 1_000_000,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(at("Tue, 24 Nov 2026 00:02:00 GMT"), 120);
        assert_eq!(at("Tuesday, 24-Nov-26 00:02:00 GMT"), 120);
        // Past: at once, which is after a second. Far away: the longest wait.
        assert_eq!(at("Mon, 23 Nov 2026 00:00:00 GMT"), 1);
        assert_eq!(at("Fri, 01 Jan 2100 00:00:00 GMT"), 12 * 3600);
    }

    #[test]
    fn gone_pauses_the_endpoint_whatever_it_wants() {
        let reply = Reply { status: Some(410), retry_after: Some("5") };
        assert_eq!(Schedule::default().after_failure(failed(1), reply, Micros(0), 0.5), Verdict::Pause);
    }
}
