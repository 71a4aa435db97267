//! Text for people to read: characters that could move a cursor, forge a line or reverse text are
//! escaped.
//!
//! File names, error texts, and images' labels and histories may come from strangers. JSON is not
//! escaped here: its encoder keeps every character exactly.

use std::borrow::Cow;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Returns `text` on one line: each control character is escaped, line ends and tabs included.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_unprintable)
}

/// Returns `text` with its line ends and tabs, but every other control character escaped.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |character| {
        !matches!(character, '\n' | '\t') && is_unprintable(character)
    })
}

/// Returns a path on one line; bytes that are not UTF-8 are shown as `\xNN`.
#[must_use]
pub fn printable_path(path: &Path) -> String {
    let mut shown = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        shown.push_str(&printable(chunk.valid()));
        for byte in chunk.invalid() {
            // Writing to a string never fails.
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_escaped(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// Returns true for control characters, and for those of Unicode that end a line or change the
/// direction of text.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn control_characters_are_escaped_and_other_text_is_not() {
        assert_eq!(
            printable("a\nb\t\x1b[2J\x07\u{9b}\u{7f}"),
            "a\\nb\\t\\u{1b}[2J\\u{7}\\u{9b}\\u{7f}"
        );
        assert_eq!(printable("müde \\ 日本"), "müde \\ 日本");
        assert!(matches!(printable("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn characters_that_turn_text_around_are_escaped() {
        assert_eq!(
            printable("a\u{202e}b\u{2066}\u{2028}"),
            "a\\u{202e}b\\u{2066}\\u{2028}"
        );
    }

    #[test]
    fn lines_stay_lines_where_they_may() {
        assert_eq!(printable_lines("a\nb\tc\r\x1b"), "a\nb\tc\\r\\u{1b}");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_numbers() {
        let path = Path::new(OsStr::from_bytes(b"/a\xff\n\xc3\xa4\xc3"));
        assert_eq!(printable_path(path), "/a\\xff\\nä\\xc3");
    }
}
