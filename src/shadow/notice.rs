//! What is told beside the findings: at the start, and with each summary. Pure.

use std::net::SocketAddr;

use serde_json::{Value as Json, json};

/// How many endpoints point to the listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pointing {
    /// Those whose events are compared.
    pub(super) here: usize,
    /// Those that have its port and a host that is not known: they may be meant to point to it.
    pub(super) doubtful: usize,
}

impl Pointing {
    fn advice(self, addr: SocketAddr) -> Option<String> {
        let (doubtful, port) = (self.doubtful, addr.port());
        (doubtful > 0).then(|| {
            format!(
                "{doubtful} endpoints have the port {port} and a host that is not known: if they mean this listener, say so with \
                 --as http://HOST:{port}"
            )
        })
    }
}

/// What is told when everything is ready.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Start {
    /// Deliveries that an earlier `run` owes.
    pub(super) waiting: u64,
    pub(super) pointing: Pointing,
}

impl Start {
    /// One JSON object.
    pub(super) fn json(self, summary: &str, addr: SocketAddr) -> Json {
        let Start { waiting, pointing: Pointing { here, doubtful } } = self;
        json!({
            "type": "ready", "listen": addr.to_string(), "summary": summary,
            "waiting": waiting, "endpoints_here": here, "endpoints_doubtful": doubtful,
        })
    }

    /// Lines for people.
    pub(super) fn text(self, summary: &str, addr: SocketAddr) -> Vec<String> {
        let Start { waiting, pointing } = self;
        let here = pointing.here;
        let mut lines = vec![format!(
            "{summary}, {here} of them here, nothing is sent; listening for Flagsmith on {addr}"
        )];
        lines.extend(pointing.advice(addr));
        if waiting > 0 {
            lines.push(format!(
                "{waiting} deliveries of an earlier \"flagpost run\" wait in the ledger: the next \"flagpost run\" sends them"
            ));
        }
        lines
    }
}

/// What a summary must be read with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances {
    /// Requests that were not compared.
    pub(super) lost: u64,
    pub(super) pointing: Pointing,
}

impl Circumstances {
    /// Adds its fields to a summary.
    pub(super) fn add_to(self, summary: &mut Json) {
        let Circumstances { lost, pointing: Pointing { here, doubtful } } = self;
        if let Some(fields) = summary.as_object_mut() {
            fields.insert("lost_requests".into(), lost.into());
            fields.insert("endpoints_here".into(), here.into());
            fields.insert("endpoints_doubtful".into(), doubtful.into());
        }
    }

    /// Lines for people; none where all is well.
    pub(super) fn text(self, addr: SocketAddr) -> Vec<String> {
        let lost = self.lost;
        let lost = (lost > 0).then(|| {
            format!(
                "{lost} requests were not compared (too large, too slow, too many at once): something may look missing for that"
            )
        });
        lost.into_iter().chain(self.pointing.advice(addr)).collect()
    }
}
