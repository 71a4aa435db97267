//! Tables for the terminal and in Markdown.

use super::{digits, format, groups, ratio, rows, spread};
use crate::results::{Comparison, Results};
use crate::statistics::Verdict;

use comfy_table::{ContentArrangement, Table, presets};
use std::fmt::Write;

/// Returns everything, with a line for each measurement and peer.
pub(crate) fn terminal(results: &Results) -> String {
    let mut text = String::new();
    for backing in &results.backings {
        let mut table = new_table(&["what", "peer", "median", "rounds", "cowshed is"]);
        for group in groups(results, &backing.name) {
            table.add_row([group.to_uppercase()]);
            for row in rows(results, &backing.name, group) {
                for (position, series) in row.series.iter().enumerate() {
                    let Some(summary) = series.summary else {
                        continue;
                    };
                    let times = ratio(results, series);
                    table.add_row([
                        if position == 0 { row.work } else { "" }.to_owned(),
                        if results.is_unsound(&series.backing, &series.peer) {
                            format!("{} (loses data)", series.peer)
                        } else {
                            series.peer.clone()
                        },
                        format(row.unit, summary.median),
                        spread(row.unit, summary),
                        times.map_or_else(String::new, |times| {
                            format!(
                                "{} times ({} to {})",
                                digits(times.median),
                                digits(times.min),
                                digits(times.max)
                            )
                        }),
                    ]);
                }
            }
        }
        let _ = writeln!(text, "\n{}\n{table}", backing.name);
    }
    text
}

/// Returns a table for each backing, with a column for each peer.
pub(crate) fn markdown(results: &Results) -> String {
    let mut text = String::new();
    for backing in &results.backings {
        let of = |blocks: bool| {
            let names = groups(results, &backing.name);
            names
                .into_iter()
                .filter(move |name| name.starts_with("roots") != blocks)
                .collect::<Vec<_>>()
        };
        for groups in [of(true), of(false)] {
            let all: Vec<_> = groups
                .iter()
                .flat_map(|group| rows(results, &backing.name, group))
                .collect();
            let mut peers: Vec<&str> = Vec::new();
            for series in all.iter().flat_map(|row| &row.series) {
                if !peers.contains(&series.peer.as_str()) {
                    peers.push(&series.peer);
                }
            }
            if peers.is_empty() {
                continue;
            }
            let _ = writeln!(text, "\n| {} | {} |", backing.name, peers.join(" | "));
            let _ = writeln!(text, "|---|{}", "---|".repeat(peers.len()));
            for row in all {
                let cell = |peer: &&str| {
                    let series = row.series.iter().find(|series| series.peer == **peer);
                    let summary = series.and_then(|series| series.summary);
                    summary.map_or_else(String::new, |summary| format(row.unit, summary.median))
                };
                let cells: Vec<_> = peers.iter().map(cell).collect();
                let _ = writeln!(text, "| {} | {} |", row.work, cells.join(" | "));
            }
        }
    }
    text
}

/// Returns the differences of two builds.
pub(crate) fn changes(comparison: &Comparison) -> String {
    let mut table = new_table(&["where", "what", "before", "after", "change", ""]);
    for change in &comparison.changes {
        let difference = (change.after.median / change.before.median - 1.0) * 100.0;
        table.add_row([
            change.backing.clone(),
            change.work.clone(),
            format(change.unit, change.before.median),
            format(change.unit, change.after.median),
            if difference.is_finite() {
                format!("{difference:+.1} %")
            } else {
                String::new()
            },
            word(change.verdict).to_owned(),
        ]);
    }
    format!(
        "\nbefore: {}\nafter:  {}\n{table}",
        comparison.before, comparison.after
    )
}

pub(super) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "BETTER",
        Verdict::Worse => "WORSE",
        Verdict::Noise => "within noise",
        Verdict::TooFewRounds => "too few rounds to say",
    }
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}
