//! From clicks to a stream of transactions: who clicks when, which clicks interleave, and what comes of them in the tables.

use std::collections::{BTreeMap, VecDeque};

use flagpost::change::{Lsn, Micros, RowChange, Transaction};
use flagpost::event::Recipient;
use flagpost::schema::{
    Table, environment, environment_webhook, identity, organisation, organisation_webhook, project, segment,
    user,
};
use proptest::prelude::*;

use super::clicks::{Action, Pick, script};
use super::database::{Database, Write, record};
use super::desk::{Content, Desk};
use super::oracle::{
    FlagValue, For, Live, Visible, dead_environments, dead_features, flag_values, live_versions, recipients,
};
use super::schedule::{Start, next_moment, request_action, start};
use super::versions::{VersionAction, version_action};

/// 2026-11-24 02:00:00 UTC.
pub(super) const BEGIN: i64 = 1_795_485_600_000_000;
const MILLISECOND: i64 = 1_000;
/// The least time between two clicks that do not interleave.
const BETWEEN_CLICKS: u16 = 150;
/// The longest gap that was seen within a click, in milliseconds.
const WITHIN_CLICK: u8 = 77;

/// After so much quiet, in milliseconds, everything has been told.
const QUIET: i64 = 1_200;
/// A click is aimed at a moment that is at least so far away, in milliseconds, and not farther than that.
const AIM: i64 = 10;
const FARTHEST_AIM: i64 = 60_000;

/// An action with its times.
#[derive(Debug, Clone)]
pub(super) struct Click {
    pub(super) action: Action,
    pub(super) user: i64,
    /// The whole click in one transaction.
    pub(super) at_once: bool,
    /// Begins before the last click has ended.
    pub(super) interleaves: bool,
    /// After the end of the last click, in milliseconds.
    pub(super) wait: u16,
    /// Between its transactions, in milliseconds; used in turn.
    pub(super) gaps: [u8; 3],
    pub(super) start: Start,
    /// How far the application's clock is ahead of the database's, in microseconds.
    pub(super) clock: i16,
}

/// What is true at a moment.
pub(super) struct Truth {
    pub(super) at: Micros,
    pub(super) flags: BTreeMap<FlagValue, Visible>,
    pub(super) versions: BTreeMap<(i64, i64), Live>,
}

impl Truth {
    pub(super) fn of(database: &Database, at: Micros) -> Truth {
        Truth { at, flags: flag_values(database, at), versions: live_versions(database, at) }
    }

    /// The same for a daemon that asks a later database for the identities that it lacks: of those that are gone by then it may know
    /// nothing.
    pub(super) fn as_seen_from(&self, later: &Database) -> Truth {
        let flags = self.flags.clone().into_iter().filter(|(flag, _)| !is_gone_by(flag, later)).collect();
        Truth { at: self.at, flags, versions: self.versions.clone() }
    }
}

/// Whether a flag value is of an identity that is gone from a later database.
pub(super) fn is_gone_by(flag: &FlagValue, later: &Database) -> bool {
    match flag.whom {
        For::Identity(id) => later.by_id(Table::Identity, id).is_none(),
        For::Everybody | For::Segment(_) => false,
    }
}

/// A transaction of the story.
pub(super) struct Beat {
    /// What is true before it, where nothing has happened for so long that everything must have been told.
    pub(super) quiet: Option<Truth>,
    /// The server's clock that the daemon hears before the transaction, which comes late.
    pub(super) heard: Option<Micros>,
    pub(super) transaction: Transaction,
    /// Flag values that the receiver learns after it by other means than an event.
    pub(super) told_otherwise: BTreeMap<FlagValue, Visible>,
    /// Environments below which nothing may be told after it.
    pub(super) dead: Vec<i64>,
    /// Features of which nothing may be told after it.
    pub(super) dead_features: Vec<i64>,
    /// Who gets a flag event of an environment after it.
    pub(super) recipients: BTreeMap<i64, Vec<Recipient>>,
}

pub(super) struct Story {
    /// The database before the story.
    pub(super) begin: Database,
    pub(super) begin_time: Micros,
    pub(super) beats: Vec<Beat>,
    pub(super) end: Database,
    /// Long after the last beat.
    pub(super) end_time: Micros,
    /// The actions for which there was something to do.
    pub(super) done: Vec<String>,
}

fn insert(database: &mut Database, table: Table, fields: &[(usize, &str)]) {
    let id = database.next_id(table).to_string();
    let fields = fields.iter().map(|(column, text)| (*column, (*text).to_owned()));
    let fields: Vec<(usize, String)> = [(0, id)].into_iter().chain(fields).collect();
    let done = database.commit(&[Write::Insert(table, record(table, &fields))], Micros(BEGIN));
    assert!(done.is_some(), "{table:?} {fields:?}");
}

