//! How results look: tables, lists of facts, times and ids for people.

use super::size::human;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use std::time::{Duration, SystemTime};

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// Text, on the left.
    Text(&'static str),
    /// A number or size, on the right.
    Number(&'static str),
}

/// A table without rules and without wrapping, so that `grep` and `cut` can read it too; empty
/// when there are no rows but for its head.
#[must_use]
pub(super) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = bare_table();
    table.set_header(columns.iter().map(|column| match column {
        Column::Text(head) | Column::Number(head) => *head,
    }));
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in columns.iter().enumerate() {
        if let (Column::Number(_), Some(column)) = (column, table.column_mut(index)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    finish(&mut table)
}

/// Facts as two columns: what, and its value.
#[must_use]
pub(super) fn facts(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = bare_table();
    for (what, value) in rows {
        table.add_row(vec![what.to_owned(), value]);
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

/// A time in RFC 3339, in whole seconds, as JSON and people get it.
#[must_use]
pub(super) fn time(time: SystemTime) -> String {
    /// The last second that has four digits for its year.
    const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);
    // What lies outside comes only from a wrong clock, and could not be written.
    let first = SystemTime::UNIX_EPOCH;
    humantime::format_rfc3339_seconds(time.clamp(first, first + LAST_SECOND)).to_string()
}

/// A size for people with its exact bytes.
#[must_use]
pub(super) fn exact(len_bytes: u64) -> String {
    if len_bytes < 1024 {
        human(len_bytes)
    } else {
        format!("{} ({len_bytes} bytes)", human(len_bytes))
    }
}

/// `count` and the word for it.
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
