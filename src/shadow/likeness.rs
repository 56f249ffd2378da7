//! What two bodies of the format `current` have in common, and where they part.
//!
//! Pure. Bodies are read as JSON from anybody: nothing in here trusts them, and values of theirs are never shown, only where
//! they are.

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

/// Of a body, or of what makes two bodies alike.
pub(super) type Digest = [u8; 32];

/// Differences that are looked for: two bodies with so many have nothing to do with each other.
pub(super) const DIFFERENCES: usize = 200;
/// Paths that are told of one difference: more of them say no more.
const PATHS: usize = 12;
/// A path is cut here: keys come from outside.
const PATH_CHARS: usize = 120;
/// A name is cut here.
const NAME_CHARS: usize = 80;

const KINDS: [&str; 4] = ["FLAG_UPDATED", "FLAG_DELETED", "NEW_VERSION_PUBLISHED", "AUDIT_LOG_CREATED"];

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

pub(super) fn kind(body: &Json) -> Option<&'static str> {
    let found = body.get("event_type")?.as_str()?;
    KINDS.into_iter().find(|kind| *kind == found)
}

/// The new state, or the previous one where there is no new one.
pub(super) fn state(data: &Json) -> Option<&Json> {
    let state = |name| data.get(name).filter(|state| state.is_object());
    state("new_state").or_else(|| state("previous_state"))
}

/// The same for two bodies that tell of one thing: a flag's arriving at the same new state, the same audit row, the same version.
pub(super) fn likeness(body: &Json) -> Option<Digest> {
    let (kind, data) = (kind(body)?, body.get("data")?);
    let what = match kind {
        "AUDIT_LOG_CREATED" => data.get("id")?.to_string(),
        "NEW_VERSION_PUBLISHED" => data.get("uuid")?.to_string(),
        _ => format!("{}/{}", flag(state(data)?), data.get("new_state").unwrap_or(&Json::Null)),
    };
    Some(digest(format!("{kind} {what}").as_bytes()))
}

/// Whether a body tells of a flag.
pub(super) fn is_flag(body: &Json) -> bool {
    kind(body).is_some_and(|kind| kind.starts_with("FLAG_"))
}

/// Which flag value a state is of: feature, environment, identity, segment.
pub(super) fn flag(state: &Json) -> String {
    let at = |path: &str| state.pointer(path).unwrap_or(&Json::Null);
    format!(
        "{}/{}/{}/{}",
        at("/feature/id"),
        at("/environment/id"),
        at("/identity"),
        at("/feature_segment/segment/id")
    )
}

/// A place at which two bodies part.
#[derive(Debug)]
pub(super) struct Difference<'a> {
    /// Such as `data.previous_state.enabled`.
    pub(super) path: String,
    /// What the second has there.
    pub(super) theirs: Option<&'a Json>,
}

/// Where two bodies part, in order, the first `DIFFERENCES`.
pub(super) fn differences<'a>(ours: &Json, theirs: &'a Json) -> Vec<Difference<'a>> {
    let mut all = Vec::new();
    collect(ours, theirs, String::new(), &mut all);
    all
}

/// The first few places, to be shown.
pub(super) fn paths(differences: &[Difference<'_>]) -> Vec<String> {
    let cut = |difference: &Difference<'_>| difference.path.chars().take(PATH_CHARS).collect();
    differences.iter().take(PATHS).map(cut).collect()
}

/// The path of a field.
pub(super) fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn collect<'a>(ours: &Json, theirs: &'a Json, path: String, all: &mut Vec<Difference<'a>>) {
    if ours == theirs || all.len() >= DIFFERENCES {
        return;
    }
    match (ours, theirs) {
        (Json::Object(a), Json::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                collect_part(a.get(key), b.get(key), below(&path, key), all);
            }
        }
        (Json::Array(a), Json::Array(b)) => {
            for index in 0..a.len().max(b.len()) {
                collect_part(a.get(index), b.get(index), format!("{path}[{index}]"), all);
            }
        }
        _ => all.push(Difference { path, theirs: Some(theirs) }),
    }
}

fn collect_part<'a>(
    ours: Option<&Json>,
    theirs: Option<&'a Json>,
    path: String,
    all: &mut Vec<Difference<'a>>,
) {
    match (ours, theirs) {
        (Some(a), Some(b)) => collect(a, b, path, all),
        _ if all.len() < DIFFERENCES => all.push(Difference { path, theirs }),
        _ => {}
    }
}
