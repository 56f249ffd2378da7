//! From messages to transactions: names become tables of [`crate::schema`], columns find their places, what flagpost does
//! not read is left out.
//!
//! Invariants: nothing of a transaction is handed on before its Commit; a table that lacks a column which flagpost needs
//! stops the stream with an error, before anything of it is confirmed; a credential's hash is replaced by a digest here,
//! so that it goes no further.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::catalog::Catalog;
use super::pgoutput::{Datum, Message, RelationColumn, Tuple};
use crate::change::{Field, Key, Lsn, Micros, Op, Row, RowChange, Transaction};
use crate::error::{Error, Kind, Result};
use crate::schema::{Need, Table};

/// How the columns of a published table are laid out in the stream.
struct Layout {
    table: Table,
    /// For each of our columns its place in the stream, if it is published.
    places: Vec<Option<usize>>,
    key: usize,
}

struct Open {
    xid: u64,
    commit_time: Micros,
    changes: Vec<RowChange>,
}

/// See the module's documentation.
pub(crate) struct Assembler {
    catalog: Catalog,
    relations: HashMap<u32, Option<Layout>>,
    open: Option<Open>,
    /// A 64-bit id near the ones that come, to extend the stream's 32-bit ids by.
    near_xid: u64,
}

impl Assembler {
    pub(crate) fn new(catalog: Catalog, near_xid: u64) -> Assembler {
        Assembler { catalog, relations: HashMap::new(), open: None, near_xid }
    }

    /// Takes one message; a Commit completes a transaction.
    pub(crate) fn take(&mut self, message: Message<'_>) -> Result<Option<Transaction>> {
        match message {
            Message::Begin { commit_time, xid, .. } => {
                if self.open.is_some() {
                    return Err(unexpected("Begin inside a transaction"));
                }
                self.near_xid = extend_xid(self.near_xid, xid);
                self.open = Some(Open { xid: self.near_xid, commit_time, changes: Vec::new() });
            }
            Message::Commit { end_lsn, .. } => return self.commit(end_lsn).map(Some),
            Message::Relation { id, namespace, name, columns } => {
                self.relation(id, namespace, name, &columns)?;
            }
            Message::Insert { relation, new } => {
                self.change(relation, |layout| Ok(Op::Insert { new: layout.row(&new) }))?;
            }
            Message::Update { relation, old, new } => {
                self.change(relation, |layout| {
                    let old_key = old.as_ref().map(|old| layout.key(old)).transpose()?;
                    let new = layout.row(&new);
                    let is_other = |key: &Key| *key != crate::change::key_of(&new);
                    Ok(Op::Update { old_key: old_key.filter(is_other), new })
                })?;
            }
            Message::Delete { relation, old } => {
                self.change(relation, |layout| Ok(Op::Delete { key: layout.key(&old)? }))?;
            }
            Message::Truncate { relations } => {
                for relation in relations {
                    self.change(relation, |_| Ok(Op::Truncate))?;
                }
            }
            Message::Origin | Message::Type | Message::Logical { .. } => {}
        }
        Ok(None)
    }

    fn commit(&mut self, end_lsn: Lsn) -> Result<Transaction> {
        let Open { xid, commit_time, changes } =
            self.open.take().ok_or_else(|| unexpected("Commit without Begin"))?;
        Ok(Transaction { end_lsn, xid, commit_time, changes })
    }

    fn change(&mut self, relation: u32, op: impl FnOnce(&Layout) -> Result<Op>) -> Result<()> {
        let open = self.open.as_mut().ok_or_else(|| unexpected("a change outside of a transaction"))?;
        let layout =
            self.relations.get(&relation).ok_or_else(|| unexpected("a change of a table never described"))?;
        if let Some(layout) = layout {
            let op = op(layout)?;
            open.changes.push(RowChange { table: layout.table, op });
        }
        Ok(())
    }

