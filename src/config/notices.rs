//! The section `notify`: who is told of an endpoint's troubles.

use std::time::Duration;

use lettre::message::Mailbox;
use secrecy::SecretString;

use super::{duration, raw};
use crate::error::{Error, Result};
use crate::notify::{OperatorWebhook, Settings, Smtp};

const AFTER: Duration = Duration::from_secs(300);

pub(super) fn check(raw: raw::Notify) -> Result<Settings> {
    let password = match &raw.smtp_password_file {
        Some(path) => Some(secret_in(path)?),
        None => None,
    };
    let smtp = match (&raw.smtp, &raw.from) {
        (Some(url), Some(from)) => Some(Smtp::new(url, password.as_ref(), mailbox("notify.from", from)?)?),
        (Some(_), None) => {
            return Err(Error::config("notify.from is missing: name the address that mails come from"));
        }
        (None, _) if !raw.to.is_empty() => {
            return Err(Error::config("notify.to is set and notify.smtp is not: name the mail server"));
        }
        (None, _) => None,
    };
    Ok(Settings {
        smtp,
        to: raw.to.iter().map(|text| mailbox("notify.to", text)).collect::<Result<_>>()?,
        organisations: raw.organisations.unwrap_or(true),
        webhook: raw.webhook.map(OperatorWebhook::new).transpose()?,
        after: duration("notify.after", raw.after, AFTER)?,
    })
}

fn mailbox(key: &str, text: &str) -> Result<Mailbox> {
    text.parse().map_err(|_| {
        Error::config(format!("{key}: {text:?} is no address: write it as flagpost@example.com"))
    })
}

fn secret_in(path: &str) -> Result<SecretString> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::config(format!("notify.smtp_password_file {path:?} cannot be read: {e}")))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned().into())
}
