//! flagpost.toml(5), made of `flagpost.example.toml`: its comments are the documentation of the keys.
//!
//! The example's form: `[section]`; `# ` and prose; `#key = value` or `#[[table]]`, to which the prose above belongs, and which
//! may be several in a row.

use clap_mangen::roff::{Roff, bold, roman};

use super::{MANUAL, NO_DATE, SOURCE};

const EXAMPLE: &str = include_str!("../../../flagpost.example.toml");

/// A line of the example, and what it is.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Section(&'a str),
    Prose(&'a str),
    /// What stands behind the `#`.
    Key(&'a str),
    Empty,
}

fn line(text: &str) -> Line<'_> {
    match text.strip_prefix('#') {
        Some(prose) if prose.starts_with(' ') => Line::Prose(prose.trim()),
        Some("") => Line::Empty,
        Some(key) => Line::Key(key),
        None if text.starts_with('[') => Line::Section(text),
        None => Line::Empty,
    }
}

pub(super) fn page() -> String {
    let mut roff = Roff::default();
    roff.control("TH", ["flagpost.toml", "5", NO_DATE, SOURCE, MANUAL]);
    roff.control("SH", ["NAME"]).text([roman("flagpost.toml - configuration of flagpost")]);
    roff.control("SH", ["DESCRIPTION"]);
    keys(EXAMPLE, &mut roff);
    roff.control("SH", ["FILES"]).text([bold(crate::config::DEFAULT_FILE)]);
    roff.control("SH", ["SEE ALSO"]).text([bold("flagpost"), roman("(1)")]);
    roff.to_roff()
}

fn keys(example: &str, roff: &mut Roff) {
    let mut lines = example.lines().map(line).peekable();
    let mut prose = Vec::new();
    while let Some(line) = lines.next() {
        match line {
            Line::Section(name) => {
                roff.control("SH", [name]);
            }
            Line::Prose(text) => prose.push(text),
            Line::Key(key) => {
                roff.control("TP", []).text([bold(key)]);
                while let Some(Line::Key(key)) = lines.next_if(|next| matches!(next, Line::Key(_))) {
                    roff.control("TQ", []).text([bold(key)]);
                }
                roff.text([roman(std::mem::take(&mut prose).join(" "))]);
            }
            // Prose without keys: what stands above the first section.
            Line::Empty => {
                roff.text([roman(std::mem::take(&mut prose).join(" "))]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_belongs_to_the_keys_below_it() {
        let mut roff = Roff::default();
        keys(
            "# Above all.\n\n[one]\n# Of both,\n# in two lines.\n#a = 1\n#b = \"x\"\n# Of the last.\n#c = 3\n",
            &mut roff,
        );
        let text = roff.to_roff();
        let expected = [
            "Above all.",
            ".SH [one]",
            ".TP",
            "a = 1",
            ".TQ",
            "b = \"x\"",
            "Of both, in two lines.",
            ".TP",
            "c = 3",
            "Of the last.",
        ];
        let mut rest = text.as_str();
        for part in expected {
            let (_, after) = rest.split_once(part).unwrap_or_else(|| panic!("{part:?} in {text}"));
            rest = after;
        }
    }
}
