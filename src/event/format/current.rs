//! `current`: what Flagsmith 2.265 sends, byte for byte (SEMANTICS.md §1).

use serde_json::{Value as Json, json};

use super::{audit_time, boolean, common_state, feature, int, text, time, value};
use crate::change::Row;
use crate::event::{AuditPayload, FlagPayload, VersionPayload};
use crate::mirror::StateView;
use crate::schema::{
    audit_log, environment, feature as feature_table, feature_segment, feature_state, feature_version,
    mv_option, mv_value, project, segment, user,
};

pub(super) fn flag(payload: &FlagPayload) -> Json {
    let mut data = json!({
        "changed_by": payload.author.email(),
        "new_state": payload.new.as_ref().map(state),
        "timestamp": time::six(payload.at),
    });
    if let (Some(previous), Some(data)) = (&payload.previous, data.as_object_mut()) {
        data.insert("previous_state".into(), state(previous));
    }
    data
}

pub(super) fn version(payload: &VersionPayload) -> Json {
    let publisher = payload
        .publisher
        .as_ref()
        .map(|row| json!({ "email": text(row, user::EMAIL), "id": int(row, user::ID) }));
    let states: Vec<Json> = payload
        .states
        .iter()
        .map(|view| {
            json!({
                "enabled": view.state.flag(feature_state::ENABLED),
                "multivariate_feature_state_values": view.variants.iter().map(variant).collect::<Vec<_>>(),
                "value": value(view.value()),
            })
        })
        .collect();
    json!({
        "feature": named(&payload.feature, feature_table::ID, feature_table::NAME),
        "feature_states": states,
        "published_by": publisher,
        "uuid": text(&payload.version, feature_version::UUID),
    })
}

fn named(row: &Row, id: usize, name: usize) -> Json {
    json!({ "id": int(row, id), "name": text(row, name) })
}

fn state(view: &StateView) -> Json {
    let mut state = common_state(view);
    state.insert("environment".into(), named(&view.environment, environment::ID, environment::NAME));
    state.insert("feature".into(), feature(view, named(&view.project, project::ID, project::NAME)));
    state.insert("feature_segment".into(), segment_override(view));
    let variants: Vec<Json> = view.variants.iter().map(variant).collect();
    state.insert("multivariate_feature_state_values".into(), variants.into());
    Json::Object(state)
}

fn segment_override(view: &StateView) -> Json {
    let Some(row) = &view.feature_segment else { return Json::Null };
    let segment = view.segment.as_ref().map(|row| {
        json!({
            "description": text(row, segment::DESCRIPTION),
            "id": int(row, segment::ID),
            "name": text(row, segment::NAME),
        })
    });
    json!({ "priority": int(row, feature_segment::PRIORITY), "segment": segment })
}

fn variant((row, option): &(Row, Option<Row>)) -> Json {
    let option = option.as_ref().map(
        |option| json!({ "id": int(option, mv_option::ID), "value": value(StateView::option_value(option)) }),
    );
    let percentage = row.text(mv_value::PERCENTAGE_ALLOCATION).and_then(|t| t.parse::<f64>().ok());
    json!({
        "id": int(row, mv_value::ID),
        "multivariate_feature_option": option,
        "percentage_allocation": percentage,
    })
}

pub(super) fn audit(payload: &AuditPayload) -> Json {
    let row = &payload.audit;
    json!({
        "author": payload.author.as_ref().map(author),
        "created_date": audit_time(row, audit_log::CREATED_DATE),
        "environment": payload.environment.as_ref().map(environment_of_audit),
        "id": int(row, audit_log::ID),
        "is_system_event": boolean(row, audit_log::IS_SYSTEM_EVENT),
        "log": text(row, audit_log::LOG),
        "project": payload.project.as_ref().map(project_of_audit),
        "related_object_id": int(row, audit_log::RELATED_OBJECT_ID),
        "related_object_type": text(row, audit_log::RELATED_OBJECT_TYPE),
        "related_object_uuid": text(row, audit_log::RELATED_OBJECT_UUID),
    })
}

fn author(row: &Row) -> Json {
    json!({
        "email": text(row, user::EMAIL),
        "first_name": text(row, user::FIRST_NAME),
        "id": int(row, user::ID),
        "last_login": audit_time(row, user::LAST_LOGIN),
        "last_name": text(row, user::LAST_NAME),
        "uuid": text(row, user::UUID),
    })
}

fn environment_of_audit(row: &Row) -> Json {
    let use_mv_v2 = boolean(row, environment::USE_MV_V2_EVALUATION);
    json!({
        "allow_client_traits": boolean(row, environment::ALLOW_CLIENT_TRAITS),
        "api_key": text(row, environment::API_KEY),
        "banner_colour": text(row, environment::BANNER_COLOUR),
        "banner_text": text(row, environment::BANNER_TEXT),
        "description": text(row, environment::DESCRIPTION),
        "hide_disabled_flags": boolean(row, environment::HIDE_DISABLED_FLAGS),
        "hide_sensitive_data": boolean(row, environment::HIDE_SENSITIVE_DATA),
        "id": int(row, environment::ID),
        "is_creating": boolean(row, environment::IS_CREATING),
        "minimum_change_request_approvals": int(row, environment::MINIMUM_CHANGE_REQUEST_APPROVALS),
        "name": text(row, environment::NAME),
        "project": int(row, environment::PROJECT_ID),
        // One column under two names: Flagsmith's serializer keeps the old one for its clients.
        "use_identity_composite_key_for_hashing": use_mv_v2,
        "use_identity_overrides_in_local_eval": boolean(row, environment::USE_IDENTITY_OVERRIDES_IN_LOCAL_EVAL),
        "use_mv_v2_evaluation": use_mv_v2,
        "use_v2_feature_versioning": boolean(row, environment::USE_V2_FEATURE_VERSIONING),
        "uuid": text(row, environment::UUID),
    })
}

fn project_of_audit(row: &Row) -> Json {
    let edge_status = text(row, project::IDENTITY_OVERRIDES_V2_MIGRATION_STATUS);
    let shows_edge_overrides = edge_status == "COMPLETE";
    json!({
        "edge_v2_migration_status": edge_status,
        "enable_dynamo_db": boolean(row, project::ENABLE_DYNAMO_DB),
        "enable_realtime_updates": boolean(row, project::ENABLE_REALTIME_UPDATES),
        "enforce_feature_owners": boolean(row, project::ENFORCE_FEATURE_OWNERS),
        "feature_name_regex": text(row, project::FEATURE_NAME_REGEX),
        "hide_disabled_flags": boolean(row, project::HIDE_DISABLED_FLAGS),
        "id": int(row, project::ID),
        // Constant on self-hosted installations (SEMANTICS.md §1).
        "migration_status": "NOT_APPLICABLE",
        "minimum_change_request_approvals": int(row, project::MINIMUM_CHANGE_REQUEST_APPROVALS),
        "name": text(row, project::NAME),
        "only_allow_lower_case_feature_names": boolean(row, project::ONLY_ALLOW_LOWER_CASE_FEATURE_NAMES),
        "organisation": int(row, project::ORGANISATION_ID),
        "prevent_flag_defaults": boolean(row, project::PREVENT_FLAG_DEFAULTS),
        "show_edge_identity_overrides_for_feature": shows_edge_overrides,
        "stale_flags_limit_days": int(row, project::STALE_FLAGS_LIMIT_DAYS),
        "use_edge_identities": false,
        "uuid": text(row, project::UUID),
    })
}
