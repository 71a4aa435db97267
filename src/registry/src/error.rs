//! What fails between this host and a registry, kept distinct up to the command line.
//!
//! Text from a registry is shown escaped and shortened ([`Printable`]).

use cowshed_format::base::Cancelled;
use cowshed_oci::error::Printable;
use cowshed_oci::{self as oci, Digest};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why an image could not be fetched or sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made.
    #[error("the registry {server} cannot be reached: {cause}")]
    Unreachable {
        /// The host.
        server: String,
        /// The cause.
        cause: String,
    },
    /// The connection could not be made secure.
    #[error("the connection to {server} is not trusted: {cause}")]
    Untrusted {
        /// The host.
        server: String,
        /// The cause, and what helps.
        cause: String,
        /// True if giving a certificate helps.
        wants_certificate: bool,
    },
    /// What listens there does not speak TLS.
    #[error("{server} does not speak TLS; if the registry has none, plain HTTP must be allowed")]
    NoTls {
        /// The host.
        server: String,
    },
    /// What listens there speaks TLS alone.
    #[error("{server} wants TLS, and was asked over plain HTTP")]
    WantsTls {
        /// The host.
        server: String,
    },
    /// A connection ended before its time, or nothing came over it for long.
    #[error("the connection to {server} broke: {cause}; try again")]
    Cut {
        /// The host.
        server: String,
        /// The cause.
        cause: String,
    },
    /// The registry failed or refused the request.
    #[error("{server} answered {status} when asked for {what}{detail}")]
    Status {
        /// The host.
        server: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words, after a colon; may be empty.
        detail: Detail,
        /// How long it wants to be left alone, if it says so.
        retry_after: Option<Duration>,
    },
    /// The registry failed to take what was sent, or refused it.
    #[error("{server} does not take {what}: it answered {status}{detail}")]
    NotTaken {
        /// The host.
        server: String,
        /// What was sent.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words, after a colon; may be empty.
        detail: Detail,
        /// How long it wants to be left alone, if it says so.
        retry_after: Option<Duration>,
    },
    /// The registry has no such repository, and does not make one.
    #[error(
        "{server} has no repository {repository}{detail}; create it there first, or check the name"
    )]
    NoRepository {
        /// The host.
        server: String,
        /// The path of the repository.
        repository: String,
        /// The registry's own words, after a colon; may be empty.
        detail: Detail,
    },
    /// What was sent has another digest in the registry.
    #[error("{server} stored {what} as {found} and not as {expected}; do not trust it")]
    OtherDigest {
        /// The host.
        server: String,
        /// What was sent.
        what: String,
        /// Its digest.
        expected: Digest,
        /// The digest that the registry states.
        found: Printable,
    },
    /// The registry wants to know who asks, or does not allow it to that user.
    #[error(
        "{server} refuses {what}{detail} (asked {login}); check the name, and log in (docker login {server}, skopeo login {server}){right}",
        login = if *.has_login { "with the login that was found" } else { "without a login" },
        right = if *.is_sent { " or ask for the right to push" } else { "" }
    )]
    Refused {
        /// The host.
        server: String,
        /// What was asked for, or sent.
        what: String,
        /// True if it was sent.
        is_sent: bool,
        /// True if there were credentials for the registry.
        has_login: bool,
        /// The registry's own words, after a colon; may be empty.
        detail: Detail,
    },
    /// The registry does not have it.
    #[error("{server} does not have {what}")]
    NotFound {
        /// The host.
        server: String,
        /// What was asked for.
        what: String,
    },
    /// The answer is not one that a registry gives.
    #[error("{server} answered as no registry does: {fault}; check the name of the registry")]
    NotARegistry {
        /// The host.
        server: String,
        /// What is wrong with the answer.
        fault: Printable,
    },
    /// A redirect is not followed.
    #[error("{server} redirects {what} to another place in a way that is not followed: {fault}")]
    Redirect {
        /// The host.
        server: String,
        /// What was asked for.
        what: String,
        /// Why it is not followed.
        fault: &'static str,
    },
    /// A document is larger than any of its kind may be.
    #[error("{what} is larger than {max_bytes} bytes, the most that is accepted")]
    TooLarge {
        /// The document.
        what: String,
        /// The limit.
        max_bytes: u64,
    },
    /// Content does not have the digest by which it was asked for.
    #[error("{server} sent {found} when asked for {expected}; do not trust it")]
    Digest {
        /// The host.
        server: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// A blob does not have the size that its manifest states.
    #[error("{server} sent {found_bytes} bytes of {digest}, which should have {expected_bytes}")]
    Size {
        /// The host.
        server: String,
        /// The blob.
        digest: Digest,
        /// The stated size.
        expected_bytes: u64,
        /// What came, or would have come.
        found_bytes: u64,
    },
    /// The place of credentials is damaged, or a helper failed.
    #[error("{path} is not usable for logging in: {fault}", path = path.display())]
    Credentials {
        /// The file or the helper.
        path: PathBuf,
        /// The fault.
        fault: String,
    },
    /// A certificate of an authority cannot be used.
    #[error("the certificate {path} cannot be used: {fault}", path = path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The fault.
        fault: String,
    },
    /// The name of the registry makes no address.
    #[error("{0} is not the name of a registry")]
    Name(String),
    /// The manifest has no layer with this index, or does not state its digest and size.
    #[error("the manifest does not state the digest and size of layer {}", .0 + 1)]
    NoLayer(usize),
    /// The folder for layers on their way has too little space.
    #[error(
        "{folder} has {free_bytes} bytes of free space, and the layers to fetch take {needed_bytes}; free some space there, or name another folder in COWSHED_CACHE", folder = folder.display()
    )]
    NoSpace {
        /// The folder.
        folder: PathBuf,
        /// The size of what is to be fetched.
        needed_bytes: u64,
        /// The free space.
        free_bytes: u64,
    },
    /// Nobody wants the rest.
    #[error("the fetch was stopped")]
    Stopped,
    /// This host failed.
    #[error("{action}: {source}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// What the registry sent is no image that can be used here.
    #[error(transparent)]
    Image(#[from] oci::Error),
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// The registry's own words about a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail(pub(crate) Option<Printable>);

impl std::fmt::Display for Detail {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(text) => write!(out, ": {text}"),
            None => Ok(()),
        }
    }
}

impl Error {
    /// Returns a closure that makes an error of this host, for `map_err`.
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// Returns true if the same request may succeed a moment later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Cut { .. } | Self::Unreachable { .. } => true,
            Self::Status { status, .. } | Self::NotTaken { status, .. } => {
                matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
            }
            _ => false,
        }
    }

    /// Returns how long the registry wants to be left alone, if it says so.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } | Self::NotTaken { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<Error> for oci::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Image(error) => error,
            Error::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Remote(Box::new(error)),
        }
    }
}