/// Two organisations, three projects, four environments, one of them versioned, and two features from before flagpost.
pub(super) fn beginning() -> Database {
    let mut database = Database::default();
    let d = &mut database;
    for name in ["Acme", "Other"] {
        insert(d, Table::Organisation, &[(organisation::NAME, name)]);
        insert(d, Table::User, &[(user::EMAIL, name), (user::FIRST_NAME, name), (user::LAST_NAME, "User")]);
    }
    for organisation in ["1", "1", "2"] {
        let fields = [(project::NAME, "Shop"), (project::ORGANISATION_ID, organisation)];
        insert(d, Table::Project, &fields);
    }
    for (project, is_versioned) in [("1", "f"), ("1", "t"), ("2", "f"), ("3", "f")] {
        let fields = [
            (environment::NAME, "Environment"),
            (environment::PROJECT_ID, project),
            (environment::USE_V2_FEATURE_VERSIONING, is_versioned),
        ];
        insert(d, Table::Environment, &fields);
    }
    for project in ["1", "1", "2"] {
        insert(d, Table::Segment, &[(segment::NAME, "beta"), (segment::PROJECT_ID, project)]);
    }
    for environment in ["1", "1", "2", "3"] {
        let fields = [(identity::IDENTIFIER, "bob"), (identity::ENVIRONMENT_ID, environment)];
        insert(d, Table::Identity, &fields);
    }
    let url = (environment_webhook::URL, "http://a.example.com/");
    let enabled = (environment_webhook::ENABLED, "t");
    insert(d, Table::EnvironmentWebhook, &[url, enabled, (environment_webhook::ENVIRONMENT_ID, "1")]);
    insert(d, Table::OrganisationWebhook, &[url, enabled, (organisation_webhook::ORGANISATION_ID, "1")]);
    for options in [0, 2] {
        let mut desk = Desk { database: d, user: 1, now: BEGIN, clock: 0, at_once: true, steps: Vec::new() };
        desk.create_feature(1, options, Content::Text(0), false);
        let steps = desk.steps;
        steps.iter().for_each(|writes| assert!(d.commit(writes, Micros(BEGIN)).is_some()));
    }
    database
}

struct Running {
    at: i64,
    steps: VecDeque<Vec<Write>>,
    gaps: Vec<i64>,
    born: Option<i64>,
    late: Option<Late>,
}

/// How a transaction comes late: behind the server's clock, or behind another transaction.
#[derive(Clone, Copy)]
struct Late {
    by_traffic: bool,
}

struct Teller {
    database: Database,
    beats: Vec<Beat>,
    running: Vec<Running>,
    /// The last commit.
    now: i64,
    done: Vec<String>,
}

impl Story {
    pub(super) fn tell(clicks: &[Click]) -> Story {
        Story::tell_after(&[], clicks)
    }

    /// A story that begins after other clicks.
    pub(super) fn tell_after(before: &[Click], clicks: &[Click]) -> Story {
        let mut teller = Teller {
            database: beginning(),
            beats: Vec::new(),
            running: Vec::new(),
            now: BEGIN,
            done: Vec::new(),
        };
        teller.click_all(before);
        let (begin, begin_time) = (teller.database.clone(), Micros(teller.now));
        teller.beats.clear();
        teller.done.clear();
        teller.click_all(clicks);
        let end_time = Micros(teller.now + 3_600_000 * MILLISECOND);
        Story { begin, begin_time, beats: teller.beats, end: teller.database, end_time, done: teller.done }
    }

    /// Long after everything that was scheduled.
    pub(super) fn far_end(&self) -> Micros {
        Micros(self.end_time.0 + 24 * 3_600_000 * MILLISECOND)
    }
}

impl Teller {
    fn click_all(&mut self, clicks: &[Click]) {
        let teller = self;
        // Nothing interleaves with the birth of an environment, nor with turning its versions on or off.
        let mut not_before = teller.now;
        for click in clicks {
            let is_birth =
                matches!(click.action, Action::CreateEnvironment { .. } | Action::CloneEnvironment { .. });
            let switches = matches!(
                click.action,
                Action::Version(VersionAction::Enable { .. } | VersionAction::Disable { .. })
            );
            let is_alone = is_birth || switches;
            let gaps = click.gaps.map(|gap| (1 + i64::from(gap % WITHIN_CLICK)) * MILLISECOND).to_vec();
            let between = i64::from(BETWEEN_CLICKS + click.wait) * MILLISECOND;
            let start = if click.interleaves && !is_alone {
                (teller.now + gaps[0]).max(not_before)
            } else {
                teller.run_until(i64::MAX);
                teller.now + between
            };
            let (start, late) = if is_birth { (start, None) } else { teller.start(click.start, start) };
            teller.run_until(start);
            let desk = Desk {
                database: &mut teller.database,
                user: click.user,
                now: start,
                clock: click.clock,
                at_once: click.at_once,
                steps: Vec::new(),
            };
            if let Some(script) = script(desk, &click.action) {
                teller.done.push(format!("{:?}", click.action));
                let steps = script.steps.into();
                teller.running.push(Running { at: start, steps, gaps, born: script.born, late });
            }
            if is_alone {
                teller.run_until(i64::MAX);
                not_before = teller.now + between;
            } else {
                teller.run_until(start + 1);
            }
        }
        teller.run_until(i64::MAX);
    }

