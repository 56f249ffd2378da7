//! What is wrong with the outbox: triggers that are not there or do not fire, statements that were not captured.

use std::collections::BTreeMap;

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

    /// Triggers through which changes are not captured, in words: a table each.
    pub async fn losses(&self, client: &Client, info: &ConnInfo, catalog: &Catalog) -> Result<Vec<String>> {
        let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for finding in self.findings(client, info, catalog).await?.into_iter().filter(Finding::is_loss) {
            let trigger = match finding.finding.as_str() {
                "missing" => finding.detail,
                why => format!("{} ({why})", finding.detail),
            };
            tables.entry(finding.subject).or_default().push(trigger);
        }
        if tables.len() > catalog.tables.len() {
            return Ok(vec!["all of its triggers".into()]);
        }
        Ok(tables
            .into_iter()
            .map(|(table, triggers)| format!("{} on {table}", triggers.join(", ")))
            .collect())
    }

    /// Whether installing would change nothing: everything is there, and made by this flagpost with this cap.
    pub async fn is_current(&self, client: &Client, info: &ConnInfo, catalog: &Catalog) -> Result<bool> {
        if !self.losses(client, info, catalog).await?.is_empty() {
            return Ok(false);
        }
        let sql = "SELECT prosrc FROM pg_catalog.pg_proc WHERE pronamespace = to_regnamespace('flagpost')";
        let rows = client
            .query_typed(sql, &[])
            .await
            .map_err(|e| sql_error(info, "looking at the outbox's functions", &e))?;
        let install = self.install_step(catalog).sql;
        Ok(rows.len() == FUNCTIONS && rows.iter().all(|row| install.contains(row.get::<_, &str>(0))))
    }
}

/// Functions that the outbox has.
const FUNCTIONS: usize = 3;
