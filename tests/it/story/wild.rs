//! Row changes that no Flagsmith makes: any table, any order, rows that refer to nothing, updates of rows that were never
//! there, keys that change, truncates, commit times that go back. Nothing is promised but that the core does not panic,
//! contradicts itself in no event, and gives no id twice.

use flagpost::change::{Field, Key, Lsn, Micros, Op, Row, RowChange, Transaction};
use flagpost::schema::Table;
use proptest::collection::vec;
use proptest::prelude::*;

/// A column's content: small numbers, so that rows do refer to each other.
#[derive(Debug, Clone)]
enum Cell {
    Null,
    Unchanged,
    Text(&'static str),
}

#[derive(Debug, Clone)]
enum Change {
    Insert(Vec<Cell>),
    Update(Option<u8>, Vec<Cell>),
    Delete(u8),
    Truncate,
}

/// A transaction of changes, and how many milliseconds after the last it was committed.
#[derive(Debug, Clone)]
pub(super) struct Burst {
    changes: Vec<(Table, Change)>,
    gap: i16,
}

const MOMENTS: [&str; 3] = ["2026-11-24 02:00:00+00", "2026-11-24 02:00:00.3+00", "2026-11-24 02:00:02+00"];
const TYPES: [&str; 3] = ["int", "bool", "unicode"];

/// A cell that mostly suits its column.
fn cell(column: &'static str) -> BoxedStrategy<Cell> {
    let number = || prop_oneof![6 => Just("1"), 3 => Just("2"), 1 => Just("3")];
    let text = |all: &'static [&'static str]| proptest::sample::select(all);
    let likely: BoxedStrategy<&'static str> = match column {
        "id" | "uuid" | "history_id" => number().boxed(),
        "environment_feature_version_id" => prop_oneof![Just("u"), Just("w")].boxed(),
        "type" | "history_type" => text(&TYPES).boxed(),
        "history_date" => text(&MOMENTS).boxed(),
        name if name.ends_with("_at") || name == "live_from" => text(&MOMENTS).boxed(),
        name if name.contains("enabled") || name.starts_with("is_") || name.starts_with("use_") => {
            prop_oneof![Just("t"), Just("f")].boxed()
        }
        _ => number().boxed(),
    };
    // Columns that are mostly NULL decide for whom a state is and whether it is there.
    let is_mostly_null = matches!(
        column,
        "deleted_at"
            | "identity_id"
            | "feature_segment_id"
            | "environment_feature_version_id"
            | "change_request_id"
            | "is_creating"
            | "use_v2_feature_versioning"
    );
    // Only a text can be stored out of line, and be left out.
    let may_be_left_out = matches!(
        column,
        "name" | "description" | "initial_value" | "string_value" | "url" | "secret" | "identifier" | "title"
    );
    let (null, some) = if is_mostly_null { (8, 3) } else { (1, 12) };
    let mut cells = vec![(null, Just(Cell::Null).boxed()), (some, likely.prop_map(Cell::Text).boxed())];
    if may_be_left_out {
        cells.push((1, Just(Cell::Unchanged).boxed()));
    }
    cells.push((
        1,
        proptest::sample::select(&["", "x", "-1", "99999999999999999999", "1e3", "infinity"][..])
            .prop_map(Cell::Text)
            .boxed(),
    ));
    proptest::strategy::Union::new_weighted(cells).boxed()
}

fn cells(table: Table) -> impl Strategy<Value = Vec<Cell>> {
    let rest: Vec<BoxedStrategy<Cell>> =
        table.columns().iter().skip(1).map(|column| cell(column.name)).collect();
    let first = if table == Table::FeatureVersion {
        prop_oneof![Just("u"), Just("w")].boxed()
    } else {
        prop_oneof![6 => Just("1"), 5 => Just("2"), 3 => Just("3"), 1 => Just("x")].boxed()
    };
    (first, rest).prop_map(|(first, rest)| [Cell::Text(first)].into_iter().chain(rest).collect())
}

