//! Changes of a host's files: first planned, all of them, and then made one by one.
//!
//! # Invariants
//! - Planning changes nothing, so a file that cannot be changed leaves all others as they were.
//! - A file is replaced by renaming another onto it, which is durable first: it is whole at any
//!   time, and keeps its owner and mode. The old file itself is kept as `FILE.before-cowshed`.
//! - No path leads out of the root, whatever symbolic links there are below it.
//! - Doing it twice changes nothing the second time. Undoing brings the old file back, unless
//!   somebody has changed the new one: then only what was set is taken out.
//! - A file of settings has a kept file beside it exactly while settings of ours are in it: an empty
//!   one if there was no file. Without a kept file, the settings are somebody else's.

mod root;
mod steps;

use anyhow::Context;
use cowshed_format::base::printable_path;
pub(super) use root::Root;
use serde::{Serialize, Serializer};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use steps::{Step, with_suffix};

/// What is added to the name of a file that is kept.
const KEPT: &str = ".before-cowshed";
/// The first line of files that are ours alone.
pub(super) const MARK: &str = "# Made by `cowshed setup`; `--undo` removes it.\n";

type Set<'e> = Box<dyn Fn(&str) -> anyhow::Result<String> + 'e>;
type Unset<'e> = Box<dyn Fn(&str, &str) -> anyhow::Result<String> + 'e>;

/// What is to be in a file.
pub(super) enum Content<'e> {
    /// Some settings among those of others: how to set them; how to take them out again, given the
    /// text that was there before; and whether a text has them from an earlier time, so that it is
    /// not what was there before.
    Settings(Set<'e>, Unset<'e>, fn(&str) -> bool),
    /// A text that is ours alone.
    Whole(String),
    /// A symbolic link.
    Link(PathBuf),
}

/// A file with what is to be in it; the path is as a process confined to the root sees it.
pub(super) struct Wanted<'e> {
    pub path: PathBuf,
    pub content: Content<'e>,
}

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Created,
    Changed,
    Unchanged,
    /// The old file is back.
    Restored,
    Removed,
}

impl Action {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Restored => "restored",
            Self::Removed => "removed",
        }
    }
}

impl Serialize for Action {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// The change of one file.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub file: PathBuf,
    pub action: Action,
    /// Where the old file is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<PathBuf>,
    #[serde(skip)]
    pub old: String,
    #[serde(skip)]
    pub new: String,
    #[serde(skip)]
    steps: Vec<Step>,
}

/// A file as it is.
struct Present {
    /// Its place on this host, behind all symbolic links.
    place: PathBuf,
    text: Option<String>,
    metadata: Option<Metadata>,
    /// The file that was kept.
    kept: Option<String>,
}

impl Present {
    fn kept_place(&self) -> PathBuf {
        with_suffix(&self.place, KEPT)
    }

    /// Returns the step that writes the file.
    fn write(&self, text: &str) -> Step {
        Step::Write {
            to: self.place.clone(),
            text: text.to_owned(),
            like: self.metadata.clone(),
        }
    }

    /// Adds steps that keep the file; one that was kept before gets a number.
    fn keep(&self, steps: &mut Vec<Step>, is_moved: bool) -> PathBuf {
        let (from, mut to) = (self.place.clone(), self.kept_place());
        if is_moved {
            to = free_name(&to);
        } else if self.kept.is_some() {
            steps.push(Step::Rename {
                from: to.clone(),
                to: free_name(&to),
            });
        }
        let kept = to.clone();
        steps.push(if is_moved {
            Step::Rename { from, to }
        } else {
            Step::Keep { from, to }
        });
        kept
    }
}

impl Root {
    /// Plans to have the content in the file, or with `undo` not to have it.
    ///
    /// # Errors
    /// When the file cannot be read, or not be changed in this way.
    pub(super) fn plan(&self, wanted: &Wanted<'_>, undo: bool) -> anyhow::Result<Change> {
        let planned = match &wanted.content {
            Content::Link(to) => self.plan_link(&wanted.path, to, undo),
            content => self
                .present(&wanted.path)
                .and_then(|file| match (content, undo) {
                    (Content::Settings(set, unset, is_ours), false) => {
                        plan_settings(&file, set, unset, *is_ours)
                    }
                    (Content::Settings(set, unset, _), true) => plan_unset(&file, set, unset),
                    (Content::Whole(text), false) => Ok(plan_whole(&file, text)),
                    (Content::Whole(text), true) => Ok(plan_no_whole(&file, text)),
                    (Content::Link(_), _) => Ok(Plan::default()),
                }),
        };
        let plan = planned.with_context(|| printable_path(&wanted.path))?;
        Ok(Change {
            file: wanted.path.clone(),
            action: plan.action,
            kept: plan.kept.map(|kept| self.inside(&kept)),
            old: plan.old,
            new: plan.new,
            steps: plan.steps,
        })
    }

