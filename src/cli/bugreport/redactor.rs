//! The last thing that a text passes before it leaves the machine: every secret that this installation knows is taken out, however
//! it got there, and of every URL only scheme, host and port stay. Pure but for [`Redactor::of`], which collects the secrets.

use std::collections::BTreeSet;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::ExposeSecret;
use url::Url;

use crate::change::Micros;
use crate::config::Config;
use crate::ledger::{Endpoint, Reader};

/// Shorter ones would take words apart, and guard nothing.
const SHORTEST: usize = 4;
const GONE: &str = "[secret]";

/// Knows what must not be in a text. Not `Debug`.
#[derive(Default)]
pub(super) struct Redactor {
    /// The longest first: one may begin with another.
    secrets: Vec<String>,
}

impl Redactor {
    /// Knows the secrets of the configuration, of its files, and of the ledger's endpoints.
    pub(super) fn of(config: &Config) -> Redactor {
        let mut all = BTreeSet::new();
        all.extend(config.database.password.iter().map(|password| password.expose_secret().to_owned()));
        for carrier in &config.written.carriers {
            carried(carrier.expose_secret(), &mut all);
        }
        for (_, path) in &config.written.secret_files {
            all.extend(std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned()));
        }
        for configured in config.targets.configured() {
            of_endpoint(&configured.endpoint, &mut all);
        }
        if let Ok(reader) = Reader::open(&config.state_dir)
            && let Ok(endpoints) = reader.endpoints()
        {
            for (key, endpoint) in endpoints {
                of_endpoint(&endpoint, &mut all);
                let with_old = reader.endpoint_with_old(key, Micros(0)).ok().flatten();
                all.extend(with_old.into_iter().flat_map(|endpoint| endpoint.old_secrets));
            }
        }
        Redactor::with(all)
    }

    fn with(secrets: impl IntoIterator<Item = String>) -> Redactor {
        let forms = secrets.into_iter().flat_map(|secret| {
            let decoded = percent_decode_str(&secret).decode_utf8_lossy().into_owned();
            let encoded = utf8_percent_encode(&secret, NON_ALPHANUMERIC).to_string();
            // As it stands in a JSON string, without the quotes.
            let quoted = serde_json::Value::from(secret.as_str()).to_string();
            let in_json = quoted.trim_matches('"').to_owned();
            [secret, decoded, encoded, in_json]
        });
        let forms: BTreeSet<String> = forms.filter(|form| form.len() >= SHORTEST).collect();
        let mut secrets: Vec<String> = forms.into_iter().collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Redactor { secrets }
    }

    /// `text` without secrets, and without what follows the host of a URL.
    pub(super) fn clean(&self, text: &str) -> String {
        // Before the URLs are cut, since a password may have anything in it; and after, for what the cut brought together.
        self.without_secrets(only_places(&self.without_secrets(text.to_owned())))
    }

    fn without_secrets(&self, mut text: String) -> String {
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), GONE);
            }
        }
        text
    }
}

fn of_endpoint(endpoint: &Endpoint, all: &mut BTreeSet<String>) {
    all.insert(endpoint.secret.clone());
    all.extend(endpoint.old_secrets.iter().cloned());
    carried(&endpoint.url, all);
}

/// The secrets that a URL carries; what is no URL is one itself.
fn carried(text: &str, all: &mut BTreeSet<String>) {
    let Ok(url) = Url::parse(text) else {
        all.insert(text.to_owned());
        return;
    };
    all.extend(url.password().map(str::to_owned));
    // Of a database's URL the parameters are sslmode and the like, and the role is no secret.
    if matches!(url.scheme(), "postgresql" | "postgres") {
        let password = url.query_pairs().find(|(name, _)| name == "password");
        all.extend(password.map(|(_, value)| value.into_owned()));
        return;
    }
    all.extend(url.query().map(str::to_owned));
    all.extend(url.query_pairs().map(|(_, value)| value.into_owned()));
    all.extend(url.fragment().map(str::to_owned));
}

/// Scheme, host and port of an endpoint's URL; nothing of what is none.
pub(super) fn place(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) if url.has_host() => only_places(url.as_str()),
        Ok(_) | Err(_) => "(no URL)".into(),
    }
}

/// Of every `scheme://…` in a text, what leads to a host.
fn only_places(text: &str) -> String {
    let is_end = |c: char| c.is_whitespace() || matches!(c, '"' | '<' | '>' | '\\');
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        cleaned.push_str(before);
        cleaned.push_str("://");
        let end = after.find(|c| is_end(c) || matches!(c, '/' | '?' | '#')).unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        cleaned.push_str(authority.rsplit('@').next().unwrap_or_default());
        let end = tail.find(is_end).unwrap_or(tail.len());
        let (path, next) = tail.split_at(end);
        if !matches!(path, "" | "/") {
            cleaned.push_str("/…");
        }
        rest = next;
    }
    cleaned.push_str(rest);
    cleaned
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_a_url_only_its_place_stays() {
        for (text, cleaned) in [
            (
                "to https://hooks.example.com/services/T0/sekrit, twice",
                "to https://hooks.example.com/… twice",
            ),
            ("(http://u:sekrit@[::1]:80/)", "(http://[::1]:80/…"),
            ("\"url\": \"https://u:se@krit@h/?x=sekrit\"", "\"url\": \"https://h/…\""),
            ("postgresql://u@db:5432/flagsmith and no more", "postgresql://db:5432/… and no more"),
            ("https://h/ https://h https://h#sekrit", "https://h https://h https://h/…"),
            ("a://b\\nc", "a://b\\nc"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(only_places(text), cleaned, "{text}");
        }
        assert_eq!(place("https://u:sekrit@h:8443/sekrit"), "https://h:8443/…");
        assert_eq!((place("sekrit").as_str(), place("mailto:sekrit").as_str()), ("(no URL)", "(no URL)"));
    }

    #[test]
    fn what_a_url_carries_is_known() {
        let mut all = BTreeSet::new();
        carried("https://u:pass%20word@h/?token=one#two", &mut all);
        carried("postgresql://role:three@h/db?sslmode=require&password=four", &mut all);
        carried("no url", &mut all);
        let expected = ["four", "no url", "one", "pass%20word", "three", "token=one", "two"];
        assert_eq!(all.into_iter().collect::<Vec<_>>(), expected);
    }

    proptest! {
        #[test]
        fn no_known_secret_passes(
            secret in "[ -~]{4,20}", before in "[ -~]{0,30}", after in "[ -~]{0,30}",
        ) {
            prop_assume!(!GONE.contains(&secret) && !format!("{before}{GONE}{after}").contains(&secret));
            let redactor = Redactor::with([secret.clone()]);
            let text = format!("{before}{secret}{after}");
            prop_assert!(!redactor.clean(&text).contains(&secret), "{}", redactor.clean(&text));
        }
    }
}
