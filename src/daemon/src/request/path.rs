//! Paths in requests: always absolute, so that the daemon, which has another working directory,
//! uses the same file as the caller.

use cowshed_host as host;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// An absolute path on the host. In JSON it is text if it is UTF-8, else the list of its bytes: the
/// bytes of any path arrive unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPath(PathBuf);

impl HostPath {
    /// Makes `path` absolute against the working directory.
    ///
    /// # Errors
    /// When the path is empty or the working directory cannot be determined.
    pub fn new(path: impl AsRef<Path>) -> io::Result<Self> {
        std::path::absolute(path).map(Self)
    }

    /// Returns the path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Returns true if both paths lead to the same place.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        let real = |path: &Self| {
            let folder = path.0.parent()?.canonicalize().ok()?;
            Some(folder.join(path.0.file_name()?))
        };
        self == other || (real(self).is_some() && real(self) == real(other))
    }

    /// Returns the path with `suffix` appended (`pool` and `.sock` make `pool.sock`).
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Self {
        let mut text = self.0.clone().into_os_string();
        text.push(suffix);
        Self(PathBuf::from(text))
    }

    /// Returns the path with a dot at its end, which selects the contents of the folder.
    #[must_use]
    pub fn contents(&self) -> Self {
        Self(self.0.join("."))
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// The form in JSON.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wire {
    Text(String),
    Bytes(Vec<u8>),
}

impl Serialize for HostPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => Wire::Text(text.to_owned()),
            None => Wire::Bytes(self.0.as_os_str().as_bytes().to_vec()),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for HostPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = match Wire::deserialize(deserializer)? {
            Wire::Text(text) => PathBuf::from(text),
            Wire::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        };
        if path.is_absolute() {
            Ok(Self(path))
        } else {
            Err(serde::de::Error::custom(
                "a path in a request must be absolute",
            ))
        }
    }
}

/// The source or target of bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileOrPipe {
    /// The input or output stream that comes with the request.
    Pipe,
    /// A file, which the daemon opens.
    File(HostPath),
}

impl FileOrPipe {
    /// Returns true if the path names a file of the calling process itself (`/dev/fd/63` of a
    /// shell's `<(…)`, `/dev/stdin`), which is another file in another process.
    #[must_use]
    pub fn is_of_the_caller(&self) -> bool {
        let Self::File(path) = self else { return false };
        [
            "/dev/fd",
            "/dev/stdin",
            "/dev/stdout",
            "/dev/stderr",
            "/proc/self",
            "/proc/thread-self",
        ]
        .iter()
        .any(|own| path.as_path().starts_with(own))
    }
}

impl fmt::Display for FileOrPipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipe => f.write_str("the pipe"),
            Self::File(path) => path.fmt(f),
        }
    }
}

/// One side of a copy between a container and the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum CopySide {
    /// A path inside a container's root.
    Container {
        /// The container, by name or id.
        container: String,
        /// The path inside, resolved beneath the root. Only UTF-8.
        path: String,
    },
    /// A path on the host. A dot at its end selects the contents of the folder.
    Host(HostPath),
    /// A tar archive on the input or output stream that comes with the request.
    Pipe,
}

impl CopySide {
    /// Returns the side as `cowshed-host` has it; `None` for the pipe.
    #[must_use]
    pub fn on_host(&self) -> Option<host::CopySide> {
        match self {
            Self::Container { container, path } => Some(host::CopySide::Container {
                container: container.clone(),
                path: path.into(),
            }),
            Self::Host(path) => Some(host::CopySide::Host(path.as_path().to_owned())),
            Self::Pipe => None,
        }
    }
}

impl fmt::Display for CopySide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container { container, path } => write!(f, "{container}:{path}"),
            Self::Host(path) => path.fmt(f),
            Self::Pipe => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_survives_the_wire_and_a_relative_one_is_refused() {
        let odd = HostPath(PathBuf::from(OsString::from_vec(b"/a/\xff\n b".to_vec())));
        for path in [odd, HostPath(PathBuf::from("/tmp/ä"))] {
            let text = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<HostPath>(&text).unwrap(), path);
        }
        assert!(serde_json::from_str::<HostPath>("\"etc/passwd\"").is_err());
    }
}
