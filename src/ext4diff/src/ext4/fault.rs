//! The reasons why a file system cannot be read without the kernel.

use cowshed_format::base::{self, Cancelled};

/// The reason why the reader stopped. Apart from `Read`, the kernel may still be able to read the
/// file system.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The blocks could not be read.
    #[error(transparent)]
    Read(#[from] base::Error),
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The file system has a feature that the reader does not know.
    #[error("the file system has {0}")]
    Unsupported(&'static str),
    /// The file system contradicts itself.
    #[error("the file system is damaged: {0}")]
    Corrupt(&'static str),
    /// The reader read more than a sound file system of this size requires.
    #[error("the file system refers to its blocks in a cycle")]
    Endless,
}

/// The reader's result type.
pub type Result<T, E = Fault> = std::result::Result<T, E>;
