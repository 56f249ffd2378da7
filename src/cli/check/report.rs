//! What was found: items by code, printed for people or as JSON.

use serde::Serialize;
use serde_json::{Value, json};

use super::code::{Code, Group};
use super::fix::Fix;
use crate::error::{Error, Kind, Policy};

/// What mends a ledger whose source has lost changes.
pub(super) const AGAIN: &str = "flagpost recover  -- sends receivers what was missed
flagpost setup --resnapshot  -- or this: it begins anew, and what was missed is never sent";

/// The exit code of a failure that is neither the configuration's nor the database's nor one that needs an operator.
const FAILED: u8 = 1;

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

#[derive(Debug, Serialize)]
struct Item {
    code: Code,
    group: Group,
    status: Status,
    message: String,
    mend: Option<String>,
    /// Whether `check --fix` mends it.
    fixable: bool,
    #[serde(skip)]
    exit_code: u8,
}

/// Everything that was found. It is shown by group.
#[derive(Debug, Default)]
pub(in crate::cli) struct Report {
    items: Vec<Item>,
    fixes: Vec<(Code, Fix)>,
    /// What `check --fix` did before this report.
    fixed: Vec<String>,
    /// Whether what time may mend is a warning.
    is_patient: bool,
}

impl Report {
    /// A report for somebody who tries again by themselves: what waiting may mend is a warning.
    pub(super) fn patient() -> Report {
        Report { is_patient: true, ..Report::default() }
    }

    pub(super) fn ok(&mut self, code: Code, message: impl Into<String>) {
        self.add(code, Status::Ok, message.into(), None, 0);
    }

    pub(super) fn warn(&mut self, code: Code, message: impl Into<String>, mend: impl Into<String>) {
        self.add(code, Status::Warn, message.into(), Some(mend.into()), 0);
    }

    /// A warning that `check --fix` mends.
    pub(super) fn warn_fixable(
        &mut self,
        code: Code,
        message: impl Into<String>,
        mend: impl Into<String>,
        fix: Fix,
    ) {
        self.warn(code, message, mend);
        if let Some(item) = self.items.last_mut() {
            item.fixable = true;
        }
        self.fixes.push((code, fix));
    }

    pub(super) fn fail(
        &mut self,
        code: Code,
        kind: Kind,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.add(code, Status::Fail, message.into(), Some(mend.into()), kind.exit_code());
    }

    /// A failure of what is around flagpost.
    pub(super) fn fail_around(&mut self, code: Code, message: impl Into<String>, mend: impl Into<String>) {
        self.add(code, Status::Fail, message.into(), Some(mend.into()), FAILED);
    }

    /// The message says what to do, as every [`Error`]'s does.
    pub(super) fn error(&mut self, code: Code, error: &Error) {
        if self.is_patient && error.kind().policy() == Policy::Retry {
            return self.add(code, Status::Warn, error.to_string(), None, 0);
        }
        self.add(code, Status::Fail, error.to_string(), None, error.kind().exit_code());
    }

    /// The same where the message alone does not do: `mend` makes the server allow what it refuses.
    pub(super) fn refused(&mut self, code: Code, error: &Error, mend: impl Into<String>) {
        self.error(code, error);
        if let Some(item) = self.items.last_mut().filter(|_| error.kind() == Kind::DatabaseRefuses) {
            item.mend = Some(mend.into());
        }
    }

    fn add(&mut self, code: Code, status: Status, message: String, mend: Option<String>, exit_code: u8) {
        self.items.push(Item { code, group: code.group(), status, message, mend, fixable: false, exit_code });
    }

    /// Puts what belongs together together; within a group the order stays.
    pub(super) fn sort(&mut self) {
        self.items.sort_by_key(|item| item.group);
    }

    pub(super) fn take_fixes(&mut self) -> Vec<(Code, Fix)> {
        std::mem::take(&mut self.fixes)
    }

    pub(super) fn set_fixed(&mut self, fixed: Vec<String>) {
        self.fixed = fixed;
    }

    fn count(&self, status: Status) -> usize {
        self.items.iter().filter(|item| item.status == status).count()
    }

    /// The gravest failure's: 4 (an operator is needed) before 3 (the database) before the others.
    pub(super) fn exit_code(&self) -> u8 {
        self.items.iter().map(|item| item.exit_code).max().unwrap_or(0)
    }

    /// The same, with 1 where there are only warnings.
    pub(super) fn strict_exit_code(&self) -> u8 {
        match self.exit_code() {
            0 if self.count(Status::Warn) > 0 => FAILED,
            code => code,
        }
    }

    pub(in crate::cli) fn to_json(&self) -> Value {
        json!({
            "exit_code": self.exit_code(),
            "failed": self.count(Status::Fail),
            "warnings": self.count(Status::Warn),
            "fixed": self.fixed,
            "checks": self.items,
        })
    }

    /// `only_troubles` leaves out what is well.
    pub(super) fn print_text(&self, only_troubles: bool) {
        for fixed in &self.fixed {
            say!("{fixed}");
        }
        let is_shown = |item: &&Item| !only_troubles || item.status != Status::Ok;
        let shown: Vec<&Item> = self.items.iter().filter(is_shown).collect();
        let width = shown.iter().map(|item| item.code.name().len()).max().unwrap_or(0);
        for item in shown {
            let (status, group) = (item.status.shown(), item.group.shown());
            say!("{status:<5} {group:<13} {:<width$}  {}", item.code.name(), item.message);
            for line in item.mend.iter().flat_map(|mend| mend.lines()) {
                say!("      {line}");
            }
            if item.fixable {
                say!("      -- or: flagpost check --fix");
            }
        }
        if !only_troubles {
            say!();
        }
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
