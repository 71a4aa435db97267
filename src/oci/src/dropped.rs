//! What an image's layers hold that a root file system here cannot: it is left out, and counted, so
//! that whoever imports the image is told.

use super::error::Printable;
use std::collections::BTreeMap;
use std::fmt;

/// A kind of thing that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// An extended attribute that the file system does not take.
    Attribute,
    /// A label of SELinux.
    SecurityLabel,
    /// Flags such as `immutable` or `nodump`.
    FileFlags,
    /// An access control list of NFSv4, Solaris or macOS.
    OtherAcl,
    /// A POSIX access control list of users or groups that the image does not know.
    NamedAcl,
    /// A default access control list of something that is no directory.
    DefaultAcl,
    /// An entry with metadata of another system.
    OtherMetadata,
    /// The list of a directory's files in an incremental backup.
    DirectoryList,
    /// The label of the archive.
    VolumeLabel,
    /// Content that is stored with a hard link.
    LinkContent,
    /// What follows the archive's end marker.
    AfterEnd,
    /// All of it: the archive has no entries.
    Nothing,
}

/// How often each kind was left out, and where first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    kinds: BTreeMap<Loss, (u64, Printable)>,
}

impl Dropped {
    /// Counts one more.
    pub(super) fn note(&mut self, kind: Loss, entry: &[u8]) {
        let first = || (0, Printable::from(entry));
        let (count, _) = self.kinds.entry(kind).or_insert_with(first);
        *count = count.saturating_add(1);
    }

    /// Adds what another layer lost.
    pub fn add(&mut self, other: Self) {
        for (kind, (more, first)) in other.kinds {
            let (count, _) = self.kinds.entry(kind).or_insert((0, first));
            *count = count.saturating_add(more);
        }
    }

    /// Returns how often this kind was left out.
    #[must_use]
    pub fn count(&self, kind: Loss) -> u64 {
        self.kinds.get(&kind).map_or(0, |(count, _)| *count)
    }

    /// A line for each kind.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.kinds.iter().map(|(kind, (count, first))| match kind {
            Loss::AfterEnd | Loss::Nothing => kind.to_string(),
            _ if *count == 1 => format!("left out: {kind} ({first})"),
            _ => format!("left out: {kind} ({count} times, first at {first})"),
        })
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Attribute => "an extended attribute that the file system does not take",
            Self::SecurityLabel => "a label of SELinux, which belongs to the host that wrote it",
            Self::FileFlags => "file flags such as immutable or nodump",
            Self::OtherAcl => "an access control list that is not POSIX's",
            Self::NamedAcl => {
                "an access control list with names of users or groups that the image does not know"
            }
            Self::DefaultAcl => "a default access control list of something that is no directory",
            Self::OtherMetadata => "an entry with metadata of another system",
            Self::DirectoryList => "the file list of a directory in an incremental backup",
            Self::VolumeLabel => "the label of the archive",
            Self::LinkContent => "content that is stored with a hard link",
            Self::AfterEnd => {
                "the archive goes on after its end marker, and what follows was left out; \
                 if archives were joined, import them one by one"
            }
            Self::Nothing => "the archive has no entries, so the root file system is empty",
        })
    }
}
