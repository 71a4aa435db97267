//! The reasons why a stream is not sent or not received.

use cowshed_engine::Name;
use cowshed_format::base::size::precise;
use std::io;

/// The result of sending or receiving.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason for which a stream was not sent or not received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine refused or failed.
    #[error(transparent)]
    Pool(#[from] cowshed_engine::Error),
    /// The stream could not be read.
    #[error("read the stream: {0}")]
    Read(#[source] io::Error),
    /// The stream could not be written.
    #[error("write the stream: {0}")]
    Write(#[source] io::Error),
    /// The bytes are not a stream that this version can receive.
    #[error("{0}")]
    Stream(#[from] Fault),
    /// The stream is a difference to a snapshot that this pool does not have.
    #[error(
        "the stream holds only what changed since {name}, and no snapshot of this pool is that one; \
         receive {name} first, or send the whole snapshot"
    )]
    BaseMissing {
        /// The base's name where the stream was sent.
        name: Name,
    },
    /// The volume to send from is neither a snapshot nor a bookmark.
    #[error("{0} is neither a snapshot nor a bookmark, so nothing can be sent from it")]
    NotABase(Name),
    /// A bookmark's snapshot is no ancestor of the snapshot to send.
    #[error("{snapshot} does not descend from what {bookmark} marks; send it whole")]
    NotDescended {
        /// The snapshot.
        snapshot: Name,
        /// The bookmark.
        bookmark: Name,
    },
    /// The volume is a bookmark, which has no contents.
    #[error("{0} is a bookmark, which has no contents")]
    IsBookmark(Name),
    /// The stream holds more data than the pool has free space for.
    #[error(
        "the stream holds {} of data, and the pool has {} of free space; remove something or grow \
         the pool",
        precise(*data_bytes),
        precise(*available_bytes)
    )]
    TooLarge {
        /// The bytes of data in the stream.
        data_bytes: u64,
        /// The bytes that can still be written to the pool.
        available_bytes: u64,
    },
    /// The names and records of a set do not fit into a transaction of the pool.
    #[error(
        "the names and records of the set take {} of the pool's log at once, which takes {}; send it \
         in parts, or receive it into a pool with a larger log",
        precise(*needed_bytes),
        precise(*max_bytes)
    )]
    SetExceedsLog {
        /// The bytes that they take.
        needed_bytes: u64,
        /// The bytes that the log takes at once.
        max_bytes: u64,
    },
    /// A set has more members or entries than a stream can hold.
    #[error("the set does not fit into one stream: {0}; send it in parts")]
    SetTooLarge(&'static str),
    /// The stream holds a set where one snapshot is wanted.
    #[error("the stream holds a set, and not one snapshot")]
    IsSet,
    /// The stream holds one snapshot where a set is wanted.
    #[error("the stream holds one snapshot, and not a set")]
    IsSnapshot,
    /// Another receive into this name or prefix is running.
    #[error("{0} is being received already")]
    Receiving(Box<str>),
    /// Nothing is kept under this name or prefix.
    #[error("no interrupted receive of {0} is kept; send it from its start")]
    NothingKept(Box<str>),
    /// The stream continues another one than that which was interrupted.
    #[error("the stream does not continue the interrupted receive of {0}: {1}")]
    OtherStream(Box<str>, &'static str),
    /// The text is not a token.
    #[error("this is not a token of an interrupted receive")]
    NotAToken,
    /// The token is of a stream of another snapshot.
    #[error("the token is of the stream of another snapshot than {0}")]
    OtherSnapshot(Name),
    /// The token is of another set, or of the set as it was.
    #[error(
        "the token is of another set, or snapshots of the set were removed since; send it from its \
         start"
    )]
    OtherSet,
    /// The token is of the stream of a set.
    #[error("the token is of the stream of a set, and not of one snapshot")]
    TokenOfSet,
    /// The token is of the stream of one snapshot.
    #[error("the token is of the stream of one snapshot, and not of a set")]
    TokenOfSnapshot,
    /// The token is of a stream from another base.
    #[error("the token is of a stream from another base")]
    OtherBase,
    /// No snapshot of this pool is the one whose stream was interrupted.
    #[error("this pool does not have the {0} that the token names")]
    TokenForeign(&'static str),
    /// A record of the catalogue was written by a newer version.
    #[error("the pool's record about {0} has a version that this cowshed does not know")]
    Record(Box<str>),
}

impl From<cowshed_format::base::Cancelled> for Error {
    fn from(cancelled: cowshed_format::base::Cancelled) -> Self {
        Self::Pool(cancelled.into())
    }
}

/// The fact about the format of a stream that was violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The first bytes are not those of a stream.
    #[error("this is not a cowshed stream")]
    NotAStream,
    /// A newer version wrote it.
    #[error(
        "the stream has version {theirs}, and this cowshed knows version {ours}; use a newer one"
    )]
    Version {
        /// The stream's version.
        theirs: u32,
        /// The version that this code writes.
        ours: u32,
    },
    /// It uses something that this version does not know.
    #[error("the stream uses features {0:#x}, which this cowshed does not know; use a newer one")]
    Features(u32),
    /// It ends before its end.
    #[error("the stream ends too early; it was cut off")]
    Cut,
    /// A record does not have its checksum.
    #[error("record {0} of the stream was altered on the way, or is not in its place")]
    Checksum(u64),
    /// A record does not follow the format.
    #[error("record {record} of the stream is malformed: {what}")]
    Malformed {
        /// The record's number.
        record: u64,
        /// The rule that it breaks.
        what: &'static str,
    },
    /// The digest at the end is not that of the records before.
    #[error("the digest at the stream's end is not that of its records")]
    Digest,
    /// Bytes follow after the end.
    #[error("bytes follow after the stream's end")]
    Trailing,
}