    fn relation(
        &mut self,
        id: u32,
        namespace: &str,
        name: &str,
        columns: &[RelationColumn<'_>],
    ) -> Result<()> {
        let table = Table::by_name(name).filter(|_| namespace == self.catalog.schema);
        let layout = table.map(|table| Layout::new(table, columns, &self.catalog)).transpose()?;
        self.relations.insert(id, layout);
        Ok(())
    }
}

impl Layout {
    fn new(table: Table, columns: &[RelationColumn<'_>], catalog: &Catalog) -> Result<Layout> {
        let mut places = Vec::with_capacity(table.columns().len());
        for (index, column) in table.columns().iter().enumerate() {
            // A publication without column lists brings leftovers too.
            let place = columns
                .iter()
                .position(|c| c.name == column.name)
                .filter(|_| !catalog.is_leftover(table, index));
            if place.is_none() && column.need == Need::Required {
                return Err(Error::new(
                    Kind::DatabaseRefuses,
                    format!(
                        "the stream of table {} has no column {:?}: if Flagsmith still has it, run \"flagpost setup\" to \
                         publish it; if Flagsmith dropped it, update flagpost (nothing was confirmed, nothing is lost)",
                        table.name(),
                        column.name
                    ),
                ));
            }
            places.push(place);
        }
        let key = places.first().copied().flatten().filter(|key| columns.get(*key).is_some_and(|c| c.is_key));
        let key = key.ok_or_else(|| {
            Error::new(
                Kind::DatabaseRefuses,
                format!(
                    "table {} does not identify its rows by their primary key: run ALTER TABLE {} REPLICA IDENTITY DEFAULT",
                    table.name(),
                    table.name()
                ),
            )
        })?;
        Ok(Layout { table, places, key })
    }

    fn row(&self, tuple: &Tuple<'_>) -> Row {
        let digests: Vec<(usize, String)> = self
            .table
            .digested()
            .iter()
            .filter_map(|index| match self.datum(tuple, *index) {
                Datum::Text(text) => Some((*index, digest(text))),
                Datum::Null | Datum::Unchanged => None,
            })
            .collect();
        let fields: Vec<Field<'_>> = (0..self.places.len())
            .map(|index| {
                if let Some((_, digest)) = digests.iter().find(|(i, _)| *i == index) {
                    return Field::Text(digest);
                }
                match self.datum(tuple, index) {
                    Datum::Null => Field::Null,
                    Datum::Unchanged => Field::Unchanged,
                    Datum::Text(text) => Field::Text(text),
                }
            })
            .collect();
        Row::pack(&fields)
    }

    fn datum<'a>(&self, tuple: &Tuple<'a>, index: usize) -> Datum<'a> {
        let place = self.places.get(index).copied().flatten();
        place.and_then(|place| tuple.get(place)).copied().unwrap_or(Datum::Null)
    }

    fn key(&self, old: &Tuple<'_>) -> Result<Key> {
        match old.get(self.key) {
            Some(Datum::Text(text)) if self.table.digested().contains(&0) => {
                Ok(Key::Text(digest(text).into()))
            }
            Some(Datum::Text(text)) => Ok(Key::parse(text)),
            _ => Err(unexpected("a deleted row without its key")),
        }
    }
}

