//! Signing, at the moment of sending: no signature and no secret is ever stored.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Lower-case hex HMAC-SHA256 of the body, the key being the endpoint's secret as UTF-8: the value of Flagsmith's
/// `X-Flagsmith-Signature` (SEMANTICS.md §1). `None` where the endpoint has no secret.
pub fn flagsmith_signature(secret: &str, body: &[u8]) -> Option<String> {
    if secret.is_empty() {
        return None;
    }
    // HMAC takes a key of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).ok()?;
    mac.update(body);
    Some(mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
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
}
