//! A real Chromium without a window, driven by Debian's chromedriver over WebDriver (W3C): a page is clicked as a person clicks it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::process::LONG;

/// What an element is called in answers (WebDriver, "Elements").
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with an empty profile. It ends when it is dropped.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// With a window of this size, that prefers dark or light pages.
    pub(crate) async fn start(width: u32, height: u32, is_dark: bool) -> Browser {
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", profile.path())
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // All that it starts is in a group of its own, and is ended with it.
            .process_group(0)
            .spawn()
            .expect("chromedriver (tools/needs chromium)");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            line.split("started successfully on port ").nth(1)?.trim_end_matches('.').parse().ok()
        });
        std::thread::spawn(move || lines.for_each(drop));
        let mut browser = Browser {
            driver,
            port: port.expect("chromedriver tells its port"),
            session: String::new(),
            _profile: profile,
        };
        let folder = format!("--user-data-dir={}", browser._profile.path().join("profile").display());
        let size = format!("--window-size={width},{height}");
        let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!is_dark));
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--disable-dev-shm-usage",
            &size,
            &folder,
            &scheme,
        ];
        let options = json!({ "args": arguments });
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" }
        } } });
        let made = browser.call("POST", "", &capabilities).await;
        browser.session = made["sessionId"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        browser
    }

    /// Opens a page.
    pub(crate) async fn open(&self, url: &str) {
        self.call("POST", "/url", &json!({ "url": url })).await;
    }

    /// What a script returns.
    pub(crate) async fn run(&self, script: &str) -> Json {
        self.call("POST", "/execute/sync", &json!({ "script": script, "args": [] })).await
    }

    /// The text of the first element that a selector finds, as it is shown; empty if there is none.
    pub(crate) async fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({})?.innerText ?? ''", json!(selector));
        self.run(&script).await.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until that text contains this; returns it.
    pub(crate) async fn wait_for(&self, selector: &str, part: &str) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            let text = self.text(selector).await;
            if text.contains(part) {
                return text;
            }
            assert!(
                Instant::now() < deadline,
                "{selector} does not say {part:?} but {text:?}: {}",
                self.log().await
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Clicks on the first element that an XPath finds, with the mouse.
    pub(crate) async fn click(&self, xpath: &str) {
        let element = self.element(xpath).await;
        self.call("POST", &format!("/element/{element}/click"), &json!({})).await;
    }

    /// Types into it.
    pub(crate) async fn type_into(&self, xpath: &str, text: &str) {
        let element = self.element(xpath).await;
        self.call("POST", &format!("/element/{element}/value"), &json!({ "text": text })).await;
    }

    async fn element(&self, xpath: &str) -> String {
        let found = self.call("POST", "/element", &json!({ "using": "xpath", "value": xpath })).await;
        found[ELEMENT].as_str().unwrap_or_else(|| panic!("{xpath}: {found}")).to_owned()
    }

    /// What the browser has complained of.
    pub(crate) async fn log(&self) -> String {
        self.call("POST", "/se/log", &json!({ "type": "browser" })).await.to_string()
    }

    /// What is seen, as PNG.
    pub(crate) async fn screenshot(&self) -> Vec<u8> {
        let picture = self.call("GET", "/screenshot", &Json::Null).await;
        base64::engine::general_purpose::STANDARD.decode(picture.as_str().unwrap()).unwrap()
    }

    /// A command of the session, or (before there is one) its beginning.
    async fn call(&self, method: &str, command: &str, body: &Json) -> Json {
        let session = if self.session.is_empty() { String::new() } else { format!("/{}", self.session) };
        let url = format!("http://127.0.0.1:{}/session{session}{command}", self.port);
        let client = reqwest::Client::builder().no_proxy().timeout(LONG).build().unwrap();
        let request = client.request(method.parse().unwrap(), &url);
        let request = if body.is_null() { request } else { request.body(body.to_string()) };
        let mut answer = request.send().await.unwrap();
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.unwrap() {
            text.extend_from_slice(&chunk);
        }
        let mut said: Json = serde_json::from_slice(&text).unwrap();
        assert!(answer.status().is_success(), "{method} {command} {body}: {said}");
        said["value"].take()
    }

    /// Asks for the end; the group's end comes in any case.
    fn quit(&self) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "DELETE /session/{} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
            self.session
        )?;
        stream.read(&mut [0; 1024]).map(drop)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.quit().ok();
        if let Some(group) = Pid::from_raw(self.driver.id().cast_signed()) {
            kill_process_group(group, Signal::KILL).ok();
        }
        self.driver.wait().ok();
    }
}
