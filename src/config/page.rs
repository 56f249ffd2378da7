//! The section `ops`, as far as it is about the status page: whether it is served, under which names, and who may change something.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::{raw, read_secret};
use crate::error::{Error, Result};

/// systemd's name of the token (`LoadCredential=ops-token:…`).
const CREDENTIAL: &str = "ops-token";
/// A token is no password that somebody remembers.
const SHORTEST: usize = 16;

/// The status page.
#[derive(Debug, Clone)]
pub struct StatusPage {
    /// Whether it is served, and the API with it. It shows values of flags, so by default only where nobody else reaches it.
    pub is_served: bool,
    /// Names under which we are asked, beside addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Who has it may pause, resume and replay.
    pub token: Option<SecretString>,
}

pub(super) fn check(
    raw: raw::Ops,
    listen: Option<SocketAddr>,
    environment: &BTreeMap<String, String>,
) -> Result<StatusPage> {
    let is_ours_alone = listen.is_some_and(|addr| addr.ip().is_loopback());
    if let Some(host) = raw.hosts.iter().find(|host| host.contains(['/', ':', ' ', '*'])) {
        return Err(Error::config(format!(
            "ops.hosts: {host:?} is no name: write it as status.example.com, without scheme and port"
        )));
    }
    let token = token(raw.token_file.as_deref(), environment)?;
    Ok(StatusPage { is_served: raw.page.unwrap_or(is_ours_alone), hosts: raw.hosts, token })
}

fn token(file: Option<&str>, environment: &BTreeMap<String, String>) -> Result<Option<SecretString>> {
    let credential = environment
        .get("CREDENTIALS_DIRECTORY")
        .map(|dir| Path::new(dir).join(CREDENTIAL))
        .filter(|path| path.exists());
    let Some(path) = file.map(PathBuf::from).or(credential) else { return Ok(None) };
    let token = read_secret("ops.token_file", &path)?;
    let is_good = token.expose_secret().len() >= SHORTEST && token.expose_secret().is_ascii();
    if is_good && !token.expose_secret().contains(char::is_whitespace) {
        return Ok(Some(token));
    }
    Err(Error::config(format!(
        "ops.token_file {}: the token has {SHORTEST} or more characters without a space: make one with \"openssl rand -hex 32\"",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(raw: raw::Ops, listen: &str) -> Result<StatusPage> {
        check(raw, Some(listen.parse().unwrap()), &BTreeMap::new())
    }

    #[test]
    fn it_is_served_where_nobody_else_reaches_it_or_where_somebody_says_so() {
        assert!(checked(raw::Ops::default(), "127.0.0.1:1").unwrap().is_served);
        assert!(checked(raw::Ops::default(), "[::1]:1").unwrap().is_served);
        assert!(!checked(raw::Ops::default(), "0.0.0.0:1").unwrap().is_served);
        let page = |page| raw::Ops { page: Some(page), ..raw::Ops::default() };
        assert!(checked(page(true), "0.0.0.0:1").unwrap().is_served);
        assert!(!checked(page(false), "127.0.0.1:1").unwrap().is_served);
    }

    #[test]
    fn a_token_comes_from_a_file_or_from_systemd_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CREDENTIAL);
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let file =
            |path: &Path| raw::Ops { token_file: path.to_str().map(str::to_owned), ..raw::Ops::default() };
        let page = checked(file(&path), "127.0.0.1:1").unwrap();
        assert_eq!(page.token.as_ref().unwrap().expose_secret(), "0123456789abcdef");
        assert!(!format!("{page:?}").contains("0123456789"));
        let environment = [("CREDENTIALS_DIRECTORY".to_owned(), folder.path().to_str().unwrap().to_owned())];
        let page = check(raw::Ops::default(), None, &environment.into()).unwrap();
        assert!(page.token.is_some() && !page.is_served);
        for bad in ["", "short", "with a space in the middle"] {
            std::fs::write(&path, bad).unwrap();
            let error = checked(file(&path), "127.0.0.1:1").unwrap_err().to_string();
            assert!(error.contains("openssl rand") && (bad.is_empty() || !error.contains(bad)), "{error}");
        }
    }

    #[test]
    fn a_host_is_a_name() {
        for bad in ["https://status.example.com", "status.example.com:443", "*.example.com"] {
            let raw = raw::Ops { hosts: vec![bad.to_owned()], ..raw::Ops::default() };
            assert!(checked(raw, "127.0.0.1:1").unwrap_err().to_string().contains("ops.hosts"), "{bad}");
        }
    }
}
