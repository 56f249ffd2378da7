//! A stage of the daemon that runs until it is told to stop, and how it ended.

use std::fmt::Display;
use std::future::pending;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::{Error, Result};

/// Something that ends once with a result: a task's handle, or the receiver of a thread's result. Neither may be asked again
/// after it has answered, and whoever waits for a failure may be cut short right after that: so the answer is kept.
pub(crate) struct Stage<T, H> {
    /// As errors name it.
    who: &'static str,
    handle: H,
    ended: Option<Result<T>>,
}

impl<T, H, E> Stage<T, H>
where
    H: Future<Output = Result<Result<T>, E>> + Unpin,
    E: Display,
{
    pub(crate) fn new(who: &'static str, handle: H) -> Self {
        Stage { who, handle, ended: None }
    }

    /// Its error. Never comes if it ends well: a stage that does has a neighbour that is gone, and the neighbour tells why.
    /// May be dropped at any time.
    pub(crate) async fn failure(&mut self) -> Error {
        match self.answer().await {
            Err(error) => error,
            well => {
                self.ended = Some(well);
                pending().await
            }
        }
    }

    /// How it ended, when it has.
    pub(crate) async fn result(mut self) -> Result<T> {
        self.answer().await
    }

    /// What is kept, or else what the handle tells.
    async fn answer(&mut self) -> Result<T> {
        match self.ended.take() {
            Some(ended) => ended,
            None => {
                let answer = (&mut self.handle).await;
                self.flattened(answer)
            }
        }
    }

    fn flattened(&self, answer: Result<Result<T>, E>) -> Result<T> {
        answer.unwrap_or_else(|error| {
            Err(Error::internal(format!("{} has died ({error}): this is a bug, please report it", self.who)))
        })
    }
}

impl<T> Stage<T, JoinHandle<Result<T>>> {
    /// Waits so long for it to end by itself, then cuts it off.
    pub(crate) async fn end(&mut self, within: Duration) {
        if !self.handle.is_finished() && timeout(within, &mut self.handle).await.is_err() {
            self.handle.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    const MOMENT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn how_it_ended_is_still_known_to_who_asks_after_a_wait_was_cut_short() {
        let mut task = Stage::new("the task", tokio::spawn(async { Ok(7) }));
        let (sender, receiver) = oneshot::channel::<Result<u8>>();
        let mut thread = Stage::new("the thread", receiver);
        sender.send(Ok(8)).unwrap();
        // Polled to its end, and again.
        for _ in 0..2 {
            assert!(timeout(MOMENT, task.failure()).await.is_err());
            assert!(timeout(MOMENT, thread.failure()).await.is_err());
        }
        assert_eq!((task.result().await.unwrap(), thread.result().await.unwrap()), (7, 8));
    }

    #[tokio::test]
    async fn an_error_is_told_and_so_is_a_stage_that_has_died() {
        let mut failed = Stage::new("it", tokio::spawn(async { Err::<(), _>(Error::internal("no luck")) }));
        assert!(failed.failure().await.to_string().contains("no luck"));
        let died = Stage::new("the thread", oneshot::channel::<Result<()>>().1);
        let error = died.result().await.unwrap_err().to_string();
        assert!(error.contains("the thread has died"), "{error}");
    }
}
