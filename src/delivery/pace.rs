//! How many calls an endpoint gets at once: fewer when it says that it is asked too much, more again with every success. Pure.

use crate::change::Micros;

/// The pace of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    limit: usize,
    /// Nothing is sent before, on the endpoint's own word.
    not_before: Option<Micros>,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { limit: usize::MAX, not_before: None }
    }
}

impl Pace {
    /// Calls at once, where the configuration allows `most`.
    pub(super) fn limit(&self, most: usize) -> usize {
        self.limit.min(most)
    }

    /// When something may be sent again, if that is after `now`.
    pub(super) fn wait(&self, now: Micros) -> Option<Micros> {
        self.not_before.filter(|at| *at > now)
    }

    /// One call more at once.
    pub(super) fn succeeded(&mut self) {
        self.limit = self.limit.saturating_add(1);
    }

    /// Half as many calls at once, and none before `until`.
    pub(super) fn overloaded(&mut self, most: usize, until: Option<Micros>) {
        self.limit = (self.limit.min(most) / 2).max(1);
        self.not_before = self.not_before.max(until);
    }

    /// After an outage: one call, then more with every success.
    pub(super) fn start_slowly(&mut self) {
        *self = Pace { limit: 1, not_before: None };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn there_is_always_one_call_and_never_more_than_the_most(
            most in 1usize..64, steps in prop::collection::vec(0u8..3, 0..100)
        ) {
            let mut pace = Pace::default();
            for step in steps {
                let before = pace.limit(most);
                match step {
                    0 => pace.succeeded(),
                    1 => pace.overloaded(most, None),
                    _ => pace.start_slowly(),
                }
                let after = pace.limit(most);
                prop_assert!((1..=most).contains(&after));
                match step {
                    0 => prop_assert!(after == most.min(before + 1)),
                    1 => prop_assert!(after == (before / 2).max(1)),
                    _ => prop_assert!(after == 1),
                }
            }
        }
    }

    #[test]
    fn the_later_of_two_waits_holds() {
        let mut pace = Pace::default();
        pace.overloaded(16, Some(Micros(20)));
        pace.overloaded(16, Some(Micros(10)));
        assert_eq!(pace.wait(Micros(5)), Some(Micros(20)));
        assert_eq!(pace.wait(Micros(20)), None);
    }
}
