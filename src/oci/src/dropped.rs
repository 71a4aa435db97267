//! The parts of an image's layers that a root file system here cannot hold: they are omitted and
//! counted, so that the importer can report them.

use super::error::Printable;
use std::collections::BTreeMap;
use std::fmt;

/// A kind of omitted data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// An extended attribute that the file system does not support.
    Attribute,
    /// An SELinux label.
    SecurityLabel,
    /// Flags such as `immutable` or `nodump`.
    FileFlags,
    /// An access control list of NFSv4, Solaris or macOS.
    OtherAcl,
    /// A POSIX access control list with users or groups that the image does not know.
    NamedAcl,
    /// A default access control list of an object that is not a directory.
    DefaultAcl,
    /// An entry with metadata of another system.
    OtherMetadata,
    /// The list of a directory's files in an incremental backup.
    DirectoryList,
    /// The label of the archive.
    VolumeLabel,
    /// Content stored with a hard link.
    LinkContent,
    /// The data after the archive's end marker.
    AfterEnd,
    /// Everything: the archive has no entries.
    Nothing,
}

/// For each kind, the number of omissions and the first entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    kinds: BTreeMap<Loss, (u64, Printable)>,
}

impl Dropped {
    /// Counts one more omission.
    pub(super) fn note(&mut self, kind: Loss, entry: &[u8]) {
        let first = || (0, Printable::from(entry));
        let (count, _) = self.kinds.entry(kind).or_insert_with(first);
        *count = count.saturating_add(1);
    }

    /// Adds the omissions of another layer.
    pub fn add(&mut self, other: Self) {
        for (kind, (more, first)) in other.kinds {
            let (count, _) = self.kinds.entry(kind).or_insert((0, first));
            *count = count.saturating_add(more);
        }
    }

    /// Returns the number of omissions of this kind.
    #[must_use]
    pub fn count(&self, kind: Loss) -> u64 {
        self.kinds.get(&kind).map_or(0, |(count, _)| *count)
    }

    /// Returns a line for each kind.
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
            Self::Attribute => "an extended attribute that the file system does not support",
            Self::SecurityLabel => "a label of SELinux, which belongs to the host that wrote it",
            Self::FileFlags => "file flags such as immutable or nodump",
            Self::OtherAcl => "an access control list that is not POSIX's",
            Self::NamedAcl => {
                "an access control list with names of users or groups that the image does not know"
            }
            Self::DefaultAcl => "a default access control list of an entry that is not a directory",
            Self::OtherMetadata => "an entry with metadata of another system",
            Self::DirectoryList => "the file list of a directory in an incremental backup",
            Self::VolumeLabel => "the label of the archive",
            Self::LinkContent => "content that is stored with a hard link",
            Self::AfterEnd => {
                "the archive continues after its end marker, and the rest was left out; if \
                 archives were joined, import them one by one"
            }
            Self::Nothing => "the archive has no entries, so the root file system is empty",
        })
    }
}
