//! The report: a page in Markdown, with its charts as SVG files beside it.

use super::{OURS, Row, charts, format, groups, is_limit, ratio, rows, spread, table};
use crate::progress::clock;
use crate::results::{Comparison, Results};
use crate::statistics::Summary;
use std::fmt::Write;
use std::time::Duration;

/// Ratios this close to 1 are called even.
const EVEN: f64 = 0.05;

/// The page, and its charts by file name.
pub(crate) struct Page {
    pub(crate) markdown: String,
    pub(crate) charts: Vec<(String, String)>,
}

/// Returns the report.
///
/// # Errors
/// When a chart cannot be drawn.
pub(crate) fn page(results: &Results) -> anyhow::Result<Page> {
    let mut text = String::from("# cowshed beside its peers\n\n");
    let mut drawn = Vec::new();
    machine(&mut text, results);
    failures(&mut text, results);
    match &results.comparison {
        Some(comparison) => compared(&mut text, comparison),
        None => verdicts(&mut text, results),
    }
    for backing in &results.backings {
        let (name, path) = (escape(&backing.name), escape(&backing.path));
        let _ = writeln!(text, "## On {name}\n\nSubjects lay in {path}.\n");
        for group in groups(results, &backing.name) {
            let rows = rows(results, &backing.name, group);
            let _ = writeln!(text, "### {}\n", escape(group));
            for chart in charts::lines(&rows)?
                .into_iter()
                .chain([charts::bars(&rows)?])
            {
                let file = format!("chart-{:02}.svg", drawn.len() + 1);
                let _ = writeln!(text, "![{}]({file})\n", escape(group));
                drawn.push((file, chart));
            }
            numbers(&mut text, results, &rows);
        }
    }
    peers(&mut text, results);
    how(&mut text, results);
    Ok(Page {
        markdown: text,
        charts: drawn,
    })
}

/// Escapes what Markdown, and the HTML in it, would take for markup.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '\\' | '|' | '`' | '*' | '_' | '[' | ']' | '#' | '!' => {
                escaped.push('\\');
                escaped.push(letter);
            }
            '\n' | '\r' => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Writes a row of a table.
fn row(text: &mut String, cells: &[String]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

/// Writes the head of a table.
fn head(text: &mut String, cells: &[&str]) {
    row(
        text,
        &cells.iter().map(ToString::to_string).collect::<Vec<_>>(),
    );
    let _ = writeln!(text, "|{}", "---|".repeat(cells.len()));
}

fn machine(text: &mut String, results: &Results) {
    let (machine, settings) = (&results.machine, &results.settings);
    let _ = writeln!(
        text,
        "{}, {} with {} cores, {} of memory, Linux {}, {} rounds, {} minutes.\n",
        escape(&results.started),
        escape(&machine.cpu),
        machine.cores,
        super::bytes(machine.memory_bytes as f64),
        escape(&machine.kernel),
        settings.rounds,
        clock(Duration::from_secs_f64(results.seconds)),
    );
    if settings.quick {
        text.push_str("This was a short run (`--quick`): small subjects and short jobs.\n\n");
    }
}

fn failures(text: &mut String, results: &Results) {
    let mut list = |heading: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            let _ = writeln!(text, "## {heading}\n\n- {}\n", lines.join("\n- "));
        }
    };
    let failed = results.failures.iter().map(|failure| {
        let parts = [&failure.backing, &failure.work, &failure.peer];
        let place: Vec<_> = parts.into_iter().map(|part| escape(part)).collect();
        format!("{}: {}", place.join(", "), escape(&failure.why))
    });
    list("What failed", failed.collect());
    let unsound = results.unsound.iter().map(|unsound| {
        let (peer, backing) = (escape(&unsound.peer), escape(&unsound.backing));
        format!(
            "{peer} on {backing}: {} (marked † below)",
            escape(&unsound.why)
        )
    });
    list("Who lost data", unsound.collect());
    list(
        "To be known",
        results.notes.iter().map(|note| escape(note)).collect(),
    );
}

fn marked(results: &Results, backing: &str, peer: &str) -> String {
    let lost = results.is_unsound(backing, peer);
    format!("{}{}", escape(peer), if lost { " †" } else { "" })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Win,
    Loss,
    Even,
}

/// Returns the class of a ratio: a win or loss only if all rounds agree.
fn class(times: Summary) -> Class {
    if times.median > 1.0 + EVEN && times.min > 1.0 {
        Class::Win
    } else if times.median < 1.0 - EVEN && times.max < 1.0 {
        Class::Loss
    } else {
        Class::Even
    }
}

