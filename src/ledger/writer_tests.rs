//! The writer's promises about COMMIT.

use std::time::Duration;

use super::*;
use crate::change::Field;
use crate::change::{Key, Row};
use crate::mirror::Persist;
use crate::pulse::Stage;

/// An I/O error from COMMIT cannot be mended by trying again (PITFALLS 32): the writer ends, and nothing of it was durable.
#[test]
fn a_commit_that_fails_ends_the_writer_and_makes_nothing_durable() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    ledger.connection.commit_hook(Some(|| true));
    let WriterHandle { writes, durable, ended, .. } = ledger.start_writer().unwrap();
    let row = Row::pack(&[Field::Text("1")]);
    let put = Persist::Put { table: Table::User, key: Key::Int(1), row };
    writes.blocking_send(Write::Mirror(put)).unwrap();
    writes.blocking_send(Write::Checkpoint(Lsn(500), Micros(1))).unwrap();
    let error = ended.blocking_recv().unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::LedgerIo);
    assert!(error.to_string().contains("nothing was confirmed that is not in it"), "{error}");
    assert_eq!(*durable.borrow(), Lsn(0));
    assert!(writes.blocking_send(Write::Checkpoint(Lsn(600), Micros(2))).is_err(), "it takes more writes");
    let again = Ledger::open(dir.path()).unwrap();
    assert_eq!(again.checkpoint().unwrap(), None);
    let mut rows = 0;
    again.load_mirror(|_, _| rows += 1).unwrap();
    assert_eq!(rows, 0);
}

#[test]
fn a_writer_that_has_nothing_to_write_shows_that_it_gets_on_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pulse = Arc::<Pulse>::default();
    let ledger = Ledger::open(dir.path()).unwrap().with_pulse(Arc::clone(&pulse));
    let WriterHandle { writes, ended, .. } = ledger.start_writer().unwrap();
    let reader = Reader::open(dir.path()).unwrap();
    let version = reader.version().unwrap();
    let idle = Duration::from_millis(50);
    std::thread::sleep(idle);
    assert!(pulse.since(Stage::Writer) >= idle, "it beats by itself, whatever it does");
    writes.blocking_send(Write::Nothing).unwrap();
    drop(writes);
    ended.blocking_recv().unwrap().unwrap();
    assert!(pulse.since(Stage::Writer) < idle, "it does not beat");
    assert_eq!(reader.version().unwrap(), version);
}
