//! The way to a registry, and the credentials for it.

use std::fmt;
use std::path::PathBuf;

/// The way to a registry, and the credentials for it.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// True to use HTTP without TLS.
    pub is_plain_http: bool,
    /// Files with certificates of authorities that are trusted beside those of the host.
    pub authorities: Vec<PathBuf>,
    /// The user; without one everything is asked for anonymously.
    pub credentials: Option<Credentials>,
}

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token from an earlier login, which is exchanged for short-lived ones.
    IdentityToken(String),
    /// A token that is sent to the registry as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No secret reaches a log.
        out.write_str(match self {
            Self::Password { .. } => "Password",
            Self::IdentityToken(_) => "IdentityToken",
            Self::RegistryToken(_) => "RegistryToken",
        })
    }
}