/// Writes how cowshed compares with each peer in each kind of work, with the numbers of wins and
/// losses first.
fn verdicts(text: &mut String, results: &Results) {
    let times: Vec<Summary> = results
        .series
        .iter()
        .filter(|series| !series.peer.starts_with(OURS) && !is_limit(&series.peer))
        .filter_map(|series| ratio(results, series))
        .collect();
    if times.is_empty() {
        return;
    }
    let count = |wanted| {
        times
            .iter()
            .filter(|times| class(**times) == wanted)
            .count()
    };
    let _ = writeln!(
        text,
        "## Where cowshed loses, and where it wins\n\nOf {} comparisons with a peer, cowshed is \
         **behind in {}**, **ahead in {}**, and in {} the rounds do not agree or the two are within \
         5 %. A factor is how many times better cowshed is: below 1 it is worse. It is the median of \
         the rounds, in each of which both were measured in turn; the range is that of the rounds. \
         A loss is in bold, an even one in brackets. The plain file and the empty server are limits \
         and not peers; they are not counted.\n",
        times.len(),
        count(Class::Loss),
        count(Class::Win),
        count(Class::Even),
    );
    for backing in &results.backings {
        for is_roots in [false, true] {
            let of_kind = |group: &&str| group.starts_with("roots") == is_roots;
            let names = groups(results, &backing.name).into_iter().filter(of_kind);
            let all = names.flat_map(|group| rows(results, &backing.name, group));
            factors(text, results, &backing.name, &all.collect::<Vec<_>>());
        }
    }
}

/// Writes a row for each kind of work, with a column for each peer.
fn factors(text: &mut String, results: &Results, backing: &str, rows: &[Row]) {
    let mut peers: Vec<&str> = Vec::new();
    for series in rows.iter().flat_map(|row| &row.series) {
        if ratio(results, series).is_some() && !peers.contains(&series.peer.as_str()) {
            peers.push(&series.peer);
        }
    }
    if peers.is_empty() {
        return;
    }
    let first = format!("on {}", escape(backing));
    let names = peers.iter().map(|peer| {
        let limit = if is_limit(peer) { " (limit)" } else { "" };
        format!("{}{limit}", marked(results, backing, peer))
    });
    let names: Vec<String> = [first].into_iter().chain(names).collect();
    head(text, &names.iter().map(String::as_str).collect::<Vec<_>>());
    for line in rows {
        let cells = peers.iter().map(|peer| {
            let series = line.series.iter().find(|series| series.peer == *peer);
            let times = series.and_then(|series| ratio(results, series));
            times.map_or_else(String::new, factor)
        });
        let cells: Vec<String> = [escape(line.work)].into_iter().chain(cells).collect();
        row(text, &cells);
    }
    text.push('\n');
}

fn factor(times: Summary) -> String {
    let [median, min, max] = [times.median, times.min, times.max].map(super::digits);
    match class(times) {
        Class::Win => format!("{median} ({min} to {max})"),
        Class::Loss => format!("**{median}** ({min} to {max})"),
        Class::Even => format!("[{median}] ({min} to {max})"),
    }
}

fn numbers(text: &mut String, results: &Results, rows: &[Row]) {
    head(
        text,
        &["what", "peer", "median", "rounds", "cowshed is better by"],
    );
    for line in rows {
        for series in &line.series {
            let Some(summary) = series.summary else {
                continue;
            };
            row(
                text,
                &[
                    escape(line.work),
                    marked(results, &series.backing, &series.peer),
                    format(line.unit, summary.median),
                    spread(line.unit, summary),
                    ratio(results, series).map_or_else(String::new, factor),
                ],
            );
        }
    }
    text.push('\n');
}

fn compared(text: &mut String, comparison: &Comparison) {
    let _ = writeln!(
        text,
        "## What changed\n\nBefore: {}. After: {}. A change is called one if no round of one build \
         reached into the rounds of the other, and the medians differ by more than 5 %.\n",
        escape(&comparison.before),
        escape(&comparison.after)
    );
    head(text, &["where", "what", "before", "after", ""]);
    for change in &comparison.changes {
        let cell = |summary: Summary| {
            let median = format(change.unit, summary.median);
            format!("{median} ({})", spread(change.unit, summary))
        };
        row(
            text,
            &[
                escape(&change.backing),
                escape(&change.work),
                cell(change.before),
                cell(change.after),
                table::word(change.verdict).to_owned(),
            ],
        );
    }
    text.push('\n');
}

fn peers(text: &mut String, results: &Results) {
    text.push_str("## Who took part\n\n");
    head(text, &["peer", "what it is"]);
    for peer in &results.peers {
        let missing = peer
            .missing
            .as_ref()
            .map_or_else(String::new, |why| format!(" **Left out:** {}", escape(why)));
        let what = format!("{}{missing}", escape(&peer.what));
        row(text, &[escape(&peer.name), what]);
    }
    text.push('\n');
}

fn how(text: &mut String, results: &Results) {
    let _ = writeln!(text, "## How it was measured\n\n- {}\n", HOW.join("\n- "));
    head(text, &["program", "version"]);
    for program in &results.machine.programs {
        row(text, &[escape(&program.name), escape(&program.version)]);
    }
    let arguments = escape(&results.settings.arguments.join(" "));
    let _ = writeln!(
        text,
        "\nCommand: tools/bench {arguments}. All rounds of everything are in results.json beside this \
         page."
    );
}

