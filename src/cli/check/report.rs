//! What was found: named items, printed for people or as JSON. Codes are stable: tools rely on them.

use serde::Serialize;

use crate::error::{Error, Kind, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    Warn,
    Fail,
}

impl Status {
    fn shown(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        }
    }
}

/// The part of the installation that an item is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Group {
    Database,
    Replication,
    Outbox,
    Tables,
    Ledger,
    Endpoints,
}

impl Group {
    fn shown(self) -> &'static str {
        match self {
            Group::Database => "database",
            Group::Replication => "replication",
            Group::Outbox => "outbox",
            Group::Tables => "tables",
            Group::Ledger => "ledger",
            Group::Endpoints => "endpoints",
        }
    }
}

#[derive(Debug, Serialize)]
struct Item {
    code: &'static str,
    group: Group,
    status: Status,
    message: String,
    mend: Option<String>,
    #[serde(skip)]
    exit_code: u8,
}

/// Everything that was found. It is shown by group.
#[derive(Debug, Default)]
pub(super) struct Report {
    items: Vec<Item>,
}

impl Report {
    pub(super) fn ok(&mut self, group: Group, code: &'static str, message: impl Into<String>) {
        self.add(group, code, Status::Ok, message.into(), None, 0);
    }

    pub(super) fn warn(
        &mut self,
        group: Group,
        code: &'static str,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.add(group, code, Status::Warn, message.into(), Some(mend.into()), 0);
    }

    pub(super) fn fail(
        &mut self,
        group: Group,
        code: &'static str,
        kind: Kind,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.add(group, code, Status::Fail, message.into(), Some(mend.into()), kind.exit_code());
    }

    /// A failure whose message ends in what to do, as every [`Error`]'s does.
    pub(super) fn error(&mut self, group: Group, code: &'static str, error: &Error) {
        self.add(group, code, Status::Fail, error.to_string(), None, error.kind().exit_code());
    }

    fn add(
        &mut self,
        group: Group,
        code: &'static str,
        status: Status,
        message: String,
        mend: Option<String>,
        exit_code: u8,
    ) {
        self.items.push(Item { code, group, status, message, mend, exit_code });
    }

    /// Puts what belongs together together; within a group the order stays.
    pub(super) fn sort(&mut self) {
        self.items.sort_by_key(|item| item.group);
    }

    fn count(&self, status: Status) -> usize {
        self.items.iter().filter(|item| item.status == status).count()
    }

    /// The gravest failure's: 4 (an operator is needed) before 3 (the database) before the others.
    pub(super) fn exit_code(&self) -> u8 {
        self.items.iter().map(|item| item.exit_code).max().unwrap_or(0)
    }

    pub(super) fn print_json(&self) -> Result<()> {
        let json = serde_json::json!({
            "exit_code": self.exit_code(),
            "failed": self.count(Status::Fail),
            "warnings": self.count(Status::Warn),
            "checks": self.items,
        });
        let text = serde_json::to_string_pretty(&json)
            .map_err(|e| Error::internal(format!("the report cannot be written as JSON: {e}")))?;
        say!("{text}");
        Ok(())
    }

    pub(super) fn print_text(&self) {
        let width = self.items.iter().map(|item| item.code.len()).max().unwrap_or(0);
        for item in &self.items {
            let (status, group) = (item.status.shown(), item.group.shown());
            say!("{status:<5} {group:<12} {:<width$}  {}", item.code, item.message);
            for line in item.mend.iter().flat_map(|mend| mend.lines()) {
                say!("      {line}");
            }
        }
        say!();
        let warnings = match self.count(Status::Warn) {
            0 => String::new(),
            1 => ", 1 warning".into(),
            n => format!(", {n} warnings"),
        };
        match self.count(Status::Fail) {
            0 => say!("nothing stands in the way{warnings}"),
            1 => say!("1 thing stands in the way{warnings}"),
            n => say!("{n} things stand in the way{warnings}"),
        }
    }
}