    /// When a click begins that could begin at `earliest`, and whether it comes late.
    fn start(&self, start: Start, earliest: i64) -> (i64, Option<Late>) {
        let aim = |is_aimed: bool, offset: i64| {
            let next = next_moment(&self.database, earliest + AIM * MILLISECOND).filter(|_| is_aimed);
            let near = next.filter(|at| at.0 < earliest + FARTHEST_AIM * MILLISECOND);
            near.map_or(earliest, |at| at.0 + offset)
        };
        match start {
            Start::Any => (earliest, None),
            Start::Aimed(offset) => (aim(true, i64::from(offset) * MILLISECOND), None),
            Start::Late { aimed, by_traffic } => (aim(aimed, 0), Some(Late { by_traffic })),
        }
    }

    /// Lets the clicks that are under way go on until a moment.
    fn run_until(&mut self, until: i64) {
        loop {
            let next = self.running.iter().enumerate().min_by_key(|(_, running)| running.at);
            let Some((index, _)) = next.filter(|(_, running)| running.at < until) else { return };
            self.step(index);
        }
    }

    fn step(&mut self, index: usize) {
        let running = &mut self.running[index];
        let Some(writes) = running.steps.pop_front() else {
            self.running.remove(index);
            return;
        };
        let at = running.at.max(self.now + 1);
        running.at = at + running.gaps[0];
        running.gaps.rotate_left(1);
        let is_last = running.steps.is_empty();
        let born = running.born.filter(|_| is_last);
        let late = running.late.take();
        // Where it comes late, what the daemon has heard before is ahead of it.
        let (heard, commit_time) = match late {
            Some(_) => (Some(Micros(at + MILLISECOND)), Micros(at - MILLISECOND)),
            None => (None, Micros(at)),
        };
        let is_quiet = commit_time.0 - self.now >= QUIET * MILLISECOND;
        let mut quiet = is_quiet.then(|| Truth::of(&self.database, Micros(commit_time.0 - 1)));
        let Some(changes) = self.database.commit(&writes, commit_time) else {
            // The server answers 500: the rest of the click does not happen.
            self.running.remove(index);
            return;
        };
        if is_last {
            self.running.remove(index);
        }
        self.now = heard.map_or(at, |heard| heard.0);
        let heard = if let (Some(heard), Some(Late { by_traffic: true })) = (heard, late) {
            self.beat(Vec::new(), heard, None, quiet.take(), BTreeMap::new());
            None
        } else {
            heard
        };
        let mut told_otherwise = BTreeMap::new();
        if let Some(born) = born {
            told_otherwise = flag_values(&self.database, Micros(at));
            told_otherwise.retain(|flag, _| flag.environment == born);
        }
        self.beat(changes, commit_time, heard, quiet, told_otherwise);
    }

    fn beat(
        &mut self,
        changes: Vec<RowChange>,
        commit_time: Micros,
        heard: Option<Micros>,
        quiet: Option<Truth>,
        told_otherwise: BTreeMap<FlagValue, Visible>,
    ) {
        let number = 100 + self.beats.len() as u64;
        self.beats.push(Beat {
            quiet,
            heard,
            transaction: Transaction { end_lsn: Lsn(number * 100), xid: number, commit_time, changes },
            told_otherwise,
            dead: dead_environments(&self.database),
            dead_features: dead_features(&self.database),
            recipients: recipients(&self.database),
        });
    }
}

pub(super) fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        (0..4_i8).prop_map(Content::Int),
        any::<bool>().prop_map(Content::Bool),
        (0..4_u8).prop_map(Content::Text),
        (0..4_u8).prop_map(Content::Long),
        Just(Content::Null),
    ]
}

