//! The stories are no empty ones: every kind of action is truly done, and every kind of event comes of it, often.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::telling::{Story, click};
use super::{LENGTH, followed};

const STORIES: u32 = 800;
/// How often each must come in so many stories.
const OFTEN: usize = 20;

const ACTIONS: [&str; 36] = [
    "CreateFeature",
    "Save",
    "CreateSegmentOverride",
    "CreateIdentityOverride",
    "DeleteSegmentOverride",
    "DeleteIdentityOverride",
    "DeleteIdentity",
    "DeleteSegment",
    "AddOption",
    "ChangeOption",
    "RemoveOption",
    "Reorder",
    "RenameFeature",
    "DeleteFeature",
    "MarkFeatureBySql",
    "RestoreFeatureBySql",
    "HardDeleteFeature",
    "CreateEnvironment",
    "CloneEnvironment",
    "DeleteEnvironment",
    "DeleteProject",
    "ToggleAllBySql",
    "Webhook",
    "OrganisationWebhook",
    "Audit",
    "Version(Enable",
    "Version(Disable",
    "Version(Make",
    "Version(Edit",
    "Version(Publish",
    "Version(Reschedule",
    "Version(Withdraw",
    "Request(Make",
    "Request(Commit",
    "Request(Reschedule",
    "Request(Withdraw",
];

/// Event type and action.
const EVENTS: [&str; 14] = [
    "FLAG_UPDATED created;scope=default",
    "FLAG_UPDATED created;scope=segment",
    "FLAG_UPDATED created;scope=identity",
    "FLAG_UPDATED updated;scope=default",
    "FLAG_UPDATED updated;scope=segment",
    "FLAG_UPDATED updated;scope=identity",
    "FLAG_UPDATED scheduled;scope=default",
    "FLAG_UPDATED scheduled;scope=segment",
    "FLAG_DELETED removed;scope=default",
    "FLAG_DELETED removed;scope=segment",
    "FLAG_DELETED removed;scope=identity",
    "FLAG_DELETED scheduled;scope=segment",
    "NEW_VERSION_PUBLISHED created",
    "NEW_VERSION_PUBLISHED scheduled",
];

#[test]
fn every_kind_of_action_and_of_event_comes_often() {
    let mut runner = TestRunner::deterministic();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut late = 0;
    for _ in 0..STORIES {
        let clicks = vec(click(), LENGTH).new_tree(&mut runner).unwrap().current();
        let story = Story::tell(&clicks);
        late += story.beats.iter().filter(|beat| beat.heard.is_some()).count();
        for action in &story.done {
            let name = action.split([' ', '{']).next().unwrap().to_owned();
            *counts.entry(name).or_default() += 1;
        }
        for told in followed(&story).unwrap() {
            *counts.entry(format!("{} {}", told.kind.name(), told.action)).or_default() += 1;
        }
    }
    println!("{late} late commits\n{counts:#?}");
    let rare: Vec<_> = ACTIONS
        .iter()
        .chain(&EVENTS)
        .map(|name| (*name, counts.get(*name).copied().unwrap_or_default()))
        .filter(|(_, count)| *count < OFTEN)
        .collect();
    assert!(rare.is_empty() && late >= OFTEN, "too seldom: {rare:?}, {late} late commits");
}
