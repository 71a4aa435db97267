//! The reasons why a call is refused, and the gRPC code that containerd's own snapshotters return
//! for each.

use super::filter::FilterError;
use cowshed_export::ExportError;
use cowshed_format::base;
use cowshed_host as container;
use tonic::{Code, Status};

/// The module's result.
pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why a call was refused or failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("snapshot {0} does not exist")]
    NotFound(Box<str>),
    #[error("snapshot {0} already exists")]
    Exists(Box<str>),
    #[error("the parent {0} is not a committed snapshot")]
    ParentNotCommitted(Box<str>),
    #[error("snapshot {0} is not active, so it cannot be committed")]
    NotActive(Box<str>),
    #[error("snapshot {0} is committed: it has no mounts; prepare or view it")]
    NoMounts(Box<str>),
    #[error("cannot remove snapshot {0} with children")]
    HasChildren(Box<str>),
    #[error("snapshot {0} has another parent, which committing does not change")]
    OtherParent(Box<str>),
    #[error("snapshot {0} was prepared without a parent, and cannot be put on one afterwards")]
    Rebase(Box<str>),
    #[error(
        "snapshot {0} was in use when its host stopped, and the last writes may be lost; mount it again to continue with it, or remove it"
    )]
    Interrupted(Box<str>),
    #[error("snapshot {0} was being filled when its host stopped; remove it and fill another")]
    HalfFilled(Box<str>),
    #[error(
        "snapshot {0} does not hold all that was written to it, because a write failed or found no space in the pool; remove it, free some space, and fill another"
    )]
    Incomplete(Box<str>),
    #[error("the field {0} of a snapshot cannot be updated")]
    Immutable(Box<str>),
    #[error("{what} must be 1 to {max_bytes} bytes long")]
    Length {
        what: &'static str,
        max_bytes: usize,
    },
    #[error("the label {key} with its value is longer than {max_bytes} bytes")]
    Label { key: Box<str>, max_bytes: usize },
    #[error("all labels together are longer than {0} bytes")]
    Labels(usize),
    #[error("the label {key} has the value {value}: {wanted}")]
    LabelValue {
        key: &'static str,
        value: Box<str>,
        wanted: &'static str,
    },
    #[error("the filter {0}")]
    Filter(#[from] FilterError),
    #[error("the request has no {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Host(#[from] container::Error),
    #[error(transparent)]
    Pool(#[from] base::Error),
    #[error("a record could not be written: {0}")]
    Record(#[from] serde_json::Error),
}

impl Error {
    const fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::Exists(_) => Code::AlreadyExists,
            Self::NotActive(_)
            | Self::NoMounts(_)
            | Self::HasChildren(_)
            | Self::Interrupted(_)
            | Self::HalfFilled(_)
            | Self::Incomplete(_)
            | Self::Host(container::Error::Incomplete(_)) => Code::FailedPrecondition,
            Self::Host(container::Error::Export(ExportError::TooMany { .. })) => {
                Code::ResourceExhausted
            }
            Self::ParentNotCommitted(_)
            | Self::OtherParent(_)
            | Self::Immutable(_)
            | Self::Length { .. }
            | Self::Label { .. }
            | Self::Labels(_)
            | Self::LabelValue { .. }
            | Self::Filter(_)
            | Self::Missing(_) => Code::InvalidArgument,
            Self::Rebase(_) => Code::Unimplemented,
            Self::Host(container::Error::Pool(error)) | Self::Pool(error) => pool_code(error),
            Self::Host(_) | Self::Record(_) => Code::Unknown,
        }
    }
}

const fn pool_code(error: &base::Error) -> Code {
    match error {
        base::Error::NoSpace => Code::ResourceExhausted,
        base::Error::InvalidSize { .. } | base::Error::TooLarge { .. } => Code::InvalidArgument,
        base::Error::Closed => Code::Unavailable,
        base::Error::Corrupt(_) => Code::DataLoss,
        _ => Code::Unknown,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut code = error.code();
        if matches!(&error, Error::Host(host) if host.is_no_space()) {
            code = Code::ResourceExhausted;
        }
        // Only the end of the daemon cancels these calls.
        if matches!(&error, Error::Host(host) if host.is_cancelled()) {
            code = Code::Unavailable;
        }
        Self::new(code, error.to_string())
    }
}