fn flag_action() -> BoxedStrategy<Action> {
    let pick = 0..8_u8;
    let save = (
        0..32_u8,
        any::<bool>(),
        proptest::option::of(content()),
        proptest::option::weighted(0.3, 0..100_u8),
        any::<bool>(),
        proptest::bool::weighted(0.2),
    );
    let segment_override = (pick.clone(), pick.clone(), pick.clone(), content(), any::<bool>());
    let identity_override = (pick.clone(), pick.clone(), content(), any::<bool>());
    prop_oneof![
        8 => save.prop_map(|(state, toggle, content, percentage, value_first, undo)| {
            Action::Save { state, toggle, content, percentage, value_first, undo }
        }),
        4 => segment_override.prop_map(|(feature, environment, segment, content, enabled)| {
            Action::CreateSegmentOverride { feature, environment, segment, content, enabled }
        }),
        3 => identity_override.prop_map(|(feature, identity, content, enabled)| {
            Action::CreateIdentityOverride { feature, identity, content, enabled }
        }),
        2 => (pick.clone(), any::<bool>())
            .prop_map(|(which, parent_first)| Action::DeleteSegmentOverride { which, parent_first }),
        3 => (pick.clone(), any::<bool>())
            .prop_map(|(which, really)| Action::DeleteIdentityOverride { which, really }),
        1 => (pick.clone(), any::<bool>())
            .prop_map(|(which, parent_first)| Action::DeleteIdentity { which, parent_first }),
        2 => (pick.clone(), pick.clone())
            .prop_map(|(feature, environment)| Action::Reorder { feature, environment }),
        1 => pick.prop_map(|environment| Action::ToggleAllBySql { environment }),
    ]
    .boxed()
}

fn feature_action() -> BoxedStrategy<Action> {
    let pick = 0..8_u8;
    let create = (pick.clone(), 0..3_u8, content(), any::<bool>());
    prop_oneof![
        4 => create.prop_map(|(project, options, content, enabled)| {
            Action::CreateFeature { project, options, content, enabled }
        }),
        1 => (pick.clone(), content(), 0..100_u8)
            .prop_map(|(feature, content, percentage)| Action::AddOption { feature, content, percentage }),
        1 => (pick.clone(), content()).prop_map(|(which, content)| Action::ChangeOption { which, content }),
        1 => (pick.clone(), any::<bool>())
            .prop_map(|(which, parent_first)| Action::RemoveOption { which, parent_first }),
        2 => (pick.clone(), 0..4_u8).prop_map(|(which, name)| Action::RenameFeature { which, name }),
        2 => pick.clone().prop_map(|which| Action::DeleteFeature { which }),
        1 => pick.clone().prop_map(|which| Action::MarkFeatureBySql { which }),
        1 => pick.clone().prop_map(|which| Action::RestoreFeatureBySql { which }),
        1 => (pick, any::<bool>())
            .prop_map(|(which, parent_first)| Action::HardDeleteFeature { which, parent_first }),
    ]
    .boxed()
}

fn admin_action() -> BoxedStrategy<Action> {
    let pick = 0..8_u8;
    let webhook = || (0..8 as Pick, any::<bool>(), any::<bool>());
    prop_oneof![
        2 => (pick.clone(), any::<bool>(), any::<bool>()).prop_map(|(project, enabled, is_versioned)| {
            Action::CreateEnvironment { project, enabled, is_versioned }
        }),
        2 => pick.clone().prop_map(|which| Action::CloneEnvironment { which }),
        1 => pick.clone().prop_map(|which| Action::DeleteEnvironment { which }),
        1 => pick.clone().prop_map(|which| Action::DeleteProject { which }),
        1 => pick.clone().prop_map(|which| Action::DeleteSegment { which }),
        2 => webhook().prop_map(|(environment, is_new, delete)| {
            Action::Webhook { environment, is_new, delete }
        }),
        1 => webhook().prop_map(|(organisation, is_new, delete)| {
            Action::OrganisationWebhook { organisation, is_new, delete }
        }),
        1 => pick.prop_map(|environment| Action::Audit { environment }),
    ]
    .boxed()
}

pub(super) fn click() -> impl Strategy<Value = Click> {
    let action = prop_oneof![
        10 => flag_action(),
        5 => feature_action(),
        3 => admin_action(),
        12 => version_action(),
        9 => request_action(),
    ];
    let times = (
        any::<bool>(),
        proptest::bool::weighted(0.35),
        prop_oneof![8 => 0..1850_u16, 1 => 1850..20_000_u16],
        [0..WITHIN_CLICK, 0..WITHIN_CLICK, 0..WITHIN_CLICK],
        start(),
        proptest::sample::select(&[-900, -900, 0, 2_500][..]),
    );
    (action, 1..3_i64, times).prop_map(|(action, user, times)| {
        let (at_once, interleaves, wait, gaps, start, clock) = times;
        Click { action, user, at_once, interleaves, wait, gaps, start, clock }
    })
}
