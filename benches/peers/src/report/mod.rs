//! The results for people: a table on the terminal, Markdown, and a page with charts.

mod charts;
mod page;
mod table;

pub(crate) use charts::summary;
pub(crate) use page::page;
pub(crate) use table::{changes, markdown, terminal};

use crate::results::{Key, Results, Series, Unit};
use crate::statistics::{Summary, times_better};

/// The peer to which ratios refer.
pub(crate) const OURS: &str = "cowshed";

/// Formats a number with its unit, as short as is exact enough.
pub(crate) fn format(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Iops => scaled(value, 1000.0, &["", " k", " M"]),
        Unit::TransactionsPerSecond => scaled(value, 1000.0, &["/s", " k/s", " M/s"]),
        Unit::BytesPerSecond => scaled(value, 1000.0, &[" B/s", " kB/s", " MB/s", " GB/s"]),
        Unit::Seconds => seconds(value),
        Unit::Bytes => bytes(value),
        Unit::Ratio | Unit::Amplification => digits(value),
    }
}

/// Formats a size.
pub(crate) fn bytes(value: f64) -> String {
    scaled(value, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"])
}

fn seconds(value: f64) -> String {
    if value >= 1.0 {
        return format!("{} s", digits(value));
    }
    if value >= 1e-3 {
        return format!("{} ms", digits(value * 1e3));
    }
    format!("{} µs", digits(value * 1e6))
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut number = 0;
    // A value that would be rounded up to the step is shown in the next unit.
    while value >= step - 0.5 && number + 1 < units.len() {
        value /= step;
        number += 1;
    }
    format!("{}{}", digits(value), units[number])
}

/// Formats with at most three digits, if there is a fraction.
pub(crate) fn digits(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        "0".into()
    } else if size >= 99.95 {
        format!("{value:.0}")
    } else if size >= 9.995 {
        format!("{value:.1}")
    } else if size >= 0.0995 {
        format!("{value:.2}")
    } else {
        // Two digits, wherever they begin.
        let zeros = -size.log10().floor();
        format!("{value:.*}", (zeros + 1.0).clamp(2.0, 9.0) as usize)
    }
}

/// Formats a median with the minimum and maximum of the rounds.
pub(crate) fn spread(unit: Unit, summary: Summary) -> String {
    format!(
        "{} to {}",
        format(unit, summary.min),
        format(unit, summary.max)
    )
}

/// All peers' series of one kind of work.
pub(crate) struct Row<'a> {
    pub(crate) work: &'a str,
    pub(crate) unit: Unit,
    pub(crate) series: Vec<&'a Series>,
}

/// Returns the rows of a group on a backing.
pub(crate) fn rows<'a>(results: &'a Results, backing: &str, group: &str) -> Vec<Row<'a>> {
    let mut rows: Vec<Row> = Vec::new();
    for series in &results.series {
        if series.backing != backing || series.group != group || series.summary.is_none() {
            continue;
        }
        match rows.iter_mut().find(|row| row.work == series.work) {
            Some(row) => row.series.push(series),
            None => rows.push(Row {
                work: &series.work,
                unit: series.unit,
                series: vec![series],
            }),
        }
    }
    // Each job began with another peer; readers expect one order.
    let place = |series: &&Series| {
        let mut peers = results.peers.iter();
        let of = |name: &str| series.peer == name || series.peer.starts_with(&format!("{name} ("));
        let exact = results
            .peers
            .iter()
            .position(|peer| peer.name == series.peer);
        exact.or_else(|| peers.position(|peer| of(&peer.name)))
    };
    for row in &mut rows {
        row.series.sort_by_key(place);
    }
    rows
}

/// Returns the groups that a backing has, in the order of the run.
pub(crate) fn groups<'a>(results: &'a Results, backing: &str) -> Vec<&'a str> {
    results.distinct(|series| (series.backing == backing).then_some(series.group.as_str()))
}

/// Returns how many times better cowshed is than the peer of `series`, if both were measured.
pub(crate) fn ratio(results: &Results, series: &Series) -> Option<Summary> {
    if series.peer == OURS {
        return None;
    }
    let ours = results.find(&Key {
        backing: &series.backing,
        group: &series.group,
        work: &series.work,
        peer: OURS,
    })?;
    times_better(&ours.samples, &series.samples, series.higher_is_better)
}

/// Returns true if a peer is a limit rather than an alternative.
pub(crate) fn is_limit(peer: &str) -> bool {
    peer.starts_with("plain file") || peer.starts_with("empty server")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_the_right_unit() {
        let cases = [
            (Unit::Iops, 149_312.0, "149 k"),
            (Unit::Iops, 999.7, "1.00 k"),
            (Unit::Iops, 42.0, "42.0"),
            (Unit::TransactionsPerSecond, 870.4, "870/s"),
            (Unit::TransactionsPerSecond, 3105.6, "3.11 k/s"),
            (Unit::BytesPerSecond, 5.5e9, "5.50 GB/s"),
            (Unit::Seconds, 0.000_012_3, "12.3 µs"),
            (Unit::Seconds, 0.25, "250 ms"),
            (Unit::Seconds, 61.0, "61.0 s"),
            (Unit::Bytes, 4096.0, "4.00 KiB"),
            (Unit::Bytes, 1_073_741_824.0, "1.00 GiB"),
            (Unit::Bytes, 0.0, "0 B"),
            (Unit::Ratio, 0.976, "0.98"),
            (Unit::Ratio, 0.002_71, "0.0027"),
            (Unit::Ratio, 0.05, "0.050"),
            (Unit::Amplification, 16.04, "16.0"),
        ];
        for (unit, value, expected) in cases {
            assert_eq!(format(unit, value), expected);
        }
    }
}
