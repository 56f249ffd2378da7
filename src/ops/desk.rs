//! What the status page shows and may do. The commands do it: what they print with `--json` is what the page gets, so that nothing
//! is told in two ways. This side knows only that there is somebody who answers.

use std::pin::Pin;

use serde_json::Value as Json;

use crate::error::Result;
use crate::pulse::Trouble;

/// An answer that takes a while.
pub type Answer = Pin<Box<dyn Future<Output = Result<Json>> + Send>>;

/// Which deliveries are asked for, as it was typed; what is `None` asks for nothing in particular.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// An endpoint's key.
    pub endpoint: Option<String>,
    /// `delivered`, `dead` …
    pub state: Option<String>,
    /// A feature's name or id.
    pub feature: Option<String>,
    /// An environment's name or id.
    pub environment: Option<String>,
    /// `FLAG_UPDATED` …
    pub kind: Option<String>,
    /// Only events before this one (`seq` of an earlier answer).
    pub before: Option<i64>,
    /// So many events at the most.
    pub limit: usize,
}

/// Who answers. An error of exit code 2 is the asker's.
pub trait Desk: Send + Sync {
    /// How everything is, and what is wrong in words, these troubles among it.
    fn status(&self, troubles: Vec<Trouble>) -> Answer;
    /// Events with the deliveries that were asked for, the newest first.
    fn deliveries(&self, asked: Asked) -> Answer;
    /// Everything on record of an event.
    fn event(&self, id: String) -> Answer;
    /// Sends nothing more to an endpoint.
    fn pause(&self, endpoint: String, why: Option<String>) -> Answer;
    /// Ends that, and closes the breaker.
    fn resume(&self, endpoint: String) -> Answer;
    /// Sends an event again, to all its endpoints or to one.
    fn replay(&self, event: String, endpoint: Option<String>) -> Answer;
}
