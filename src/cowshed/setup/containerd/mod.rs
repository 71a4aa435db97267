//! containerd's `config.toml`: cowshed as a proxy plugin for snapshots and, from containerd 1.7 on,
//! for layers. Comments and everything else in the file stay as they are.
//!
//! | version of the file | who reads it | the names of plugins |
//! |---|---|---|
//! | none, or 1 | containerd 1 and 2 | short ones; containerd 2 takes long ones of what came later |
//! | 2 | containerd 1.3 and later | long ones, with the plugin for pods as `grpc.v1.cri` |
//! | 3 | containerd 2 | long ones, with the plugin for pods as `cri.v1.images` |

use super::Target;
use toml_edit::{
    Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value, value,
};

pub(crate) const FILE: &str = "/etc/containerd/config.toml";
const PLUGIN: &str = "cowshed";
const DIFF_PLUGIN: &str = "cowshed-diff";
const TRANSFER: &[&str] = &["plugins", "io.containerd.transfer.v1.local"];

/// A version of containerd: major and minor.
pub(super) type Version = (u32, u32);

/// The first version that takes a plugin for layers; those before refuse to start with one.
const TAKES_DIFFS: Version = (1, 7);
/// The first version that pulls only for snapshotters that its transfer service knows.
const TRANSFERS: Version = (2, 0);

/// What is to be configured.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// The version of containerd, if it is known.
    pub version: Option<Version>,
    /// The socket of cowshed's services for containerd.
    pub socket: String,
    /// The folder of the volumes, whose file system is the pool to a kubelet.
    pub volumes: String,
    /// This host's platform, as containerd writes it.
    pub platform: String,
    /// Have pods use cowshed, too.
    pub pods: bool,
    /// Who asks for it.
    pub target: Target,
}

/// The file cannot be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// It is not TOML.
    #[error("line {line}: {message}")]
    Invalid { line: usize, message: String },
    /// Its version is none that is known.
    #[error("its `version` is {0}, and 1, 2 and 3 are known")]
    Version(String),
    /// A key on the way is something else.
    #[error("`{0}` is not a table")]
    NoTable(String),
    /// A key has another type.
    #[error("`{0}` is not a list")]
    NoList(&'static str),
    /// It has a form that the changes do not survive.
    #[error("its tables cannot be changed; write them with [headings]")]
    Form,
}

/// The file's text as a document, with whether it was changed.
struct Config {
    document: DocumentMut,
    file_version: i64,
    is_changed: bool,
}

/// Returns the file's text with cowshed configured.
///
/// # Errors
/// A fault of the text.
pub(super) fn set(text: &str, options: &Options) -> Result<String, Fault> {
    let changed = set_once(text, options)?;
    // What is written must be read as it is meant.
    if set_once(&changed, options)? == changed {
        Ok(changed)
    } else {
        Err(Fault::Form)
    }
}

fn set_once(text: &str, options: &Options) -> Result<String, Fault> {
    let mut config = Config::parse(text)?;
    if config.document.is_empty() {
        config.file_version = match options.version {
            Some(version) if version >= TRANSFERS => 3,
            _ => 2,
        };
        config
            .document
            .insert("version", value(config.file_version));
        config.is_changed = true;
    }
    let asks_differ = options
        .version
        .is_some_and(|version| version >= TAKES_DIFFS);
    config.set_plugin(PLUGIN, "snapshot", options)?;
    config.put(
        &["proxy_plugins", PLUGIN, "exports"],
        "root",
        &options.volumes,
    )?;
    if asks_differ {
        config.set_plugin(DIFF_PLUGIN, "diff", options)?;
        config.set_differ(options)?;
    }
    if options.version.is_none_or(|version| version >= TRANSFERS) {
        let differ = if asks_differ { DIFF_PLUGIN } else { "walking" };
        config.set_unpacking(&options.platform, differ)?;
    }
    if options.pods {
        let path = pods_path(config.file_version);
        config.put(path, "snapshotter", PLUGIN)?;
    }
    Ok(config.into_text(text))
}

