//! Removing several things with one command: removes as many as possible and reports each.

use super::console::Console;
use super::failure::{self, Exit};
use anyhow::Context;
use serde_json::json;

/// The things that were removed, and the failures.
#[derive(Debug)]
pub(super) struct Removal<'a> {
    removed: Vec<&'a str>,
    failures: Vec<anyhow::Error>,
}

/// Removes each of `names`, regardless of failures of the others.
pub(super) fn each<'a>(
    names: &'a [String],
    noun: &str,
    mut remove: impl FnMut(&str) -> anyhow::Result<()>,
) -> Removal<'a> {
    let mut removal = Removal {
        removed: Vec::new(),
        failures: Vec::new(),
    };
    for name in names {
        match remove(name).with_context(|| format!("remove {noun} {name}")) {
            Ok(()) => removal.removed.push(name),
            Err(failure) => removal.failures.push(failure),
        }
    }
    removal
}

impl Removal<'_> {
    /// Shows what was removed, and each failure on a line of its own.
    ///
    /// # Errors
    /// A failure that is shown after the others: damage, if there is any.
    pub(super) fn show(self, console: &Console) -> anyhow::Result<()> {
        console.result(&json!({ "removed": self.removed }), || {
            self.removed.join("\n")
        })?;
        let mut failures = self.failures;
        failures.sort_by_key(|failure| Exit::of(failure) == Exit::Damaged);
        let last = failures.pop();
        for failure in &failures {
            if let Some(line) = failure::line(failure) {
                let line = failure::shown(&line, Exit::of(failure), console.style().json);
                console.complain(&line);
            }
        }
        last.map_or(Ok(()), Err)
    }
}
