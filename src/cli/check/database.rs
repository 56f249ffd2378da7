//! The server: reachable, recent enough, and what it allows.

use tokio_postgres::Client;

use super::code::Code;
use super::ledger::Found;
use super::mode::{STANDBY_DECODES, Verdict};
use super::replication;
use super::report::Report;
use super::session::grant_views;
use crate::config::{Config, Mode};
use crate::error::{Kind, Result};
use crate::source::{
    Server, ServerFacts, Service, SlotFacts, connect, has_transaction_pooler, outbox_setup_facts,
    server_facts, server_port, service_marks, slot_facts,
};

/// `server_version_num` of the first version that is supported.
const OLDEST: i32 = 140_000;

/// What the later checks build on.
pub(super) struct View {
    /// An SQL session.
    pub(super) client: Client,
    /// Who answers on a replication connection.
    pub(super) server: Option<Server>,
    /// The slot, if it is there and ours.
    pub(super) slot: Option<SlotFacts>,
}

/// What stands between us and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// Nothing that harms.
    None,
    /// A pooler that gives every transaction another of the server's sessions.
    Transaction,
}

/// `None` where nothing of the database can be looked at.
pub(super) async fn check(config: &Config, ledger: Option<&Found>, report: &mut Report) -> Option<View> {
    let client = match connect(&config.database).await {
        Ok(client) => client,
        Err(error) => {
            report.error(Code::Connect, &error);
            return None;
        }
    };
    let facts = match server_facts(&client, &config.database).await {
        Ok(facts) => facts,
        Err(error) => {
            report.refused(Code::Settings, &error, grant_views(&config.database.user));
            return None;
        }
    };
    report.ok(Code::Connect, format!("{} as {}", config.database.shown(), config.database.user));
    if !check_version(&facts, report) {
        return None;
    }
    let slot = match slot_facts(&client, &config.database, &config.names.slot).await {
        Ok(slot) => slot,
        Err(error) => {
            report.error(Code::Slot, &error);
            return None;
        }
    };
    let pooling = check_pooler(config, &client, report).await;
    let verdict = match verdict(config, &client, &facts, slot.as_ref(), pooling).await {
        Ok(verdict) => verdict,
        Err(error) => {
            report.error(Code::SourceMode, &error);
            return None;
        }
    };
    verdict.report(config.mode, report);
    check_standby(config.mode, &facts, report);
    match config.mode {
        Mode::Replication => {
            let scene = replication::Scene { facts: &facts, verdict: &verdict, pooling, ledger };
            let server = replication::check(config, &client, &scene, slot.as_ref(), report).await;
            let slot = slot.filter(|slot| slot.is_ours(&config.database));
            Some(View { client, server, slot })
        }
        Mode::Outbox => {
            replication::check_leftover(config, slot.as_ref(), report);
            Some(View { client, server: None, slot: None })
        }
    }
}

async fn verdict(
    config: &Config,
    client: &Client,
    facts: &ServerFacts,
    slot: Option<&SlotFacts>,
    pooling: Pooling,
) -> Result<Verdict> {
    let (info, owner, schema) = (&config.database, &config.outbox.owner, &config.names.schema);
    let setup = outbox_setup_facts(client, info, owner, schema).await?;
    let service = Service::of(&service_marks(client, info).await?);
    Ok(Verdict::of((&info.user, owner), facts, &setup, slot, pooling, service))
}

fn check_version(facts: &ServerFacts, report: &mut Report) -> bool {
    let version = &facts.version_text;
    if facts.version < OLDEST {
        report.fail(
            Code::ServerVersion,
            Kind::DatabaseRefuses,
            format!("PostgreSQL {version}: flagpost needs version 14 or later"),
            "upgrade the server",
        );
        return false;
    }
    report.ok(Code::ServerVersion, format!("PostgreSQL {version}"));
    true
}

fn check_standby(mode: Mode, facts: &ServerFacts, report: &mut Report) {
    if !facts.is_standby {
        return;
    }
    let why = match mode {
        Mode::Outbox => "the server is a standby: nothing can be taken out of the outbox there",
        Mode::Replication if facts.version < STANDBY_DECODES => {
            "the server is a standby, and this version cannot decode there"
        }
        Mode::Replication => {
            return report.warn(
                Code::Standby,
                "the server is a standby: publication and slot must be made elsewhere, and the slot ends with a promotion",
                "give database.url the primary's host",
            );
        }
    };
    report.fail(Code::Standby, Kind::DatabaseRefuses, why, "give database.url the primary's host");
}

async fn check_pooler(config: &Config, client: &Client, report: &mut Report) -> Pooling {
    let code = Code::Pooler;
    match has_transaction_pooler(client, &config.database).await {
        Err(error) => {
            report.error(code, &error);
            return Pooling::None;
        }
        Ok(false) => {
            report.ok(code, "each connection has a session of the server's to itself");
            return Pooling::None;
        }
        Ok(true) => {}
    }
    let port = server_port(client, &config.database).await.ok().flatten();
    let port = port.map(|port| format!(", which listens on port {port}")).unwrap_or_default();
    let mend = format!("give database.url the host and port of the server itself{port}");
    let what = "a pooler stands between, which gives each transaction another of the server's sessions";
    match config.mode {
        Mode::Outbox => report.warn(
            code,
            format!(
                "{what}: notifications do not pass it, so changes are noticed after up to {:?} (source.outbox_poll)",
                config.poll
            ),
            mend,
        ),
        Mode::Replication => report.fail(
            code,
            Kind::DatabaseRefuses,
            format!("{what}: neither the stream nor the mirror's snapshot can pass it"),
            format!("{mend}\n-- or stay behind the pooler: flagpost setup --mode outbox, and source.mode = \"outbox\""),
        ),
    }
    Pooling::Transaction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(check: impl FnOnce(&mut Report)) -> String {
        let mut report = Report::default();
        check(&mut report);
        let json = report.to_json();
        let all = json["checks"].as_array().into_iter().flatten();
        all.map(|one| format!("{} {}: {}", one["code"], one["status"], one["mend"]).replace('"', ""))
            .collect()
    }

    #[test]
    fn a_server_is_too_old_before_version_14() {
        for (version, expected) in
            [(OLDEST - 1, "server-version fail: upgrade the server"), (OLDEST, "server-version ok: null")]
        {
            let facts = ServerFacts { version, ..ServerFacts::sample() };
            assert_eq!(told(|report| assert_eq!(check_version(&facts, report), version == OLDEST)), expected);
        }
    }

    #[test]
    fn a_standby_is_no_place_for_the_outbox_and_hardly_one_for_replication() {
        let standby = |version| ServerFacts { version, is_standby: true, ..ServerFacts::sample() };
        let mend = "give database.url the primary's host";
        for (mode, version, status) in [
            (Mode::Outbox, STANDBY_DECODES, "fail"),
            (Mode::Replication, STANDBY_DECODES - 1, "fail"),
            (Mode::Replication, STANDBY_DECODES, "warn"),
        ] {
            let told = told(|report| check_standby(mode, &standby(version), report));
            assert_eq!(told, format!("standby {status}: {mend}"), "{mode:?} {version}");
        }
        assert_eq!(told(|report| check_standby(Mode::Outbox, &ServerFacts::sample(), report)), "");
    }
}
