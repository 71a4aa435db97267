//! Two builds of cowshed: obtaining the other build, and the differences of the results.

use crate::host::{self, run, text};
use crate::results::{Change, Comparison, Key, Results};
use crate::statistics::judge;
use anyhow::{Context, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// The names of the two builds as peers.
pub(crate) const BEFORE: &str = "cowshed before";
pub(crate) const AFTER: &str = "cowshed after";

/// The folder below `target` where another revision is checked out and built. It is kept, so that
/// later builds of the same or a similar revision are fast.
const CHECKOUT: &str = "bench-base";

/// The other build.
pub(crate) struct Base {
    pub(crate) program: PathBuf,
    pub(crate) what: String,
    /// True if it is a copy, which is removed on drop.
    is_copy: bool,
}

impl Drop for Base {
    fn drop(&mut self) {
        if self.is_copy
            && let Err(error) = fs::remove_file(&self.program)
        {
            eprintln!("left behind: {}: {error}", self.program.display());
        }
    }
}

impl Base {
    /// Finds an existing program, or builds a revision.
    ///
    /// # Errors
    /// When it is neither, or cannot be built.
    pub(crate) fn find(word: &str, target: &Path) -> anyhow::Result<Self> {
        let path = Path::new(word);
        if path.is_file() {
            return Ok(Self {
                program: fs::canonicalize(path)?,
                what: format!("the program {word}"),
                is_copy: false,
            });
        }
        let question = format!("{word}^{{commit}}");
        let Ok(found) = run("git", ["rev-parse", "--verify", "--quiet", &question]) else {
            bail!("--against {word}: neither a program nor a revision that git knows");
        };
        let revision = found.output.trim().to_owned();
        let program = build(&revision, target).with_context(|| format!("build {word}"))?;
        let short: String = revision.chars().take(12).collect();
        Ok(Self {
            program,
            what: format!("{word} ({short})"),
            is_copy: true,
        })
    }
}

fn build(revision: &str, target: &Path) -> anyhow::Result<PathBuf> {
    let checkout = target.join(CHECKOUT);
    let folder = text(&checkout)?;
    // Forgets a worktree whose folder has been removed.
    run("git", ["worktree", "prune"])?;
    if checkout.exists() {
        run(
            "git",
            [
                "-C", folder, "checkout", "--quiet", "--force", "--detach", revision,
            ],
        )?;
    } else {
        run(
            "git",
            [
                "worktree", "add", "--quiet", "--force", "--detach", folder, revision,
            ],
        )?;
    }
    eprintln!("building {revision} in {folder}");
    let mut cargo = host::command("cargo", ["build", "--quiet", "--release", "--locked"]);
    cargo
        .args(["--package", "cowshed", "--bin", "cowshed"])
        .current_dir(&checkout)
        .env("CARGO_TARGET_DIR", checkout.join("target"));
    host::wait(cargo)?;
    // The next build may overwrite it while this one is measured.
    let program = target.join(format!("{CHECKOUT}-{}", std::process::id()));
    fs::copy(checkout.join("target/release/cowshed"), &program)?;
    Ok(program)
}

/// Returns the differences between the two, in all work that both did.
pub(crate) fn compare(results: &Results, before: &str, after: &str) -> Comparison {
    let changes = results.series.iter().filter_map(|new| {
        if new.peer != AFTER {
            return None;
        }
        let old = results.find(&Key {
            backing: &new.backing,
            group: &new.group,
            work: &new.work,
            peer: BEFORE,
        })?;
        let (before, after) = (old.summary?, new.summary?);
        Some(Change {
            backing: new.backing.clone(),
            group: new.group.clone(),
            work: new.work.clone(),
            unit: new.unit,
            before,
            after,
            verdict: judge(before, after, new.higher_is_better),
        })
    });
    Comparison {
        before: before.to_owned(),
        after: after.to_owned(),
        changes: changes.collect(),
    }
}
