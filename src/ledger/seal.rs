//! Sealing: webhook secrets and URLs (which can carry credentials) are encrypted before they are written to the ledger.
//!
//! AES-256-GCM with a key of its own beside the ledger (`ledger.key`, 0600), a random nonce for every value. It keeps
//! secrets out of copies, backups and bug reports of the ledger file; who can read the whole state directory can open
//! them, as who can read Flagsmith's database can.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;

use crate::change::{Field, Row};
use crate::error::{Error, Kind, Result};
use crate::schema::Table;

const KEY_BYTES: usize = 32;

/// Seals and opens the fields named by [`Table::sealed`].
pub(super) struct Seal(RandomizedNonceKey);

impl Seal {
    /// Reads the key, making it where there is none.
    pub(super) fn open(path: &Path) -> Result<Seal> {
        match fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Seal::create(path),
            key => Seal::from_key(path, key),
        }
    }

    /// Reads the key of a ledger that is there: a new key would open nothing in it.
    pub(super) fn read(path: &Path) -> Result<Seal> {
        Seal::from_key(path, fs::read(path))
    }

    fn create(path: &Path) -> Result<Seal> {
        let mut key = vec![0; KEY_BYTES];
        rand::fill(&mut key).map_err(|_| Error::internal("no random numbers are to be had"))?;
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(&key)?;
            file.sync_all()
        };
        let written = write();
        Seal::from_key(path, written.map(|()| key))
    }

    fn from_key(path: &Path, key: std::io::Result<Vec<u8>>) -> Result<Seal> {
        let key = key.map_err(|e| {
            Error::new(
                Kind::LedgerIo,
                format!(
                    "the ledger's key {} cannot be used: {e}: put it back, or correct its owner",
                    path.display()
                ),
            )
        })?;
        RandomizedNonceKey::new(&AES_256_GCM, &key).map(Seal).map_err(|_| {
            Error::new(
                Kind::LedgerMismatch,
                format!("the ledger's key {} is damaged: put the right one back", path.display()),
            )
        })
    }

    /// The row with its secret fields sealed.
    pub(super) fn seal(&self, table: Table, row: &Row) -> Result<Row> {
        self.map(table, row, |text| {
            let mut bytes = text.as_bytes().to_vec();
            let nonce = self
                .0
                .seal_in_place_append_tag(Aad::from(table.name().as_bytes()), &mut bytes)
                .map_err(|_| Error::internal("a value cannot be sealed"))?;
            Ok(hex(nonce.as_ref()) + &hex(&bytes))
        })
    }

    /// The row with its secret fields in the clear.
    pub(super) fn unseal(&self, table: Table, row: &Row) -> Result<Row> {
        let damaged = || {
            Error::new(
                Kind::LedgerMismatch,
                "a sealed value in the ledger does not fit ledger.key: put back the key that belongs to this ledger",
            )
        };
        self.map(table, row, |text| {
            let bytes = unhex(text).ok_or_else(damaged)?;
            let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
            let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
            let mut sealed = sealed.to_vec();
            let clear = self
                .0
                .open_in_place(nonce, Aad::from(table.name().as_bytes()), &mut sealed)
                .map_err(|_| damaged())?;
            String::from_utf8(clear.to_vec()).map_err(|_| damaged())
        })
    }

    fn map(&self, table: Table, row: &Row, change: impl Fn(&str) -> Result<String>) -> Result<Row> {
        let sealed = table.sealed();
        if sealed.is_empty() {
            return Ok(row.clone());
        }
        let mut changed: Vec<Option<String>> = Vec::with_capacity(row.len());
        for (i, field) in row.fields().enumerate() {
            changed.push(match field {
                // An empty secret means that the endpoint has none: nothing to hide, and a fact worth seeing.
                Field::Text(text) if sealed.contains(&i) && !text.is_empty() => Some(change(text)?),
                Field::Text(_) | Field::Null | Field::Unchanged => None,
            });
        }
        let fields: Vec<Field<'_>> = row
            .fields()
            .zip(&changed)
            .map(|(field, changed)| changed.as_deref().map_or(field, Field::Text))
            .collect();
        Ok(Row::pack(&fields))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16))
        .map(|d| d.and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(url: &str, secret: &str) -> Row {
        Row::pack(&[
            Field::Text("1"),
            Field::Text(url),
            Field::Text("7"),
            Field::Text("t"),
            Field::Text(secret),
        ])
    }

    #[test]
    fn a_sealed_row_shows_no_secret_and_opens_to_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let seal = Seal::open(&dir.path().join("ledger.key")).unwrap();
        let row = webhook("https://user:pass@example.com/x", "prød-ключ");
        let sealed = seal.seal(Table::EnvironmentWebhook, &row).unwrap();
        let text = String::from_utf8_lossy(sealed.as_bytes()).into_owned();
        assert!(!text.contains("pass") && !text.contains("ключ"));
        assert_eq!(seal.unseal(Table::EnvironmentWebhook, &sealed).unwrap(), row);
        // The same key again, as after a restart.
        let again = Seal::open(&dir.path().join("ledger.key")).unwrap();
        assert_eq!(again.unseal(Table::EnvironmentWebhook, &sealed).unwrap(), row);
    }

    #[test]
    fn another_key_or_a_changed_value_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let seal = Seal::open(&dir.path().join("a.key")).unwrap();
        let other = Seal::open(&dir.path().join("b.key")).unwrap();
        let sealed = seal.seal(Table::OrganisationWebhook, &webhook("http://x", "s")).unwrap();
        assert!(other.unseal(Table::OrganisationWebhook, &sealed).is_err());
        assert!(seal.unseal(Table::OrganisationWebhook, &webhook("zz", "s")).is_err());
    }
}
