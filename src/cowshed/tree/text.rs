//! The forest as lines of text, as `lsblk` draws it.

use super::forest::{Forest, Step};
use crate::output::{cut, short_numbers};
use cowshed_format::base::printable;
use cowshed_format::base::size::human;
use std::fmt::Write;

/// The levels that are indented. Below them the number of the level stands before the name.
const LEVELS_MAX: usize = 12;
/// The width to which names are cut, lines included.
const NAME_MAX: usize = 48;

/// The strings with which lines are drawn, each as wide as one level.
struct Lines {
    child: &'static str,
    last_child: &'static str,
    passing: &'static str,
    nothing: &'static str,
}

const BOX: Lines = Lines {
    child: "├─ ",
    last_child: "└─ ",
    passing: "│  ",
    nothing: "   ",
};
const ASCII: Lines = Lines {
    child: "|- ",
    last_child: "`- ",
    passing: "|  ",
    nothing: "   ",
};

/// Returns a line for each volume below a heading.
pub(super) fn draw(forest: &Forest, ascii: bool, no_trunc: bool) -> String {
    let lines = if ascii { &ASCII } else { &BOX };
    let mut rows = vec![["NAME", "KIND", "OWN", "SHARED"].map(str::to_owned)];
    // For each level, whether another volume of that level follows.
    let mut follows: Vec<bool> = Vec::new();
    for step in forest.walk() {
        let Step::Enter {
            node,
            depth,
            is_last,
        } = step
        else {
            follows.pop();
            continue;
        };
        follows.push(!is_last);
        let node = &forest.nodes[node];
        let lead = lead(&follows, depth, lines);
        let name = printable(&node.name);
        let name = if no_trunc {
            name.into_owned()
        } else {
            let width = NAME_MAX.saturating_sub(lead.chars().count());
            cut(&short_numbers(&name), width.max(NAME_MAX / 4))
        };
        rows.push([
            lead + &name,
            node.kind.word().to_owned(),
            human(node.own_bytes),
            human(node.shared_bytes),
        ]);
    }
    aligned(&rows)
}

/// Returns what stands before the name of a volume at this depth.
fn lead(follows: &[bool], depth: usize, lines: &Lines) -> String {
    let mut lead = String::new();
    for follows in follows.iter().take(depth).skip(1).take(LEVELS_MAX - 1) {
        lead.push_str(if *follows {
            lines.passing
        } else {
            lines.nothing
        });
    }
    if depth > LEVELS_MAX {
        // Writing to a string never fails.
        let _ = write!(lead, "({depth}) ");
    }
    if depth > 0 {
        let follows = follows.get(depth).copied().unwrap_or_default();
        lead.push_str(if follows {
            lines.child
        } else {
            lines.last_child
        });
    }
    lead
}

/// Returns the rows with aligned columns, sizes at the right.
fn aligned(rows: &[[String; 4]]) -> String {
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or_default()
    };
    let [name, kind, own, shared] = [0, 1, 2, 3].map(width);
    let mut text = String::new();
    for row in rows {
        let _ = writeln!(
            text,
            "{:name$}  {:kind$}  {:>own$}  {:>shared$}",
            row[0], row[1], row[2], row[3]
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::forest::tests::{chain, sample};
    use super::*;

    #[test]
    fn a_forest_is_drawn_with_aligned_sizes() {
        let wanted = "\
NAME            KIND            OWN    SHARED
debian:12       image      1.00 MiB  4.00 KiB
├─ web          container  16.0 KiB  4.00 KiB
└─ w\"<&>\\u{1b}  container  1.21 KiB  4.00 KiB
disk@1          snapshot   8.00 KiB  4.00 KiB
└─ disk         volume          0 B  4.00 KiB
";
        assert_eq!(draw(&sample(false), false, false), wanted);
        let ascii = draw(&sample(false), true, false);
        assert!(ascii.is_ascii(), "{ascii}");
    }

    #[test]
    fn the_width_of_a_long_chain_is_limited() {
        let text = draw(&chain(20_000), false, false);
        assert_eq!(text.lines().count(), 20_001);
        assert!(text.lines().all(|line| line.chars().count() <= 90));
        assert!(text.contains("(19999) └─ v19999"));
    }
}