fn change() -> impl Strategy<Value = (Table, Change)> {
    let flags = [Table::FeatureState, Table::StateValue, Table::MvValue, Table::FeatureSegment];
    let table = prop_oneof![
        2 => proptest::sample::select(Table::ALL),
        3 => proptest::sample::select(flags.to_vec()),
        1 => proptest::sample::select(vec![Table::Feature, Table::Identity, Table::FeatureVersion]),
    ];
    table.prop_flat_map(|table| {
        let change = prop_oneof![
            8 => cells(table).prop_map(Change::Insert),
            8 => (proptest::option::weighted(0.2, 1..4_u8), cells(table))
                .prop_map(|(key, cells)| Change::Update(key, cells)),
            3 => (1..4_u8).prop_map(Change::Delete),
            1 => Just(Change::Truncate),
        ];
        (Just(table), change)
    })
}

pub(super) fn burst() -> impl Strategy<Value = Burst> {
    let gap = prop_oneof![4 => 0..80_i16, 2 => 80..1500_i16, 1 => -50..0_i16];
    (vec(change(), 0..6), gap).prop_map(|(changes, gap)| Burst { changes, gap })
}

fn row(cells: &[Cell]) -> Row {
    let fields: Vec<Field<'_>> = cells
        .iter()
        .map(|cell| match cell {
            Cell::Null => Field::Null,
            Cell::Unchanged => Field::Unchanged,
            Cell::Text(text) => Field::Text(text),
        })
        .collect();
    Row::pack(&fields)
}

fn with_key(row: &Row, table: Table, number: i32) -> Row {
    let key = if table == Table::FeatureVersion { format!("u{number}") } else { number.to_string() };
    let rest = row.fields().skip(1);
    Row::pack(&[Field::Text(&key)].into_iter().chain(rest).collect::<Vec<_>>())
}

fn key(table: Table, number: u8) -> Key {
    match table {
        Table::FeatureVersion => Key::Text(if number == 1 { "u" } else { "w" }.into()),
        _ => Key::Int(number.into()),
    }
}

/// The transactions of the bursts; each has a later position and a later id, but not always a later time.
pub(super) fn transactions(bursts: &[Burst]) -> Vec<Transaction> {
    let mut time = 1_795_485_600_000_000;
    let mut fresh = 1_000;
    let mut all = Vec::new();
    let overrides = (1..4_u8).map(|id| {
        let id = id.to_string();
        let fields: Vec<Field<'_>> =
            Table::FeatureSegment.columns().iter().map(|_| Field::Text(&id)).collect();
        RowChange { table: Table::FeatureSegment, op: Op::Insert { new: Row::pack(&fields) } }
    });
    all.push(Transaction {
        end_lsn: Lsn(1),
        xid: 1,
        commit_time: Micros(time),
        changes: overrides.collect(),
    });
    for (number, burst) in (100_u64..).zip(bursts) {
        time += i64::from(burst.gap) * 1_000;
        let changes = burst.changes.iter().map(|(table, change)| {
            let op = match change {
                Change::Insert(cells) => Op::Insert { new: row(cells) },
                Change::Update(None, cells) => Op::Update { old_key: None, new: row(cells) },
                Change::Update(Some(old), cells) => {
                    // No two rows have one key.
                    fresh += 1;
                    let new = with_key(&row(cells), *table, fresh);
                    Op::Update { old_key: Some(key(*table, *old)), new }
                }
                Change::Delete(number) => Op::Delete { key: key(*table, *number) },
                Change::Truncate => Op::Truncate,
            };
            RowChange { table: *table, op }
        });
        all.push(Transaction {
            end_lsn: Lsn(number * 100),
            xid: number,
            commit_time: Micros(time),
            changes: changes.collect(),
        });
    }
    all
}

/// Whether a transaction changes who may be told of what, so that a receiver may have missed something.
pub(super) fn hides(transaction: &Transaction) -> bool {
    let roots = [Table::Organisation, Table::Project, Table::Environment, Table::Feature];
    transaction.changes.iter().any(|change| roots.contains(&change.table))
}
