//! Audit events: a row of the audit log with what it names, as it was at the commit. They do not settle: a row is an event.

use super::{Action, AuditPayload, Commit, Engine, Event, EventId, Kind, Out, Payload, Verb};
use crate::change::{Key, Row};
use crate::schema::{Table, audit_log, environment, project};

/// `audit_auditlog.history_record_class_path` of an audit row about an environment.
const ENVIRONMENT_HISTORY_CLASS: &str = "environments.models.HistoricalEnvironment";

/// `audit_auditlog.related_object_type` of an audit row about an organisation itself.
const ORGANISATION_TYPE: &str = "ORGANISATION";

impl Engine {
    /// Tells of one row of `audit_auditlog`.
    pub(super) fn audit(&self, row: Row, commit: Commit, out: Out<'_>) {
        self.emit(self.audit_event(row, commit), out);
    }

    /// The event of one row of `audit_auditlog`.
    pub(super) fn audit_event(&self, row: Row, commit: Commit) -> Event {
        let mirror = &self.mirror;
        let find = |table: Table, column: usize| mirror.row_by_id(table, row.int(column)?).cloned();
        let author = find(Table::User, audit_log::AUTHOR_ID);
        // Flagsmith makes an audit row from a history record; one about an environment shows that record.
        let is_about_environment =
            row.text(audit_log::HISTORY_RECORD_CLASS_PATH) == Some(ENVIRONMENT_HISTORY_CLASS);
        let environment_row = row
            .int(audit_log::HISTORY_RECORD_ID)
            .filter(|_| is_about_environment)
            .and_then(|id| mirror.environment_in_history(id))
            .or_else(|| find(Table::Environment, audit_log::ENVIRONMENT_ID));
        let project_row = find(Table::Project, audit_log::PROJECT_ID)
            .or_else(|| mirror.project_of(environment_row.as_ref()?).cloned());
        Event {
            id: self.audit_event_id(&row),
            kind: Kind::AuditLogCreated,
            action: Action { verb: Verb::Created, scope: None },
            organisation: match &project_row {
                Some(project_row) => project_row.int(project::ORGANISATION_ID),
                None => self.organisation_of_audit(&row),
            },
            project: project_row.as_ref().and_then(|p| p.int(project::ID)),
            environment: environment_row.as_ref().and_then(|e| e.int(environment::ID)),
            feature: None,
            feature_name: None,
            change_request: None,
            commit,
            reconstructed: false,
            payload: Payload::Audit(Box::new(AuditPayload {
                audit: row,
                author,
                project: project_row,
                environment: environment_row,
            })),
        }
    }

    /// The id of the event of a row of `audit_auditlog`.
    pub fn audit_event_id(&self, row: &Row) -> EventId {
        EventId::new(&self.system_id, Kind::AuditLogCreated, row.text(audit_log::ID).unwrap_or_default(), "")
    }

    /// The organisation that an audit row without project and environment is about: the one it names, or the only one there
    /// is. Flagsmith sends nothing of these; with several organisations nobody can tell whose such a row is.
    fn organisation_of_audit(&self, row: &Row) -> Option<i64> {
        if row.text(audit_log::RELATED_OBJECT_TYPE) == Some(ORGANISATION_TYPE) {
            return row.int(audit_log::RELATED_OBJECT_ID);
        }
        match self.mirror.keys(Table::Organisation).as_slice() {
            [Key::Int(only)] => Some(*only),
            _ => None,
        }
    }
}
