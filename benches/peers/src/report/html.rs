//! The report: one page that needs neither network nor scripts.

use super::{OURS, Row, charts, format, groups, is_limit, ratio, rows, spread, table};
use crate::progress::clock;
use crate::results::{Comparison, Results};
use crate::statistics::{Summary, Verdict};
use std::fmt::Write;
use std::time::Duration;

/// Ratios this close to 1 are called even.
const EVEN: f64 = 0.05;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d5d9df; }
h3 { margin-top: 2rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; }
th small { color: #6a717a; display: block; font-weight: normal; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #e4e7eb;
  vertical-align: top; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td small { color: #6a717a; display: block; }
.win { color: #1b7f5c; } .loss { color: #b0332b; } .even { color: #6a717a; }
.quiet { color: #6a717a; } svg { max-width: 100%; height: auto; }
";

/// Returns the whole page.
///
/// # Errors
/// When a chart cannot be drawn.
pub(crate) fn page(results: &Results) -> anyhow::Result<String> {
    let mut page = String::new();
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
        <meta name=\"viewport\" content=\"width=device-width\"><title>cowshed beside its \
        peers</title><style>{STYLE}</style></head><body>\n<h1>cowshed beside its peers</h1>\n"
    );
    machine(&mut page, results);
    failures(&mut page, results);
    if let Some(comparison) = &results.comparison {
        compared(&mut page, comparison);
    } else {
        verdicts(&mut page, results);
    }
    for backing in &results.backings {
        let _ = writeln!(page, "<h2>On {}</h2>", escape(&backing.name));
        let path = escape(&backing.path);
        let _ = writeln!(page, "<p class=\"quiet\">Subjects lay in {path}.</p>");
        for group in groups(results, &backing.name) {
            let rows = rows(results, &backing.name, group);
            let _ = writeln!(page, "<h3>{}</h3>", escape(&capital(group)));
            if let Some(lines) = charts::lines(&rows)? {
                page.push_str(&lines);
            }
            page.push_str(&charts::bars(&rows)?);
            numbers(&mut page, results, &rows);
        }
    }
    peers(&mut page, results);
    how(&mut page, results);
    page.push_str("</body></html>\n");
    Ok(page)
}

/// Escapes text for HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters
        .next()
        .map(|letter| letter.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}

fn machine(page: &mut String, results: &Results) {
    let (machine, settings) = (&results.machine, &results.settings);
    let _ = writeln!(
        page,
        "<p class=\"quiet\">{} &middot; {} with {} cores, {} of memory &middot; Linux {} &middot; {} \
        rounds, {} minutes</p>",
        escape(&results.started),
        escape(&machine.cpu),
        machine.cores,
        super::bytes(machine.memory_bytes as f64),
        escape(&machine.kernel),
        settings.rounds,
        clock(Duration::from_secs_f64(results.seconds)),
    );
    if settings.quick {
        page.push_str(
            "<p>This was a short run (<code>--quick</code>): small subjects and short jobs.</p>\n",
        );
    }
}

fn failures(page: &mut String, results: &Results) {
    if !results.failures.is_empty() {
        page.push_str("<h2 class=\"loss\">What failed</h2>\n<ul>\n");
        for failure in &results.failures {
            let _ = writeln!(
                page,
                "<li>{}, {}, {}: {}</li>",
                escape(&failure.backing),
                escape(&failure.work),
                escape(&failure.peer),
                escape(&failure.why)
            );
        }
        page.push_str("</ul>\n");
    }
    if !results.unsound.is_empty() {
        page.push_str("<h2 class=\"loss\">Who lost data</h2>\n<ul>\n");
        for unsound in &results.unsound {
            let _ = writeln!(
                page,
                "<li>{} on {}: {}.</li>",
                escape(&unsound.peer),
                escape(&unsound.backing),
                escape(&unsound.why)
            );
        }
        page.push_str("</ul>\n<p>They are marked with &dagger; below.</p>\n");
    }
    if !results.notes.is_empty() {
        page.push_str("<h2>To be known</h2>\n<ul>\n");
        for note in &results.notes {
            let _ = writeln!(page, "<li>{}</li>", escape(note));
        }
        page.push_str("</ul>\n");
    }
}

fn dagger(results: &Results, backing: &str, peer: &str) -> &'static str {
    if results.is_unsound(backing, peer) {
        " &dagger;"
    } else {
        ""
    }
}

/// Returns the class of a ratio: a win or loss only if all rounds agree.
fn class(times: Summary) -> &'static str {
    if times.median > 1.0 + EVEN && times.min > 1.0 {
        "win"
    } else if times.median < 1.0 - EVEN && times.max < 1.0 {
        "loss"
    } else {
        "even"
    }
}

/// Writes how cowshed compares with each peer in each kind of work, with the numbers of wins and
/// losses first.
fn verdicts(page: &mut String, results: &Results) {
    let times: Vec<Summary> = results
        .series
        .iter()
        .filter(|series| !series.peer.starts_with(OURS) && !is_limit(&series.peer))
        .filter_map(|series| ratio(results, series))
        .collect();
    if times.is_empty() {
        return;
    }
    let count = |word| times.iter().filter(|times| class(**times) == word).count();
    let _ = writeln!(
        page,
        "<h2>Where cowshed loses, and where it wins</h2>\n<p>Of {} comparisons with a peer, cowshed \
        is <b class=\"loss\">behind in {}</b>, <b class=\"win\">ahead in {}</b>, and in {} the \
        rounds do not agree or the two are within 5 %. A factor is how many times better cowshed is: below 1 it is worse. It is the median of \
        the rounds, in each of which both were measured in turn; the range is that of the rounds. \
        The plain file and the empty server are limits and not peers; they are not counted.</p>",
        times.len(),
        count("loss"),
        count("win"),
        count("even"),
    );
    for backing in &results.backings {
        for is_roots in [false, true] {
            let mut all = Vec::new();
            for group in groups(results, &backing.name) {
                if group.starts_with("roots") == is_roots {
                    let rows = rows(results, &backing.name, group);
                    all.extend(rows.into_iter().map(|row| (group, row)));
                }
            }
            factors(page, results, &backing.name, &all);
        }
    }
}

/// Writes a row for each kind of work, with a column for each peer.
fn factors(page: &mut String, results: &Results, backing: &str, rows: &[(&str, Row)]) {
    let mut peers: Vec<&str> = Vec::new();
    for series in rows.iter().flat_map(|(_, row)| &row.series) {
        if ratio(results, series).is_some() && !peers.contains(&series.peer.as_str()) {
            peers.push(&series.peer);
        }
    }
    if peers.is_empty() {
        return;
    }
    let _ = write!(page, "<table><tr><th>on {}</th>", escape(backing));
    for peer in &peers {
        let limit = if is_limit(peer) {
            "<small>limit</small>"
        } else {
            ""
        };
        let mark = dagger(results, backing, peer);
        let _ = write!(page, "<th>{}{mark}{limit}</th>", escape(peer));
    }
    page.push_str("</tr>\n");
    let mut last = "";
    for (group, row) in rows {
        if *group != last {
            let columns = peers.len() + 1;
            let name = escape(&capital(group));
            let _ = writeln!(page, "<tr><th colspan=\"{columns}\">{name}</th></tr>");
            last = group;
        }
        let _ = write!(page, "<tr><td>{}</td>", escape(row.work));
        for peer in &peers {
            let series = row.series.iter().find(|series| series.peer == *peer);
            let times = series.and_then(|series| ratio(results, series));
            page.push_str(&times.map_or_else(|| "<td></td>".into(), factor));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n");
}

fn factor(times: Summary) -> String {
    format!(
        "<td class=\"number {}\">{}<small>{} to {}</small></td>",
        class(times),
        super::digits(times.median),
        super::digits(times.min),
        super::digits(times.max)
    )
}

fn numbers(page: &mut String, results: &Results, rows: &[Row]) {
    page.push_str(
        "<details><summary>The numbers</summary><table><tr><th>what</th><th>peer</th>\
        <th>median</th><th>cowshed is better by the factor</th></tr>\n",
    );
    for row in rows {
        for (position, series) in row.series.iter().enumerate() {
            let Some(summary) = series.summary else {
                continue;
            };
            let times = ratio(results, series).map_or_else(|| "<td></td>".into(), factor);
            let _ = writeln!(
                page,
                "<tr><td>{}</td><td>{}{}</td><td class=\"number\">{}<small>{}</small></td>\
                {times}</tr>",
                if position == 0 {
                    escape(row.work)
                } else {
                    String::new()
                },
                escape(&series.peer),
                dagger(results, &series.backing, &series.peer),
                format(row.unit, summary.median),
                spread(row.unit, summary),
            );
        }
    }
    page.push_str("</table></details>\n");
}

fn compared(page: &mut String, comparison: &Comparison) {
    let _ = writeln!(
        page,
        "<h2>What changed</h2>\n<p>Before: {}. After: {}. A change is called one if no round of one \
        build reached into the rounds of the other, and the medians differ by more than 5 %.</p>\n\
        <table><tr><th>where</th><th>what</th><th>before</th><th>after</th><th></th></tr>",
        escape(&comparison.before),
        escape(&comparison.after)
    );
    for change in &comparison.changes {
        let class = match change.verdict {
            Verdict::Better => "win",
            Verdict::Worse => "loss",
            Verdict::Noise | Verdict::TooFewRounds => "even",
        };
        let cell = |summary: Summary| {
            format!(
                "<td class=\"number\">{}<small>{}</small></td>",
                format(change.unit, summary.median),
                spread(change.unit, summary)
            )
        };
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td>{}{}<td class=\"{class}\">{}</td></tr>",
            escape(&change.backing),
            escape(&change.work),
            cell(change.before),
            cell(change.after),
            table::word(change.verdict)
        );
    }
    page.push_str("</table>\n");
}

fn peers(page: &mut String, results: &Results) {
    page.push_str("<h2>Who took part</h2>\n<table><tr><th>peer</th><th>what it is</th></tr>\n");
    for peer in &results.peers {
        let missing = peer.missing.as_ref().map_or_else(String::new, |why| {
            format!("<br><b>Left out:</b> {}", escape(why))
        });
        let (name, what) = (escape(&peer.name), escape(&peer.what));
        let _ = writeln!(page, "<tr><td>{name}</td><td>{what}{missing}</td></tr>");
    }
    page.push_str("</table>\n");
}

fn how(page: &mut String, results: &Results) {
    page.push_str("<h2>How it was measured</h2>\n<ul>\n");
    for line in HOW {
        let _ = writeln!(page, "<li>{line}</li>");
    }
    page.push_str("</ul>\n<table><tr><th>program</th><th>version</th></tr>\n");
    for program in &results.machine.programs {
        let (name, version) = (escape(&program.name), escape(&program.version));
        let _ = writeln!(page, "<tr><td>{name}</td><td>{version}</td></tr>");
    }
    let arguments = escape(&results.settings.arguments.join(" "));
    let _ = writeln!(
        page,
        "</table>\n<p class=\"quiet\">Command: <code>tools/bench {arguments}</code>. All rounds of \
        everything are in results.json beside this page.</p>"
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
     it; &ldquo;plain file (cached)&rdquo; and &ldquo;cowshed (direct)&rdquo; are the other way round.",
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
        let page = page(&results()).unwrap();
        for text in [
            "<b>CPU",
            "<script",
            "<oops>",
            "random <read>",
            "XFS <reflink>",
            "/a&b",
        ] {
            assert!(!page.contains(text), "{text}");
        }
        assert!(page.contains("it said &lt;oops&gt; &amp; &quot;died&quot;"));
        assert!(page.contains("alert(&quot;&#39;&quot;)"));
    }

    #[test]
    fn losses_are_shown_as_plainly_as_wins() {
        let page = page(&results()).unwrap();
        assert!(
            page.contains("behind in 1<") && page.contains("ahead in 1<"),
            "{page}"
        );
        let factors = ["class=\"number loss\">0.50<", "class=\"number win\">2.00<"];
        assert!(factors.iter().all(|factor| page.contains(factor)), "{page}");
    }

    #[test]
    fn rounds_that_do_not_agree_are_no_win_and_no_loss() {
        let of = |values: &[f64]| class(Summary::of(values).unwrap());
        assert_eq!(of(&[1.2, 1.5, 1.4]), "win");
        assert_eq!(of(&[0.9, 1.5, 1.4]), "even");
        assert_eq!(of(&[0.9, 0.5, 0.8]), "loss");
        assert_eq!(of(&[1.1, 0.5, 0.8]), "even");
        assert_eq!(of(&[1.01, 1.02, 1.03]), "even");
    }

    #[test]
    fn the_page_needs_nothing_from_outside() {
        let page = page(&results()).unwrap();
        // SVG names its namespace by an address that is never fetched.
        let namespaces = page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
        assert_eq!(page.matches("http://").count(), namespaces);
        assert!(!page.contains("https://") && !page.contains("src=") && !page.contains("<link"));
    }
}
