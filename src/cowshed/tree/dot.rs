//! The forest as a graph in the language of Graphviz.

use super::forest::{Forest, Step};
use super::svg::fill;
use cowshed_format::base::printable;
use cowshed_format::base::size::human;
use std::fmt::Write;

/// Returns the graph.
pub(super) fn draw(forest: &Forest) -> String {
    let mut text = String::from(
        "digraph pool {\n  rankdir=LR;\n  node [shape=box, style=\"rounded,filled\", \
         fontname=\"sans-serif\"];\n",
    );
    let mut way: Vec<usize> = Vec::new();
    for step in forest.walk() {
        let Step::Enter { node, .. } = step else {
            way.pop();
            continue;
        };
        let it = &forest.nodes[node];
        // Writing to a string never fails.
        let _ = writeln!(
            text,
            "  v{} [label=\"{}\\n{}\\nown {}, shared {}\", fillcolor=\"{}\"];",
            it.id,
            escaped(&it.name),
            it.kind.word(),
            human(it.own_bytes),
            human(it.shared_bytes),
            fill(it.kind)
        );
        if let Some(above) = way.last() {
            let _ = writeln!(text, "  v{} -> v{};", forest.nodes[*above].id, it.id);
        }
        way.push(node);
    }
    text.push_str("}\n");
    text
}

/// Returns a name for a string of the language, where `\` begins an escape.
fn escaped(name: &str) -> String {
    printable(name).replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::super::forest::tests::sample;
    use super::*;

    #[test]
    fn a_name_cannot_end_its_string() {
        let text = draw(&sample(false));
        assert!(
            text.contains("v2 -> v3;") && text.contains("v6 -> v4;"),
            "{text}"
        );
        assert!(
            text.contains(r#"[label="w\"<&>\\u{1b}\ncontainer\n"#),
            "{text}"
        );
        assert_eq!(text.matches("label=").count(), 5);
    }
}
