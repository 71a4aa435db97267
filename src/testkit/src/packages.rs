//! The programs that `tools/runtimes` unpacked.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// A release of Debian, for the versions in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// containerd 1.6, Docker 20.10, runc, Go.
    Bookworm,
    /// containerd 1.7, Docker 26.
    Trixie,
    /// containerd 2, Docker 28 or later.
    Sid,
}

impl Release {
    /// Returns the root below which the packages of the release were unpacked.
    pub fn root(self) -> PathBuf {
        let name = match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        };
        let root = folder().join(name);
        assert!(
            root.is_dir(),
            "{} is not there: run tools/runtimes first, which fetches containerd and Docker",
            root.display()
        );
        root
    }

    /// Returns the search path for the release's programs, followed by the host's own.
    pub fn path(self) -> OsString {
        let root = self.root();
        // One runc serves all of them.
        let mut folders = vec![root.join("usr/bin"), root.join("usr/sbin")];
        folders.push(Self::Bookworm.root().join("usr/sbin"));
        folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        env::join_paths(folders).unwrap()
    }
}

/// Returns Docker's build plugin.
pub fn buildx() -> PathBuf {
    Release::Sid
        .root()
        .join("usr/libexec/docker/cli-plugins/docker-buildx")
}

fn folder() -> PathBuf {
    let given = env::var_os("COWSHED_RUNTIMES").map(PathBuf::from);
    given.unwrap_or_else(|| crate::repository().join("target/runtimes"))
}
