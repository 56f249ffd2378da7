//! What the demo says: lines for people, at most [`WIDTH`] wide, in colour only where somebody sees it.
//!
//! Colour is left out where the output is no terminal, where `NO_COLOR` is set (no-color.org) and for `TERM=dumb`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::webhook::Webhook;
use crate::error::{Error, Result};

/// No line is wider: it must fit beside something else on a screen.
const WIDTH: usize = 110;

/// How a piece of text looks; the SGR parameter of ECMA-48.
#[derive(Debug, Clone, Copy)]
pub(super) enum Look {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
}

/// Where the demo speaks.
pub(super) struct Screen {
    out: Box<dyn Write + Send>,
    is_coloured: bool,
}

impl Screen {
    /// Standard output.
    pub(super) fn standard() -> Screen {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let out = std::io::stdout();
        let is_coloured = out.is_terminal() && !is_set("NO_COLOR") && !is_dumb;
        Screen { out: Box::new(out), is_coloured }
    }

    /// The text, looking so.
    pub(super) fn paint(&self, look: Look, text: &str) -> String {
        if self.is_coloured { format!("\x1b[{}m{text}\x1b[0m", look as u8) } else { text.to_owned() }
    }

    /// One line, at once.
    pub(super) fn line(&mut self, line: &str) -> Result<()> {
        // Where nobody reads on (a closed pipe), the demo ends.
        writeln!(self.out, "{line}").and_then(|()| self.out.flush()).map_err(|e| {
            Error::internal(format!("the output cannot be written: {e}; run it where it can be")).caused_by(e)
        })
    }

    /// The headline of a part.
    pub(super) fn heading(&mut self, text: &str, more: &str) -> Result<()> {
        self.line("")?;
        let text = self.paint(Look::Bold, text);
        self.line(&text)?;
        if more.is_empty() { Ok(()) } else { self.quiet("", more) }
    }

    /// Something beside the point, cut to the width.
    pub(super) fn quiet(&mut self, indent: &str, text: &str) -> Result<()> {
        let text = cut(text, WIDTH.saturating_sub(indent.len()));
        let line = format!("{indent}{}", self.paint(Look::Dim, &text));
        self.line(&line)
    }

    /// A name and what there is to say about it.
    pub(super) fn fact(&mut self, name: &str, text: &str) -> Result<()> {
        self.line(&format!("  {name:<22}{text}"))
    }

    /// Something that is wrong.
    pub(super) fn problem(&mut self, text: &str) -> Result<()> {
        let line = format!("  {} {text}", self.paint(Look::Red, "wrong:"));
        self.line(&line)
    }

    /// A webhook: what, where, signed, how fast.
    pub(super) fn webhook(&mut self, webhook: &Webhook, took: Duration) -> Result<()> {
        let signed = if webhook.is_signed {
            self.paint(Look::Green, "signature verified")
        } else {
            self.paint(Look::Red, "SIGNATURE WRONG   ")
        };
        let Webhook { event, action, endpoint, .. } = webhook;
        self.line(&format!(
            "      {event:<18} {action:<23} → {endpoint:<14} {signed} {:>9}",
            milliseconds(took)
        ))
    }

    /// What a webhook tells, below it.
    pub(super) fn told(&mut self, text: &str) -> Result<()> {
        self.line(&format!("        {}", cut(text, WIDTH - 8)))
    }
}

/// A duration with a unit, as wide as it needs to be.
pub(super) fn milliseconds(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// A duration in seconds.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_cut_by_characters() {
        assert_eq!(cut("zażółć", 6), "zażółć");
        assert_eq!(cut("zażółć!", 6), "zażół…");
    }

    #[test]
    fn durations_are_as_exact_as_they_matter() {
        assert_eq!(milliseconds(Duration::from_micros(2_340)), "2.3 ms");
        assert_eq!(milliseconds(Duration::from_micros(112_600)), "113 ms");
    }
}