/// Returns the file's text without what `set` did; `before` is the text that `set` found. What has
/// been changed since stays.
///
/// # Errors
/// A fault of one of the texts.
pub(super) fn unset(text: &str, before: &str) -> Result<String, Fault> {
    let mut config = Config::parse(text)?;
    let was_missing = before.trim().is_empty();
    let before = Config::parse(before)?.document;
    for plugin in [PLUGIN, DIFF_PLUGIN] {
        if find(&before, &["proxy_plugins", plugin]).is_none() {
            config.remove(&["proxy_plugins", plugin]);
        }
    }
    for id in DIFF_SERVICES {
        config.unset_differ(&["plugins", id, "default"], &before);
    }
    config.unset_unpacking(&before);
    for version in [1, 2, 3] {
        let path = [pods_path(version), &["snapshotter"]].concat();
        let old = find(&before, &path).cloned();
        let is_ours = find(&config.document, &path).and_then(Item::as_str) == Some(PLUGIN);
        match old {
            Some(old) if is_ours && old.as_str() != Some(PLUGIN) => {
                if let Some(item) = find_mut(&mut config.document, &path) {
                    *item = old;
                    config.is_changed = true;
                }
            }
            None if is_ours => config.remove(&path),
            _ => {}
        }
    }
    config.remove_empty(&before);
    let has_version_alone = config.document.len() == 1 && config.document.contains_key("version");
    if was_missing && config.is_changed && has_version_alone {
        return Ok(String::new());
    }
    Ok(config.into_text(text))
}

/// Returns the socket of cowshed's plugin for snapshots, if the file has one.
///
/// # Errors
/// A fault of the text.
pub(crate) fn socket(text: &str) -> Result<Option<String>, Fault> {
    let config = Config::parse(text)?;
    let address = find(&config.document, &["proxy_plugins", PLUGIN, "address"]);
    Ok(address.and_then(Item::as_str).map(str::to_owned))
}

/// Returns who had the file changed, as the comment above the plugin says.
pub(super) fn changed_for(text: &str) -> Option<Target> {
    let config = Config::parse(text).ok()?;
    let plugin = find(&config.document, &["proxy_plugins", PLUGIN])?.as_table()?;
    let comment = plugin.decor().prefix()?.as_str()?;
    [Target::Docker, Target::Containerd]
        .into_iter()
        .find(|target| comment.contains(&named(*target)))
}

fn named(target: Target) -> String {
    format!("`cowshed setup {}`", target.word())
}

/// The names of the service that compares snapshots, in files of version 1 and later ones.
const DIFF_SERVICES: [&str; 2] = ["diff-service", "io.containerd.service.v1.diff-service"];

/// Returns the table that names the snapshotter of pods.
fn pods_path(file_version: i64) -> &'static [&'static str] {
    match file_version {
        3 => &["plugins", "io.containerd.cri.v1.images"],
        2 => &["plugins", "io.containerd.grpc.v1.cri", "containerd"],
        _ => &["plugins", "cri", "containerd"],
    }
}

fn find<'d>(document: &'d DocumentMut, path: &[&str]) -> Option<&'d Item> {
    let mut item = document.as_item();
    for name in path {
        item = item.as_table_like()?.get(name)?;
    }
    Some(item)
}

fn find_mut<'d>(document: &'d mut DocumentMut, path: &[&str]) -> Option<&'d mut Item> {
    let mut item = document.as_item_mut();
    for name in path {
        item = item.as_table_like_mut()?.get_mut(name)?;
    }
    Some(item)
}

/// Returns the snapshotter that an entry of the transfer service is for.
fn snapshotter_of(entry: &dyn TableLike) -> Option<&str> {
    entry.get("snapshotter").and_then(Item::as_str)
}