const HOW: &[&str] = &[
    "Every round makes all subjects anew, on the same backing. Each job goes round all peers before \
     the next job, and each time another peer is first.",
    "fio reads and writes past the page cache of the device. Before and after the jobs a part of \
     each device is written at random at depth 32 with checksums and read back; where cowshed does not \
     give back what was written, or a peer does not with one request in flight, that is a failure, \
     and there is no number.",
    "Loop devices have blocks of 4 KiB and direct I/O. On a disk, the plain file and the file \
     systems on loop devices go past the host's page cache, while cowshed's pool and qcow2 go through \
     it; \"plain file (cached)\" and \"cowshed (direct)\" are the other way round.",
    "XFS and btrfs lie on a loop device of their own on a file of the backing, so that what lies on \
     them goes through two.",
    "Snapshots are taken as users take them: cowshed's with its command line, which asks its daemon; \
     reflinks with cp; qcow2's through the control socket, which starts no program, and where said \
     with qemu-img on an image that nobody serves.",
    "Space is what the backing gives (blocks, as du counts them) after pending work is written out and \
     file systems are trimmed.",
    "A plain copy has no space to pay for a changed byte: it took all of the image when it was made.",
    "Diff and commit of a container: overlayfs looks through its upper folder and packs it as a tar, \
     which is the least that it can do; copies and btrfs are compared with the image file by file \
     (type, size, mode, time) and what differs is packed; cowshed's commit makes an image, with \
     digests.",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Failure, Key, Settings, Unit};
    use crate::statistics::Sample;

    fn results() -> Results {
        let machine = crate::machine::Machine {
            cpu: "a <b>CPU</b> & more".into(),
            cores: 2,
            memory_bytes: 1 << 30,
            kernel: "6".into(),
            programs: Vec::new(),
        };
        let settings = Settings {
            arguments: vec!["--only".into(), "<script>alert(\"'\")</script>".into()],
            quick: true,
            rounds: 1,
            job_seconds: 1.0,
            subject_bytes: 1,
            pass_bytes: 1,
            mapped_bytes: 1,
            database_scale: 1,
            tree_files: 1,
            large_file_bytes: 1,
        };
        let mut results = Results::new(machine, settings, "now".into());
        results.backings.push(crate::results::BackingRecord {
            name: "memory".into(),
            file_system: "tmpfs".into(),
            path: "/a&b".into(),
        });
        for (peer, value) in [(OURS, 50.0), ("qcow2", 100.0), ("XFS <reflink>", 25.0)] {
            let key = Key {
                backing: "memory",
                group: "reads",
                work: "random <read>",
                peer,
            };
            results.add(&key, Unit::Iops, Sample { round: 0, value });
        }
        results.failures.push(Failure {
            backing: "memory".into(),
            work: "w".into(),
            peer: "p".into(),
            why: "it said <oops> & \"died\"".into(),
        });
        results
    }

    #[test]
    fn nothing_that_was_read_becomes_markup() {
        let text = page(&results()).unwrap().markdown;
        for markup in [
            "<b>CPU",
            "<script",
            "<oops>",
            "random <read>",
            "XFS <reflink>",
            "/a&b",
        ] {
            assert!(!text.contains(markup), "{markup}");
        }
        assert!(text.contains("it said &lt;oops> &amp; \"died\""));
        assert_eq!(escape("a|b`c*[d]\n"), "a\\|b\\`c\\*\\[d\\] ");
    }

    #[test]
    fn losses_are_shown_as_plainly_as_wins() {
        let text = page(&results()).unwrap().markdown;
        assert!(
            text.contains("**behind in 1**") && text.contains("**ahead in 1**"),
            "{text}"
        );
        assert!(text.contains("| **0.50** (0.50 to 0.50) |"), "{text}");
        assert!(text.contains("| 2.00 (2.00 to 2.00) |"), "{text}");
    }

    #[test]
    fn rounds_that_do_not_agree_are_no_win_and_no_loss() {
        let of = |values: &[f64]| class(Summary::of(values).unwrap());
        assert_eq!(of(&[1.2, 1.5, 1.4]), Class::Win);
        assert_eq!(of(&[0.9, 1.5, 1.4]), Class::Even);
        assert_eq!(of(&[0.9, 0.5, 0.8]), Class::Loss);
        assert_eq!(of(&[1.1, 0.5, 0.8]), Class::Even);
        assert_eq!(of(&[1.01, 1.02, 1.03]), Class::Even);
    }

    #[test]
    fn the_page_names_its_charts_and_needs_nothing_from_outside() {
        let page = page(&results()).unwrap();
        assert!(!page.charts.is_empty());
        for (file, chart) in &page.charts {
            assert!(page.markdown.contains(&format!("]({file})")), "{file}");
            assert!(chart.starts_with("<svg"), "{file}");
        }
        assert!(!page.markdown.contains("://"));
    }
}
