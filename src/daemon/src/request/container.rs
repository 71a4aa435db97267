//! Requests about containers. A container is meant by its name or by its id.

use super::path::{CopySide, HostPath};
use super::stream::{Receive, SendOptions};
use cowshed_host::RootKind;
use serde::{Deserialize, Serialize};

/// A request about containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Creates a container: a writable root, cloned from an image.
    Create(Create),
    /// Mounts a container's root.
    Mount {
        /// The container.
        container: String,
        /// Where.
        at: MountAt,
    },
    /// Unmounts a container's root.
    Unmount {
        /// The container.
        container: String,
    },
    /// Lists what a container added, changed and deleted.
    Diff {
        /// The container.
        container: String,
    },
    /// Creates an image from a container: the container's image and one layer.
    Commit {
        /// The container.
        container: String,
        /// The new image's name.
        image: String,
    },
    /// Writes containers, as they are now, and their images as a stream to the output.
    Send {
        /// The containers.
        containers: Vec<String>,
        /// How they are sent.
        options: SendOptions,
    },
    /// Receives a set from the input.
    Receive(Receive),
    /// Copies files into or out of a container.
    Copy(Copy),
    /// Lists all containers.
    List,
    /// Removes containers, also mounted ones. One that cannot be removed does not keep the others.
    Remove {
        /// The containers.
        containers: Vec<String>,
    },
}

/// The creation of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// The image, by name or id.
    pub image: String,
    /// The container's name. Without it one is made up.
    pub name: Option<String>,
    /// The size of its file system in bytes. Without it that of the image.
    pub size_bytes: Option<u64>,
    /// The kind of its root. A daemon that knows only block roots gets no word about them.
    #[serde(default, skip_serializing_if = "is_block")]
    pub root: RootKind,
    /// Where to mount it, too; if that fails, there is no container. Without it the container is
    /// not mounted.
    pub mount: Option<MountAt>,
}

const fn is_block(root: &RootKind) -> bool {
    matches!(root, RootKind::Block)
}

/// The place where a container is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountAt {
    /// A folder that the daemon makes.
    NewFolder,
    /// An existing folder.
    Folder(HostPath),
}

impl MountAt {
    /// Returns the existing folder, if there is one.
    #[must_use]
    pub fn folder(&self) -> Option<&std::path::Path> {
        match self {
            Self::NewFolder => None,
            Self::Folder(path) => Some(path.as_path()),
        }
    }
}

impl From<Option<HostPath>> for MountAt {
    fn from(folder: Option<HostPath>) -> Self {
        folder.map_or(Self::NewFolder, Self::Folder)
    }
}

/// A copy between a container and the host; owners, modes and times are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// The source.
    pub source: CopySide,
    /// The target; one of both sides is in a container.
    pub target: CopySide,
    /// Copies what a symbolic link at the end of the source leads to. Without it the link itself.
    #[serde(default)]
    pub follow_link: bool,
}
