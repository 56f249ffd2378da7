//! What entries mean, and what is wrong with them.

use std::time::Duration;

use super::*;
use crate::config::Config;
use crate::event::EndpointKey;

/// Loads `entries` with files beside them; `DIR` in the text is their folder.
fn load(entries: &str) -> Result<Config> {
    let folder = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["client".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
    for (name, text) in [
        ("secret", "sekrit-of-a-file\n"),
        ("empty", "\n"),
        ("credential", "sekrit-of-systemd"),
        ("client.pem", &pair.cert.pem()),
        ("client.key", &pair.signing_key.serialize_pem()),
        ("other.key", &other.signing_key.serialize_pem()),
        ("flagpost.toml", &entries.replace("DIR", folder.path().to_str().unwrap())),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let environment = [
        ("FLAGPOST_DATABASE_URL", "postgresql://flagpost@db/flagsmith"),
        ("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap()),
    ];
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Config::load(Some(&folder.path().join("flagpost.toml")), &environment)
}

fn configured(name: &str) -> EndpointKey {
    EndpointKey::Configured(name.parse().unwrap())
}

#[test]
fn a_name_makes_an_endpoint_and_a_url_alone_gives_options() {
    let config = load(
        r#"
[webhooks]
format = "current"
[[webhooks.endpoint]]
name = "one"
url = "https://u:sekrit@one.example.com/"
secret_file = "DIR/secret"
projects = [7, "Checkout"]
tags = ["billing", 3]
kinds = ["FLAG_DELETED", "NEW_VERSION_PUBLISHED"]
headers = { X-Token = "sekrit" }
timeout = "3s"
max_in_flight = 2
client_certificate = "DIR/client.pem"
client_key = "DIR/client.key"
[[webhooks.endpoint]]
name = "two"
url = "http://two.example.com/"
credential = "credential"
format = "classic"
[[webhooks.endpoint]]
url = "https://db.example.com/"
verify = false
format = "classic"
"#,
    )
    .unwrap();
    let one = config.targets.endpoint(configured("one")).unwrap();
    assert_eq!(
        (one.url.as_str(), one.secret.as_str()),
        ("https://u:sekrit@one.example.com/", "sekrit-of-a-file")
    );
    assert_eq!(config.targets.endpoint(configured("two")).unwrap().secret, "sekrit-of-systemd");
    let options = config.endpoint_options(configured("one"), "").unwrap();
    assert_eq!((options.timeout, options.max_in_flight), (Some(Duration::from_secs(3)), Some(2)));
    assert!(options.headers["x-token"].is_sensitive() && options.tls.verifies());
    let in_database = EndpointKey::Environment(1);
    assert!(!config.endpoint_options(in_database, "https://db.example.com/").unwrap().tls.verifies());
    assert!(config.endpoint_options(in_database, "https://db.example.com/other").is_none());
    // An endpoint of its own takes nothing from an entry for the database's.
    assert!(config.endpoint_options(configured("two"), "https://db.example.com/").unwrap().tls.verifies());
    let [one, two] = &config.subscriptions[..] else { panic!("two") };
    assert_eq!((one.format, two.format), (Format::Current, Format::Classic));
    assert_eq!(one.projects, [Wanted::Id(7), Wanted::Name("Checkout".into())]);
    assert_eq!(one.tags, [Wanted::Name("billing".into()), Wanted::Id(3)]);
    assert!(one.asks_for_tags() && !two.asks_for_tags());
    assert_eq!(one.kinds, [Kind::FlagDeleted, Kind::NewVersionPublished]);
    assert!(!format!("{config:?}").contains("sekrit"));
}

#[test]
fn what_is_wrong_is_named_with_its_entry_and_without_its_value() {
    for (entry, part) in [
        ("", "url is no http or https URL"),
        ("url = \"sekrit\"", "url is no http or https URL"),
        ("url = \"ftp://u:sekrit@x/\"", "url is no http or https URL"),
        ("name = \"No\"\nurl = \"http://x/\"", "webhooks.endpoint.name"),
        ("url = \"http://u:sekrit@x/\"\nformat = \"modern\"", "webhooks.endpoint http://x/: format"),
        ("url = \"http://x/\"\nsecret_file = \"DIR/secret\"", "give it a name"),
        ("url = \"http://x/\"\nkinds = [\"FLAG_UPDATED\"]", "kinds is for an endpoint that has a name"),
        ("url = \"http://x/\"\ntags = [3]", "tags is for an endpoint that has a name"),
        (
            "name = \"a\"\nurl = \"http://x/\"\nsecret_file = \"/nowhere\"",
            "secret_file /nowhere cannot be read",
        ),
        ("name = \"a\"\nurl = \"http://x/\"\nsecret_file = \"DIR/empty\"", "is empty"),
        ("name = \"a\"\nurl = \"http://x/\"\ncredential = \"nothing\"", "credential"),
        ("name = \"a\"\nurl = \"http://x/\"\ncredential = \"../x\"", "no name of a credential"),
        ("name = \"a\"\nurl = \"http://x/\"\ncredential = \"x\"\nsecret_file = \"y\"", "remove one"),
        ("name = \"a\"\nurl = \"http://x/\"\nkinds = [\"EVERYTHING\"]", "use some of FLAG_UPDATED"),
        ("name = \"a\"\nurl = \"http://x/\"\nkinds = [\"NEW_VERSION_PUBLISHED\"]", "format = \"current\""),
        ("name = \"a\"\nurl = \"http://x/\"\nfeatures = [1.5]", "an id (a number) or a name"),
        ("url = \"http://x/\"\ntimeout = \"0\"", "timeout is 0"),
        ("url = \"http://x/\"\nmax_in_flight = 0", "max_in_flight is 0"),
        ("url = \"http://x/\"\nheaders = { Webhook-Id = \"sekrit\" }", "is flagpost's own"),
        ("url = \"http://x/\"\nheaders = { Content-Type = \"sekrit\" }", "is flagpost's own"),
        ("url = \"http://x/\"\nheaders = { \"a b\" = \"sekrit\" }", "no name of a header"),
        ("url = \"http://x/\"\nheaders = { A = \"sekrit\\n\" }", "printable ASCII"),
        ("url = \"http://x/\"\nclient_key = \"DIR/client.key\"", "belong together"),
        (
            "url = \"http://x/\"\nclient_certificate = \"/nowhere\"\nclient_key = \"DIR/client.key\"",
            "/nowhere cannot be read",
        ),
        (
            "url = \"http://x/\"\nclient_certificate = \"DIR/secret\"\nclient_key = \"DIR/client.key\"",
            "do not hold a certificate",
        ),
        (
            "url = \"http://x/\"\nclient_certificate = \"DIR/client.pem\"\nclient_key = \"DIR/other.key\"",
            "does not belong",
        ),
        ("url = \"http://x/\"\n[[webhooks.endpoint]]\nurl = \"http://x/\"", "two of this URL"),
        (
            "name = \"a\"\nurl = \"http://x/\"\n[[webhooks.endpoint]]\nname = \"a\"\nurl = \"http://y/\"",
            "two of this name",
        ),
        ("name = \"a\"\nurl = \"http://x/\"\n[network]\nhttps_only = true", "network.https_only"),
        ("url = \"https://x/\"\n[network]\nca_file = \"/nowhere\"", "network.ca_file /nowhere"),
        ("url = \"https://x/\"\n[network]\nca_file = \"DIR/secret\"", "there is no certificate in it"),
    ] {
        let error = load(&format!("[[webhooks.endpoint]]\n{entry}\n")).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(text.contains(part) && text.lines().count() == 1, "{entry}: {text:?} does not name {part:?}");
        assert!(!text.contains("sekrit"), "{text}");
    }
}
