//! The states that flagpost has told of each flag value, to prove by that Flagsmith tells an older one.
//!
//! Flagsmith puts its previous state together from parts that need not have been in force at one time, so it is proved part by
//! part: each part that differs must have stood at the same place of an earlier state of the same flag value. Only digests are
//! kept, with the earliest moment at which the part is known to have been in force.
//!
//! Invariant: memory is bounded by `PARTS`; what was noted first is forgotten first, and what is forgotten proves nothing.

use std::collections::{HashMap, VecDeque};

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use super::likeness;
use crate::change::Micros;

/// Parts that are kept: about twenty a state that differs from all before it in everything, a few of one that hardly does.
const PARTS: usize = 200_000;
/// Parts of one state that are looked at: ours have a few dozen, and several for each variant.
const PARTS_OF_STATE: usize = 2_000;

type Part = [u8; 16];

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct History {
    known: HashMap<Part, Micros>,
    oldest_first: VecDeque<Part>,
}

impl History {
    /// Notes the states of one of our own bodies, of a change committed at `at`. Others say nothing of a flag.
    pub(super) fn note(&mut self, body: &Json, at: Micros) {
        let Some(data) = body.get("data").filter(|_| likeness::is_flag(body)) else { return };
        for (name, since) in [("previous_state", Micros(at.0.saturating_sub(1))), ("new_state", at)] {
            let Some(state) = data.get(name).filter(|state| state.is_object()) else { continue };
            let (flag, mut left) = (likeness::flag(state), PARTS_OF_STATE);
            self.note_part(&flag, "", state, since, &mut left);
        }
    }

    fn note_part(&mut self, flag: &str, path: &str, value: &Json, since: Micros, left: &mut usize) {
        if *left == 0 {
            return;
        }
        *left -= 1;
        self.put(part(flag, path, value), since);
        match value {
            Json::Object(fields) => {
                for (key, field) in fields {
                    self.note_part(flag, &likeness::below(path, key), field, since, left);
                }
            }
            Json::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.note_part(flag, &format!("{path}[{index}]"), item, since, left);
                }
            }
            _ => {}
        }
    }

    fn put(&mut self, part: Part, since: Micros) {
        if let Some(known) = self.known.get_mut(&part) {
            *known = since.min(*known);
            return;
        }
        if self.oldest_first.len() >= PARTS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.known.insert(part, since);
        self.oldest_first.push_back(part);
    }

    /// Whether this stood at this path of a state of the flag value before `at`.
    pub(super) fn had(&self, flag: &str, path: &str, value: &Json, at: Micros) -> bool {
        self.known.get(&part(flag, path, value)).is_some_and(|since| *since < at)
    }
}

fn part(flag: &str, path: &str, value: &Json) -> Part {
    let digest = Sha256::digest(format!("{flag}\n{path}\n{value}"));
    let mut part = Part::default();
    part.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    part
}
