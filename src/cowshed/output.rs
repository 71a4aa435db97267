//! The formatting of results: tables, lists of facts, times and ids for people.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use cowshed_format::base::printable;
use cowshed_format::base::size::human;
use std::time::{Duration, SystemTime};

/// The width of a usual terminal, which tables do not exceed.
const COLUMNS_MAX: usize = 80;
/// A column of text is not cut to less than this width.
const TEXT_MIN: usize = 10;
/// The characters between two columns.
const GAP: usize = 2;
/// Marks a place where text was cut.
const CUT: char = '…';

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// Text, left-aligned.
    Text(&'static str),
    /// A number or size, right-aligned.
    Number(&'static str),
}

impl Column {
    const fn head(&self) -> &'static str {
        match self {
            Self::Text(head) | Self::Number(head) => head,
        }
    }
}

/// Returns a table without rules and without wrapping, so that `grep` and `cut` can process it;
/// without rows it consists of its head.
#[must_use]
pub(super) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = bare_table();
    table.set_header(columns.iter().map(Column::head));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for (index, column) in columns.iter().enumerate() {
        if let (Column::Number(_), Some(column)) = (column, table.column_mut(index)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    finish(&mut table)
}

/// Returns a table that fits a usual terminal: long hexadecimal numbers lose their end, and if that
/// is not enough, the widest texts are cut. Cuts are marked.
#[must_use]
pub(super) fn short_table(
    columns: &[Column],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut rows: Vec<Vec<String>> = rows.into_iter().collect();
    for cell in rows.iter_mut().flatten() {
        *cell = short_numbers(cell);
    }
    let width_of = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = columns
        .iter()
        .map(|column| width_of(column.head()))
        .collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(width_of(cell));
        }
    }
    let gaps = GAP * columns.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > COLUMNS_MAX {
        let texts = columns.iter().zip(&mut widths);
        let widest = texts
            .filter(|(column, _)| matches!(column, Column::Text(_)))
            .map(|(_, width)| width)
            .max_by_key(|width| **width);
        match widest {
            Some(width) if *width > TEXT_MIN => *width -= 1,
            _ => break,
        }
    }
    for row in &mut rows {
        for (width, cell) in widths.iter().zip(row) {
            *cell = cut(cell, *width);
        }
    }
    table(columns, rows)
}

/// Shortens the hexadecimal numbers of 64 digits in a text, as Docker shows ids.
pub(super) fn short_numbers(text: &str) -> String {
    const DIGITS_LONG: usize = 64;
    const DIGITS_SHORT: usize = 12;
    let mut short = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let is_digit = |c: char| c.is_ascii_hexdigit();
        let digits = rest.find(|c| !is_digit(c)).unwrap_or(rest.len());
        if digits == DIGITS_LONG {
            short.push_str(&rest[..DIGITS_SHORT]);
            short.push(CUT);
        } else {
            short.push_str(&rest[..digits]);
        }
        rest = &rest[digits..];
        let others = rest.find(is_digit).unwrap_or(rest.len());
        short.push_str(&rest[..others]);
        rest = &rest[others..];
    }
    short
}

/// Cuts a text to `width` characters: a path in its middle, because its end tells more, and a time
/// to its date.
pub(super) fn cut(text: &str, width: usize) -> String {
    const DATE_CHARS: usize = "2023-11-14".len();
    let len = text.chars().count();
    if len <= width {
        return text.to_owned();
    }
    if width >= DATE_CHARS && humantime::parse_rfc3339(text).is_ok() {
        return text.chars().take(DATE_CHARS).collect();
    }
    let kept = width.saturating_sub(1);
    let tail = if text.contains('/') { kept * 2 / 3 } else { 0 };
    let head = text.chars().take(kept - tail);
    let tail = text.chars().skip(len - tail);
    head.chain([CUT]).chain(tail).collect()
}

/// Returns facts as two columns: the name and the value.
#[must_use]
pub(super) fn facts(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = bare_table();
    for (what, value) in rows {
        table.add_row([what.into(), printable(&value)]);
    }
    finish(&mut table)
}

fn bare_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.force_no_tty();
    table
}

fn finish(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Returns a time in RFC 3339, in whole seconds, for JSON and for people.
#[must_use]
pub(super) fn time(time: SystemTime) -> String {
    /// The last second that has four digits for its year.
    const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);
    // A time outside this range comes only from a wrong clock, and cannot be formatted.
    let first = SystemTime::UNIX_EPOCH;
    humantime::format_rfc3339_seconds(time.clamp(first, first + LAST_SECOND)).to_string()
}

/// Returns a size for people, followed by its exact bytes.
#[must_use]
pub(super) fn exact(len_bytes: u64) -> String {
    if len_bytes < 1024 {
        human(len_bytes)
    } else {
        format!("{} ({len_bytes} bytes)", human(len_bytes))
    }
}

/// Returns `count` followed by the word for it.
#[must_use]
pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_has_no_trailing_spaces() {
        let rows = vec![
            vec!["a".to_owned(), "1".to_owned()],
            vec!["longer".to_owned(), "1000".to_owned()],
        ];
        let text = table(&[Column::Text("NAME"), Column::Number("SIZE")], rows);
        assert_eq!(text, "NAME    SIZE\na          1\nlonger  1000");
    }

    #[test]
    fn a_short_table_fits_80_columns_and_marks_what_it_leaves_out() {
        let id = "0123456789abcdef".repeat(4);
        let columns = [
            Column::Text("NAME"),
            Column::Number("OWN"),
            Column::Text("CREATED"),
            Column::Text("MOUNTED"),
        ];
        let row = |name: String| {
            vec![
                name,
                "1.5 GiB".to_owned(),
                "2023-11-14T22:13:20Z".to_owned(),
                format!("/run/cowshed/30313233-3435-3637-3839-616263646566/roots/{id}/end"),
            ]
        };
        let rows = [row(format!("container/{id}")), row("web".to_owned())];
        let text = short_table(&columns, rows);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        assert!(text.contains("0123456789ab…"), "{text}");
        assert!(text.contains("2023-11-14"), "{text}");
        assert!(
            text.lines()
                .skip(1)
                .all(|line| line.ends_with("…/end") && line.contains("…"))
        );
        // A text that fits stays as it is.
        assert_eq!(
            short_table(&columns[..1], [vec![id[..63].to_owned()]]),
            format!("NAME\n{}", &id[..63])
        );
        assert_eq!(cut("äöüß", 3), "äö…");
    }

    #[test]
    fn a_cell_cannot_forge_a_row() {
        let rows = vec![vec!["a\nforged\x1b[2J".to_owned(), "1".to_owned()]];
        let text = table(&[Column::Text("NAME"), Column::Number("SIZE")], rows);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with("a\\nforged\\u{1b}[2J     1"), "{text}");
        assert_eq!(facts([("what", "x\ny".to_owned())]), "what  x\\ny");
    }

    #[test]
    fn times_are_rfc_3339_and_never_panic() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(time(at), "2023-11-14T22:13:20Z");
        assert_eq!(
            time(SystemTime::UNIX_EPOCH - Duration::from_secs(5)),
            "1970-01-01T00:00:00Z"
        );
        assert_eq!(
            time(at + Duration::from_secs(1 << 40)),
            "9999-12-31T23:59:59Z"
        );
    }
}
