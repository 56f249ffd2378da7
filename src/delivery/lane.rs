//! A lane: what the dispatcher keeps in memory for one endpoint.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::breaker::{Passage, passage};
use super::pace::Pace;
use crate::change::Micros;
use crate::error::Result;
use crate::event::EndpointKey;
use crate::ledger::{Due, Endpoint, LaneState, Reader};

/// A secret that was replaced signs for a limited time: the endpoint is read again after this.
const TARGET_KEPT: Duration = Duration::from_secs(60);

/// What a lane may send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// The next delivery that is due.
    Next,
    /// One delivery, due or not.
    Probe,
    /// Nothing until then.
    NotBefore(Micros),
    /// Nothing until something happens: a call ends, an operator resumes the endpoint, there is news.
    None,
}

#[derive(Default)]
pub(super) struct Lane {
    /// The ledger may have something due.
    pub(super) has_work: bool,
    /// When something becomes due, as far as it is known.
    pub(super) next_due: Option<Micros>,
    pub(super) pace: Pace,
    queue: VecDeque<Due>,
    /// Read from the ledger, and their outcome is not durable there yet.
    taken: HashSet<i64>,
    in_flight: usize,
    /// Pause and breaker, read when first needed.
    state: Option<LaneState>,
    /// URL and secrets, and when they were read.
    target: Option<(Endpoint, Micros)>,
}

impl Lane {
    /// What may be sent at `now`, of `most` calls at once.
    pub(super) fn room(&self, now: Micros, most: usize) -> Room {
        let Some(state) = &self.state else { return Room::None };
        let has_something = self.has_work || !self.queue.is_empty();
        if state.pause.is_some() || !has_something {
            return Room::None;
        }
        let is_probe = match passage(&state.breaker, now) {
            Passage::Nothing(until) => return Room::NotBefore(until),
            Passage::Probe => true,
            Passage::All => false,
        };
        if let Some(until) = self.pace.wait(now) {
            return Room::NotBefore(until);
        }
        match self.in_flight {
            0 if is_probe => Room::Probe,
            n if n < self.pace.limit(most) && !is_probe => Room::Next,
            _ => Room::None,
        }
    }

    /// Pause and breaker.
    pub(super) fn state(&mut self, endpoint: EndpointKey, reader: &Reader) -> Result<&mut LaneState> {
        let state = match self.state.take() {
            Some(state) => state,
            None => reader.lane(endpoint)?,
        };
        Ok(self.state.insert(state))
    }

    /// The next delivery that is due; the caller sends it. Reads the ledger if nothing is at hand.
    pub(super) fn next(
        &mut self,
        endpoint: EndpointKey,
        reader: &Reader,
        ahead: usize,
    ) -> Result<Option<Due>> {
        if self.queue.is_empty() {
            let now = Micros::now();
            let due = reader.due(endpoint, now, ahead, &self.except())?;
            if due.is_empty() {
                self.has_work = false;
                self.next_due = reader.next_due(endpoint, now)?;
                return Ok(None);
            }
            self.taken.extend(due.iter().map(|due| due.event));
            self.queue.extend(due);
        }
        let due = self.queue.pop_front();
        self.in_flight += usize::from(due.is_some());
        Ok(due)
    }

    /// The delivery that has waited longest, whenever it is due; the caller sends it.
    pub(super) fn probe(&mut self, endpoint: EndpointKey, reader: &Reader) -> Result<Option<Due>> {
        self.put_back();
        let due = reader.probe(endpoint, &self.except())?;
        match &due {
            Some(due) => {
                self.taken.insert(due.event);
                self.in_flight += 1;
            }
            None => self.has_work = false,
        }
        Ok(due)
    }

    fn except(&self) -> Vec<i64> {
        self.taken.iter().copied().collect()
    }

    /// Where to send to; `None` when the endpoint was deleted. Secrets that were replaced within `rotation` sign as well.
    pub(super) fn target(
        &mut self,
        endpoint: EndpointKey,
        reader: &Reader,
        rotation: Duration,
    ) -> Result<Option<Endpoint>> {
        let now = Micros::now();
        if self.target.as_ref().is_none_or(|(_, read_at)| read_at.plus(TARGET_KEPT) <= now) {
            let since = Micros(now.0.saturating_sub(Micros(0).plus(rotation).0));
            self.target = reader.endpoint_with_old(endpoint, since)?.map(|target| (target, now));
        }
        Ok(self.target.as_ref().map(|(target, _)| target.clone()))
    }

    /// A call has ended; its outcome is on its way into the ledger.
    pub(super) fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The outcomes of these are durable: the ledger tells again what is due.
    pub(super) fn settled(&mut self, events: &[i64]) {
        for event in events {
            self.taken.remove(event);
        }
        self.has_work = true;
    }

    pub(super) fn forget_endpoint(&mut self) {
        self.target = None;
    }

    /// An operator has changed something: what was read ahead may be paused, or no longer the first of its flag.
    pub(super) fn forget_all(&mut self) {
        self.put_back();
        self.state = None;
        self.target = None;
        self.pace = Pace::default();
        self.has_work = true;
    }

    /// What was read ahead and not sent goes back; the ledger has it.
    fn put_back(&mut self) {
        for due in self.queue.drain(..) {
            self.taken.remove(&due.event);
        }
    }

    /// The endpoint is gone, and the ledger has dropped its queue.
    pub(super) fn clear(&mut self) {
        self.put_back();
        self.has_work = false;
        self.next_due = None;
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.has_work && self.next_due.is_none() && self.queue.is_empty() && self.taken.is_empty()
    }

    pub(super) fn has_nothing_in_flight(&self) -> bool {
        self.in_flight == 0
    }
}
