//! What of a flag's state has changed, as people see it: previous → new, field by field, and line by line where a value is long.

use serde::Serialize;
use serde_json::{Map, Value as Json};
use similar::{ChangeTag, TextDiff};

use crate::cli::printable::one_line;

/// A value that is longer, in characters, is shown line by line.
const LONG: usize = 60;
/// Lines around a change that are shown.
const AROUND: usize = 2;
/// Lines of a value that are shown at most.
const MOST_LINES: usize = 60;

/// A part of the state, before and after. `None` where there was none, or is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Change {
    /// Its name.
    pub(super) field: String,
    /// Before.
    pub(super) previous: Option<Json>,
    /// After.
    pub(super) new: Option<Json>,
}

/// The parts that people care for, changed or not, and then what else has changed of the feature.
pub(super) fn changes(previous: Option<&Json>, new: Option<&Json>) -> Vec<Change> {
    let state = |state: Option<&Json>| state.and_then(Json::as_object).cloned();
    let (previous, new) = (state(previous), state(new));
    if previous.is_none() && new.is_none() {
        return Vec::new();
    }
    let mut changes: Vec<Change> = Vec::new();
    for (field, value) in previous.as_ref().map(parts).unwrap_or_default() {
        changes.push(Change { field, previous: Some(value), new: None });
    }
    for (field, value) in new.as_ref().map(parts).unwrap_or_default() {
        match changes.iter_mut().find(|change| change.field == field) {
            Some(change) => change.new = Some(value),
            None => changes.push(Change { field, previous: None, new: Some(value) }),
        }
    }
    if let (Some(previous), Some(new)) = (&previous, &new) {
        changes.extend(changes_of_feature(previous, new));
    }
    changes
}

/// The parts of a state by name.
fn parts(state: &Map<String, Json>) -> Vec<(String, Json)> {
    let mut parts = Vec::new();
    let mut add = |name: &str, value: Option<&Json>| {
        parts.extend(value.filter(|value| !value.is_null()).map(|value| (name.to_owned(), value.clone())));
    };
    add("enabled", state.get("enabled"));
    // A flag without a value is worth seeing.
    parts.push(("value".to_owned(), state.get("feature_state_value").cloned().unwrap_or_default()));
    let mut add = |name: &str, value: Option<&Json>| {
        parts.extend(value.filter(|value| !value.is_null()).map(|value| (name.to_owned(), value.clone())));
    };
    add("identity", state.get("identity_identifier"));
    let segment = state.get("feature_segment");
    add("segment", segment.and_then(|segment| segment.pointer("/segment/name")));
    add("priority", segment.and_then(|segment| segment.get("priority")));
    // `classic` has only the override's id.
    add("segment override", segment.filter(|segment| segment.is_number()));
    let variants = state.get("multivariate_feature_state_values").and_then(Json::as_array);
    for variant in variants.into_iter().flatten() {
        let option = variant.pointer("/multivariate_feature_option/value").cloned().unwrap_or_default();
        let share = variant.get("percentage_allocation").cloned().unwrap_or_default();
        let id = variant.get("id").cloned().unwrap_or_default();
        parts.push((format!("variant {id}"), format!("{option} to {share} %").into()));
    }
    parts
}

fn changes_of_feature(previous: &Map<String, Json>, new: &Map<String, Json>) -> Vec<Change> {
    let feature = |state: &Map<String, Json>| {
        state.get("feature").and_then(Json::as_object).cloned().unwrap_or_default()
    };
    let (previous, new) = (feature(previous), feature(new));
    let names = previous.keys().chain(new.keys().filter(|name| !previous.contains_key(*name)));
    let change = |name: &String| Change {
        field: format!("feature.{name}"),
        previous: previous.get(name).cloned(),
        new: new.get(name).cloned(),
    };
    names.map(change).filter(Change::is_change).collect()
}

impl Change {
    /// Whether it is different after than before.
    pub(super) fn is_change(&self) -> bool {
        self.previous != self.new
    }

    /// As people read it, the field's name padded to `width`.
    pub(super) fn lines(&self, width: usize) -> Vec<String> {
        let field = format!("{:<width$}", one_line(&self.field));
        match (&self.previous, &self.new) {
            (Some(previous), Some(new)) if self.is_change() => match (long(previous), long(new)) {
                (None, None) => vec![format!("{field}  {} → {}", short(previous), short(new))],
                _ => changed_lines(&field, &as_lines(previous), &as_lines(new)),
            },
            (Some(same), Some(_)) => vec![whole(&field, same, "")],
            (Some(gone), None) => vec![whole(&field, gone, "  (gone)")],
            (None, Some(new)) => vec![whole(&field, new, "")],
            (None, None) => Vec::new(),
        }
    }
}

