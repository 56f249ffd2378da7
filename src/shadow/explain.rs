//! Why Flagsmith sent something else, or nothing, where SEMANTICS.md §6 says so and the bodies prove it. Each rule is one row
//! there; what no rule covers stays unexplained.
//!
//! Pure.

use serde_json::Value as Json;

use super::history::History;
use super::likeness::{self, Difference};
use crate::change::Micros;

const OLDER_PREVIOUS: &str = "Flagsmith's previous_state is made of earlier states of this flag";
const LAST_EDIT: &str = "Flagsmith tells a deletion with user and time of the last edit";
const PRIORITY: &str = "priority changed: Flagsmith writes its audit log only";
const VARIANTS: &str = "variant added or removed: Flagsmith writes its audit log only";
const OVERRIDE_REMOVED: &str = "override removed: Flagsmith sends nothing (its issue 6241)";
const BORN_VERSIONED: &str = "feature created in a versioned environment: Flagsmith sends nothing there";
const BY_SQL: &str = "changed by SQL: Flagsmith sends nothing";

const PREVIOUS: &str = "data.previous_state";

/// Why Flagsmith's body differs. `at` is when the change was committed.
pub(super) fn difference(
    ours: &Json,
    theirs: &Json,
    differences: &[Difference<'_>],
    history: &History,
    at: Micros,
) -> Option<&'static str> {
    if differences.is_empty() || differences.len() >= likeness::DIFFERENCES {
        return None;
    }
    let is_author = |path: &str| path == "data.changed_by" || path == "data.timestamp";
    let (author, others): (Vec<_>, Vec<_>) = differences.iter().partition(|d| is_author(&d.path));
    let flag = likeness::flag(ours.get("data").and_then(likeness::state)?);
    if !others.iter().all(|difference| is_older(difference, &flag, history, at)) {
        return None;
    }
    if author.is_empty() {
        return Some(OLDER_PREVIOUS);
    }
    let time = |body: &Json| Micros::parse(body.pointer("/data/timestamp")?.as_str()?);
    let is_before = time(theirs)? < time(ours)?;
    (likeness::kind(ours) == Some("FLAG_DELETED") && is_before).then_some(LAST_EDIT)
}

fn is_older(difference: &Difference<'_>, flag: &str, history: &History, at: Micros) -> bool {
    let Some(path) = difference.path.strip_prefix(PREVIOUS) else { return false };
    let path = path.strip_prefix('.').unwrap_or(path);
    difference.theirs.is_some_and(|theirs| history.had(flag, path, theirs, at))
}

/// Why Flagsmith sends nothing. `is_versioned` is whether the environment has v2 versions.
pub(super) fn missing(ours: &Json, action: &str, is_versioned: bool) -> Option<&'static str> {
    let data = ours.get("data")?;
    let (new, previous) = (data.get("new_state")?, data.get("previous_state").filter(|s| s.is_object()));
    let is_default = action.ends_with("scope=default");
    match (likeness::kind(ours)?, previous) {
        // Before the author: what Flagsmith tells nobody of has none on record.
        ("FLAG_UPDATED", Some(previous)) => updated(new, previous).or_else(|| by_sql(data)),
        ("FLAG_UPDATED", None) if is_versioned && is_default && action.starts_with("created") => {
            Some(BORN_VERSIONED)
        }
        ("FLAG_DELETED", _) if !is_default => Some(OVERRIDE_REMOVED),
        ("FLAG_UPDATED" | "FLAG_DELETED", _) => by_sql(data),
        _ => None,
    }
}

/// An update of which Flagsmith tells nobody: nothing but the priority, or nothing but the set of variants.
fn updated(new: &Json, previous: &Json) -> Option<&'static str> {
    const VALUES: &str = "multivariate_feature_state_values";
    let same = |path: &str| new.pointer(path) == previous.pointer(path);
    let is_same_flag = same("/enabled") && same("/feature_state_value");
    let has_same_variants = same("/multivariate_feature_state_values");
    let has_same_priority = same("/feature_segment/priority");
    let count = |state: &Json| state.get(VALUES).and_then(Json::as_array).map(Vec::len);
    match (is_same_flag, has_same_variants, has_same_priority) {
        (true, true, false) => Some(PRIORITY),
        (true, false, true) if count(new) != count(previous) => Some(VARIANTS),
        _ => None,
    }
}

fn by_sql(data: &Json) -> Option<&'static str> {
    (data.get("changed_by").and_then(Json::as_str) == Some("")).then_some(BY_SQL)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state(enabled: bool, variants: usize, priority: i32) -> Json {
        let variants: Vec<Json> = (0..variants).map(|id| json!({ "id": id })).collect();
        json!({
            "enabled": enabled, "feature_state_value": "a", "feature_segment": {"priority": priority},
            "multivariate_feature_state_values": variants,
        })
    }

    fn updated(new: Json, previous: Json, by: &str) -> Json {
        let data = json!({ "new_state": new, "previous_state": previous, "changed_by": by });
        json!({ "event_type": "FLAG_UPDATED", "data": data })
    }

    #[test]
    fn what_flagsmith_sends_nobody_is_explained_by_what_changed() {
        let before = state(true, 2, 1);
        let kim = |new| updated(new, before.clone(), "kim");
        let explained = |body: &Json| missing(body, "updated;scope=segment", false);
        assert_eq!(explained(&kim(state(true, 2, 2))), Some(PRIORITY));
        assert_eq!(explained(&kim(state(true, 3, 1))), Some(VARIANTS));
        // Flagsmith tells of what else changed: if nothing came, then not for the priority.
        assert_eq!(explained(&kim(state(false, 2, 2))), None);
        assert_eq!(explained(&kim(state(false, 3, 1))), None);
        assert_eq!(explained(&kim(state(false, 2, 1))), None);
        assert_eq!(explained(&updated(state(false, 2, 1), before.clone(), "")), Some(BY_SQL));
    }

    #[test]
    fn what_is_born_is_explained_in_versioned_environments_only_and_overrides_not() {
        let mut body = updated(state(true, 0, 1), Json::Null, "kim");
        assert_eq!(missing(&body, "created;scope=default", true), Some(BORN_VERSIONED));
        assert_eq!(missing(&body, "created;scope=default", false), None);
        assert_eq!(missing(&body, "created;scope=segment", true), None);
        assert_eq!(missing(&body, "created;scope=identity", true), None);
        body["data"].as_object_mut().unwrap().remove("previous_state");
        assert_eq!(missing(&body, "created;scope=default", true), Some(BORN_VERSIONED));
    }

    #[test]
    fn what_is_removed_is_explained_of_overrides_only() {
        let data = json!({ "new_state": null, "previous_state": state(true, 0, 1), "changed_by": "kim" });
        let body = json!({ "event_type": "FLAG_DELETED", "data": data });
        assert_eq!(missing(&body, "removed;scope=segment", true), Some(OVERRIDE_REMOVED));
        assert_eq!(missing(&body, "removed;scope=identity", false), Some(OVERRIDE_REMOVED));
        assert_eq!(missing(&body, "removed;scope=default", false), None);
        let audit = json!({ "event_type": "AUDIT_LOG_CREATED", "data": {"changed_by": ""} });
        assert_eq!(missing(&audit, "created", true), None);
    }
}
