//! Where the database is and how to get in: a connection URL (PostgreSQL manual, "Connection URIs"), parsed into parts that
//! cannot be wrong. The password never shows: `Debug` leaves it out, errors name the key and not the URL.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use crate::error::{Error, Result};

/// How much TLS is asked for (PostgreSQL manual, "SSL Mode Descriptions").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// If the server has it; nothing is verified.
    Prefer,
    /// Always; nothing is verified.
    Require,
    /// Always; the certificate's issuer is verified, its name is not. Also what `require` with a root certificate means.
    VerifyCa,
    /// Always; issuer and name are verified.
    VerifyFull,
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// The folder of a Unix socket.
    Unix(PathBuf),
}

/// A parsed connection URL.
#[derive(Debug, Clone)]
pub struct ConnInfo {
    /// Where the server listens.
    pub host: Host,
    /// Its port; of a Unix socket the number in the socket's name.
    pub port: u16,
    /// The role.
    pub user: String,
    /// The password, if one is known.
    pub password: Option<SecretString>,
    /// The database.
    pub database: String,
    /// How much TLS is asked for.
    pub ssl_mode: SslMode,
    /// PEM file of the issuers that are trusted; the system's where there is none.
    pub ssl_root_cert: Option<PathBuf>,
    /// What `pg_stat_activity` shows.
    pub application_name: String,
    /// Limit of connecting, TLS and authentication together.
    pub connect_timeout: Duration,
}

const DEFAULT_PORT: u16 = 5432;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const SHAPE: &str = "write it as postgresql://user:password@host:5432/flagsmith?sslmode=verify-full";

impl ConnInfo {
    /// Parses `text`. `password` (from a file or a credential) wins over one in the URL.
    pub fn parse(text: &str, password: Option<SecretString>) -> Result<ConnInfo> {
        // The parser's own message could repeat a part of the URL, and with it a password: it is left out.
        let url = Url::parse(text).map_err(|_| Error::config(format!("database.url is no URL: {SHAPE}")))?;
        if !matches!(url.scheme(), "postgresql" | "postgres") {
            return Err(Error::config(format!("database.url does not begin with postgresql://: {SHAPE}")));
        }
        let user = decode(url.username())?;
        let database = decode(url.path().trim_start_matches('/'))?;
        let mut info = ConnInfo {
            host: Host::Tcp(decode(url.host_str().unwrap_or_default())?),
            port: url.port().unwrap_or(DEFAULT_PORT),
            user,
            password: match (password, url.password()) {
                (Some(password), _) => Some(password),
                (None, Some(text)) => Some(decode(text)?.into()),
                (None, None) => None,
            },
            database,
            ssl_mode: SslMode::Prefer,
            ssl_root_cert: None,
            application_name: "flagpost".into(),
            connect_timeout: DEFAULT_TIMEOUT,
        };
        for (key, value) in url.query_pairs() {
            info.option(&key, &value)?;
        }
        info.finish()
    }

