//! A lane: what the dispatcher keeps in memory for one endpoint.

use std::collections::{HashSet, VecDeque};

use crate::change::Micros;
use crate::error::Result;
use crate::event::EndpointKey;
use crate::ledger::{Due, Endpoint, Reader};

#[derive(Default)]
pub(super) struct Lane {
    /// The ledger may have something due.
    pub(super) has_work: bool,
    /// When something becomes due, as far as it is known.
    pub(super) next_due: Option<Micros>,
    queue: VecDeque<Due>,
    /// Read from the ledger, and their outcome is not durable there yet.
    taken: HashSet<i64>,
    in_flight: usize,
    /// URL and secret, read when first needed.
    target: Option<Endpoint>,
}

impl Lane {
    pub(super) fn has_room(&self, max_in_flight: usize) -> bool {
        self.in_flight < max_in_flight && (self.has_work || !self.queue.is_empty())
    }

    /// Reads what is due, if nothing is at hand. False when there is nothing.
    pub(super) fn refill(
        &mut self,
        endpoint: EndpointKey,
        reader: &Reader,
        max_in_flight: usize,
    ) -> Result<bool> {
        if !self.queue.is_empty() {
            return Ok(true);
        }
        let now = Micros::now();
        let except: Vec<i64> = self.taken.iter().copied().collect();
        let due = reader.due(endpoint, now, max_in_flight, &except)?;
        if due.is_empty() {
            self.has_work = false;
            self.next_due = reader.next_due(endpoint, now)?;
            return Ok(false);
        }
        self.taken.extend(due.iter().map(|due| due.event));
        self.queue.extend(due);
        Ok(true)
    }

    /// Where to send to; `None` when the endpoint was deleted.
    pub(super) fn target(&mut self, endpoint: EndpointKey, reader: &Reader) -> Result<Option<Endpoint>> {
        if self.target.is_none() {
            self.target = reader.endpoint(endpoint)?;
        }
        Ok(self.target.clone())
    }

    /// The next delivery; the caller sends it.
    pub(super) fn next(&mut self) -> Option<Due> {
        let due = self.queue.pop_front()?;
        self.in_flight += 1;
        Some(due)
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

    /// Nothing more is to be sent to this endpoint.
    pub(super) fn clear(&mut self) {
        for due in self.queue.drain(..) {
            self.taken.remove(&due.event);
        }
        self.has_work = false;
        self.next_due = None;
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.has_work && self.next_due.is_none() && self.queue.is_empty() && self.taken.is_empty()
    }
}
