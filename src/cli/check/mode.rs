//! Which sources this server and this role allow, and why; the one that is advised; and where it is a managed service, how
//! replication is switched on there.

use super::code::Code;
use super::database::Pooling;
use super::report::Report;
use crate::config::Mode;
use crate::source::{ServerFacts, Service, SetupFacts, SlotFacts};

/// `server_version_num` of the first version that decodes on a standby.
pub(super) const STANDBY_DECODES: i32 = 160_000;

const TO_OUTBOX: &str = "flagpost setup --mode outbox  -- then set source.mode = \"outbox\"";
const TO_REPLICATION: &str = "flagpost setup --mode replication  -- then set source.mode = \"replication\"";
/// Below a mend of what only replication needs.
const OR_OUTBOX: &str =
    "-- or without logical replication: flagpost setup --mode outbox, and source.mode = \"outbox\"";

/// What stands in the way of each source.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    replication: Vec<String>,
    outbox: Vec<String>,
    /// What our role would need to set the outbox up; somebody else can.
    setup: Vec<String>,
    pub(super) service: Option<Service>,
}

impl Verdict {
    /// `user` is our role, `owner` the one that the outbox is to belong to.
    pub(super) fn of(
        (user, owner): (&str, &str),
        server: &ServerFacts,
        setup: &SetupFacts,
        slot: Option<&SlotFacts>,
        pooling: Pooling,
        service: Option<Service>,
    ) -> Verdict {
        let mut verdict = Verdict { service, ..Verdict::default() };
        let mut no = |is_missing: bool, why: String| {
            if is_missing {
                verdict.replication.push(why);
            }
        };
        no(server.wal_level != "logical", format!("wal_level is {}", server.wal_level));
        no(!server.may_replicate, format!("role {user} lacks REPLICATION"));
        no(pooling == Pooling::Transaction, "a pooler stands between".into());
        no(
            server.is_standby && server.version < STANDBY_DECODES,
            "the server is a standby that cannot decode".into(),
        );
        // A slot that is there needs no other; one that is being read has its walsender.
        no(slot.is_none() && server.slots.is_exhausted(), "all replication slots are in use".into());
        let is_read = slot.is_some_and(|slot| slot.active_pid.is_some());
        no(!is_read && server.senders.is_exhausted(), "all WAL senders are in use".into());
        if server.is_standby {
            verdict.outbox.push("the server is a standby: triggers cannot write there".into());
        }
        if !setup.may_create {
            verdict.setup.push("CREATE on the database".into());
        }
        if !setup.may_own {
            verdict.setup.push(format!("CREATEROLE or membership in {owner}"));
        }
        if setup.foreign_tables > 0 {
            verdict.setup.push(format!("ownership of {} tables", setup.foreign_tables));
        }
        verdict
    }

    pub(super) fn allows(&self, mode: Mode) -> bool {
        match mode {
            Mode::Replication => self.replication.is_empty(),
            Mode::Outbox => self.outbox.is_empty(),
        }
    }

    /// Replication costs Flagsmith's statements next to nothing: where it can be had it is the better one.
    fn advised(&self) -> Option<Mode> {
        [Mode::Replication, Mode::Outbox].into_iter().find(|mode| self.allows(*mode))
    }

    /// In one line.
    fn words(&self, configured: Mode) -> String {
        let can = |name: &str, obstacles: &[String]| match obstacles {
            [] => format!("{name} can be had"),
            some => format!("{name} cannot be had ({})", some.join(", ")),
        };
        let setup = match self.setup.as_slice() {
            [] => String::new(),
            some => format!(" (set up by a role that has {})", some.join(", ")),
        };
        let setup = if self.allows(Mode::Outbox) { setup } else { String::new() };
        let advised = match self.advised() {
            None => "neither can".to_owned(),
            Some(mode) if mode == configured => format!("{}, which is configured, is advised", mode.name()),
            Some(mode) => format!("{} is advised, {} is configured", mode.name(), configured.name()),
        };
        let place = self.service.map(|service| format!("; this is {}", service.name())).unwrap_or_default();
        format!(
            "{}; {}{setup}; {advised}{place}",
            can("replication", &self.replication),
            can("outbox", &self.outbox)
        )
    }