/// What stands for a credential's id: enough of its SHA-256 to tell two apart.
pub(crate) fn digest(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The 64-bit transaction id that ends in `xid` and is nearest to `near` (the server's ids of one moment lie within 2^31 of
/// each other; PostgreSQL manual, "Transactions and Identifiers").
fn extend_xid(near: u64, xid: u32) -> u64 {
    let low = u32::try_from(near & 0xFFFF_FFFF).unwrap_or(0);
    let distance = xid.wrapping_sub(low).cast_signed();
    near.checked_add_signed(distance.into()).unwrap_or(xid.into())
}

fn unexpected(what: &str) -> Error {
    Error::internal(format!(
        "the server sent {what}: nothing was confirmed; restart flagpost, and report it if it stays"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{feature_segment, feature_state, mv_option};

    fn columns(names: &[&'static str]) -> Vec<RelationColumn<'static>> {
        names.iter().map(|name| RelationColumn { is_key: *name == "id", name }).collect()
    }

    fn relation(name: &'static str, names: &[&'static str]) -> Message<'static> {
        Message::Relation { id: 1, namespace: "public", name, columns: columns(names) }
    }

    const OPTION: [&str; 6] = ["string_value", "type", "id", "integer_value", "boolean_value", "feature_id"];

    /// A Flagsmith of today.
    fn catalog() -> Catalog {
        let all = |table: &Table| (*table, vec![true; table.columns().len()]);
        Catalog { version: 0, schema: "public".into(), tables: Table::ALL.iter().map(all).collect() }
    }

    fn begin() -> Message<'static> {
        Message::Begin { commit_lsn: Lsn(8), commit_time: Micros(5), xid: 7 }
    }

    fn commit() -> Message<'static> {
        Message::Commit { commit_lsn: Lsn(8), end_lsn: Lsn(9), commit_time: Micros(5) }
    }

    #[test]
    fn columns_find_their_places_whatever_their_order_and_unknown_ones_are_left_out() {
        let mut assembler = Assembler::new(catalog(), 3 << 32);
        assembler.take(begin()).unwrap();
        assembler
            .take(relation("multivariate_multivariatefeatureoption", &[&OPTION[..], &["surprise"]].concat()))
            .unwrap();
        let text = Datum::Text;
        let new =
            vec![text("big"), text("unicode"), text("4"), Datum::Null, Datum::Null, text("2"), text("?")];
        assembler.take(Message::Insert { relation: 1, new: new.clone() }).unwrap();
        // In mid-stream the table gets another order of columns.
        let mut other = OPTION;
        other.reverse();
        assembler.take(relation("multivariate_multivariatefeatureoption", &other)).unwrap();
        assembler
            .take(Message::Update {
                relation: 1,
                old: None,
                new: new.iter().take(6).rev().copied().collect(),
            })
            .unwrap();
        let transaction = assembler.take(commit()).unwrap().unwrap();
        assert_eq!((transaction.xid, transaction.end_lsn), ((3 << 32) + 7, Lsn(9)));
        let [
            RowChange { op: Op::Insert { new: first }, .. },
            RowChange { op: Op::Update { new: second, .. }, .. },
        ] = &transaction.changes[..]
        else {
            panic!("{:?}", transaction.changes)
        };
        assert_eq!(first, second);
        assert_eq!(first.text(mv_option::STRING_VALUE), Some("big"));
        assert_eq!(first.int(mv_option::ID), Some(4));
    }

    #[test]
    fn a_missing_column_stops_the_stream_only_if_flagpost_needs_it() {
        let mut assembler = Assembler::new(catalog(), 0);
        let needed = ["id", "enabled", "environment_id", "feature_id", "identity_id", "feature_segment_id"];
        assembler.take(begin()).unwrap();
        assembler.take(relation("features_featurestate", &needed)).unwrap();
        let row = vec![Datum::Text("1"); 6];
        assembler.take(Message::Insert { relation: 1, new: row }).unwrap();
        let error = assembler.take(relation("features_featurestate", &needed[..5])).unwrap_err();
        assert!(error.to_string().contains("feature_segment_id"), "{error}");
        assert_eq!(error.kind(), Kind::DatabaseRefuses);
        let transaction = assembler.take(commit()).unwrap().unwrap();
        let Op::Insert { new } = &transaction.changes[0].op else { panic!() };
        assert!(new.is_null(feature_state::DELETED_AT), "a column that this version lacks reads as NULL");
    }

    #[test]
    fn what_only_old_databases_need_is_read_only_there() {
        let mut old = catalog();
        if let Some(column) =
            old.tables.get_mut(&Table::FeatureState).and_then(|c| c.get_mut(feature_state::VERSION))
        {
            *column = false;
        }
        for (catalog, expected) in [(catalog(), None), (old, Some("12"))] {
            let mut assembler = Assembler::new(catalog, 0);
            let names = ["id", "priority", "feature_id", "segment_id", "value", "value_type"];
            assembler.take(begin()).unwrap();
            assembler.take(relation("features_featuresegment", &names)).unwrap();
            let new = ["1", "1", "1", "1", "12", "int"].map(Datum::Text).to_vec();
            assembler.take(Message::Insert { relation: 1, new }).unwrap();
            let changes = assembler.take(commit()).unwrap().unwrap().changes;
            let Op::Insert { new } = &changes[0].op else { panic!() };
            assert_eq!(new.text(feature_segment::VALUE), expected);
        }
    }

    #[test]
    fn tables_of_other_schemas_and_other_names_are_left_out() {
        let mut assembler = Assembler::new(catalog(), 0);
        assembler.take(begin()).unwrap();
        let foreign = Message::Relation {
            id: 1,
            namespace: "copy",
            name: "features_feature",
            columns: columns(&["id"]),
        };
        assembler.take(foreign).unwrap();
        assembler.take(Message::Insert { relation: 1, new: vec![Datum::Text("1")] }).unwrap();
        assembler.take(relation("auth_permission", &["id"])).unwrap();
        assembler.take(Message::Delete { relation: 1, old: vec![Datum::Text("1")] }).unwrap();
        assert!(assembler.take(commit()).unwrap().unwrap().changes.is_empty());
    }

    #[test]
    fn a_credentials_id_is_replaced_by_a_digest_everywhere() {
        let mut assembler = Assembler::new(catalog(), 0);
        assembler.take(begin()).unwrap();
        assembler.take(relation("api_keys_masterapikey", &["id", "name"])).unwrap();
        let id = Datum::Text("prefix.pbkdf2_sha256$hash");
        assembler.take(Message::Insert { relation: 1, new: vec![id, Datum::Text("CI")] }).unwrap();
        assembler.take(Message::Delete { relation: 1, old: vec![id, Datum::Null] }).unwrap();
        let changes = assembler.take(commit()).unwrap().unwrap().changes;
        let Op::Insert { new } = &changes[0].op else { panic!() };
        let Op::Delete { key } = &changes[1].op else { panic!() };
        assert_eq!(crate::change::key_of(new), *key);
        assert_eq!(new.text(0), Some(digest("prefix.pbkdf2_sha256$hash").as_str()));
        assert_eq!(new.text(1), Some("CI"));
    }

    #[test]
    fn a_stream_that_makes_no_sense_is_an_error() {
        let fresh = || Assembler::new(catalog(), 0);
        assert!(fresh().take(commit()).is_err());
        assert!(fresh().take(Message::Delete { relation: 1, old: vec![] }).is_err());
        let mut assembler = fresh();
        assembler.take(begin()).unwrap();
        assert!(assembler.take(begin()).is_err());
        assert!(assembler.take(Message::Insert { relation: 9, new: vec![] }).is_err());
        assembler.take(relation("api_keys_masterapikey", &["id", "name"])).unwrap();
        assert!(assembler.take(Message::Delete { relation: 1, old: vec![Datum::Null] }).is_err());
    }

    #[test]
    fn ids_are_extended_across_the_wraparound() {
        assert_eq!(extend_xid(0x1_0000_0010, 5), 0x1_0000_0005);
        assert_eq!(extend_xid(0x1_0000_0010, 0xFFFF_FFF0), 0xFFFF_FFF0);
        assert_eq!(extend_xid(0x1_FFFF_FFF0, 3), 0x2_0000_0003);
        assert_eq!(extend_xid(800, 700), 700);
        assert_eq!(extend_xid(5, 0xFFFF_FFFF), 0xFFFF_FFFF);
    }
}
