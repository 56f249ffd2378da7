//! What the demo counts, from the first webhook to the summary.

use std::time::Duration;

use jiff::Timestamp;

use super::webhook::Webhook;

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Changes that were committed.
    pub(super) changes: usize,
    /// Webhooks that arrived, repeats too.
    pub(super) received: usize,
    /// Of these, the rightly signed ones.
    pub(super) signed: usize,
    /// From the commit of a flag's change to the arrival of its webhook, with the settle window.
    pub(super) settled: Times,
    /// The same without the window.
    pub(super) bare: Times,
    /// Events that should have come and did not.
    pub(super) lost: usize,
    /// Webhooks that came more than once.
    pub(super) repeats: usize,
    /// What is wrong, one line each.
    pub(super) problems: Vec<String>,
}

impl Tally {
    /// Counts webhooks and checks their signatures.
    pub(super) fn count(&mut self, webhooks: &[Webhook]) {
        self.received += webhooks.len();
        for webhook in webhooks {
            if webhook.is_signed {
                self.signed += 1;
            } else {
                self.problems
                    .push(format!("event {} at {} is not signed rightly", webhook.id, webhook.endpoint));
            }
        }
    }

    /// Webhooks that should not have come.
    pub(super) fn count_surplus(&mut self, webhooks: &[Webhook]) {
        self.count(webhooks);
        for Webhook { event, id, endpoint, .. } in webhooks {
            self.problems.push(format!("nobody asked for {event} {id} at {endpoint}"));
        }
    }
}

/// Durations, for their middle and their largest.
#[derive(Debug, Default)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(super) fn median(&self) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    pub(super) fn max(&self) -> Duration {
        self.0.iter().max().copied().unwrap_or_default()
    }
}

/// From commit to arrival; both clocks are this machine's.
pub(super) fn elapsed(committed: Timestamp, arrived: Timestamp) -> Duration {
    arrived.duration_since(committed).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_whatever_the_order() {
        let mut times = Times::default();
        assert_eq!(times.median(), Duration::ZERO);
        for ms in [9, 1, 5] {
            times.add(Duration::from_millis(ms));
        }
        assert_eq!((times.median().as_millis(), times.max().as_millis()), (5, 9));
    }
}
