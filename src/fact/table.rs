//! Every fact, by the part of flagpost that observes it.

use super::meters::{Attempt, EventKind};
use super::{Message, Meters, facts, level};

fn attempted(meters: &Meters, endpoint: &str, outcome: &'static str, latency_ms: u64) {
    meters.attempts.get_or_create(&Attempt { endpoint: endpoint.to_owned(), outcome }).inc();
    meters.attempt_seconds.observe(seconds(latency_ms));
}

#[expect(clippy::cast_precision_loss, reason = "a call takes less than 2^53 ms")]
fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1_000.0
}

facts! {
    // The process.
    info Stopping {} "stopping"
        do "Nothing: somebody asked for it. Calls in flight may end, within 15 s.";
    info Stopped {} "stopped"
        do "Nothing: everything that was read is durable.";
    warn StoppedUnconnected {} "stopped without a connection: the last position is confirmed at the next start"
        do "Nothing, if flagpost is started again: until then the server keeps a little more of its log.";
    warn UnknownVariable { variable: String } "this environment variable means nothing to flagpost: is it misspelt?"
        do "Correct or remove it; flagpost.example.toml has the keys, each is FLAGPOST_SECTION_KEY.";
    info Reloaded { changed: String } "the configuration was read again: this holds from now on"
        do "Nothing. `changed` names the keys whose values are others.";
    info ReloadedUnchanged {} "the configuration was read again: nothing that can be reloaded has changed"
        do "Nothing. If you changed something, look whether it is the file that flagpost reads.";
    warn ReloadNeedsRestart { keys: String } "these keys have changed and need a restart: the old values still hold"
        do "`systemctl restart flagpost` when it suits you.";
    error ReloadRefused { error: String } "the configuration cannot be used: the old one still holds"
        do "Correct what `error` names, then reload again. A restart would fail now: `flagpost check` first.";
    error WatchdogWithheld { reason: String } "no progress: the service manager is not told that flagpost is alive"
        do "Nothing at first: systemd restarts flagpost after WatchdogSec, and it goes on where it was. If it comes again, `flagpost bugreport`.";

    // The source.
    warn SourceDown { error: String, retry_in_ms: u64 } "the source is down: connecting again"
        do "Nothing if the database was restarted. Else see `error`: server, network, password; `flagpost check`. Meanwhile the server keeps its log, nothing is lost."
        moves |_fact, meters| { meters.disconnects.inc(); };
    info SourceBack {} "the source is open again"
        do "Nothing: it goes on where it was.";
    info SlotBusy { slot: String, pid: i32 } "the replication slot is still in use: waiting for it"
        do "Nothing for a minute: the server has not noticed yet that the last connection is gone. Else a second flagpost reads the slot: stop one.";
    info SlotMaking { slot: String } "making the replication slot: this waits for transactions that are open now"
        do "Wait. If it takes long, look in pg_stat_activity for old open transactions.";
    info SlotOfAnEarlierTry { slot: String } "a slot of an earlier try is made again"
        do "Nothing.";
    info BaselineSkipped { slot: String } "the slot is there and the mirror is not: what changed until now is not sent"
        do "Nothing at a first start. Later: the ledger was removed; what changed meanwhile is not told.";
    warn CoverageUnknown { error: String } "whether the source still has everything cannot be told: nothing is confirmed until it can"
        do "As for a source that is down: see `error`. Nothing is lost, the server keeps its log meanwhile.";
    info UncapturedForgotten { count: i64 } "statements were not captured: what they changed comes with the mirror"
        do "Nothing: you began anew, and this is why it was needed.";
    info OutboxDeleted { error: String } "the outbox cannot be truncated now: its rows are deleted"
        do "Nothing; `VACUUM flagpost.outbox` makes its file smaller.";
    info WaitingForTransactions {} "waiting for transactions that are open now"
        do "Wait. If it takes long, look in pg_stat_activity for old open transactions.";
    debug ServerSays { notice: String } "the server says"
        do "Nothing.";
    debug SqlEnded { error: String } "an SQL connection ended"
        do "Nothing: whoever needs it connects again, and tells if that fails.";

    // What the server keeps of its log for the slot.
    debug SlotUnseen { error: String } "the slot could not be looked at"
        do "As for a source that is down.";
    info WalHeldFine { slot: String, wal_held_bytes: i64, max_retained_wal: u64 } "the server keeps little of its log for the slot again"
        do "Nothing.";
    info WalHeldLess { slot: String, wal_held_bytes: i64, max_retained_wal: u64 } "the server keeps less of its log for the slot than it may"
        do "As for more than half of it.";
    warn WalHeldHigh { slot: String, wal_held_bytes: i64, max_retained_wal: u64 } "the server keeps more than half of source.max_retained_wal of its log for the slot: see what flagpost waits for with \"flagpost status\""
        do "`flagpost status`: is the ledger's disk full, is the database's load higher than flagpost can read, is an old transaction open? Mend that.";
    error WalHeldOver { slot: String, wal_held_bytes: i64, max_retained_wal: u64, action: &'static str } "the server keeps more than source.max_retained_wal of its log for the slot, and its disk may fill up: see what flagpost waits for with \"flagpost status\""
        do "The same, now. If the database's disk is in danger, `flagpost uninstall` drops the slot, and `flagpost recover` sends later what was missed.";
    info WalReserved { slot: String, wal_held_bytes: Option<i64> } "the slot's log is within max_wal_size again"
        do "Nothing.";
    warn WalExtended { slot: String, wal_held_bytes: Option<i64>, safe_wal_bytes: Option<i64> } "the server keeps more of its log for the slot than max_wal_size (wal_status extended)"
        do "Nothing if flagpost is catching up; else `flagpost status`.";
    error WalUnreserved { slot: String, wal_held_bytes: Option<i64>, safe_wal_bytes: Option<i64> } "the server gives the slot's log up at its next checkpoint (wal_status unreserved, max_slot_wal_keep_size): let flagpost catch up, or raise max_slot_wal_keep_size now"
        do "`ALTER SYSTEM SET max_slot_wal_keep_size = …; SELECT pg_reload_conf()` as superuser.";
    error WalLost { slot: String, wal_status: String, reason: Option<String> } "the server has given the slot's log up: what changed since is to be recovered with \"flagpost recover\""
        do "`flagpost recover`.";
    warn HeartbeatFailed { error: String } "the heartbeat (source.heartbeat) could not be left in the server's log"
        do "What the error says; told once until one could be left again. Changes come all the same. A role that may not execute `pg_logical_emit_message` (everybody may by default), or a standby, where nobody can write: set `source.heartbeat = \"0\"`.";
    warn DropUnnoted { error: String } "that the slot was dropped could not be noted in the ledger"
        do "Nothing: the next start finds the slot gone and says the same. `flagpost recover`.";
    info LedgerRecovered { lsn: String } "the ledger is recovered"
        do "Nothing: `flagpost run` goes on there.";

    // The mirror.
    info MirrorFilling { rows: u64, expected: u64, table: &'static str } "filling the mirror"
        do "Wait: rows of those expected.";
    info MirrorFilled { rows: u64 } "the mirror is filled"
        do "Nothing.";
    debug SupersededForgotten { rows: u64 } "superseded versions were forgotten"
        do "Nothing.";
    warn RowsUnfetched { error: String, table: &'static str } "rows that a change refers to cannot be fetched: trying again"
        do "As for a source that is down: see `error`. Changes after it wait for it, nothing is lost.";
    debug KeepaliveAsked { server_now: Option<i64> } "asking the server for a keepalive"
        do "Nothing.";

    // Events.
    debug Captured { lsn: String, xid: u64, changes: u64 } "a transaction was captured"
        do "Nothing."
        moves |_fact, meters| { meters.transactions.inc(); };
    info Recorded {
        event_id: String, kind: &'static str, action: String, organisation_id: Option<i64>, environment_id: Option<i64>,
        feature: Option<String>, lsn: String, xid: u64, deliveries: u64,
    } "an event was recorded"
        do "Nothing: it is durable, and is sent to `deliveries` endpoints. `flagpost show EVENT_ID` has all of it."
        moves |fact, meters| { meters.events.get_or_create(&EventKind { kind: fact.kind.to_owned() }).inc(); };

    // Deliveries.
    info Delivered {
        event_id: String, endpoint_id: String, environment_id: Option<i64>, feature: Option<String>, attempt: u32,
        http_status: Option<u16>, latency_ms: u64, since_commit_s: Option<f64>,
    } "delivered"
        do "Nothing."
        moves |fact, meters| {
            attempted(meters, &fact.endpoint_id, "delivered", fact.latency_ms);
            if let Some(seconds) = fact.since_commit_s {
                meters.delivery_seconds.observe(seconds);
            }
        };
    warn DeliveryFailed {
        event_id: String, endpoint_id: String, environment_id: Option<i64>, feature: Option<String>, attempt: u32,
        http_status: Option<u16>, latency_ms: u64, error: Option<String>, retry_in_s: i64,
    } "delivery failed"
        do "Look at the receiver; `error` says what it answered. It is tried again in `retry_in_s` seconds, for delivery.max_age altogether. `flagpost test ENDPOINT` tries it at once."
        moves |fact, meters| attempted(meters, &fact.endpoint_id, "retry", fact.latency_ms);
    warn DeliveryDead {
        event_id: String, endpoint_id: String, environment_id: Option<i64>, feature: Option<String>, attempt: u32,
        http_status: Option<u16>, latency_ms: u64, error: Option<String>,
    } "delivery given up: dead letter"
        do "Mend the receiver, then `flagpost replay --failed --endpoint ENDPOINT`."
        moves |fact, meters| attempted(meters, &fact.endpoint_id, "dead", fact.latency_ms);
    warn EndpointGone {
        event_id: String, endpoint_id: String, environment_id: Option<i64>, feature: Option<String>, attempt: u32,
        http_status: Option<u16>, latency_ms: u64,
    } "the endpoint is paused: it answered HTTP 410 Gone; \"flagpost resume\" ends that, deliveries wait until then"
        do "Ask its owner. Remove the webhook in Flagsmith, or mend the receiver and `flagpost resume ENDPOINT`."
        moves |fact, meters| attempted(meters, &fact.endpoint_id, "paused", fact.latency_ms);
    warn BreakerOpened { endpoint_id: String, failures: u32 } "the endpoint keeps failing: its breaker is open, and it is only probed until it answers"
        do "Mend the receiver; everything that waits goes out when it answers. `flagpost resume ENDPOINT` does not wait for the next probe.";
    info BreakerClosed { endpoint_id: String } "the endpoint is back: its breaker is closed"
        do "Nothing: what waited goes out.";
    warn EndpointUnconfigured { endpoint_id: String } "deliveries wait for an endpoint that is not in the configuration any more: put it back, or let them become dead letters after delivery.max_age"
        do "Put the entry back into the configuration, or leave it.";
    warn EndpointRemoved { endpoint_id: String } "the endpoint is in the configuration no more: what was queued for it is dropped"
        do "Nothing if you removed it on purpose. Else put the entry back; `flagpost replay` sends what was dropped.";
    warn TlsUnverified { endpoint_id: String, url: String } "TLS IS NOT VERIFIED: whoever is on the way can read and change what is sent here (verify = false)"
        do "Name the issuer in network.ca_file and remove verify = false.";
    warn CallsCutOff { in_flight: usize } "stopping with calls in flight: they will be sent again"
        do "Nothing: receivers drop the repeats by the event's id.";
    info OwnerTold { endpoint_id: String, subject: String } "told of an endpoint's troubles"
        do "Nothing.";
    warn OwnerUntold { endpoint_id: String, error: String } "nobody could be told of an endpoint's troubles: trying again in a minute"
        do "Mend notify.smtp or notify.webhook: see `error`.";
    warn OwnerUnknown { endpoint_id: String } "the organisation's webhook_notification_email is no address: correct it in Flagsmith"
        do "Correct the address in Flagsmith, or set notify.organisations = false.";

    // The ledger.
    info EventsForgotten { events: usize } "events older than state.retention were forgotten"
        do "Nothing.";
    warn EventsForgottenEarly { events: usize } "events were forgotten early: the ledger was larger than state.max_size"
        do "Give it more room (state.max_size) if you need the history.";
    warn LedgerTooLarge { bytes: u64 } "the ledger is larger than state.max_size, and what is left is still to be sent: nothing of it is dropped"
        do "`flagpost status` names the endpoint whose queue is long: mend it, or let its deliveries become dead letters.";
    warn DeliveriesExpired { deliveries: usize } "deliveries older than delivery.max_age were given up: dead letters"
        do "Mend the receiver, then `flagpost replay --failed --endpoint ENDPOINT`.";
    error DiskFull { error: String, free_bytes: Option<u64>, needed_bytes: u64, wal_held_bytes: Option<i64> } "reading and sending have stopped until there is room: meanwhile the server keeps its log, or the outbox its rows, for us"
        do "Make room on the disk of state.dir, soon: `wal_held_bytes` grows on the database's disk. It goes on by itself.";
    info RoomAgain {} "there is room on the disk again: going on from the checkpoint"
        do "Nothing.";

    // The ops listener.
    info OpsListening { addr: String } "metrics are at /metrics, health at /readyz and /livez, the status page at /"
        do "Nothing: http://ADDR/ is the page, /metrics the metrics.";
    error OpsAddressTaken { addr: String, error: String } "there are no metrics, no health endpoints and no status page: choose another address for ops.listen, or \"off\""
        do "Choose another ops.listen, then restart. Deliveries go on.";
    debug PageFailed { error: String } "an answer to the status page failed"
        do "See `error`; deliveries go on.";
    info PagePauses { endpoint_id: String } "pausing an endpoint for the status page"
        do "Nothing: somebody with the token asked for it.";
    info PageResumes { endpoint_id: String } "resuming an endpoint for the status page"
        do "Nothing: somebody with the token asked for it.";
    info PageReplays { event_id: String, endpoint_id: Option<String> } "sending again for the status page"
        do "Nothing: somebody with the token asked for it.";
    error OpsEnded { error: String } "the ops listener has ended"
        do "Restart flagpost when it suits you. Deliveries go on.";
    error MetricsUngathered { error: String } "metrics cannot be gathered"
        do "See `error`; deliveries go on.";
    warn TracesUnsent { error: String } "traces cannot be sent: they are dropped"
        do "Mend the collector, or remove traces.endpoint. Deliveries go on.";
    debug LedgerUnread { error: String } "the ledger cannot be read for metrics"
        do "Nothing if the mirror has not been filled yet.";
    debug ServerUnasked { error: String } "the server cannot be asked for metrics"
        do "As for a source that is down.";
    debug ServiceManagerUntold { error: String } "the service manager cannot be told"
        do "Nothing.";
}