    fn plan_link(&self, path: &Path, to: &Path, undo: bool) -> anyhow::Result<Plan> {
        // The link itself, and not what it leads to.
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            anyhow::bail!("it names no file");
        };
        let at = self.place(folder)?.join(name);
        let mut plan = Plan::default();
        match fs::read_link(&at) {
            Ok(found) if found == to => {
                if undo {
                    plan.action = Action::Removed;
                    plan.steps.push(Step::Remove { file: at });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !undo {
                    plan.action = Action::Created;
                    let to = to.to_owned();
                    plan.steps.push(Step::Link { at, to });
                }
            }
            // Somebody else's link to another file is theirs.
            Ok(_) if undo => {}
            _ => anyhow::bail!("something else is there; remove it first"),
        }
        Ok(plan)
    }
}

/// What is to be done with one file.
struct Plan {
    action: Action,
    kept: Option<PathBuf>,
    old: String,
    new: String,
    steps: Vec<Step>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            action: Action::Unchanged,
            kept: None,
            old: String::new(),
            new: String::new(),
            steps: Vec::new(),
        }
    }
}

/// Plans to set settings.
fn plan_settings(
    file: &Present,
    set: &Set<'_>,
    unset: &Unset<'_>,
    is_ours: fn(&str) -> bool,
) -> anyhow::Result<Plan> {
    let old = file.text.as_deref().unwrap_or_default();
    let new = set(old)?;
    let mut plan = Plan {
        old: old.to_owned(),
        new: new.clone(),
        ..Plan::default()
    };
    if file.text.is_none() {
        plan.action = Action::Created;
        plan.steps.push(Step::Write {
            to: file.kept_place(),
            text: String::new(),
            like: None,
        });
    } else if new == old {
        return Ok(plan);
    } else {
        plan.action = Action::Changed;
        // While some of our settings are in it, the file that was kept before is what there was
        // before them.
        let has_ours = is_ours(old) || unset(old, "").is_ok_and(|without| without != old);
        if file.kept.is_none() || !has_ours {
            plan.kept = Some(file.keep(&mut plan.steps, false));
        }
    }
    plan.steps.push(file.write(&new));
    Ok(plan)
}

/// Plans to take settings out.
fn plan_unset(file: &Present, set: &Set<'_>, unset: &Unset<'_>) -> anyhow::Result<Plan> {
    let Some(old) = &file.text else {
        return Ok(Plan::default());
    };
    let Some(kept) = file.kept.as_deref() else {
        // The settings, if there are any, are not ours.
        return Ok(Plan::default());
    };
    let mut new = unset(old, kept)?;
    if set(kept).is_ok_and(|set| set == *old) {
        // Nobody has changed it since.
        new = kept.to_owned();
    }
    let mut plan = Plan {
        old: old.clone(),
        new: new.clone(),
        ..Plan::default()
    };
    let (place, kept_place) = (file.place.clone(), file.kept_place());
    if !kept.is_empty() && kept == new {
        plan.action = Action::Restored;
        plan.steps.push(Step::Rename {
            from: kept_place,
            to: place,
        });
        return Ok(plan);
    }
    if kept.is_empty() && new.trim().is_empty() {
        plan.action = Action::Removed;
        plan.steps.push(Step::Remove { file: place });
    } else if new != *old {
        plan.action = Action::Changed;
        plan.steps.push(file.write(&new));
    }
    // What it held is in the file again.
    plan.steps.push(Step::Remove { file: kept_place });
    Ok(plan)
}

/// Plans to have a file of our own.
fn plan_whole(file: &Present, text: &str) -> Plan {
    let old = file.text.clone();
    let mut plan = Plan {
        new: text.to_owned(),
        ..Plan::default()
    };
    match old {
        None => plan.action = Action::Created,
        Some(old) => {
            if old != text {
                plan.action = Action::Changed;
                plan.kept = Some(file.keep(&mut plan.steps, false));
            }
            plan.old = old;
        }
    }
    if plan.action != Action::Unchanged {
        plan.steps.push(file.write(text));
    }
    plan
}

/// Plans not to have a file of our own. What somebody has changed in it is kept beside it.
fn plan_no_whole(file: &Present, text: &str) -> Plan {
    let mut plan = Plan::default();
    let Some(old) = file.text.clone().filter(|old| old.starts_with(MARK)) else {
        return plan;
    };
    if old != text {
        plan.kept = Some(file.keep(&mut plan.steps, true));
    }
    plan.old = old;
    match file.kept.clone().filter(|kept| !kept.starts_with(MARK)) {
        Some(kept) => {
            plan.action = Action::Restored;
            plan.new = kept;
            plan.steps.push(Step::Rename {
                from: file.kept_place(),
                to: file.place.clone(),
            });
        }
        None => {
            plan.action = Action::Removed;
            if plan.kept.is_none() {
                let file = file.place.clone();
                plan.steps.push(Step::Remove { file });
            }
        }
    }
    plan
}

impl Change {
    /// Makes the change.
    ///
    /// # Errors
    /// The host's, with the file's name.
    pub(super) fn make(&self) -> anyhow::Result<()> {
        let made = self.steps.iter().try_for_each(Step::take);
        made.with_context(|| printable_path(&self.file))
    }
}

/// Returns the path, or else with the first number behind it that nothing has.
fn free_name(path: &Path) -> PathBuf {
    let numbered = (1_u32..).map(|number| with_suffix(path, &format!(".{number}")));
    let mut all = std::iter::once(path.to_owned()).chain(numbered);
    let free = all.find(|path| fs::symlink_metadata(path).is_err());
    free.unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests;
