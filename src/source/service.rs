//! Which managed service a server belongs to, by the settings, roles and functions that only that one has, and how logical
//! decoding is switched on there: on each in another way, and never with `ALTER SYSTEM`.
//!
//! Source: the services' documentation. Amazon: "Performing logical replication for Amazon RDS for PostgreSQL", "Setting up
//! logical replication for your Aurora PostgreSQL DB cluster". Google: "Set up logical replication and decoding". Microsoft:
//! "Logical replication and logical decoding in Azure Database for PostgreSQL". Supabase: "Manual replication FAQ". Neon:
//! "Logical replication in Neon", "Connection pooling". Scaleway: "Setting up logical replication as a publisher".

use tokio_postgres::Client;

use super::catalog::quoted;
use super::conn_info::ConnInfo;
use super::sql::sql_error;
use crate::error::Result;

/// A managed service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Amazon RDS for PostgreSQL.
    Rds,
    /// Amazon Aurora PostgreSQL.
    Aurora,
    /// Google Cloud SQL.
    CloudSql,
    /// Azure Database for PostgreSQL, Flexible Server.
    Azure,
    /// Supabase.
    Supabase,
    /// Neon.
    Neon,
    /// Scaleway's managed databases.
    Scaleway,
}

/// By what a service is recognised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// What stands before the dot in the names of settings (`rds` of `rds.logical_replication`).
    pub settings: Vec<String>,
    /// Names of roles.
    pub roles: Vec<String>,
    /// Whether there is a function `aurora_version`.
    pub has_aurora_version: bool,
}

impl Service {
    /// The service that a server with these marks belongs to.
    pub fn of(marks: &Marks) -> Option<Service> {
        let has_setting = |name: &str| marks.settings.iter().any(|setting| setting == name);
        let has_role = |name: &str| marks.roles.iter().any(|role| role == name);
        if has_setting("rds") || has_role("rds_superuser") || has_role("rds_replication") {
            return Some(if marks.has_aurora_version { Service::Aurora } else { Service::Rds });
        }
        let others = [
            (Service::CloudSql, has_setting("cloudsql") || has_role("cloudsqlsuperuser")),
            (Service::Azure, has_setting("azure") || has_role("azure_pg_admin")),
            (Service::Supabase, has_role("supabase_admin")),
            (Service::Neon, has_setting("neon") || has_role("neon_superuser")),
            (Service::Scaleway, has_role("_rdb_admin")),
        ];
        others.into_iter().find(|(_, is_it)| *is_it).map(|(service, _)| service)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Service::Rds => "Amazon RDS",
            Service::Aurora => "Amazon Aurora",
            Service::CloudSql => "Google Cloud SQL",
            Service::Azure => "Azure Database for PostgreSQL",
            Service::Supabase => "Supabase",
            Service::Neon => "Neon",
            Service::Scaleway => "Scaleway",
        }
    }

    /// How logical decoding is switched on.
    pub fn switch(self) -> &'static str {
        match self {
            Service::Rds => {
                "set rds.logical_replication = 1 in the instance's parameter group, then reboot the instance"
            }
            Service::Aurora => {
                "set rds.logical_replication = 1 in the cluster's parameter group, then reboot the writer"
            }
            Service::CloudSql => "set the flag cloudsql.logical_decoding = on, which restarts the instance",
            Service::Azure => "set the server parameter wal_level = logical, then restart the server",
            Service::Supabase => {
                "it is on by default: give database.url the direct connection's host, not the pooler's"
            }
            Service::Neon => {
                "turn on logical replication in the project's settings, and give database.url the host without -pooler"
            }
            Service::Scaleway => {
                "set rdb.enable_logical_replication in the instance's advanced settings (PostgreSQL 17)"
            }
        }
    }

    /// The statement that lets a role replicate.
    pub fn grant(self, role: &str) -> String {
        match self {
            // The attribute cannot be given there: its place is taken by a membership.
            Service::Rds | Service::Aurora => format!("GRANT rds_replication TO {};", quoted(role)),
            Service::CloudSql | Service::Azure | Service::Supabase | Service::Neon | Service::Scaleway => {
                format!("ALTER ROLE {} REPLICATION;", quoted(role))
            }
        }
    }
}

/// Reads [`Marks`].
pub async fn service_marks(client: &Client, info: &ConnInfo) -> Result<Marks> {
    let row = client
        .query_typed_one(
            "SELECT ARRAY(SELECT DISTINCT split_part(name, '.', 1) FROM pg_catalog.pg_settings WHERE name LIKE '%.%'),
                    ARRAY(SELECT rolname::text FROM pg_catalog.pg_roles),
                    EXISTS (SELECT FROM pg_catalog.pg_proc WHERE proname = 'aurora_version')",
            &[],
        )
        .await
        .map_err(|e| sql_error(info, "asking what kind of server this is", &e))?;
    Ok(Marks { settings: row.get(0), roles: row.get(1), has_aurora_version: row.get(2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(settings: &[&str], roles: &[&str], has_aurora_version: bool) -> Marks {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Marks { settings: owned(settings), roles: owned(roles), has_aurora_version }
    }

    #[test]
    fn each_service_is_recognised_by_what_only_it_has() {
        for (settings, roles, aurora, expected) in [
            (&["rds"][..], &["rds_superuser"][..], false, Some(Service::Rds)),
            (&["rds"], &[], true, Some(Service::Aurora)),
            (&[], &["rds_replication"], false, Some(Service::Rds)),
            (&["cloudsql"], &[], false, Some(Service::CloudSql)),
            (&[], &["cloudsqlsuperuser"], false, Some(Service::CloudSql)),
            (&["azure"], &[], false, Some(Service::Azure)),
            (&[], &["azure_pg_admin"], false, Some(Service::Azure)),
            (&[], &["supabase_admin"], false, Some(Service::Supabase)),
            (&[], &["neon_superuser"], false, Some(Service::Neon)),
            (&[], &["_rdb_admin"], false, Some(Service::Scaleway)),
            (&["plpgsql", "pg_stat_statements"], &["postgres", "flagsmith"], false, None),
            // A function of that name is no service.
            (&[], &[], true, None),
        ] {
            assert_eq!(Service::of(&marks(settings, roles, aurora)), expected, "{settings:?} {roles:?}");
        }
    }

    #[test]
    fn amazon_grants_a_membership_the_others_an_attribute() {
        assert_eq!(Service::Aurora.grant("a\"b"), "GRANT rds_replication TO \"a\"\"b\";");
        assert_eq!(Service::CloudSql.grant("x"), "ALTER ROLE \"x\" REPLICATION;");
    }
}
