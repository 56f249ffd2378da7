//! What a receiver verifies: Flagsmith's signature with Flagsmith's own snippet, and Standard Webhooks with its own library,
//! on what came over a real connection.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flagpost::demo::receiver::{Received, Receiver};
use serde_json::json;
use standardwebhooks::Webhook;

use crate::support::call::{EVENT, endpoint, send};

/// As Flagsmith's documentation shows it ("Webhook signature"), between reading what came and telling what it found.
const FLAGSMITHS_SNIPPET: &str = r#"
import hashlib, hmac, json, sys
given = json.load(sys.stdin)
secret, request_body = given["secret"], given["body"].encode()

expected_signature = hmac.new(
    key=secret.encode(),
    msg=request_body,
    digestmod=hashlib.sha256,
).hexdigest()

received_signature = given["headers"]["x-flagsmith-signature"]
print(hmac.compare_digest(expected_signature, received_signature) is True)
"#;

const BODY: &str = "{\"data\": {\"new_state\": {\"feature_state_value\": \"prød-ключ\"}}}";

fn python_accepts(secret: &str, received: &Received) -> bool {
    let headers: serde_json::Map<_, _> =
        received.headers.iter().map(|(n, v)| (n.clone(), v.clone().into())).collect();
    let body = String::from_utf8(received.body.clone()).unwrap();
    let given = json!({ "secret": secret, "body": body, "headers": headers }).to_string();
    let mut python = Command::new("python3")
        .args(["-c", FLAGSMITHS_SNIPPET])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("python3: {e}: tools/needs installs it"));
    python.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim() == "True"
}

fn library_accepts(key: &Webhook, received: &Received) -> bool {
    let headers = received.headers.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
    key.verify(&received.body, &headers).is_ok()
}

#[tokio::test]
async fn a_receiver_can_verify_both_signatures_whatever_the_secret_looks_like() {
    let receiver = Receiver::start(0).unwrap();
    let bytes = |secret: &str| Webhook::from_bytes(secret.as_bytes().to_vec()).unwrap();
    for (secret, key) in [
        ("s3cr3t", bytes("s3cr3t")),
        ("prød-ключ", bytes("prød-ключ")),
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            Webhook::new("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap(),
        ),
        ("whsec_not base64", bytes("whsec_not base64")),
    ] {
        receiver.clear();
        let answer = send(&endpoint(&receiver.url("/x"), secret), BODY).await;
        assert_eq!(answer.error, None);
        let got = &receiver.all()[0];
        assert!(python_accepts(secret, got), "{secret}");
        assert!(!python_accepts("another", got));
        assert!(library_accepts(&key, got), "{secret}: {:?}", got.headers);
        assert!(!library_accepts(&bytes("another"), got));
        let forged = Received { body: b"{}".to_vec(), ..got.clone() };
        assert!(!python_accepts(secret, &forged) && !library_accepts(&key, &forged));
        assert_eq!(got.header("webhook-id"), Some(EVENT));
        assert_eq!(got.header("x-flagpost-event-id"), Some(EVENT));
    }
}

#[tokio::test]
async fn while_a_secret_is_changed_receivers_with_the_old_one_still_verify() {
    let receiver = Receiver::start(0).unwrap();
    let mut endpoint = endpoint(&receiver.url("/x"), "new");
    endpoint.old_secrets = vec!["old".into(), "whsec_b2xkZXI=".into()];
    send(&endpoint, BODY).await;
    let got = &receiver.all()[0];
    for key in ["new", "old", "older"] {
        assert!(library_accepts(&Webhook::from_bytes(key.into()).unwrap(), got), "{key}");
    }
    // Flagsmith's header has room for one.
    assert!(python_accepts("new", got) && !python_accepts("old", got));
}

#[tokio::test]
async fn without_a_secret_nothing_is_signed_and_each_attempt_has_its_own_time() {
    let receiver = Receiver::start(0).unwrap();
    send(&endpoint(&receiver.url("/plain"), ""), BODY).await;
    send(&endpoint(&receiver.url("/signed"), "s"), BODY).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    send(&endpoint(&receiver.url("/signed"), "s"), BODY).await;
    let [plain, first, second] = &receiver.all()[..] else { panic!("three calls") };
    assert_eq!((plain.header("x-flagsmith-signature"), plain.header("webhook-signature")), (None, None));
    assert_eq!(plain.header("webhook-id"), Some(EVENT));
    let time = |r: &Received| r.header("webhook-timestamp").unwrap().parse::<u64>().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now - time(plain) < 10);
    assert!(time(second) > time(first));
    assert_ne!(first.header("webhook-signature"), second.header("webhook-signature"));
    assert_eq!(first.header("x-flagsmith-signature"), second.header("x-flagsmith-signature"));
}
