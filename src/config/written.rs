//! What was written where, for those who look at the configuration itself (`check`, `bugreport`): which keys are set, by the file
//! or by the environment, and which files hold secrets. No secret is in it: of URLs there is only the place, of secrets only that
//! they are set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use toml::Value;
use url::Url;

use super::raw::KEYS;

/// Keys whose value is a URL that can carry a secret.
const URLS: [&str; 3] = ["database.url", "notify.smtp", "notify.webhook"];
/// Keys whose value is somebody's address.
const ADDRESSES: [&str; 2] = ["notify.from", "notify.to"];
/// Keys that name a file with a secret in it.
const SECRET_FILES: [&str; 2] = ["database.password_file", "notify.smtp_password_file"];
/// The same in an entry of `webhooks.endpoint`.
const ENDPOINT_SECRET_FILES: [&str; 2] = ["secret_file", "client_key"];
/// Keys of an entry whose values say nothing of whoever uses it.
const ENDPOINT_PLAIN: [&str; 6] = ["format", "kinds", "timeout", "max_in_flight", "verify", "name"];

/// A key that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `section.key`
    pub name: String,
    /// Whether the environment has set it, not the file.
    pub by_environment: bool,
    /// Its value as it may be shown.
    pub shown: String,
}

/// See the module's documentation. Default: nothing was written.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Every key that is set.
    pub keys: Vec<Key>,
    /// The keys of the file that hold a secret in the clear.
    pub secrets_in_file: Vec<String>,
    /// Files that hold secrets, by key.
    pub secret_files: Vec<(String, PathBuf)>,
    /// URLs and headers that can carry secrets, for whoever must take those out of a text. `Debug` hides them.
    pub carriers: Vec<SecretString>,
}

impl Written {
    /// Of a file's text, which is known to be good, and the environment.
    pub(super) fn of(file: Option<&Path>, text: &str, environment: &BTreeMap<String, String>) -> Written {
        let table: toml::Table = text.parse().unwrap_or_default();
        let mut written = Written { file: file.map(Path::to_owned), ..Written::default() };
        for (section, key) in KEYS {
            let name = format!("{section}.{key}");
            let in_file = table.get(*section).and_then(|section| section.get(*key));
            let variable = format!("FLAGPOST_{}_{}", section.to_uppercase(), key.to_uppercase());
            let in_environment = environment.get(&variable).map(|value| Value::String(value.clone()));
            let Some(value) = in_environment.as_ref().or(in_file) else { continue };
            if in_file
                .and_then(Value::as_str)
                .is_some_and(|text| URLS.contains(&name.as_str()) && has_secret(text))
            {
                written.secrets_in_file.push(name.clone());
            }
            if URLS.contains(&name.as_str()) {
                written.carriers.extend(value.as_str().map(SecretString::from));
            }
            if SECRET_FILES.contains(&name.as_str()) {
                written.secret_files.extend(value.as_str().map(|path| (name.clone(), path.into())));
            }
            let shown = shown(&name, value);
            written.keys.push(Key { name, by_environment: in_environment.is_some(), shown });
        }
        let entries =
            table.get("webhooks").and_then(|webhooks| webhooks.get("endpoint")).and_then(Value::as_array);
        for (index, entry) in entries.into_iter().flatten().enumerate() {
            written.endpoint(index, entry);
        }
        written
    }

    fn endpoint(&mut self, index: usize, entry: &Value) {
        for (key, value) in entry.as_table().into_iter().flatten() {
            let name = format!("webhooks.endpoint.{index}.{key}");
            let is_secret = match key.as_str() {
                "url" => value.as_str().is_some_and(has_secret),
                "headers" => value.as_table().is_some_and(|headers| !headers.is_empty()),
                _ => false,
            };
            if is_secret {
                self.secrets_in_file.push(name.clone());
            }
            match value {
                Value::String(url) if key == "url" => self.carriers.push(url.as_str().into()),
                Value::Table(headers) => {
                    self.carriers.extend(headers.values().filter_map(Value::as_str).map(SecretString::from));
                }
                _ => {}
            }
            if ENDPOINT_SECRET_FILES.contains(&key.as_str()) {
                self.secret_files.extend(value.as_str().map(|path| (name.clone(), path.into())));
            }
            let shown = match (key.as_str(), value) {
                ("url", Value::String(url)) => place(url),
                ("headers", Value::Table(headers)) => {
                    headers.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
                }
                (key, value) if ENDPOINT_PLAIN.contains(&key) => value.to_string(),
                (_, Value::Array(list)) => format!("a list of {}", list.len()),
                _ => "set".into(),
            };
            self.keys.push(Key { name, by_environment: false, shown });
        }
    }
}

fn shown(name: &str, value: &Value) -> String {
    match value {
        Value::String(url) if URLS.contains(&name) => place(url),
        _ if ADDRESSES.contains(&name) => "set".into(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Whether a URL holds more than a place: a password, or a query, which can be one.
fn has_secret(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let asks = |key: &str| url.query_pairs().any(|(name, _)| name == key);
    let is_database = matches!(url.scheme(), "postgresql" | "postgres");
    url.password().is_some() || if is_database { asks("password") } else { url.query().is_some() }
}

/// Scheme, host and port.
fn place(text: &str) -> String {
    let Ok(url) = Url::parse(text) else { return "(no URL)".into() };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_told_and_no_secret_is() {
        let text = "
            [database]
            url = 'postgresql://u:sekrit@db:5433/flagsmith?sslmode=require'
            [source]
            slot = 'mine'
            [notify]
            to = ['sekrit@example.com']
            [[webhooks.endpoint]]
            url = 'https://u:sekrit@hooks.example.com/sekrit?token=sekrit'
            name = 'audit'
            secret_file = '/etc/one'
            projects = ['sekrit']
            headers = { Authorization = 'sekrit' }
        ";
        let environment = [
            ("FLAGPOST_SOURCE_SLOT".to_owned(), "other".to_owned()),
            ("FLAGPOST_NOTIFY_SMTP_PASSWORD_FILE".to_owned(), "/etc/two".to_owned()),
        ];
        let written = Written::of(Some(Path::new("/x")), text, &environment.into());
        assert!(!format!("{written:?}").contains("sekrit"), "{written:?}");
        let key = |name: &str| {
            let key = written.keys.iter().find(|key| key.name == name);
            key.map(|key| (key.shown.as_str(), key.by_environment))
        };
        assert_eq!(key("database.url"), Some(("postgresql://db:5433", false)));
        assert_eq!(key("source.slot"), Some(("other", true)));
        assert_eq!(key("notify.to"), Some(("set", false)));
        assert_eq!(key("webhooks.endpoint.0.url"), Some(("https://hooks.example.com", false)));
        assert_eq!(key("webhooks.endpoint.0.projects"), Some(("a list of 1", false)));
        assert_eq!(key("webhooks.endpoint.0.headers"), Some(("Authorization", false)));
        assert_eq!(
            written.secrets_in_file,
            ["database.url", "webhooks.endpoint.0.headers", "webhooks.endpoint.0.url"]
        );
        let files: Vec<&str> = written.secret_files.iter().filter_map(|(_, path)| path.to_str()).collect();
        assert_eq!(files, ["/etc/two", "/etc/one"]);
    }

    #[test]
    fn a_database_url_without_a_password_holds_no_secret() {
        assert!(!has_secret("postgresql://u@db/x?sslmode=require"));
        assert!(has_secret("postgresql://u@db/x?password=y"));
        assert!(has_secret("https://hooks.example.com/?token"));
        assert!(!has_secret("https://hooks.example.com/in"));
    }
}
