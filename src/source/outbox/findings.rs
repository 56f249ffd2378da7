//! What is wrong with the outbox: triggers that are not there or do not fire, statements that were not captured.

use std::fmt;

use tokio_postgres::Client;

use super::install::Outbox;
use crate::error::Result;
use crate::source::catalog::Catalog;
use crate::source::conn_info::ConnInfo;
use crate::source::sql::sql_error;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing, as `sql/outbox_check.sql` names it.
    pub finding: String,
    /// The table, mostly.
    pub subject: String,
    /// The trigger, the number, …
    pub detail: String,
}

impl Finding {
    /// Whether changes are not captured for it.
    pub fn is_loss(&self) -> bool {
        matches!(self.finding.as_str(), "missing" | "not always enabled" | "other columns")
    }

    /// Whether changes were not captured, by the triggers' own count.
    pub fn is_failure(&self) -> bool {
        self.finding == "failures"
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { finding, subject, detail } = self;
        match finding.as_str() {
            "missing" => write!(f, "trigger {detail} on {subject}"),
            "not always enabled" => write!(f, "trigger {detail} on {subject} (it is not enabled ALWAYS)"),
            "other columns" => write!(f, "trigger {detail} on {subject} (it keeps other columns)"),
            _ => write!(f, "{finding}: {subject} {detail}"),
        }
    }
}

impl Outbox {
    /// What is wrong with it, nothing if it is whole. Runs also where nothing is installed.
    pub async fn findings(
        &self,
        client: &Client,
        info: &ConnInfo,
        catalog: &Catalog,
    ) -> Result<Vec<Finding>> {
        let rows = client
            .query_typed(&self.check_query(catalog), &[])
            .await
            .map_err(|e| sql_error(info, "looking at the outbox's triggers", &e))?;
        let finding = |row: &tokio_postgres::Row| Finding {
            finding: row.get(0),
            subject: row.get(1),
            detail: row.get(2),
        };
        Ok(rows.iter().map(finding).collect())
    }

    /// Triggers through which changes are not captured, in words.
    pub async fn losses(&self, client: &Client, info: &ConnInfo, catalog: &Catalog) -> Result<Vec<String>> {
        let findings = self.findings(client, info, catalog).await?;
        Ok(findings.iter().filter(|finding| finding.is_loss()).map(ToString::to_string).collect())
    }
}
