//! The forest as one JSON document: a list of volumes, each with a list of those on it.
//!
//! A volume is on a line of its own, and not indented: in a chain the indentation alone would grow
//! with the square of its length.

use super::forest::{Forest, Step};

/// Returns the document.
///
/// # Errors
/// None that can happen: every value has a form in JSON.
pub(super) fn draw(forest: &Forest) -> serde_json::Result<String> {
    let mut text = String::from("[");
    let mut is_first = true;
    for step in forest.walk() {
        match step {
            Step::Enter { node, .. } => {
                text.push_str(if is_first { "\n" } else { ",\n" });
                let fields = serde_json::to_string(&forest.nodes[node])?;
                text.push_str(fields.strip_suffix('}').unwrap_or(&fields));
                text.push_str(",\"children\":[");
                is_first = true;
            }
            Step::Leave => {
                text.push_str("]}");
                is_first = false;
            }
        }
    }
    text.push_str(if is_first { "]\n" } else { "\n]\n" });
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::forest::tests::{chain, sample};
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_document_has_the_fields_that_scripts_read() {
        let document: Value = serde_json::from_str(&draw(&sample(false)).unwrap()).unwrap();
        let image = &document[0];
        assert_eq!(image["name"], "debian:12");
        assert_eq!(image["kind"], "image");
        assert_eq!(image["own_bytes"], 1 << 20);
        assert_eq!(image["shared_bytes"], 4096);
        assert_eq!(image["children"][1]["name"], "w\"<&>\u{1b}");
        assert_eq!(
            document[1]["children"][0]["children"],
            serde_json::json!([])
        );
        assert_eq!(draw(&Forest::default()).unwrap(), "[]\n");
    }

    #[test]
    fn a_long_chain_takes_as_much_text_for_each_volume_as_a_short_one() {
        let text = draw(&chain(50_000)).unwrap();
        assert!(text.len() < 50_000 * 200, "{} bytes", text.len());
        assert_eq!(text.matches("]}").count(), 50_000);
    }
}
