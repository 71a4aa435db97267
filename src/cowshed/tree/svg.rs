//! The forest as a picture: a box for each volume, below and to the right of the one on which it
//! stands.

use super::forest::{Forest, Kind, Step};
use cowshed_format::base::printable;
use cowshed_format::base::size::human;
use std::fmt::Write;

/// How far a volume stands to the right of the one above it.
const INDENT: usize = 40;
const ROW: usize = 52;
const BOX_WIDTH: usize = 260;
const BOX_HEIGHT: usize = 40;
const MARGIN: usize = 12;
/// The characters of a name that fit into a box.
const NAME_MAX: usize = 36;

/// Returns the colour of a volume.
pub(super) const fn fill(kind: Kind) -> &'static str {
    match kind {
        Kind::Image => "#b9d7f0",
        Kind::Layer => "#dbe9f6",
        Kind::Container | Kind::Root => "#fdebc8",
        Kind::Volume => "#e4f3dc",
        Kind::Snapshot => "#cde6bf",
        Kind::Recipe | Kind::Template | Kind::Work | Kind::Removed => "#eeeeee",
    }
}

/// Returns the picture.
pub(super) fn draw(forest: &Forest) -> String {
    let mut boxes = String::new();
    // The rows of the volumes above.
    let mut way: Vec<usize> = Vec::new();
    let (mut row, mut depth_max) = (0, 0);
    for step in forest.walk() {
        let Step::Enter { node, depth, .. } = step else {
            way.pop();
            continue;
        };
        if let Some(above) = way.last() {
            draw_line(&mut boxes, *above, row, depth);
        }
        let it = &forest.nodes[node];
        let costs = format!(
            "{}, own {}, shared {}",
            it.kind.word(),
            human(it.own_bytes),
            human(it.shared_bytes)
        );
        draw_box(&mut boxes, row, depth, &it.name, &costs, fill(it.kind));
        way.push(row);
        row += 1;
        depth_max = depth.max(depth_max);
    }
    let (width, height) = (
        2 * MARGIN + BOX_WIDTH + depth_max * INDENT,
        2 * MARGIN + (row * ROW).saturating_sub(ROW - BOX_HEIGHT),
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>The volumes of a pool, each with its own and its shared bytes</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{boxes}</svg>\n"
    )
}

/// Draws the line from the volume in the row `above` to the one in `row`.
fn draw_line(boxes: &mut String, above: usize, row: usize, depth: usize) {
    let from_x = MARGIN + (depth - 1) * INDENT + INDENT / 2;
    let from_y = MARGIN + above * ROW + BOX_HEIGHT;
    let to_y = MARGIN + row * ROW + BOX_HEIGHT / 2;
    let to_x = MARGIN + depth * INDENT;
    // Writing to a string never fails.
    let _ = writeln!(
        boxes,
        "<path d=\"M{from_x} {from_y}V{to_y}H{to_x}\" fill=\"none\" stroke=\"#888\"/>"
    );
}

fn draw_box(boxes: &mut String, row: usize, depth: usize, name: &str, costs: &str, fill: &str) {
    let (x, y) = (MARGIN + depth * INDENT, MARGIN + row * ROW);
    let (text_x, name_y, costs_y) = (x + 8, y + 16, y + 32);
    let whole = printable(name);
    let short = crate::output::cut(&crate::output::short_numbers(&whole), NAME_MAX);
    let _ = writeln!(
        boxes,
        "<g><title>{}</title>\n<rect x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDTH}\" \
         height=\"{BOX_HEIGHT}\" rx=\"4\" fill=\"{fill}\" stroke=\"#555\"/>\n\
         <text x=\"{text_x}\" y=\"{name_y}\" fill=\"#222\">{}</text>\n\
         <text x=\"{text_x}\" y=\"{costs_y}\" fill=\"#222\">{costs}</text></g>",
        escaped(&whole),
        escaped(&short)
    );
}

/// Returns a printable name for the content of an element.
fn escaped(name: &str) -> String {
    name.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::forest::tests::{chain, sample};
    use super::*;

    #[test]
    fn a_name_cannot_end_its_element() {
        let text = draw(&sample(false));
        assert!(text.contains(">w\"&lt;&amp;&gt;\\u{1b}</text>"), "{text}");
        assert_eq!(text.matches("<rect x").count(), 5);
        assert_eq!(text.matches("<path").count(), 3);
    }

    #[test]
    fn a_long_chain_is_drawn_and_so_is_nothing() {
        assert_eq!(draw(&chain(20_000)).matches("<rect x").count(), 20_000);
        assert!(draw(&Forest::default()).ends_with("</svg>\n"));
    }
}
