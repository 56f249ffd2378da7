//! Who changed a flag, and when: taken from the history rows that the same edit added (SEMANTICS.md §2).

use serde::{Deserialize, Serialize};

use super::Author;
use crate::change::{Key, Micros, Row};
use crate::mirror::Mirror;
use crate::schema::{Table, feature_version, mv_history, state_history, value_history};

/// One history row: who and when.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mark {
    user: Option<i64>,
    api_key: Option<String>,
    pub(super) at: Micros,
}

impl Mark {
    fn read(row: &Row, at: usize, user: usize, api_key: usize) -> Option<Mark> {
        Some(Mark {
            at: row.text(at).and_then(Micros::parse)?,
            user: row.int(user),
            api_key: row.text(api_key).map(str::to_owned),
        })
    }

    /// Who published a version; `None` when Flagsmith made it by itself (turning versioning on, creating a feature).
    pub(super) fn of_publication(version: &Row) -> Option<Mark> {
        let mark = Mark::read(
            version,
            feature_version::PUBLISHED_AT,
            feature_version::PUBLISHED_BY_ID,
            feature_version::PUBLISHED_BY_API_KEY_ID,
        )?;
        (mark.user.is_some() || mark.api_key.is_some()).then_some(mark)
    }

    /// Who wrote a row of a state's history.
    pub(super) fn of_state_history(row: &Row) -> Option<Mark> {
        Mark::read(
            row,
            state_history::HISTORY_DATE,
            state_history::HISTORY_USER_ID,
            state_history::MASTER_API_KEY_ID,
        )
    }

    /// The user's or the key's row, if the mirror has it.
    pub(super) fn author(&self, mirror: &Mirror) -> Author {
        if let Some(row) = self.user.and_then(|id| mirror.row_by_id(Table::User, id)) {
            return Author::User(row.clone());
        }
        let key = self.api_key.as_deref().and_then(|id| mirror.row(Table::ApiKey, &Key::Text(id.into())));
        key.map_or(Author::Unknown, |row| Author::ApiKey(row.clone()))
    }
}

/// The history rows of a group: the latest of each kind.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Attribution {
    state: Option<Mark>,
    value: Option<Mark>,
    variant: Option<Mark>,
    state_removed: Option<Mark>,
    value_removed: Option<Mark>,
}

/// `history_type` of a deletion (django-simple-history).
const REMOVAL: &str = "-";

impl Attribution {
    /// Takes note of a history row.
    pub(super) fn note(&mut self, table: Table, row: &Row) {
        let (slot, mark) = match table {
            Table::StateHistory => (
                if row.text(state_history::HISTORY_TYPE) == Some(REMOVAL) {
                    &mut self.state_removed
                } else {
                    &mut self.state
                },
                Mark::of_state_history(row),
            ),
            Table::ValueHistory => (
                if row.text(value_history::HISTORY_TYPE) == Some(REMOVAL) {
                    &mut self.value_removed
                } else {
                    &mut self.value
                },
                Mark::read(
                    row,
                    value_history::HISTORY_DATE,
                    value_history::HISTORY_USER_ID,
                    value_history::MASTER_API_KEY_ID,
                ),
            ),
            Table::MvHistory => (
                &mut self.variant,
                Mark::read(
                    row,
                    mv_history::HISTORY_DATE,
                    mv_history::HISTORY_USER_ID,
                    mv_history::MASTER_API_KEY_ID,
                ),
            ),
            _ => return,
        };
        if mark.is_some() {
            *slot = mark;
        }
    }

    /// Of a change: the state's history, else the value's, else the variants'.
    pub(super) fn of_change(&self) -> Option<&Mark> {
        self.state.as_ref().or(self.value.as_ref()).or(self.variant.as_ref())
    }

    /// Of a deletion: only history rows of a deletion count.
    pub(super) fn of_removal(&self) -> Option<&Mark> {
        self.state_removed.as_ref().or(self.value_removed.as_ref())
    }

    /// Whether the state's own deletion has been seen in the history.
    pub(super) fn has_removal(&self) -> bool {
        self.state_removed.is_some()
    }
}
