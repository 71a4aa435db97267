//! The reasons for which the sides of a mirror do not allow something.

use super::size::precise;
use super::units::Generation;
use std::path::PathBuf;

/// The reason for which the sides of a mirror do not allow something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    /// One side was opened without looking for the others.
    #[error("it is one side of a mirror, and was opened without the others")]
    Alone,
    /// Two sides were written apart from each other.
    #[error(
        "{} and {} were written apart from each other, so each has changes that the other does not have",
        first.display(), second.display()
    )]
    Diverged {
        /// One side.
        first: PathBuf,
        /// The other one.
        second: PathBuf,
    },
    /// Two files or devices hold the same side.
    #[error(
        "{} and {} hold the same side of a mirror, so one is a copy of the other; move away the one \
         that is not to be used",
        first.display(), second.display()
    )]
    Copies {
        /// The one that was opened.
        first: PathBuf,
        /// The other one.
        second: PathBuf,
    },
    /// A side is there, and cannot be opened.
    #[error(
        "the side at {} cannot be opened: {why}; correct that, or move it away to go on without it",
        path.display()
    )]
    NotOpened {
        /// Its path.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// Only sides that are behind were found.
    #[error(
        "the sides that were found are behind; the side at {} is needed, and cannot be opened there",
        missing.display()
    )]
    NoGoodSide {
        /// Where a good side was last.
        missing: PathBuf,
    },
    /// The file or device is a side of this pool already.
    #[error("{} is a side of the pool already", path.display())]
    AlreadySide {
        /// Its path.
        path: PathBuf,
    },
    /// The device holds another pool, or a side of one.
    #[error("{} belongs to another pool", path.display())]
    OtherPool {
        /// Its path.
        path: PathBuf,
    },
    /// The device is shorter than the pool.
    #[error(
        "{} has {}, and the pool needs {}", path.display(), precise(*device_bytes),
        precise(*pool_bytes)
    )]
    TooSmall {
        /// Its path.
        path: PathBuf,
        /// The device's size.
        device_bytes: u64,
        /// The pool's size.
        pool_bytes: u64,
    },
    /// No other side has everything.
    #[error("{} is the last side that has everything", path.display())]
    LastGood {
        /// Its path.
        path: PathBuf,
    },
    /// Another side is missing or behind.
    #[error(
        "the side at {} is missing or behind; bring it back, replace it or remove it first",
        path.display()
    )]
    Degraded {
        /// The path of the side that is not good.
        path: PathBuf,
    },
    /// No side was last opened at this path.
    #[error("{} is not a side of the pool", path.display())]
    NoSuchSide {
        /// The path.
        path: PathBuf,
    },
    /// The mirror has as many sides as the format allows.
    #[error("a pool has at most {max} sides")]
    TooMany {
        /// The most.
        max: usize,
    },
    /// The path does not fit into a side's label.
    #[error("the path of a side has at most {max} bytes")]
    PathTooLong {
        /// The most.
        max: usize,
    },
    /// The side failed or was removed while it was being copied to.
    #[error("the side at {} failed or was removed while it was being copied to", path.display())]
    Interrupted {
        /// Its path.
        path: PathBuf,
    },
    /// Another process has the file or device of a side.
    #[error("{} is in use: it is mounted, or another process has it open", path.display())]
    SideInUse {
        /// Its path.
        path: PathBuf,
    },
    /// A side failed while a pool was made on it.
    #[error("the device at {} failed while the pool was made", path.display())]
    Failed {
        /// Its path.
        path: PathBuf,
    },
    /// One of several sides is to be chosen, and the pool can be opened without that.
    #[error(
        "nothing is to be decided: the pool opens with what the side at {} has", path.display()
    )]
    NothingToDecide {
        /// The path of a side that has everything.
        path: PathBuf,
    },
    /// A side is to be the one that counts, and does not have everything.
    #[error("the side at {} is behind: it {}", path.display(), lacked(*since))]
    LacksSome {
        /// Its path.
        path: PathBuf,
        /// The generation up to which it has everything.
        since: Generation,
    },
    /// A side is to be the one that counts, and nothing tells what it lacks.
    #[error(
        "the label of the side at {} is damaged, so nothing tells whether it has everything, and \
         which other sides there are", path.display()
    )]
    NoLabel {
        /// Its path.
        path: PathBuf,
    },
    /// The pool is not mirrored.
    #[error("the pool has no mirror")]
    NotMirrored,
}

fn lacked(since: Generation) -> String {
    match since {
        Generation(0) => "was not copied to the end, and may lack anything".to_owned(),
        since => format!("lacks what was written since checkpoint {since}"),
    }
}
