//! `classic`: the documented bodies of 2020 (SEMANTICS.md §1). Environment and project are numbers, the state has its
//! id, audit bodies stand bare.

use serde_json::{Value as Json, json};

use super::{audit_time, common_state, feature, int, text, time};
use crate::event::{AuditPayload, FlagPayload};
use crate::mirror::StateView;
use crate::schema::{audit_log, environment, feature as feature_table, feature_state, project, user};

pub(super) fn flag(payload: &FlagPayload) -> Json {
    let mut data = json!({
        "changed_by": payload.author.full_name(),
        "new_state": payload.new.as_ref().map(state),
        "timestamp": time::three(payload.at),
    });
    if let (Some(previous), Some(data)) = (&payload.previous, data.as_object_mut()) {
        data.insert("previous_state".into(), state(previous));
    }
    data
}

fn state(view: &StateView) -> Json {
    let mut state = common_state(view);
    state.insert("environment".into(), int(&view.state, feature_state::ENVIRONMENT_ID));
    state.insert("feature".into(), feature(view, int(&view.feature, feature_table::PROJECT_ID)));
    state.insert("feature_segment".into(), int(&view.state, feature_state::FEATURE_SEGMENT_ID));
    state.insert("id".into(), view.state_id().into());
    Json::Object(state)
}

pub(super) fn audit(payload: &AuditPayload) -> Json {
    let author = payload.author.as_ref().map(|row| {
        json!({
            "email": text(row, user::EMAIL),
            "first_name": text(row, user::FIRST_NAME),
            "id": int(row, user::ID),
            "last_name": text(row, user::LAST_NAME),
        })
    });
    // Never the environment's API key: an organisation's receiver has no use for it.
    let environment = payload
        .environment
        .as_ref()
        .map(|row| json!({ "id": int(row, environment::ID), "name": text(row, environment::NAME) }));
    let project = payload.project.as_ref().map(|row| {
        json!({
            "id": int(row, project::ID),
            "name": text(row, project::NAME),
            "organisation": int(row, project::ORGANISATION_ID),
        })
    });
    json!({
        "author": author,
        "created_date": audit_time(&payload.audit, audit_log::CREATED_DATE),
        "environment": environment,
        "log": text(&payload.audit, audit_log::LOG),
        "project": project,
        "related_object_id": int(&payload.audit, audit_log::RELATED_OBJECT_ID),
        "related_object_type": text(&payload.audit, audit_log::RELATED_OBJECT_TYPE),
    })
}
