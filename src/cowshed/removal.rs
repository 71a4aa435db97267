//! Removing several things with one command: removes as many as possible and reports each.

use super::console::Console;
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
    /// Shows what was removed.
    ///
    /// # Errors
    /// The first failure, with the number of further ones.
    pub(super) fn show(self, console: &Console) -> anyhow::Result<()> {
        console.result(&json!({ "removed": self.removed }), || {
            self.removed.join("\n")
        })?;
        let more = self.failures.len().saturating_sub(1);
        match self.failures.into_iter().next() {
            None => Ok(()),
            Some(failure) if more == 0 => Err(failure),
            Some(failure) => Err(failure.context(format!("{more} more could not be removed"))),
        }
    }
}
