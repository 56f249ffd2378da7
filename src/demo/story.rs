//! First part: one change after the other, each shown with the webhooks that it led to.

use super::flagsmith::{Change, PRODUCTION, Target, Value, Written};
use super::receiver::Received;
use super::show::Screen;
use super::stage::{ORGANISATION, Stage};
use super::tally::{Tally, elapsed};
use super::webhook::Webhook;
use crate::error::Result;

/// A change, and what must come of it.
struct Step {
    title: &'static str,
    change: Change,
    /// `event_type` and action, or nothing at all.
    expected: Option<(&'static str, &'static str)>,
    note: &'static str,
}

/// Shows all of them.
pub(super) async fn tell(stage: &mut Stage, screen: &mut Screen, tally: &mut Tally) -> Result<()> {
    screen.heading(
        "Changes, written as Flagsmith writes them",
        "The time is from the commit to the arrival. For flags it contains the settle window of 100 ms, in which the",
    )?;
    screen.quiet("", "transactions of one click become one event; audit events do not wait.")?;
    for (number, step) in (1..).zip(steps()) {
        screen.line("")?;
        perform(number, &step, stage, screen, tally).await?;
    }
    let surplus = stage.take_surplus().await?;
    tally.count_surplus(&surplus);
    Ok(())
}

async fn perform(
    number: usize,
    step: &Step,
    stage: &mut Stage,
    screen: &mut Screen,
    tally: &mut Tally,
) -> Result<()> {
    let written = stage.flagsmith.perform(&step.change).await?;
    tally.changes += 1;
    let transactions = match written.transactions {
        1 => "1 transaction".to_owned(),
        several => format!("{several} transactions"),
    };
    screen.line(&format!("  {number:>2}  {:<82}{transactions:>18}", step.title))?;
    let Some(expected) = step.expected else {
        let surplus = stage.take_surplus().await?;
        tally.count_surplus(&surplus);
        return screen.told(step.note);
    };
    let webhooks = flag_webhooks(step, expected, &written, stage, tally).await?;
    for webhook in &webhooks {
        let committed = webhook.environment().and_then(|id| written.committed.get(&id)).copied();
        let took = elapsed(committed.unwrap_or(webhook.at), webhook.at);
        tally.settled.add(took);
        screen.webhook(webhook, took)?;
    }
    explain(step, &webhooks, screen)?;
    audit(&written, stage, screen, tally).await
}

/// One to the environment's endpoint and one to the organisation's, for each environment.
async fn flag_webhooks(
    step: &Step,
    (event, action): (&str, &str),
    written: &Written,
    stage: &mut Stage,
    tally: &mut Tally,
) -> Result<Vec<Webhook>> {
    let count = 2 * written.committed.len();
    let webhooks = stage.take(|new: &[Received]| new.len() >= count).await?;
    tally.count(&webhooks);
    if webhooks.len() < count {
        tally.lost += count - webhooks.len();
        tally.problems.push(format!("{:?}: {} of {count} webhooks came", step.title, webhooks.len()));
    }
    for webhook in &webhooks {
        if (webhook.event.as_str(), webhook.action.as_str()) != (event, action) {
            tally.problems.push(format!(
                "{:?}: {} {} at {} instead of {event} {action}",
                step.title, webhook.event, webhook.action, webhook.endpoint
            ));
        }
    }
    Ok(webhooks)
}

/// From the body that says most: `current` has variants and the segment's name.
fn explain(step: &Step, webhooks: &[Webhook], screen: &mut Screen) -> Result<()> {
    // Where both environments have events, Production's are told.
    let of_production = webhooks.iter().filter(|webhook| webhook.environment() == Some(PRODUCTION));
    let richest = of_production.clone().find(|webhook| webhook.endpoint == ORGANISATION);
    for line in richest.map(Webhook::story).unwrap_or_default() {
        screen.told(&line)?;
    }
    let documented = of_production.clone().find(|webhook| webhook.endpoint != ORGANISATION);
    let by = documented.map(Webhook::changed_by).unwrap_or_default();
    let by = if by.is_empty() { "changed_by is empty".to_owned() } else { format!("changed by {by}") };
    let note = if step.note.is_empty() { by } else { format!("{by}; {}", step.note) };
    screen.quiet("        ", &note)
}

