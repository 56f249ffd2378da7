//! When somebody is told of an endpoint's troubles. Pure: what is known of the lane, and the clock, are handed in.

use std::time::Duration;

use crate::change::Micros;
use crate::ledger::LaneState;

/// At most one message an endpoint in this time.
const AT_MOST_EVERY: Duration = Duration::from_secs(3600);

/// What is wrong with an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Its breaker has been open since then.
    Failing(Micros),
    /// It answered HTTP 410 and is paused since then.
    Gone(Micros),
    /// So many deliveries were given up since the last message.
    GivenUp(u64),
}

/// What is to be told of an endpoint at `now`; nothing while it was told within the hour. An open breaker is told once it has
/// been open for `after`, and once only; a pause of an operator's own is no trouble.
pub fn troubles(lane: &LaneState, now: Micros, after: Duration) -> Vec<Trouble> {
    if lane.notified_at.is_some_and(|at| at.plus(AT_MOST_EVERY) > now) {
        return Vec::new();
    }
    let is_news = |since: &Micros| lane.notified_at.is_none_or(|at| at < *since);
    let failing = lane.breaker.opened_at.filter(is_news).filter(|at| at.plus(after) <= now);
    let gone =
        lane.pause.as_ref().filter(|pause| pause.by == "endpoint").map(|pause| pause.at).filter(is_news);
    let given_up = lane.dead.saturating_sub(lane.notified_dead);
    let mut all = Vec::new();
    all.extend(failing.map(Trouble::Failing));
    all.extend(gone.map(Trouble::Gone));
    all.extend((given_up > 0).then_some(Trouble::GivenUp(given_up)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{BreakerState, Pause};
    use proptest::prelude::*;

    const MINUTE: i64 = 60_000_000;
    const AFTER: Duration = Duration::from_secs(300);

    fn open_since(minute: i64) -> LaneState {
        let breaker = BreakerState { opened_at: Some(Micros(minute * MINUTE)), ..BreakerState::default() };
        LaneState { breaker, ..LaneState::default() }
    }

    #[test]
    fn an_open_breaker_is_told_after_a_while_and_once() {
        let mut lane = open_since(100);
        assert_eq!(troubles(&lane, Micros(104 * MINUTE), AFTER), []);
        let told = vec![Trouble::Failing(Micros(100 * MINUTE))];
        assert_eq!(troubles(&lane, Micros(105 * MINUTE), AFTER), told);
        lane.notified_at = Some(Micros(105 * MINUTE));
        assert_eq!(troubles(&lane, Micros(1_000 * MINUTE), AFTER), []);
        // Another outage.
        let again = LaneState { notified_at: lane.notified_at, ..open_since(500) };
        assert_eq!(troubles(&again, Micros(505 * MINUTE), AFTER), [Trouble::Failing(Micros(500 * MINUTE))]);
    }

    #[test]
    fn an_operators_pause_is_no_trouble() {
        let pause = |by: &str| {
            let pause = Pause { at: Micros(MINUTE), by: by.into(), why: String::new() };
            LaneState { pause: Some(pause), ..LaneState::default() }
        };
        assert_eq!(troubles(&pause("operator"), Micros(MINUTE), AFTER), []);
        assert_eq!(troubles(&pause("endpoint"), Micros(MINUTE), AFTER), [Trouble::Gone(Micros(MINUTE))]);
    }

    proptest! {
        #[test]
        fn never_more_than_one_message_an_hour(deaths in prop::collection::vec(0u64..3, 1..200), every in 1i64..30) {
            let mut lane = open_since(0);
            let mut last: Option<Micros> = None;
            let mut told = 0;
            let mut now = Micros(0);
            for dead in deaths {
                now = Micros(now.0 + every * MINUTE);
                lane.dead += dead;
                let troubles = troubles(&lane, now, AFTER);
                if troubles.is_empty() { continue }
                prop_assert!(last.is_none_or(|last| now.0 - last.0 >= 60 * MINUTE));
                for trouble in &troubles {
                    if let Trouble::GivenUp(count) = trouble { told += count }
                }
                last = Some(now);
                lane.notified_at = last;
                lane.notified_dead = lane.dead;
            }
            // None is told twice, and none is forgotten.
            prop_assert_eq!(told, lane.notified_dead);
        }
    }
}
