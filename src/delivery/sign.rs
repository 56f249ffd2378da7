//! Signing, at the moment of sending: no signature and no secret is ever stored.
//!
//! Two schemes, side by side: Flagsmith's own (a hex HMAC of the body), and Standard Webhooks
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>), which signs id and time
//! too, so that a receiver can refuse what somebody sends again later. Pure: the time is handed in.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// How the specification marks a secret that is base64.
const BASE64_MARK: &str = "whsec_";
/// Standard base64; padding may be left out, as the specification's JavaScript library lets it.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Lower-case hex HMAC-SHA256 of the body, the key being the endpoint's secret as UTF-8: the value of Flagsmith's
/// `X-Flagsmith-Signature` (SEMANTICS.md §1). `None` where the endpoint has no secret.
pub fn flagsmith_signature(secret: &str, body: &[u8]) -> Option<String> {
    if secret.is_empty() {
        return None;
    }
    let mac = hmac(secret.as_bytes(), &[body])?;
    Some(mac.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The value of Standard Webhooks' `webhook-signature`: `v1,` and the base64 HMAC-SHA256 of `id.timestamp.body`, one for each
/// secret, in their order, separated by spaces. `timestamp` is in seconds. `None` where there is no secret.
///
/// The specification's secrets are base64 after `whsec_`; Flagsmith lets an operator write anything. So what begins with
/// `whsec_` and decodes is decoded, and of every other secret the UTF-8 bytes are the key.
pub fn standard_signatures<'a>(
    secrets: impl IntoIterator<Item = &'a str>,
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> Option<String> {
    let head = format!("{id}.{timestamp}.");
    let sign = |secret: &str| {
        let mac = hmac(&standard_key(secret), &[head.as_bytes(), body])?;
        Some(format!("v1,{}", STANDARD.encode(mac)))
    };
    let all: Vec<String> = secrets.into_iter().filter(|secret| !secret.is_empty()).filter_map(sign).collect();
    (!all.is_empty()).then(|| all.join(" "))
}

fn standard_key(secret: &str) -> Vec<u8> {
    let decoded = secret.strip_prefix(BASE64_MARK).and_then(|text| LENIENT.decode(text).ok());
    decoded.filter(|key| !key.is_empty()).unwrap_or_else(|| secret.as_bytes().to_vec())
}

/// HMAC takes a key of any length, so that there always is one.
fn hmac(key: &[u8], parts: &[&[u8]]) -> Option<[u8; 32]> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    for part in parts {
        mac.update(part);
    }
    Some(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use standardwebhooks::Webhook;
    use std::collections::HashMap;

    #[test]
    fn the_signature_is_the_one_that_flagsmith_sent() {
        let secrets = HashMap::from([
            ("/org-signed", "org-secret"),
            ("/dev-signed", "s3cr3t"),
            ("/prod-signed", "prød-ключ"),
        ]);
        let cases = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases");
        let mut checked = 0;
        for entry in std::fs::read_dir(cases).unwrap() {
            let case: Value =
                serde_json::from_str(&std::fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap();
            for sent in case["flagsmith_sent"].as_array().unwrap() {
                let (Some(secret), Some(signature)) = (
                    secrets.get(sent["endpoint"].as_str().unwrap()),
                    sent["headers"]["x-flagsmith-signature"].as_str(),
                ) else {
                    continue;
                };
                let body = sent["body"].as_str().unwrap().as_bytes();
                assert_eq!(flagsmith_signature(secret, body).as_deref(), Some(signature));
                checked += 1;
            }
        }
        assert!(checked > 100, "only {checked} signatures were there to check");
        assert_eq!(flagsmith_signature("", b"x"), None);
    }

    /// The specification's own library signs the same and takes what we sign.
    fn agrees_with_the_oracle(oracle: &Webhook, secret: &str, id: &str, body: &[u8]) {
        let now = jiff::Timestamp::now().as_second();
        let signature = standard_signatures([secret], id, now, body).unwrap();
        assert_eq!(signature, oracle.sign(id, now, body).unwrap());
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("webhook-id", id.parse().unwrap());
        headers.insert("webhook-timestamp", now.into());
        headers.insert("webhook-signature", signature.parse().unwrap());
        oracle.verify(body, &headers).unwrap();
        headers.insert("webhook-timestamp", (now + 1).into());
        oracle.verify(body, &headers).unwrap_err();
    }

    proptest! {
        #[test]
        fn what_the_specification_calls_a_secret_signs_as_its_library_does(
            key in proptest::collection::vec(any::<u8>(), 1..64),
            id in "[a-z0-9-]{1,40}",
            body in "\\PC{0,200}",
        ) {
            let secret = format!("whsec_{}", STANDARD.encode(&key));
            agrees_with_the_oracle(&Webhook::new(&secret).unwrap(), &secret, &id, body.as_bytes());
            agrees_with_the_oracle(&Webhook::new(&secret).unwrap(), secret.trim_end_matches('='), &id, body.as_bytes());
        }

        #[test]
        fn any_other_secret_is_its_own_bytes(
            secret in "(whsec_[!-~]{0,10}!|\\PC{1,40})", id in "[a-z0-9-]{1,40}", body in "\\PC{0,200}",
        ) {
            prop_assume!(standard_key(&secret) == secret.as_bytes());
            let oracle = Webhook::from_bytes(secret.as_bytes().to_vec()).unwrap();
            agrees_with_the_oracle(&oracle, &secret, &id, body.as_bytes());
        }
    }

    #[test]
    fn what_looks_like_base64_and_is_not_is_taken_as_it_is() {
        for secret in ["whsec_", "whsec_!", "whsec_ab cd", "WHSEC_YWJj", "YWJj"] {
            assert_eq!(standard_key(secret), secret.as_bytes());
        }
        assert_eq!(standard_key("whsec_YWJj"), b"abc");
    }

    #[test]
    fn every_secret_signs_and_none_gives_no_signature() {
        let one = |secret| standard_signatures([secret], "id", 7, b"body").unwrap();
        let all = standard_signatures(["new", "old", "", "older"], "id", 7, b"body").unwrap();
        assert_eq!(all, format!("{} {} {}", one("new"), one("old"), one("older")));
        assert_eq!(standard_signatures([""], "id", 7, b"body"), None);
        assert_eq!(standard_signatures([], "id", 7, b"body"), None);
    }
}
