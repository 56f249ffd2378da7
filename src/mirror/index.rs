//! The ways in which the mirror finds rows by something other than their primary key.
//!
//! Most of these sets have exactly one member (a state has one value, an identity one override), so a set of one takes
//! no allocation: a hundred thousand overrides must stay cheap.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

/// A non-empty set of row ids.
#[derive(Debug, Clone)]
#[expect(clippy::box_collection, reason = "a set of one, the usual case, takes 16 bytes instead of 32")]
pub(super) enum IdSet {
    One(i64),
    Many(Box<BTreeSet<i64>>),
}

impl IdSet {
    fn insert(&mut self, id: i64) {
        match self {
            IdSet::One(only) if *only == id => {}
            IdSet::One(only) => *self = IdSet::Many(Box::new(BTreeSet::from([*only, id]))),
            IdSet::Many(all) => {
                all.insert(id);
            }
        }
    }

    /// Removes `id`; true when nothing is left.
    fn remove(&mut self, id: i64) -> bool {
        match self {
            IdSet::One(only) => *only == id,
            IdSet::Many(all) => {
                all.remove(&id);
                all.is_empty()
            }
        }
    }

    /// The ids in ascending order.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = i64> + '_ {
        let (one, many) = match self {
            IdSet::One(only) => (Some(*only), None),
            IdSet::Many(all) => (None, Some(all.iter().copied())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// Which part of a feature in an environment a state is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// Everybody.
    Default,
    /// The members of this segment (`segments_segment.id`).
    Segment(i64),
    /// This identity (`environments_identity.id`).
    Identity(i64),
    /// Nobody: stands for the feature's live version itself, in a versioned environment. Comes last, so that what is told of
    /// the version is told after what is told of its states.
    Version,
}

/// What a receiver thinks of as one flag value: a feature in an environment for a target. At most one state is in
/// force in a slot at any time; drafts, scheduled states and other versions wait in the same slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// `features_feature.id`
    pub feature: i64,
    /// `environments_environment.id`
    pub environment: i64,
    /// For whom.
    pub target: Target,
}

impl Slot {
    /// The smallest and the largest slot of a feature, or of a feature in an environment.
    fn range(feature: i64, environment: Option<i64>) -> std::ops::RangeInclusive<Slot> {
        let first = Slot { feature, environment: environment.unwrap_or(i64::MIN), target: Target::Default };
        let last = Slot { feature, environment: environment.unwrap_or(i64::MAX), target: Target::Version };
        first..=last
    }
}

/// Row ids by some other id.
#[derive(Debug, Default)]
pub(super) struct ByKey(HashMap<i64, IdSet>);

impl ByKey {
    pub(super) fn insert(&mut self, key: i64, id: i64) {
        self.0.entry(key).and_modify(|set| set.insert(id)).or_insert(IdSet::One(id));
    }

    pub(super) fn remove(&mut self, key: i64, id: i64) {
        if self.0.get_mut(&key).is_some_and(|set| set.remove(id)) {
            self.0.remove(&key);
        }
    }

    pub(super) fn get(&self, key: i64) -> impl DoubleEndedIterator<Item = i64> + '_ {
        self.0.get(&key).into_iter().flat_map(IdSet::iter)
    }

    /// The ids of all keys.
    pub(super) fn all(&self) -> impl Iterator<Item = i64> + '_ {
        self.0.values().flat_map(IdSet::iter)
    }

    pub(super) fn contains(&self, key: i64) -> bool {
        self.0.contains_key(&key)
    }
}

/// State ids by slot, ordered so that the slots of a feature, and of a feature in an environment, are neighbours.
#[derive(Debug, Default)]
pub(super) struct Slots(BTreeMap<Slot, IdSet>);

impl Slots {
    pub(super) fn insert(&mut self, slot: Slot, id: i64) {
        self.0.entry(slot).and_modify(|set| set.insert(id)).or_insert(IdSet::One(id));
    }

    pub(super) fn remove(&mut self, slot: &Slot, id: i64) {
        if self.0.get_mut(slot).is_some_and(|set| set.remove(id)) {
            self.0.remove(slot);
        }
    }

    pub(super) fn states<'a>(&'a self, slot: &Slot) -> impl DoubleEndedIterator<Item = i64> + use<'a> {
        self.0.get(slot).into_iter().flat_map(IdSet::iter)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Slot> + '_ {
        self.0.keys().copied()
    }

    pub(super) fn of(&self, feature: i64, environment: Option<i64>) -> impl Iterator<Item = Slot> + '_ {
        self.0.range(Slot::range(feature, environment)).map(|(slot, _)| *slot)
    }
}
