//! What two bodies of the format `current` have in common, where they part, and whether SEMANTICS.md §6 explains it.
//!
//! Pure. Bodies are read as JSON from anybody: nothing in here trusts them, and values of theirs are never shown, only where
//! they are.

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

/// Of a body, or of what makes two bodies alike.
pub(super) type Digest = [u8; 32];

/// Paths that are told of one difference: more of them say no more.
const PATHS: usize = 12;
/// A path is cut here: keys come from outside.
const PATH_CHARS: usize = 120;
/// A name is cut here.
const NAME_CHARS: usize = 80;

const KINDS: [&str; 4] = ["FLAG_UPDATED", "FLAG_DELETED", "NEW_VERSION_PUBLISHED", "AUDIT_LOG_CREATED"];

const OLDER_PREVIOUS: &str = "only previous_state differs: Flagsmith often tells an older one";
const LAST_EDIT: &str = "Flagsmith tells a deletion with user and time of the last edit";

/// What a body is about, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// `event_type`, if it is one that Flagsmith has.
    pub kind: Option<&'static str>,
    /// The feature's name.
    pub feature: Option<String>,
    /// The environment's name.
    pub environment: Option<String>,
}

pub(super) fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// The body as JSON; null where it is none.
pub(super) fn read(body: &[u8]) -> Json {
    serde_json::from_slice(body).unwrap_or(Json::Null)
}

pub(super) fn about(body: &Json) -> About {
    let data = body.get("data");
    let state = data.and_then(state);
    let part = |name: &str| state.or(data).and_then(|part| part.get(name)?.get("name")?.as_str());
    let cut = |text: &str| text.chars().take(NAME_CHARS).collect();
    About { kind: kind(body), feature: part("feature").map(cut), environment: part("environment").map(cut) }
}

fn kind(body: &Json) -> Option<&'static str> {
    let found = body.get("event_type")?.as_str()?;
    KINDS.into_iter().find(|kind| *kind == found)
}

/// The new state, or the previous one where there is no new one.
fn state(data: &Json) -> Option<&Json> {
    let state = |name| data.get(name).filter(|state| state.is_object());
    state("new_state").or_else(|| state("previous_state"))
}

/// The same for two bodies that tell of one thing: a flag's arriving at the same new state, the same audit row, the same version.
pub(super) fn likeness(body: &Json) -> Option<Digest> {
    let (kind, data) = (kind(body)?, body.get("data")?);
    let what = match kind {
        "AUDIT_LOG_CREATED" => data.get("id")?.to_string(),
        "NEW_VERSION_PUBLISHED" => data.get("uuid")?.to_string(),
        _ => {
            let of = state(data)?;
            let at = |path: &str| of.pointer(path).unwrap_or(&Json::Null);
            format!(
                "{}/{}/{}/{}/{}",
                at("/feature/id"),
                at("/environment/id"),
                at("/identity"),
                at("/feature_segment/segment/id"),
                data.get("new_state").unwrap_or(&Json::Null)
            )
        }
    };
    Some(digest(format!("{kind} {what}").as_bytes()))
}

/// Where two bodies part: paths such as `data.previous_state.enabled`, in order, the first few.
pub(super) fn differences(ours: &Json, theirs: &Json) -> Vec<String> {
    let mut paths = Vec::new();
    collect(ours, theirs, String::new(), &mut paths);
    paths
}

fn collect(ours: &Json, theirs: &Json, path: String, paths: &mut Vec<String>) {
    if ours == theirs || paths.len() >= PATHS {
        return;
    }
    match (ours, theirs) {
        (Json::Object(a), Json::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect_part(a.get(key), b.get(key), below, paths);
            }
        }
        (Json::Array(a), Json::Array(b)) => {
            for index in 0..a.len().max(b.len()) {
                collect_part(a.get(index), b.get(index), format!("{path}[{index}]"), paths);
            }
        }
        _ => note(&path, paths),
    }
}

fn collect_part(ours: Option<&Json>, theirs: Option<&Json>, path: String, paths: &mut Vec<String>) {
    match (ours, theirs) {
        (Some(a), Some(b)) => collect(a, b, path, paths),
        _ => note(&path, paths),
    }
}

fn note(path: &str, paths: &mut Vec<String>) {
    if paths.len() < PATHS {
        paths.push(path.chars().take(PATH_CHARS).collect());
    }
}

/// Why Flagsmith's body differs, where SEMANTICS.md §6 says so.
pub(super) fn explain_difference(ours: &Json, theirs: &Json, paths: &[String]) -> Option<&'static str> {
    let is_previous = |path: &String| path.starts_with("data.previous_state");
    if paths.is_empty() {
        return None;
    }
    if paths.iter().all(is_previous) {
        return Some(OLDER_PREVIOUS);
    }
    let is_author = |path: &String| path == "data.changed_by" || path == "data.timestamp";
    let time = |body: &Json| body.pointer("/data/timestamp").and_then(Json::as_str).map(str::to_owned);
    let is_deletion = kind(ours) == Some("FLAG_DELETED") && time(theirs) <= time(ours);
    let is_explained = is_deletion && paths.iter().all(|path| is_previous(path) || is_author(path));
    is_explained.then_some(LAST_EDIT)
}

/// Why Flagsmith sends nothing, where SEMANTICS.md §6 says so.
pub(super) fn explain_missing(ours: &Json, action: &str) -> Option<&'static str> {
    let data = ours.get("data")?;
    let (new, previous) = ("new_state", "previous_state");
    let count = |name| data.get(name)?.get("multivariate_feature_state_values")?.as_array().map(Vec::len);
    let priority = |name| data.get(name)?.get("feature_segment")?.get("priority").cloned();
    let kind = kind(ours)?;
    let has_both = kind == "FLAG_UPDATED" && data.get(previous).is_some();
    // Before the author: what Flagsmith tells nobody of has none on record.
    if has_both && priority(new) != priority(previous) {
        return Some("priority changed: Flagsmith writes its audit log only");
    }
    if has_both && count(new) != count(previous) {
        return Some("variant added or removed: Flagsmith writes its audit log only");
    }
    if kind == "FLAG_DELETED" && !action.ends_with("scope=default") {
        return Some("override removed: Flagsmith sends nothing (its issue 6241)");
    }
    let is_by_sql = data.get("changed_by").and_then(Json::as_str) == Some("");
    is_by_sql.then_some("changed by SQL: Flagsmith sends nothing")
}
