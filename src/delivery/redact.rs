//! An endpoint's URL as it may be shown: without userinfo, query and fragment, which can carry credentials.

use url::Url;

/// What is shown of something that is no URL: none of it, since it can hold anything.
const NO_URL: &str = "(no URL)";

/// `text` as it may be shown.
pub fn redacted(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return NO_URL.into() };
    let hidden = url.query().is_some() || url.fragment().is_some();
    url.set_query(None);
    url.set_fragment(None);
    // Fails for URLs without a host, which have no userinfo either.
    if url.cannot_be_a_base() || url.set_username("").is_err() || url.set_password(None).is_err() {
        return format!("{}:…", url.scheme());
    }
    if hidden { format!("{url}?…") } else { url.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_credential_is_shown() {
        for (url, shown) in [
            ("https://example.com/hook", "https://example.com/hook"),
            ("https://u:sekrit@example.com:8443/hook", "https://example.com:8443/hook"),
            ("https://example.com/hook?token=sekrit", "https://example.com/hook?…"),
            ("https://example.com/#sekrit", "https://example.com/?…"),
            ("mailto:sekrit@example.com", "mailto:…"),
            ("sekrit", "(no URL)"),
            ("", "(no URL)"),
        ] {
            assert_eq!(redacted(url), shown);
        }
        assert!(!redacted("file://sekrit:sekrit@/x").contains("sekrit"));
    }
}
