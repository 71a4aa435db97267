//! That each message that docs/operations.md quotes is one that the source has.

use crate::document;
use std::fs;
use std::path::Path;

/// The heading of the table and the heading after it.
const BEGIN: &str = "## What to do when";

/// Returns the sources as one text, in which a string that goes on in the next line is whole.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&joined(&fs::read_to_string(path).unwrap()));
        }
    }
}

/// Takes away `\` at the end of a line with the blanks that follow.
fn joined(source: &str) -> String {
    let mut parts = source.split("\\\n");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.trim_start());
    }
    text.replace("\\\"", "\"")
}

/// Returns the first cell's code of each row of the table, with `…` for what differs.
fn quoted() -> Vec<String> {
    let text = fs::read_to_string(document::root().join("docs/operations.md")).unwrap();
    let (_, rest) = text.split_once(BEGIN).expect("the table of messages");
    let rest = rest.split("\n## ").next().unwrap();
    rest.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(message, _)| message.to_owned())
        .collect()
}

#[test]
fn each_quoted_message_is_in_the_source() {
    let mut text = String::new();
    sources(&document::root().join("src"), &mut text);
    let messages = quoted();
    assert!(messages.len() > 20, "only {} messages", messages.len());
    let mut faults = Vec::new();
    for message in messages {
        let parts: Vec<&str> = message.split('…').map(str::trim).collect();
        assert!(
            parts.iter().any(|part| part.len() > 8),
            "{message} says too little"
        );
        for part in parts {
            if !text.contains(part) {
                faults.push(format!("{message}: no source has {part:?}"));
            }
        }
    }
    assert!(
        faults.is_empty(),
        "docs/operations.md:\n{}",
        faults.join("\n")
    );
}

#[test]
fn strings_that_go_on_in_the_next_line_are_whole() {
    assert_eq!(
        joined("\"one \\\n     two \\\"three\\\"\""),
        "\"one two \"three\"\""
    );
}
