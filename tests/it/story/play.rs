//! Plays transactions through the engine, with what its ledger would hold, and restarts it from that at any place.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use flagpost::change::{Key, Lsn, Micros, Row, Transaction};
use flagpost::event::{Effect, Engine, Event, EventId, Format, Formats, Kind, Payload, Recipient, Settle};
use flagpost::mirror::{Mirror, Persist, Slot, kept_key};
use flagpost::schema::{Capabilities, Table, feature_segment, feature_state};

use super::database::{Database, Record, int, row};
use super::oracle::{FlagValue, For};

pub(super) const SETTLE: Settle = Settle { quiet: Duration::from_millis(100), max: Duration::from_secs(1) };

/// Endpoints with this URL get the documented bodies.
pub(super) const CLASSIC_URL: &str = "http://classic.example.com/";

/// An event as it leaves the core.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    pub(super) id: EventId,
    pub(super) kind: Kind,
    pub(super) action: String,
    /// The flag value that it is about.
    pub(super) flag: Option<FlagValue>,
    /// The feature and the environment whose version it is about.
    pub(super) version_of: Option<(i64, i64)>,
    pub(super) current: String,
    pub(super) classic: String,
    pub(super) recipients: Vec<Recipient>,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} for {:?}", self.id, self.action, self.current, self.recipients)
    }
}

pub(super) struct Daemon {
    engine: Engine,
    rows: BTreeMap<(&'static str, Key), (Table, Row)>,
    groups: HashMap<Slot, Vec<u8>>,
    told: Vec<Told>,
    position: Lsn,
}

fn engine(rows: &BTreeMap<(&'static str, Key), (Table, Row)>) -> Engine {
    let mut mirror = Mirror::new(Capabilities::default());
    for (table, row) in rows.values() {
        mirror.load(*table, row.clone());
    }
    let formats =
        Formats { default: Format::Current, by_url: vec![(CLASSIC_URL.to_owned(), Format::Classic)] };
    Engine::new(mirror, "7351".into(), SETTLE, formats, false)
}

fn flag_of(event: &Event) -> Option<FlagValue> {
    let Payload::Flag(payload) = &event.payload else { return None };
    let view = payload.new.as_ref().or(payload.previous.as_ref())?;
    let whom = if let Some(identity) = view.state.int(feature_state::IDENTITY_ID) {
        For::Identity(identity)
    } else if let Some(row) = &view.feature_segment {
        For::Segment(row.int(feature_segment::SEGMENT_ID).unwrap_or(0))
    } else {
        For::Everybody
    };
    Some(FlagValue { feature: event.feature?, environment: event.environment?, whom })
}

impl Daemon {
    /// A daemon that has taken its snapshot long ago.
    pub(super) fn new(database: &Database) -> Daemon {
        Daemon::from_snapshot(database, Micros::default())
    }

    /// A daemon that has just taken a snapshot. Identities without an override are not in it.
    pub(super) fn from_snapshot(database: &Database, now: Micros) -> Daemon {
        let mut rows = BTreeMap::new();
        let is_overridden = |identity: &Record| {
            let mut overrides =
                database.with(Table::FeatureState, feature_state::IDENTITY_ID, int(identity, 0).unwrap());
            overrides.any(|state| state[feature_state::DELETED_AT].is_none())
        };
        for table in Table::ALL.iter().filter(|table| table.is_kept()) {
            for record in database.rows(*table).filter(|r| *table != Table::Identity || is_overridden(r)) {
                let row = row(record);
                rows.insert((table.name(), kept_key(*table, &row)), (*table, row));
            }
        }
        let (engine, position) = (engine(&rows), Lsn::default());
        let mut daemon = Daemon { engine, rows, groups: HashMap::new(), told: Vec::new(), position };
        daemon.start(now);
        daemon
    }

    /// What a process does first.
    fn start(&mut self, clock: Micros) {
        self.engine.resume(clock, self.position);
        for bytes in self.groups.values() {
            assert!(self.engine.restore_group(bytes), "an open group cannot be read");
        }
        let mut effects = Vec::new();
        self.engine.forget_all_superseded(&mut |effect| effects.push(effect));
        self.keep(effects);
    }

    /// What comes after is done by a new process, which has the ledger only.
    pub(super) fn restart(&mut self) {
        let clock = self.engine.clock();
        self.engine = engine(&self.rows);
        self.start(clock);
    }

    /// Applies a transaction; rows that the mirror lacks come from the database as it is at the end.
    pub(super) fn transaction(&mut self, transaction: &Transaction, end: &Database) {
        self.position = transaction.end_lsn;
        let lacking = self.engine.mirror().lacks(transaction);
        let mut effects = Vec::new();
        for (table, key) in lacking {
            if let Some(record) = end.get(table, &key) {
                self.engine.supply(table, row(record), &mut |effect| effects.push(effect));
            }
        }
        self.engine.transaction(transaction.clone(), &mut |effect| effects.push(effect));
        self.keep(effects);
    }

    pub(super) fn silence(&mut self, now: Micros) {
        let mut effects = Vec::new();
        self.engine.silence(now, &mut |effect| effects.push(effect));
        self.keep(effects);
    }

    fn keep(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Mirror(Persist::Put { table, key, row }) => {
                    self.rows.insert((table.name(), key), (table, row));
                }
                Effect::Mirror(Persist::Remove { table, key }) => {
                    self.rows.remove(&(table.name(), key));
                }
                Effect::KeepGroup { slot, bytes } => {
                    self.groups.insert(slot, bytes);
                }
                Effect::DropGroup { slot } => {
                    self.groups.remove(&slot);
                }
                Effect::Event(event, recipients) => self.told.push(Told {
                    id: event.id,
                    kind: event.kind,
                    action: event.action.to_string(),
                    flag: flag_of(&event),
                    version_of: event
                        .feature
                        .zip(event.environment)
                        .filter(|_| event.kind == Kind::NewVersionPublished),
                    current: Format::Current.body(&event),
                    classic: Format::Classic.body(&event),
                    recipients,
                }),
                Effect::EndpointChanged(_) | Effect::EndpointGone(_) => {}
            }
        }
    }

    /// The events so far that were not asked for yet.
    pub(super) fn told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    /// The groups that are open, as the ledger has them.
    pub(super) fn open_groups(&self) -> usize {
        self.groups.len()
    }
}
