//! Names of volumes that are reserved for images and containers.
//!
//! A volume command that removed, renamed or changed such a volume would leave a record without its
//! volume, or remove a file system's blocks while it is in use. All volumes may be read, compared,
//! cloned and attached read-only.

use cowshed_format::base::Name;

/// The prefix of the names of recipes of layers, which lists do not show.
pub(super) const RECIPE: &str = "recipe/";
/// The prefixes of such names, and the commands to use instead.
const KEPT: [(&str, &str); 7] = [
    ("layer/", "cowshed image"),
    (RECIPE, "cowshed image"),
    ("container/", "cowshed container"),
    ("template/", "cowshed image"),
    ("snapshot/", "ctr snapshots --snapshotter cowshed"),
    ("work/", "cowshed image"),
    (
        "unfinished/",
        "cowshed volume import` or `cowshed volume receive",
    ),
];

/// The name belongs to images or containers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name {name} is reserved for `{command}`; use that command")]
pub(super) struct KeptName {
    name: Name,
    command: &'static str,
}

/// Returns an error for a reserved name.
///
/// # Errors
/// `KeptName`.
pub(super) fn refuse(name: &Name) -> Result<(), KeptName> {
    match KEPT
        .iter()
        .find(|(start, _)| name.as_str().starts_with(start))
    {
        Some((_, command)) => Err(KeptName {
            name: name.clone(),
            command,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_layers_and_containers_are_refused_and_others_are_not() {
        let refused = |name: &str| refuse(&Name::new(name).unwrap()).is_err();
        assert!(
            refused("layer/sha256:00")
                && refused("recipe/sha256:00")
                && refused("container/00")
                && refused("work/x")
        );
        assert!(refused("snapshot/00"));
        assert!(!refused("layers") && !refused("my/layer/x") && !refused("disk"));
    }
}
