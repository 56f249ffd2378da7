//! An endpoint's URL as it may be shown.

pub(super) use crate::ledger::shown_url as redacted;
