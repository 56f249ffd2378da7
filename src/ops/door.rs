//! Who may come in: what a request must have before page and API answer it.
//!
//! Reading needs no token, as with the metrics. But a browser must not be led here by somebody else's page: a `Host` that is a name
//! we do not know may be anybody's name that was made to mean this address (DNS rebinding), so page and API answer addresses,
//! `localhost` and the names in `ops.hosts` only. Changing something needs the token, JSON, and an `Origin` (browsers send
//! one) that is this page.

use std::net::IpAddr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use secrecy::{ExposeSecret, SecretString};

/// Why somebody is turned away: the answer's code, and what to do about it.
pub(super) type Refusal = (StatusCode, String);

/// See the module's documentation.
pub(super) struct Door {
    hosts: Vec<String>,
    token: Option<SecretString>,
}

impl Door {
    /// `hosts` are names under which we are known; without a token nothing can be changed.
    pub(super) fn new(hosts: Vec<String>, token: Option<SecretString>) -> Door {
        Door { hosts, token }
    }

    /// Whether anything can be changed at all.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether page and API may be read.
    pub(super) fn may_read(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = text(headers, &HOST).and_then(|host| host.parse::<Authority>().ok());
        if host.is_some_and(|host| self.knows(host.host())) {
            return Ok(());
        }
        Err((
            StatusCode::MISDIRECTED_REQUEST,
            "this name is not known here: ask by address or as localhost, or put the name into ops.hosts"
                .into(),
        ))
    }

    /// Whether something may be changed.
    pub(super) fn may_change(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        self.may_read(headers)?;
        let refused = |text: &str| Err((StatusCode::FORBIDDEN, text.to_owned()));
        let Some(token) = &self.token else {
            return refused(
                "this page only shows: a token in ops.token_file (or systemd's credential ops-token) lets it pause, resume and replay",
            );
        };
        if !self.is_own_page(headers) {
            return refused(
                "the request comes from another site's page (Origin): if it is this page behind a proxy, put its name into ops.hosts",
            );
        }
        let is_json = text(headers, &CONTENT_TYPE)
            .and_then(|kind| kind.split(';').next())
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !is_json {
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json".into()));
        }
        let given = text(headers, &AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let is_right = given.is_some_and(|given| {
            verify_slices_are_equal(given.trim().as_bytes(), token.expose_secret().as_bytes()).is_ok()
        });
        if is_right {
            Ok(())
        } else {
            Err((
                StatusCode::UNAUTHORIZED,
                "send Authorization: Bearer with the token that is in ops.token_file".into(),
            ))
        }
    }

    fn knows(&self, host: &str) -> bool {
        // An IPv6 address stands in brackets.
        host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    }

    /// Whoever sends no `Origin` is no browser, and needs the token all the same.
    fn is_own_page(&self, headers: &HeaderMap) -> bool {
        if !headers.contains_key(ORIGIN) {
            return true;
        }
        let origin = text(headers, &ORIGIN).and_then(|origin| origin.split_once("://"));
        let Some(origin) = origin.and_then(|(_, rest)| rest.parse::<Authority>().ok()) else { return false };
        let is_here = text(headers, &HOST).is_some_and(|host| host.eq_ignore_ascii_case(origin.as_str()));
        is_here || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(origin.host()))
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(HeaderName, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    fn door() -> Door {
        Door::new(vec!["status.example.com".into()], Some("s3cret".to_owned().into()))
    }

    #[test]
    fn only_addresses_and_names_that_are_known_are_answered() {
        for host in ["127.0.0.1:9464", "[::1]:9464", "10.2.3.4", "localhost:9464", "Status.Example.com"] {
            assert_eq!(door().may_read(&headers(&[(HOST, host)])), Ok(()), "{host}");
        }
        for host in ["evil.example:9464", "127.0.0.1.evil.example", "localhost.evil.example", "", "a@b@c"] {
            let refused = door().may_read(&headers(&[(HOST, host)])).unwrap_err();
            assert_eq!(refused.0, StatusCode::MISDIRECTED_REQUEST, "{host}");
        }
        assert!(door().may_read(&HeaderMap::new()).is_err());
    }

    const GOOD: [(HeaderName, &str); 4] = [
        (HOST, "127.0.0.1:9464"),
        (ORIGIN, "http://127.0.0.1:9464"),
        (CONTENT_TYPE, "application/json; charset=utf-8"),
        (AUTHORIZATION, "Bearer s3cret"),
    ];

    /// With one header another.
    fn changed(name: &HeaderName, value: &str) -> HeaderMap {
        let mut all = headers(&GOOD);
        all.insert(name, value.parse().unwrap());
        all
    }

    #[test]
    fn a_change_needs_the_token_json_and_this_page() {
        assert_eq!(door().may_change(&headers(&GOOD)), Ok(()));
        for (name, value, code) in [
            (HOST, "evil.example:9464", 421),
            (ORIGIN, "http://evil.example", 403),
            (ORIGIN, "http://127.0.0.1:8080", 403),
            (ORIGIN, "null", 403),
            (CONTENT_TYPE, "text/plain", 415),
            (AUTHORIZATION, "Bearer guess", 401),
            (AUTHORIZATION, "Bearer s3cre", 401),
            (AUTHORIZATION, "Bearer ", 401),
            (AUTHORIZATION, "s3cret", 401),
        ] {
            let refused = door().may_change(&changed(&name, value)).unwrap_err();
            assert_eq!(refused.0.as_u16(), code, "{name} {value}");
        }
        for missing in [CONTENT_TYPE, AUTHORIZATION] {
            let mut some = headers(&GOOD);
            some.remove(&missing);
            assert!(door().may_change(&some).is_err(), "{missing}");
        }
        // A proxy that asks by address, and a client that is no browser.
        assert_eq!(door().may_change(&changed(&ORIGIN, "https://status.example.com")), Ok(()));
        let mut some = headers(&GOOD);
        some.remove(ORIGIN);
        assert_eq!(door().may_change(&some), Ok(()));
    }

    #[test]
    fn without_a_token_nothing_can_be_changed() {
        let refused = Door::new(Vec::new(), None).may_change(&headers(&GOOD)).unwrap_err();
        assert_eq!(refused.0, StatusCode::FORBIDDEN);
        assert!(refused.1.contains("ops.token_file"), "{}", refused.1);
    }
}
