//! What an endpoint answered: the verdict, and as much of the rest as helps an operator.
//!
//! Whatever an endpoint sends is hostile until shown otherwise: it is capped, made printable, and cleared of our own secrets,
//! which a receiver that echoes its request would hand back.

use std::error::Error as StdError;

use reqwest::Response;
use reqwest::header::RETRY_AFTER;
use tokio::time::{Instant, timeout_at};

use super::retry::Reply;

/// An answer's body is read up to here, so that the connection can be used again; nobody needs more.
const ANSWER_BYTES: usize = 16 * 1024;
/// So much of it is kept for the operator.
const EXCERPT_BYTES: usize = 1024;
/// Longer values of `Retry-After` say nothing.
const RETRY_AFTER_BYTES: usize = 100;
/// Errors can hold what the endpoint sent, the names in its certificate say.
const ERROR_BYTES: usize = 500;
/// Shorter secrets are not looked for: they would be found everywhere.
const SHORTEST_SECRET: usize = 4;

/// What an endpoint answered, or why there is no answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The status code, if there was an answer.
    pub status: Option<u16>,
    /// Why it is a failure; `None` for a 2xx.
    pub error: Option<String>,
    /// How the answer's body begins, up to 1 kB, as text: what is no UTF-8 and control characters are replaced, secrets of
    /// ours are left out. `None` where there was no body.
    pub excerpt: Option<String>,
    /// The header `Retry-After` as it came, up to 100 bytes of printable ASCII. What it means is the reader's to decide.
    pub retry_after: Option<String>,
}

impl Answer {
    pub(super) fn failed(error: impl AsRef<str>) -> Answer {
        Answer { error: Some(cut(printable(error.as_ref()), ERROR_BYTES)), ..Answer::default() }
    }

    /// What decides about the next attempt.
    pub(super) fn reply(&self) -> Reply<'_> {
        Reply { status: self.status, retry_after: self.retry_after.as_deref() }
    }
}

/// Reads the answer until `deadline` at the latest. The verdict is the status line's, however the body goes on.
pub(super) async fn judge(mut response: Response, deadline: Instant, secrets: &[String]) -> Answer {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = retry_after.map(|text| cut(printable(text), RETRY_AFTER_BYTES));
    let mut body = Vec::new();
    // A body that is too slow is cut off where it is.
    timeout_at(deadline, read(&mut response, &mut body)).await.ok();
    let code = status.as_u16();
    let error = match () {
        () if status.is_success() => None,
        () if status.is_redirection() => {
            Some(format!("HTTP {code}: redirects are not followed: give the endpoint its final URL"))
        }
        () => Some(format!("HTTP {code}")),
    };
    Answer { status: Some(code), error, excerpt: excerpt(&body, secrets), retry_after }
}

async fn read(response: &mut Response, body: &mut Vec<u8>) {
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = ANSWER_BYTES.saturating_sub(body.len());
        body.extend(chunk.iter().take(room));
        if chunk.len() >= room {
            break;
        }
    }
}

fn excerpt(body: &[u8], secrets: &[String]) -> Option<String> {
    let mut text = String::from_utf8_lossy(body).into_owned();
    for secret in secrets.iter().filter(|secret| secret.len() >= SHORTEST_SECRET) {
        text = text.replace(secret.as_str(), "[secret]");
    }
    let text = cut(printable(&text), EXCERPT_BYTES);
    (!text.is_empty()).then_some(text)
}

/// Control characters, which could play with an operator's terminal, are replaced.
fn printable(text: &str) -> String {
    let is_harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if is_harmless(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// The first `bytes` bytes at the most, in whole characters.
fn cut(mut text: String, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}

/// An error with its causes, reqwest's own text being only "error sending request", and what mends it where that is known.
pub(super) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    match mend(&text) {
        Some(mend) => format!("{}: {mend}", cut(text, ERROR_BYTES - mend.len() - 2)),
        None => text,
    }
}

fn mend(text: &str) -> Option<&'static str> {
    [
        ("UnknownIssuer", "name the issuer's certificate in network.ca_file"),
        (
            "CertificateRequired",
            "give the endpoint client_certificate and client_key in [[webhooks.endpoint]]",
        ),
    ]
    .into_iter()
    .find_map(|(part, mend)| text.contains(part).then_some(mend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_printable_and_without_our_secrets() {
        let secrets = ["sekrit".to_owned(), "abc".to_owned()];
        let of = |body: &[u8]| excerpt(body, &secrets);
        assert_eq!(of(b""), None);
        assert_eq!(of(b"a\tb\r\n\x1b[31m\x00").unwrap(), "a\tb\u{fffd}\n\u{fffd}[31m\u{fffd}");
        assert_eq!(of(b"\xff\xfe ok").unwrap(), "\u{fffd}\u{fffd} ok");
        assert_eq!(of(b"abc sekrit sekrit").unwrap(), "abc [secret] [secret]");
        let long = of("ж".repeat(9_000).as_bytes()).unwrap();
        assert_eq!((long.len(), long.chars().count()), (1024, 512));
        // Not even the half of a secret at the cut.
        let at_the_cut = format!("{}sekrit", "x".repeat(1021));
        assert!(!of(at_the_cut.as_bytes()).unwrap().contains("sek"));
    }

    #[test]
    fn an_error_is_short_and_printable() {
        let answer = Answer::failed(format!("\u{1b}{}", "é".repeat(1000)));
        let error = answer.error.unwrap();
        assert!(error.len() <= 500 && error.starts_with('\u{fffd}'));
    }
}