    fn option(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "sslmode" => self.ssl_mode = ssl_mode(value)?,
            "sslrootcert" => self.ssl_root_cert = (value != "system").then(|| value.into()),
            "host" if value.starts_with('/') => self.host = Host::Unix(value.into()),
            "host" => self.host = Host::Tcp(value.into()),
            "port" => self.port = number(key, value)?,
            "user" => value.clone_into(&mut self.user),
            "password" => self.password = self.password.take().or_else(|| Some(value.to_owned().into())),
            "dbname" => value.clone_into(&mut self.database),
            "application_name" => value.clone_into(&mut self.application_name),
            "connect_timeout" => {
                let seconds: u64 = number(key, value)?;
                self.connect_timeout =
                    if seconds == 0 { DEFAULT_TIMEOUT } else { Duration::from_secs(seconds) };
            }
            other => {
                return Err(Error::config(format!(
                    "database.url: the parameter {other:?} is not known: use sslmode, sslrootcert, host, port, user, \
                     password, dbname, application_name or connect_timeout"
                )));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<ConnInfo> {
        if let Host::Tcp(host) = &self.host {
            if host.is_empty() {
                return Err(Error::config(format!("database.url names no host: {SHAPE}")));
            }
            // A percent-encoded folder in the host's place is a Unix socket, as with libpq.
            if host.starts_with('/') {
                self.host = Host::Unix(host.into());
            }
        }
        if self.user.is_empty() {
            return Err(Error::config(format!("database.url names no user: {SHAPE}")));
        }
        if self.database.is_empty() {
            self.database.clone_from(&self.user);
        }
        if self.ssl_mode == SslMode::Require && self.ssl_root_cert.is_some() {
            self.ssl_mode = SslMode::VerifyCa;
        }
        Ok(self)
    }

    /// Where and what, without a password: for messages.
    pub fn shown(&self) -> String {
        match &self.host {
            Host::Tcp(host) => format!("{host}:{}/{}", self.port, self.database),
            Host::Unix(folder) => format!("{}:{}/{}", folder.display(), self.port, self.database),
        }
    }
}

fn ssl_mode(text: &str) -> Result<SslMode> {
    Ok(match text {
        "disable" => SslMode::Disable,
        // "allow" wants plain text first; what it means to say is "do not insist".
        "allow" | "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        other => {
            return Err(Error::config(format!(
                "database.url: sslmode is {other:?}: use disable, prefer, require, verify-ca or verify-full"
            )));
        }
    })
}

fn number<T: std::str::FromStr>(key: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::config(format!("database.url: {key} is {text:?}: write a number")))
}

fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    let bad = || Error::config(format!("database.url has a broken percent escape: {SHAPE}"));
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(bad);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).map_err(|_| bad())?);
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn a_url_is_read_part_by_part() {
        let info = ConnInfo::parse(
            "postgresql://fl%40g:p%2Fw%25@db.example:6432/flag%20smith?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            None,
        )
        .unwrap();
        assert_eq!(info.host, Host::Tcp("db.example".into()));
        assert_eq!((info.port, info.user.as_str(), info.database.as_str()), (6432, "fl@g", "flag smith"));
        assert_eq!(info.password.unwrap().expose_secret(), "p/w%");
        assert_eq!(info.ssl_mode, SslMode::VerifyFull);
        assert_eq!(info.ssl_root_cert, Some("/etc/ca.pem".into()));
    }

    #[test]
    fn what_is_left_out_has_libpqs_defaults() {
        let info = ConnInfo::parse("postgres://app@db", None).unwrap();
        assert_eq!((info.port, info.database.as_str()), (5432, "app"));
        assert_eq!(info.ssl_mode, SslMode::Prefer);
        assert!(info.password.is_none());
        let socket = ConnInfo::parse("postgresql://app@%2Fvar%2Frun%2Fpostgresql/db", None).unwrap();
        assert_eq!(socket.host, Host::Unix("/var/run/postgresql".into()));
        let socket = ConnInfo::parse("postgresql://app@x/db?host=/tmp", None).unwrap();
        assert_eq!(socket.host, Host::Unix("/tmp".into()));
    }

    #[test]
    fn a_password_from_a_file_wins() {
        let info = ConnInfo::parse("postgres://a:url@db/x", Some("file".to_owned().into())).unwrap();
        assert_eq!(info.password.unwrap().expose_secret(), "file");
    }

    #[test]
    fn require_with_a_root_certificate_verifies_the_issuer() {
        let info = ConnInfo::parse("postgres://a@db/x?sslmode=require&sslrootcert=/ca.pem", None).unwrap();
        assert_eq!(info.ssl_mode, SslMode::VerifyCa);
    }

    #[test]
    fn errors_are_one_line_and_hold_no_password() {
        for bad in [
            "sekrit",
            "postgres://u:sekrit@h:notaport/x",
            "http://u:sekrit@h/x",
            "postgres://:sekrit@h/x",
            "postgres://u:sekrit@h/x?sslmode=sometimes",
            "postgres://u:sekrit@h/x?nonsense=1",
            "postgres://u:sekrit%zz@h/x",
        ] {
            let text = ConnInfo::parse(bad, None).unwrap_err().to_string();
            assert!(!text.contains("sekrit") && text.lines().count() == 1, "{text}");
        }
        let info = ConnInfo::parse("postgres://u:sekrit@h/x", None).unwrap();
        assert!(!format!("{info:?}").contains("sekrit") && !info.shown().contains("sekrit"));
    }
}
