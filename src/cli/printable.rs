//! Text from outside as a terminal may show it: names of features and answers of endpoints can hold anything.

/// `text` in one line, without control characters and what turns the direction of writing.
pub(super) fn one_line(text: &str) -> String {
    text.chars().flat_map(|c| escaped(c, false)).collect()
}

/// The same with the lines as they are.
pub(super) fn lines(text: &str) -> String {
    text.chars().flat_map(|c| escaped(c, true)).collect()
}

/// At most `most` characters.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn escaped(c: char, keeps_lines: bool) -> impl Iterator<Item = char> {
    let is_kept = keeps_lines && c == '\n';
    let turns =
        matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{200E}' | '\u{200F}' | '\u{061C}');
    let is_bad = !is_kept && (c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}'));
    let (escape, plain) = if is_bad { (Some(c.escape_default()), None) } else { (None, Some(c)) };
    escape.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_play_with_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc\u{9b}d\u{202e}e"), "a\\u{1b}[2Jb\\nc\\u{9b}d\\u{202e}e");
        assert_eq!(lines("zażółć 🎉\n\tx"), "zażółć 🎉\n\\tx");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(cut("żółw", 2), "żó…");
        assert_eq!(cut("żółw", 4), "żółw");
    }
}
