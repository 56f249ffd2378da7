//! What is told of an endpoint's troubles: a mail's subject and text, and the same as JSON. No I/O.

use std::fmt::Write;

use serde_json::{Value, json};

use super::policy::Trouble;
use crate::change::Micros;
use crate::event::EndpointKey;
use crate::ledger::Owner;

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Which endpoint.
    pub endpoint: EndpointKey,
    /// Its URL as it may be shown.
    pub url: String,
    /// Whose it is.
    pub owner: Owner,
    /// What is wrong.
    pub troubles: Vec<Trouble>,
    /// Deliveries that wait.
    pub pending: u64,
    /// Why the latest attempt failed.
    pub last_error: Option<String>,
}

impl Notice {
    /// The subject of a mail.
    pub fn subject(&self) -> String {
        let what = match self.troubles.first() {
            Some(Trouble::Gone(_)) => "wants nothing more",
            Some(Trouble::GivenUp(_)) => "did not get some events",
            Some(Trouble::Failing(_)) | None => "keeps failing",
        };
        format!("Flagsmith webhook {} {what}", self.url)
    }

    /// The text of a mail.
    pub fn text(&self) -> String {
        let mut text = format!("The webhook endpoint {} ({})", self.url, self.endpoint);
        for (name, of) in
            [("environment", &self.owner.environment), ("organisation", &self.owner.organisation)]
        {
            if let Some(of) = of {
                // Writing to a String cannot fail.
                write!(text, ", {name} {of:?}").ok();
            }
        }
        text.push_str(":\n\n");
        for trouble in &self.troubles {
            writeln!(text, "- {}", sentence(trouble)).ok();
        }
        write!(text, "\n{} deliveries wait for it.", self.pending).ok();
        if let Some(error) = &self.last_error {
            write!(text, " The latest attempt failed: {error}.").ok();
        }
        write!(
            text,
            "\n\nLook:           flagpost log --endpoint {0}\nAfter the mend: flagpost resume {0}\n\
             Dead letters:   flagpost replay --failed --endpoint {0}\n",
            self.endpoint
        )
        .ok();
        text
    }

    /// The body for an operator's webhook.
    pub fn json(&self) -> Value {
        let troubles: Vec<Value> = self
            .troubles
            .iter()
            .map(|trouble| match trouble {
                Trouble::Failing(since) => json!({ "kind": "failing", "since": time(*since) }),
                Trouble::Gone(since) => json!({ "kind": "gone", "since": time(*since) }),
                Trouble::GivenUp(count) => json!({ "kind": "given_up", "deliveries": count }),
            })
            .collect();
        json!({
            "type": "flagpost.endpoint_trouble",
            "endpoint": self.endpoint.to_string(),
            "url": self.url,
            "organisation": self.owner.organisation,
            "environment": self.owner.environment,
            "troubles": troubles,
            "pending": self.pending,
            "last_error": self.last_error,
        })
    }
}

fn sentence(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Failing(since) => {
            format!("It has been failing since {}; it is asked now and then until it answers.", time(*since))
        }
        Trouble::Gone(since) => {
            format!("It answered \"410 Gone\" at {}: it is paused until somebody resumes it.", time(*since))
        }
        Trouble::GivenUp(1) => "A delivery was given up. It is kept as a dead letter.".into(),
        Trouble::GivenUp(count) => {
            format!("{count} deliveries were given up. They are kept as dead letters.")
        }
    }
}

fn time(at: Micros) -> String {
    jiff::Timestamp::from_microsecond(at.0).map_or_else(|_| "an unknown time".into(), |at| format!("{at:.0}"))
}
