//! The status page: one HTML file that brings everything with it and loads nothing from elsewhere. It asks the API (`api`).
//!
//! Names of features and answers of endpoints come from outside. The page shows them as text only; and if it did not, no script
//! but its own could run: the policy lets in the one whose hash is told, and refuses to make HTML of strings.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::api::Api;

/// The parts, as one file.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    include_str!("page/index.html")
        .replace("/* style.css */", include_str!("page/style.css"))
        .replace("/* chart.js */", include_str!("page/chart.js"))
        .replace("/* page.js */", include_str!("page/page.js"))
});
static POLICY: LazyLock<String> = LazyLock::new(policy);

/// The page at `/`.
pub(super) fn router(api: Arc<Api>) -> Router {
    Router::new().route("/", get(page)).with_state(api)
}

/// What is there instead, where the page is not served.
pub(super) fn closed() -> Router {
    let says = "The status page is off, for ops.listen is an address that others can reach, and whoever reaches it would see the \
                values of flags. ops.page = true serves it there; see docs/status-page.md.\n";
    Router::new().route("/", get(async move || (StatusCode::NOT_FOUND, says)))
}

async fn page(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response {
    if let Err((code, says)) = api.door.may_read(&headers) {
        return (code, format!("{says}\n")).into_response();
    }
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (CACHE_CONTROL, "no-store"),
        (X_FRAME_OPTIONS, "DENY"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE.as_str()).into_response()
}

/// Source: Content Security Policy Level 3 (W3C).
fn policy() -> String {
    let hash = |tag: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inside(tag).as_bytes())));
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash("script"),
        hash("style")
    )
}

/// What stands in the page's one element of this name.
fn inside(tag: &str) -> &'static str {
    let after = PAGE.split_once(&format!("<{tag}>")).map_or("", |(_, after)| after);
    after.split_once(&format!("</{tag}>")).map_or("", |(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_brings_everything_with_it_and_makes_no_html_of_strings() {
        for tag in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{tag}")).count(), 1, "{tag}");
            assert!(inside(tag).len() > 100, "{tag}");
        }
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "localStorage",
            " style=",
            " onclick=",
            "src=\"http",
            "href=\"http",
            "@import",
            "url(",
        ] {
            assert!(!PAGE.contains(forbidden), "the page has {forbidden}");
        }
    }
}
