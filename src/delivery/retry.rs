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

impl Schedule {
    /// What follows attempt number `attempt` (from 1) that failed at `now`, of an event recorded at `recorded_at`.
    ///
    /// `random` is uniform in 0..1: full jitter, so that what failed together does not come back together. At least a
    /// tenth of the wait is kept, or an unlucky draw would hammer an endpoint that is down.
    pub fn after_failure(&self, attempt: u32, recorded_at: Micros, now: Micros, random: f64) -> Verdict {
        let index = usize::try_from(attempt).unwrap_or(usize::MAX).saturating_sub(1);
        let longest = self.waits.get(index).or(self.waits.last()).copied().unwrap_or(Duration::from_secs(60));
        let next = now.plus(longest.mul_f64(random.clamp(0.1, 1.0)));
        if next > recorded_at.plus(self.max_age) { Verdict::Dead } else { Verdict::Retry(next) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_retry_lies_within_the_wait_of_its_attempt(attempt in 1u32..40, random in 0.0f64..1.0) {
            let schedule = Schedule { max_age: Duration::from_secs(u32::MAX.into()), ..Schedule::default() };
            let longest = schedule.waits[(attempt as usize - 1).min(schedule.waits.len() - 1)];
            let Verdict::Retry(at) = schedule.after_failure(attempt, Micros(0), Micros(1_000), random) else {
                panic!("given up");
            };
            prop_assert!(at > Micros(1_000));
            prop_assert!(at <= Micros(1_000).plus(longest));
        }

        #[test]
        fn an_old_delivery_is_given_up(age in 0u64..500, random in 0.0f64..1.0) {
            let schedule = Schedule::default();
            let now = Micros(0).plus(Duration::from_secs(age * 3600));
            let verdict = schedule.after_failure(9, Micros(0), now, random);
            if age >= 72 {
                prop_assert_eq!(verdict, Verdict::Dead);
            }
            if age < 60 {
                prop_assert!(matches!(verdict, Verdict::Retry(_)));
            }
        }
    }
}