/// Flagsmith's task processor adds the audit rows a moment later.
async fn audit(written: &Written, stage: &mut Stage, screen: &mut Screen, tally: &mut Tally) -> Result<()> {
    let mut logs = Vec::new();
    for row in &written.audits {
        let committed = stage.flagsmith.audit(row).await?;
        let webhooks = stage.take(|new: &[Received]| !new.is_empty()).await?;
        tally.count(&webhooks);
        if webhooks.is_empty() {
            tally.lost += 1;
            tally.problems.push("an audit row led to no webhook".to_owned());
        }
        for webhook in &webhooks {
            screen.webhook(webhook, elapsed(committed, webhook.at))?;
            logs.push(webhook.log());
        }
    }
    // One row for the feature and one for each state say the same.
    logs.dedup();
    logs.iter().try_for_each(|log| screen.quiet("        ", log))
}

fn steps() -> Vec<Step> {
    let updated = Some(("FLAG_UPDATED", "updated;scope=default"));
    vec![
        Step {
            title: "a new flag: dark_mode, in both environments",
            change: Change::Create { flag: "dark_mode", value: Value::text("light") },
            expected: Some(("FLAG_UPDATED", "created;scope=default")),
            note: "one event for each environment; above, Production's",
        },
        Step {
            title: "dark_mode is turned on in Production",
            change: Change::Toggle { flag: "dark_mode", on: true },
            expected: updated,
            note: "",
        },
        Step {
            title: "dark_mode is saved without a change",
            change: Change::Toggle { flag: "dark_mode", on: true },
            expected: None,
            note: "no webhook: nothing is different",
        },
        Step {
            title: "the value of banner_text, a string",
            change: Change::Set {
                flag: "banner_text",
                target: Target::Everybody,
                value: Value::text("good day"),
            },
            expected: updated,
            note: "",
        },
        Step {
            title: "the value of page_size, a number",
            change: Change::Set { flag: "page_size", target: Target::Everybody, value: Value::Int(50) },
            expected: updated,
            note: "",
        },
        Step {
            title: "state and value of banner_text, with one click",
            change: Change::ToggleAndSet {
                flag: "banner_text",
                on: false,
                value: Value::text("good evening"),
            },
            expected: updated,
            note: "one event (Flagsmith sends two equal ones)",
        },
        Step {
            title: "another value of banner_text for the segment \"beta users\"",
            change: Change::OverrideForSegment { flag: "banner_text", value: Value::text("hello beta") },
            expected: Some(("FLAG_UPDATED", "created;scope=segment")),
            note: "",
        },
        Step {
            title: "the value for that segment changes",
            change: Change::Set {
                flag: "banner_text",
                target: Target::Segment,
                value: Value::text("hello again"),
            },
            expected: Some(("FLAG_UPDATED", "updated;scope=segment")),
            note: "",
        },
        Step {
            title: "another value of dark_mode for the identity \"alice\"",
            change: Change::OverrideForIdentity { flag: "dark_mode", value: Value::text("noir") },
            expected: Some(("FLAG_UPDATED", "created;scope=identity")),
            note: "one event (Flagsmith sends two)",
        },
        Step {
            title: "alice gets the same value as everybody again",
            change: Change::RemoveIdentityOverride { flag: "dark_mode" },
            expected: Some(("FLAG_DELETED", "removed;scope=identity")),
            note: "Flagsmith sends nothing here",
        },
        Step {
            title: "the percentages of checkout_button",
            change: Change::Share { flag: "checkout_button", percentages: [10, 60] },
            expected: updated,
            note: "one event (Flagsmith sends two)",
        },
        Step {
            title: "new_footer is turned on by plain SQL",
            change: Change::ToggleBySql { flag: "new_footer", on: true },
            expected: updated,
            note: "Flagsmith does not notice it at all",
        },
        Step {
            title: "dark_mode is deleted",
            change: Change::Delete { flag: "dark_mode" },
            expected: Some(("FLAG_DELETED", "removed;scope=default")),
            note: "user and time of the deletion; above, Production's",
        },
    ]
}