    pub(super) fn report(&self, configured: Mode, report: &mut Report) {
        let code = Code::SourceMode;
        let words = self.words(configured);
        if self.allows(configured) {
            return report.ok(code, words);
        }
        let mend = match self.advised() {
            Some(Mode::Outbox) if self.setup.is_empty() => TO_OUTBOX.to_owned(),
            Some(Mode::Outbox) => {
                format!("flagpost setup --mode outbox --print  -- let a role that may run it\n{TO_OUTBOX}")
            }
            Some(Mode::Replication) => TO_REPLICATION.to_owned(),
            None => "mend what fails below".to_owned(),
        };
        report.warn(code, words, mend);
    }

    /// The mend of what only replication needs, with the way around it where there is one.
    pub(super) fn or_outbox(&self, mend: String) -> String {
        if self.allows(Mode::Outbox) { format!("{mend}\n{OR_OUTBOX}") } else { mend }
    }

    /// How this server is made to log what replication needs.
    pub(super) fn wal_level_mend(&self) -> String {
        let mend = match self.service {
            Some(service) => format!("-- {}: {}", service.name(), service.switch()),
            None => "ALTER SYSTEM SET wal_level = logical;  -- then restart the server".to_owned(),
        };
        self.or_outbox(mend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Quota;

    fn verdict(replication: &[&str], outbox: &[&str], setup: &[&str]) -> Verdict {
        let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        Verdict { replication: owned(replication), outbox: owned(outbox), setup: owned(setup), service: None }
    }

    #[test]
    fn each_obstacle_is_named() {
        let good = ServerFacts::sample();
        let setup = SetupFacts { may_create: true, may_own: true, foreign_tables: 0 };
        let of = |server: &ServerFacts, pooling| {
            Verdict::of(("app", "owner"), server, &setup, None, pooling, None)
        };
        assert_eq!(of(&good, Pooling::None), Verdict::default());
        let full = Quota { used: 1, limit: 1 };
        for (server, why) in [
            (ServerFacts { wal_level: "replica".into(), ..good.clone() }, "wal_level is replica"),
            (ServerFacts { may_replicate: false, ..good.clone() }, "role app lacks REPLICATION"),
            (ServerFacts { slots: full, ..good.clone() }, "all replication slots are in use"),
            (ServerFacts { senders: full, ..good.clone() }, "all WAL senders are in use"),
        ] {
            let verdict = of(&server, Pooling::None);
            assert_eq!((verdict.replication, verdict.outbox), (vec![why.to_owned()], vec![]));
        }
        assert_eq!(of(&good, Pooling::Transaction).replication, ["a pooler stands between"]);
        let standby = ServerFacts { is_standby: true, ..good.clone() };
        assert!(!of(&standby, Pooling::None).allows(Mode::Replication));
        assert!(!of(&standby, Pooling::None).allows(Mode::Outbox));
        let decodes = ServerFacts { version: STANDBY_DECODES, ..standby };
        assert!(of(&decodes, Pooling::None).allows(Mode::Replication));
        let nothing = SetupFacts { foreign_tables: 3, ..SetupFacts::default() };
        let weak = Verdict::of(("app", "owner"), &good, &nothing, None, Pooling::None, None);
        assert!(weak.allows(Mode::Outbox), "somebody else can set it up");
        assert_eq!(
            weak.setup,
            ["CREATE on the database", "CREATEROLE or membership in owner", "ownership of 3 tables"]
        );
    }

    #[test]
    fn replication_is_advised_where_it_can_be_had_and_the_outbox_elsewhere() {
        let both = verdict(&[], &[], &[]);
        assert_eq!(
            both.words(Mode::Outbox),
            "replication can be had; outbox can be had; replication is advised, outbox is configured"
        );
        let neither = verdict(&["wal_level is replica"], &["the server is a standby"], &["ownership"]);
        assert!(neither.words(Mode::Outbox).ends_with("(the server is a standby); neither can"));
        let mut outbox = verdict(&["wal_level is replica"], &[], &["ownership of 3 tables"]);
        outbox.service = Some(Service::Azure);
        assert_eq!(
            outbox.words(Mode::Replication),
            "replication cannot be had (wal_level is replica); outbox can be had (set up by a role that has ownership of 3 \
             tables); outbox is advised, replication is configured; this is Azure Database for PostgreSQL"
        );
    }

    #[test]
    fn a_mend_names_the_way_around_only_where_there_is_one() {
        assert!(verdict(&["x"], &[], &[]).wal_level_mend().contains("flagpost setup --mode outbox"));
        assert!(!verdict(&["x"], &["standby"], &[]).wal_level_mend().contains("outbox"));
    }
}
