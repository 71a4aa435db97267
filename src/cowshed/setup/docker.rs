//! `/etc/docker/daemon.json`: the containerd image store, and cowshed as its storage driver.

use super::json_text::{Fault, Text};
use serde_json::{Value, json};

pub(crate) const FILE: &str = "/etc/docker/daemon.json";

/// The members that are set.
fn members() -> [(&'static [&'static str], Value); 2] {
    [
        (&["features", "containerd-snapshotter"], json!(true)),
        (&["storage-driver"], json!("cowshed")),
    ]
}

/// Returns the file's text with Docker's storage on cowshed.
///
/// # Errors
/// A fault of the text.
pub(crate) fn set(text: &str) -> Result<String, Fault> {
    let mut changed = Text::new(text)?;
    let mut is_set = true;
    for (path, value) in members() {
        if changed.get(path)?.as_ref() != Some(&value) {
            is_set = false;
            changed.set(path, &value)?;
        }
    }
    Ok(if is_set {
        text.to_owned()
    } else {
        changed.into_string()
    })
}

/// Returns the file's text without what `set` did; `before` is the text that `set` found. What has
/// been changed since stays.
///
/// # Errors
/// A fault of one of the texts.
pub(super) fn unset(text: &str, before: &str) -> Result<String, Fault> {
    let mut changed = Text::new(text)?;
    let before = Text::new(before)?;
    let mut is_set = false;
    for (path, value) in members() {
        if changed.get(path)?.as_ref() != Some(&value) {
            continue;
        }
        match before.get(path)? {
            Some(old) if old == value => continue,
            Some(old) => changed.set(path, &old)?,
            None => changed.remove(path)?,
        }
        is_set = true;
    }
    let features = ["features"];
    if is_set && before.get(&features)?.is_none() && changed.get(&features)? == Some(json!({})) {
        changed.remove(&features)?;
    }
    Ok(if is_set {
        changed.into_string()
    } else {
        text.to_owned()
    })
}

/// Returns true if Docker is configured to have its images and containers on cowshed.
pub(crate) fn is_set(text: &str) -> bool {
    set(text).is_ok_and(|set| set == text)
}

/// Returns true if Docker maps users of containers to others of the host.
pub(super) fn maps_users(text: &str) -> bool {
    let found = Text::new(text).and_then(|text| text.get(&["userns-remap"]));
    matches!(found, Ok(Some(Value::String(user))) if !user.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_comes_back_and_what_came_since_stays() {
        let before =
            "{\n\t\"features\": {\"buildkit\": true},\n\t\"storage-driver\": \"overlay2\"\n}\n";
        let after = set(before).unwrap();
        assert!(is_set(&after) && !is_set(before) && !is_set(""));
        assert_eq!(set(&after).unwrap(), after);
        assert_eq!(unset(&after, before).unwrap(), before);
        let edited = after.replace("\n}", ",\n\t\"debug\": true\n}");
        let wanted = before.replace("\n}", ",\n\t\"debug\": true\n}");
        assert_eq!(unset(&edited, before).unwrap(), wanted);
        let other = after.replace("\"cowshed\"", "\"btrfs\"");
        assert!(unset(&other, before).unwrap().contains("\"btrfs\""));
    }

    #[test]
    fn a_file_that_was_missing_is_empty_again() {
        let after = set("").unwrap();
        assert_eq!(
            after,
            "{\n  \"features\": { \"containerd-snapshotter\": true },\n  \"storage-driver\": \
             \"cowshed\"\n}\n"
        );
        assert_eq!(unset(&after, "").unwrap(), "{}\n");
        assert_eq!(unset("{\"debug\": 1}", "").unwrap(), "{\"debug\": 1}");
    }

    #[test]
    fn users_that_are_mapped_are_noticed() {
        assert!(maps_users("{\"userns-remap\": \"default\"}"));
        assert!(!maps_users("{\"userns-remap\": \"\"}") && !maps_users(""));
    }
}
