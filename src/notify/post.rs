//! How notices go out: by SMTP, and as JSON to an operator's own webhook. Errors name neither password nor URL.

use std::time::Duration;

use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::Credentials;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use secrecy::{ExposeSecret, SecretString};

use super::Notice;
use crate::error::{Error, Result};

/// Limit of one message.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A mail server, and who writes to it.
#[derive(Clone)]
pub struct Smtp {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl std::fmt::Debug for Smtp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Smtp {{ from: {} }}", self.from)
    }
}

impl Smtp {
    /// A mail server by its URL: `smtps://user@host` (TLS), `smtp://user@host:587?tls=required` (STARTTLS), or
    /// `smtp://localhost` (in the clear). `password` is the user's.
    pub fn new(url: &SecretString, password: Option<&SecretString>, from: Mailbox) -> Result<Smtp> {
        let bad = || {
            Error::config(
                "notify.smtp is no mail server's URL: write it as smtps://user@mail.example.com, or smtp://localhost",
            )
        };
        // The error of the library can repeat the URL, which can hold a password.
        let parsed = url::Url::parse(url.expose_secret()).map_err(|_| bad())?;
        let mut builder =
            AsyncSmtpTransport::<Tokio1Executor>::from_url(url.expose_secret()).map_err(|_| bad())?;
        if let Some(password) = password {
            let user =
                percent_encoding::percent_decode_str(parsed.username()).decode_utf8_lossy().into_owned();
            builder = builder.credentials(Credentials::new(user, password.expose_secret().to_owned()));
        }
        Ok(Smtp { transport: builder.timeout(Some(TIMEOUT)).build(), from })
    }

    /// Sends a notice to each of these.
    pub(super) async fn send(&self, notice: &Notice, to: &[Mailbox]) -> Result<(), String> {
        let mut message = Message::builder().from(self.from.clone()).subject(notice.subject());
        for mailbox in to {
            message = message.to(mailbox.clone());
        }
        let message = message.body(notice.text()).map_err(|e| format!("the mail cannot be written: {e}"))?;
        let sent = tokio::time::timeout(TIMEOUT, self.transport.send(message)).await;
        match sent {
            Err(_) => Err(format!("the mail server did not take the mail within {} s", TIMEOUT.as_secs())),
            Ok(Err(e)) => Err(format!("the mail server: {}", chain(&e))),
            Ok(Ok(_)) => Ok(()),
        }
    }
}

/// An operator's own webhook. It is named in the configuration, so the network guard is not asked.
#[derive(Clone)]
pub struct OperatorWebhook {
    http: reqwest::Client,
    url: SecretString,
}

impl std::fmt::Debug for OperatorWebhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OperatorWebhook")
    }
}

impl OperatorWebhook {
    /// The webhook at this URL.
    pub fn new(url: SecretString) -> Result<OperatorWebhook> {
        let is_http =
            url::Url::parse(url.expose_secret()).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !is_http {
            return Err(Error::config("notify.webhook is no http or https URL: correct it"));
        }
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()
            .map_err(|e| Error::no_http_client(chain(&e)))?;
        Ok(OperatorWebhook { http, url })
    }

    pub(super) async fn send(&self, notice: &Notice) -> Result<(), String> {
        let request = self
            .http
            .post(self.url.expose_secret())
            .header("content-type", "application/json")
            .body(notice.json().to_string());
        match request.send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("notify.webhook answered HTTP {}", answer.status().as_u16())),
            Err(e) => Err(format!("notify.webhook: {}", chain(&e.without_url()))),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}
