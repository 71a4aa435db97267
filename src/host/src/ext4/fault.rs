//! Why a volume's file system cannot be read without the kernel.

use cowshed_format::base::{self, Cancelled};

/// What stopped the reader. Apart from `Pool`, the kernel may still be able to read it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The pool could not read the volume.
    #[error(transparent)]
    Pool(#[from] base::Error),
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// It is made in a way that the reader does not know.
    #[error("the file system has {0}")]
    Unsupported(&'static str),
    /// It contradicts itself.
    #[error("the file system is damaged: {0}")]
    Corrupt(&'static str),
    /// More was read than a sound file system of this size takes.
    #[error("the file system refers to its blocks again and again")]
    Endless,
}

/// The reader's result.
pub(crate) type Result<T, E = Fault> = std::result::Result<T, E>;