fn whole(field: &str, value: &Json, note: &str) -> String {
    format!("{field}  {}{note}", crate::cli::printable::cut(&short(value), 4 * LONG))
}

fn short(value: &Json) -> String {
    match value {
        // A variant's text is made here, and has its quotation marks.
        Json::String(text) if text.ends_with(" %") => one_line(text),
        value => one_line(&value.to_string()),
    }
}

/// The text of a value that is too long for one line.
fn long(value: &Json) -> Option<&str> {
    value.as_str().filter(|text| text.contains('\n') || text.chars().count() > LONG)
}

/// A value in lines. Flags often hold JSON in one line: it is laid out.
fn as_lines(value: &Json) -> String {
    let Some(text) = value.as_str() else { return value.to_string() };
    match serde_json::from_str::<Json>(text) {
        Ok(json @ (Json::Object(_) | Json::Array(_))) => {
            serde_json::to_string_pretty(&json).unwrap_or_else(|_| text.to_owned())
        }
        _ => text.to_owned(),
    }
}

fn changed_lines(field: &str, previous: &str, new: &str) -> Vec<String> {
    let mut lines = vec![format!("{field}  changed:")];
    let diff = TextDiff::from_lines(previous, new);
    for (number, group) in diff.grouped_ops(AROUND).iter().enumerate() {
        if number > 0 {
            lines.push("    …".into());
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let sign = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => ' ',
            };
            lines.push(format!("    {sign} {}", one_line(change.value().trim_end_matches('\n'))));
        }
    }
    if lines.len() > MOST_LINES {
        let more = lines.len() - MOST_LINES;
        lines.truncate(MOST_LINES);
        lines.push(format!("    … and {more} lines more: see --json"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(previous: &Json, new: &Json) -> Vec<String> {
        changes(Some(previous), Some(new)).iter().flat_map(|change| change.lines(8)).collect()
    }

    #[test]
    fn what_changed_stands_side_by_side_and_what_did_not_stands_once() {
        let state = |enabled: bool, value: Json, share: f64, priority: u32| {
            json!({
                "enabled": enabled, "feature_state_value": value, "identity_identifier": null,
                "feature": {"name": "a", "description": if enabled { "x" } else { "y" }},
                "feature_segment": {"priority": priority, "segment": {"name": "beta"}},
                "multivariate_feature_state_values": [
                    {"id": 7, "multivariate_feature_option": {"id": 1, "value": "blue"}, "percentage_allocation": share}
                ],
            })
        };
        assert_eq!(
            lines(&state(true, json!("a"), 30.0, 1), &state(false, json!(5), 55.5, 2)),
            [
                "enabled   true → false",
                "value     \"a\" → 5",
                "segment   \"beta\"",
                "priority  1 → 2",
                "variant 7  \"blue\" to 30.0 % → \"blue\" to 55.5 %",
                "feature.description  \"x\" → \"y\"",
            ]
        );
    }

    #[test]
    fn a_state_that_was_not_there_or_is_gone_is_shown_whole() {
        let state = json!({"enabled": true, "feature_state_value": null});
        let shown = |previous, new| -> Vec<String> {
            changes(previous, new).iter().flat_map(|change| change.lines(7)).collect()
        };
        assert_eq!(shown(None, Some(&state)), ["enabled  true", "value    null"]);
        assert_eq!(
            shown(Some(&state), Some(&Json::Null)),
            ["enabled  true  (gone)", "value    null  (gone)"]
        );
        assert!(shown(None, None).is_empty());
    }

    #[test]
    fn a_long_value_is_compared_line_by_line() {
        let value = |limit: u32| json!({"feature_state_value": json!({"limit": limit, "servers": ["a", "b", "c"], "note": "x".repeat(50)}).to_string()});
        let shown = lines(&value(1), &value(2));
        assert_eq!(shown[0], "value     changed:");
        assert!(shown.contains(&"    -   \"limit\": 1,".to_owned()), "{shown:?}");
        assert!(shown.contains(&"    +   \"limit\": 2,".to_owned()), "{shown:?}");
        let text = |n: u32| json!({"feature_state_value": format!("first\n{n}\u{1b}[2J\nlast")});
        assert!(lines(&text(1), &text(2)).contains(&"    - 1\\u{1b}[2J".to_owned()));
    }

    #[test]
    fn any_json_is_a_state_or_none() {
        for odd in
            [json!(1), json!([]), json!({}), json!({"multivariate_feature_state_values": [1], "feature": 7})]
        {
            for other in [json!({"enabled": 1, "feature_segment": "x"}), json!(null)] {
                lines(&odd, &other);
            }
        }
    }
}
