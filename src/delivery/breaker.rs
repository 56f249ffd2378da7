//! The breaker of an endpoint: opens on sustained failure, probes with one delivery, closes with its success. Pure: the history
//! ([`BreakerState`]), the clock and randomness are handed in.

use std::time::Duration;

use crate::change::Micros;
use crate::ledger::BreakerState;

/// When a breaker opens, and how it probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// It opens after this many failures without a success between them; 0: never.
    pub failures: u32,
    /// … that lie at least this far apart, the first from the last: a restart of the endpoint is no sustained failure.
    pub sustained: Duration,
    /// The longest wait before the first probe; it doubles with every probe that fails.
    pub first_probe: Duration,
    /// The longest wait between two probes.
    pub longest_probe: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        BreakerPolicy {
            failures: 10,
            sustained: Duration::from_secs(5),
            first_probe: Duration::from_secs(5),
            longest_probe: Duration::from_secs(300),
        }
    }
}

impl BreakerPolicy {
    /// The breaker after a success.
    pub fn after_success(&self) -> BreakerState {
        BreakerState::default()
    }

    /// The breaker after a failure at `now`. `random` is uniform in 0..1 (jitter: endpoints that share a fate are not probed
    /// at once).
    pub fn after_failure(&self, before: BreakerState, now: Micros, random: f64) -> BreakerState {
        let failing_since = before.failing_since.unwrap_or(now).min(now);
        let mut after = BreakerState {
            failures: before.failures.saturating_add(1),
            failing_since: Some(failing_since),
            ..before
        };
        if before.opened_at.is_some() {
            // A call that was under way when it opened is no probe.
            if before.probe_at.is_some_and(|at| at <= now) {
                after.probes = before.probes.saturating_add(1);
                after.probe_at = Some(now.plus(self.wait(after.probes, random)));
            }
        } else if self.failures > 0
            && after.failures >= self.failures
            && now >= failing_since.plus(self.sustained)
        {
            after.opened_at = Some(now);
            after.probes = 0;
            after.probe_at = Some(now.plus(self.wait(0, random)));
        }
        after
    }

    /// Before the next probe, after so many have failed: between half of the longest wait and all of it.
    fn wait(&self, probes: u32, random: f64) -> Duration {
        let doubled = self.first_probe.saturating_mul(1_u32.checked_shl(probes.min(20)).unwrap_or(u32::MAX));
        doubled.min(self.longest_probe).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }
}

/// What a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// Closed: everything.
    All,
    /// Open, and it is time to probe: one.
    Probe,
    /// Open: nothing until then.
    Nothing(Micros),
}

/// What `breaker` lets through at `now`.
pub fn passage(breaker: &BreakerState, now: Micros) -> Passage {
    match (breaker.opened_at, breaker.probe_at) {
        (None, _) => Passage::All,
        (Some(_), Some(at)) if at > now => Passage::Nothing(at),
        (Some(_), _) => Passage::Probe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000;

    /// Attempts: seconds since the last, and whether it succeeded.
    fn history() -> impl Strategy<Value = Vec<(u32, bool)>> {
        prop::collection::vec((0u32..40, prop::bool::weighted(0.2)), 0..60)
    }

    fn play(
        policy: &BreakerPolicy,
        history: &[(u32, bool)],
        random: f64,
    ) -> Vec<(Micros, bool, BreakerState)> {
        let mut now = Micros(1_000 * SECOND);
        let mut breaker = BreakerState::default();
        let mut states = Vec::new();
        for (seconds, success) in history {
            now = now.plus(Duration::from_secs((*seconds).into()));
            if let Passage::Nothing(_) = passage(&breaker, now) {
                continue;
            }
            breaker =
                if *success { policy.after_success() } else { policy.after_failure(breaker, now, random) };
            states.push((now, *success, breaker));
        }
        states
    }

    proptest! {
        #[test]
        fn it_is_open_if_and_only_if_failure_was_sustained(history in history(), random in 0.0f64..1.0) {
            let policy = BreakerPolicy::default();
            let mut run: Vec<Micros> = Vec::new();
            for (now, success, breaker) in play(&policy, &history, random) {
                if success { run.clear() } else { run.push(now) }
                // Once sustained, it stays so until a success.
                let sustained = run.iter().enumerate().any(|(i, at)| {
                    i + 1 >= policy.failures as usize && at.0 - run[0].0 >= 5 * SECOND
                });
                prop_assert_eq!(breaker.opened_at.is_some(), sustained);
            }
        }

        #[test]
        fn probes_come_further_and_further_apart_and_never_more_than_the_longest_wait(
            count in 1usize..20, random in 0.0f64..1.0
        ) {
            let policy = BreakerPolicy::default();
            let mut now = Micros(0);
            let mut breaker = BreakerState::default();
            while breaker.opened_at.is_none() {
                breaker = policy.after_failure(breaker, now, random);
                now = now.plus(Duration::from_secs(1));
            }
            let mut last = Duration::ZERO;
            for _ in 0..count {
                let at = breaker.probe_at.unwrap();
                prop_assert_eq!(passage(&breaker, Micros(at.0 - 1)), Passage::Nothing(at));
                prop_assert_eq!(passage(&breaker, at), Passage::Probe);
                breaker = policy.after_failure(breaker, at, random);
                let wait = Duration::from_micros((breaker.probe_at.unwrap().0 - at.0) as u64);
                prop_assert!(wait >= last && wait <= policy.longest_probe);
                last = wait;
            }
            prop_assert_eq!(policy.after_success(), BreakerState::default());
        }
    }

    #[test]
    fn a_call_that_was_under_way_when_it_opened_is_no_probe() {
        let policy = BreakerPolicy { failures: 1, sustained: Duration::ZERO, ..BreakerPolicy::default() };
        let open = policy.after_failure(BreakerState::default(), Micros(0), 1.0);
        let after = policy.after_failure(open, Micros(SECOND), 1.0);
        assert_eq!((after.probes, after.probe_at), (open.probes, open.probe_at));
    }

    #[test]
    fn it_can_be_turned_off() {
        let policy = BreakerPolicy { failures: 0, ..BreakerPolicy::default() };
        let mut breaker = BreakerState::default();
        for n in 0..100 {
            breaker = policy.after_failure(breaker, Micros(n * SECOND), 0.5);
        }
        assert_eq!(passage(&breaker, Micros(0)), Passage::All);
    }
}