impl Config {
    fn parse(text: &str) -> Result<Self, Fault> {
        let document = text.parse::<DocumentMut>().map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            Fault::Invalid {
                line: text.as_bytes()[..at]
                    .iter()
                    .filter(|byte| **byte == b'\n')
                    .count()
                    + 1,
                message: error.message().replace('\n', ", "),
            }
        })?;
        let file_version = match document
            .get("version")
            .map(|item| (item, item.as_integer()))
        {
            None => 1,
            Some((_, Some(version @ 1..=3))) => version,
            Some((item, _)) => return Err(Fault::Version(item.to_string().trim().to_owned())),
        };
        Ok(Self {
            document,
            file_version,
            is_changed: false,
        })
    }

    /// Returns the text, which is `text` byte by byte if nothing was changed.
    fn into_text(self, text: &str) -> String {
        if self.is_changed {
            self.document.to_string()
        } else {
            text.to_owned()
        }
    }

    /// Returns the table at `path`, which is made if it is missing.
    fn table(&mut self, path: &[&str]) -> Result<&mut Table, Fault> {
        let mut table = self.document.as_table_mut();
        for name in path {
            let is_new = !table.contains_key(name);
            self.is_changed |= is_new;
            let item = table.entry(name).or_insert_with(|| {
                let mut new = Table::new();
                new.set_implicit(true);
                Item::Table(new)
            });
            if let Item::Value(Value::InlineTable(inline)) = item {
                *item = Item::Table(std::mem::take(inline).into_table());
                self.is_changed = true;
            }
            table = item
                .as_table_mut()
                .ok_or_else(|| Fault::NoTable((*name).to_owned()))?;
        }
        Ok(table)
    }

    /// Sets a string in the table at `path`.
    fn put(&mut self, path: &[&str], name: &str, text: &str) -> Result<(), Fault> {
        let table = self.table(path)?;
        if table.get(name).and_then(Item::as_str) == Some(text) {
            return Ok(());
        }
        table[name] = value(text);
        self.is_changed = true;
        Ok(())
    }

    fn set_plugin(&mut self, name: &str, kind: &str, options: &Options) -> Result<(), Fault> {
        let path = ["proxy_plugins", name];
        let is_new = find(&self.document, &path).is_none();
        self.put(&path, "type", kind)?;
        self.put(&path, "address", &options.socket)?;
        if name != PLUGIN {
            return Ok(());
        }
        let table = self.table(&path)?;
        let comment = table
            .decor()
            .prefix()
            .and_then(|it| it.as_str())
            .unwrap_or_default();
        if is_new {
            let by = named(options.target);
            let comment =
                format!("\n# Made by {by}, which takes all of it out again with --undo.\n");
            table.decor_mut().set_prefix(comment);
        } else if options.target == Target::Containerd && comment.contains(&named(Target::Docker)) {
            // It was asked for by itself, so it stays when Docker goes.
            let comment = comment.replace(&named(Target::Docker), &named(Target::Containerd));
            table.decor_mut().set_prefix(comment);
            self.is_changed = true;
        }
        Ok(())
    }

    /// Has snapshots compared by cowshed first.
    fn set_differ(&mut self, options: &Options) -> Result<(), Fault> {
        let is_old = options.version.is_some_and(|version| version < TRANSFERS);
        let [short, long] = DIFF_SERVICES;
        let id = if self.file_version == 1 && is_old {
            short
        } else {
            long
        };
        let table = self.table(&["plugins", id])?;
        match table.get_mut("default") {
            None => {
                table["default"] = value(Array::from_iter([DIFF_PLUGIN, "walking"]));
            }
            Some(Item::Value(Value::Array(list))) => {
                if list.iter().any(|it| it.as_str() == Some(DIFF_PLUGIN)) {
                    return Ok(());
                }
                list.insert(0, DIFF_PLUGIN);
            }
            Some(_) => return Err(Fault::NoList("default")),
        }
        self.is_changed = true;
        Ok(())
    }

    fn unset_differ(&mut self, path: &[&str], before: &DocumentMut) {
        let Some(list) = find_mut(&mut self.document, path).and_then(Item::as_array_mut) else {
            return;
        };
        let count = list.len();
        list.retain(|it| it.as_str() != Some(DIFF_PLUGIN));
        if list.len() == count {
            return;
        }
        self.is_changed = true;
        let is_usual = list.len() == 1 && list.get(0).and_then(Value::as_str) == Some("walking");
        if is_usual && find(before, path).is_none() {
            self.remove(path);
        }
    }

    /// Has the transfer service pull for cowshed, too; its default stays the first entry.
    fn set_unpacking(&mut self, platform: &str, differ: &str) -> Result<(), Fault> {
        let entry = |snapshotter: &str, differ: &str| {
            let mut entry = Table::new();
            entry["platform"] = value(platform);
            entry["snapshotter"] = value(snapshotter);
            entry["differ"] = value(differ);
            entry
        };
        let table = self.table(TRANSFER)?;
        let is_changed = match table.get_mut("unpack_config") {
            None => {
                let mut list = ArrayOfTables::new();
                list.push(entry("overlayfs", "walking"));
                list.push(entry(PLUGIN, differ));
                table.insert("unpack_config", Item::ArrayOfTables(list));
                true
            }
            Some(Item::ArrayOfTables(list)) => {
                let found = list
                    .iter_mut()
                    .find(|it| snapshotter_of(*it) == Some(PLUGIN));
                match found {
                    Some(known) => set_differ_of(known, differ),
                    None => {
                        list.push(entry(PLUGIN, differ));
                        true
                    }
                }
            }
            Some(Item::Value(Value::Array(list))) => {
                let tables = list.iter_mut().filter_map(Value::as_inline_table_mut);
                let known = { tables }.find(|it| snapshotter_of(*it) == Some(PLUGIN));
                match known {
                    Some(known) => set_differ_of(known, differ),
                    None => {
                        list.push(InlineTable::from_iter([
                            ("platform", platform),
                            ("snapshotter", PLUGIN),
                            ("differ", differ),
                        ]));
                        true
                    }
                }
            }
            Some(_) => return Err(Fault::NoList("unpack_config")),
        };
        self.is_changed |= is_changed;
        Ok(())
    }

    fn unset_unpacking(&mut self, before: &DocumentMut) {
        let path = [TRANSFER, &["unpack_config"]].concat();
        let (count, left) = match find_mut(&mut self.document, &path) {
            Some(Item::ArrayOfTables(list)) => {
                let count = list.len();
                list.retain(|it| snapshotter_of(it) != Some(PLUGIN));
                let left = list
                    .iter()
                    .map(|it| snapshotter_of(it) == Some("overlayfs"));
                (count, left.collect::<Vec<_>>())
            }
            Some(Item::Value(Value::Array(list))) => {
                let of = |it: &Value| {
                    let entry = it.as_inline_table();
                    entry.and_then(|it| snapshotter_of(it).map(str::to_owned))
                };
                let count = list.len();
                list.retain(|it| of(it).as_deref() != Some(PLUGIN));
                let left = list.iter().map(|it| of(it).as_deref() == Some("overlayfs"));
                (count, left.collect())
            }
            _ => return,
        };
        if left.len() == count {
            return;
        }
        self.is_changed = true;
        let is_usual = matches!(*left, [] | [true]);
        if is_usual && find(before, &path).is_none() {
            self.remove(&path);
        }
    }

    /// Removes what is at `path`.
    fn remove(&mut self, path: &[&str]) {
        let Some((name, above)) = path.split_last() else {
            return;
        };
        let table = find_mut(&mut self.document, above).and_then(Item::as_table_like_mut);
        if table.is_some_and(|table| table.remove(name).is_some()) {
            self.is_changed = true;
        }
    }

    /// Removes tables on the way to what was removed that are empty, and were not there before.
    fn remove_empty(&mut self, before: &DocumentMut) {
        if !self.is_changed {
            return;
        }
        let mut paths: Vec<Vec<&str>> = vec![vec!["proxy_plugins"], TRANSFER.to_vec()];
        paths.extend(DIFF_SERVICES.map(|id| vec!["plugins", id]));
        for version in [1, 2, 3] {
            let path = pods_path(version);
            paths.extend((2..=path.len()).rev().map(|len| path[..len].to_vec()));
        }
        paths.push(vec!["plugins"]);
        for path in paths {
            let table = find(&self.document, &path).and_then(Item::as_table_like);
            if table.is_some_and(TableLike::is_empty) && find(before, &path).is_none() {
                self.remove(&path);
            }
        }
    }
}

/// Sets the differ of an entry; returns true if that changes it.
fn set_differ_of(entry: &mut dyn TableLike, differ: &str) -> bool {
    if entry.get("differ").and_then(Item::as_str) == Some(differ) {
        return false;
    }
    entry.insert("differ", value(differ));
    true
}

#[cfg(test)]
mod tests;
