//! JSON text exactly as Python's `json.dumps(…, sort_keys=True)` writes it: the form in which Flagsmith signs a body.
//!
//! Separators `", "` and `": "`, everything outside printable ASCII as `\uXXXX` (surrogate pairs above U+FFFF), floats as
//! Python's `repr`. Keys are sorted because `serde_json` keeps objects in a `BTreeMap`.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{CharEscape, Formatter, Serializer};

/// The text form of a value.
pub(super) fn write(value: &Value) -> String {
    let mut out = Vec::with_capacity(1024);
    let mut serializer = Serializer::with_formatter(&mut out, Python);
    // Writing to a Vec cannot fail, and a Value has string keys only.
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8(out).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut units = [0u16; 2];
        for c in fragment.chars() {
            if c.is_ascii() && c != '\u{7f}' {
                out.write_all(&[c as u8])?;
                continue;
            }
            for unit in c.encode_utf16(&mut units) {
                write!(out, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, out: &mut W, escape: CharEscape) -> io::Result<()> {
        match escape {
            CharEscape::Quote => out.write_all(b"\\\""),
            CharEscape::ReverseSolidus => out.write_all(b"\\\\"),
            CharEscape::Solidus => out.write_all(b"/"),
            CharEscape::Backspace => out.write_all(b"\\b"),
            CharEscape::FormFeed => out.write_all(b"\\f"),
            CharEscape::LineFeed => out.write_all(b"\\n"),
            CharEscape::CarriageReturn => out.write_all(b"\\r"),
            CharEscape::Tab => out.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => write!(out, "\\u{byte:04x}"),
        }
    }
}

/// Python's `float.__repr__`: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let shortest = format!("{value:e}");
    let Some((digits, exponent)) = shortest.split_once('e') else { return shortest };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_is_what_python_writes() {
        // Right-hand sides: CPython 3.11, json.dumps(…, sort_keys=True).
        for (value, python) in [
            (json!({"b": 1, "a": [1, 2, {"c": null}]}), r#"{"a": [1, 2, {"c": null}], "b": 1}"#),
            (json!([]), "[]"),
            (json!({}), "{}"),
            (
                json!("zażółć 🎉 <b>\"q\"</b> \\ /\t\n end"),
                "\"za\\u017c\\u00f3\\u0142\\u0107 \\ud83c\\udf89 <b>\\\"q\\\"</b> \\\\ /\\t\\n end\"",
            ),
            (json!("\u{7f}\u{2028}\u{0}\u{1f}\u{8}\u{c}\r"), "\"\\u007f\\u2028\\u0000\\u001f\\b\\f\\r\""),
        ] {
            assert_eq!(write(&value), python);
        }
    }

    #[test]
    fn floats_are_what_python_writes() {
        for (value, python) in [
            (30.0, "30.0"),
            (55.5, "55.5"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (33.333_333_333_333_336, "33.333333333333336"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
        ] {
            assert_eq!(python_float(value), python);
        }
    }
}
