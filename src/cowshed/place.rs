//! Paths on the host as given in arguments: always absolute, so that the daemon, which has another
//! working directory, uses the same file as the caller.

use clap::builder::{OsStringValueParser, TypedValueParser};
use cowshed_host as container;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// An absolute path on the host; arbitrary bytes of a path reach the daemon unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPath(PathBuf);

impl HostPath {
    /// Returns the parser of an argument.
    pub(super) fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(|text| Self::parse(&text))
    }

    /// Makes `path` absolute against the working directory.
    ///
    /// # Errors
    /// When the path is empty or the working directory cannot be determined.
    pub(super) fn new(path: impl AsRef<Path>) -> std::io::Result<Self> {
        std::path::absolute(path).map(Self)
    }

    /// Parses an argument.
    ///
    /// # Errors
    /// Like those of `new`, as text.
    pub(super) fn parse(text: &OsStr) -> Result<Self, String> {
        Self::new(Path::new(text)).map_err(|error| error.to_string())
    }

    /// Returns the path.
    #[must_use]
    pub(super) fn as_path(&self) -> &Path {
        &self.0
    }

    /// Returns true if both paths lead to the same place.
    #[must_use]
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        let real = |path: &Self| {
            let folder = path.0.parent()?.canonicalize().ok()?;
            Some(folder.join(path.0.file_name()?))
        };
        self == other || (real(self).is_some() && real(self) == real(other))
    }

    /// Returns the path with `suffix` appended (`pool` and `.sock` make `pool.sock`).
    #[must_use]
    pub(super) fn with_suffix(&self, suffix: &str) -> Self {
        let mut text = self.0.clone().into_os_string();
        text.push(suffix);
        Self(PathBuf::from(text))
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Text if the path is UTF-8, else its bytes.
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

/// A file, or the standard input or output, written `-`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FileOrPipe {
    /// `-`
    Pipe,
    /// A path.
    File(HostPath),
}

impl FileOrPipe {
    /// Returns the parser of an argument.
    pub(super) fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(|text| Self::parse(&text))
    }

    /// Parses an argument.
    ///
    /// # Errors
    /// Like those of `HostPath::parse`.
    pub(super) fn parse(text: &OsStr) -> Result<Self, String> {
        if text == "-" {
            Ok(Self::Pipe)
        } else {
            HostPath::parse(text).map(Self::File)
        }
    }

    /// Returns true if the path names a file of the calling process itself (`/dev/fd/63` of a
    /// shell's `<(…)`, `/dev/stdin`), which is another file in another process.
    #[must_use]
    pub(super) fn is_of_the_caller(&self) -> bool {
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

/// One side of `container cp`: `CONTAINER:PATH`, a path on the host, or `-`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum CopySide {
    /// A path inside a container's root.
    Container {
        /// The container's name or id.
        container: String,
        /// The path inside.
        path: String,
    },
    /// A path on the host.
    Host(HostPath),
    /// A tar archive on the standard input or output, written `-`.
    Pipe,
}

impl CopySide {
    /// Returns the parser of an argument.
    pub(super) fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(|text| Self::parse(&text))
    }

    /// Parses an argument. A text that starts with `/` or `.` or has no `:` is a path on the host.
    ///
    /// # Errors
    /// When the path is empty, or a path inside a container is not UTF-8.
    pub(super) fn parse(text: &OsStr) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Pipe);
        }
        match container::CopySide::parse(text) {
            container::CopySide::Host(path) => {
                let HostPath(mut absolute) = HostPath::parse(path.as_os_str())?;
                // A dot at the end selects the contents of a folder, but resolving the path removes
                // it.
                let bytes = path.as_os_str().as_bytes();
                if bytes == b"." || bytes.ends_with(b"/.") {
                    absolute.push(".");
                }
                Ok(Self::Host(HostPath(absolute)))
            }
            container::CopySide::Container { container, path } => {
                let path = path.into_os_string().into_string();
                let path = path.map_err(|_| "a path in a container must be UTF-8 here")?;
                if path.is_empty() {
                    return Err("write CONTAINER:PATH with a path".to_owned());
                }
                Ok(Self::Container { container, path })
            }
        }
    }

    /// Returns the side as `cowshed-host` has it; `None` for the pipe.
    #[must_use]
    pub(super) fn to_room(&self) -> Option<container::CopySide> {
        match self {
            Self::Container { container, path } => Some(container::CopySide::Container {
                container: container.clone(),
                path: path.into(),
            }),
            Self::Host(path) => Some(container::CopySide::Host(path.as_path().to_owned())),
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

    #[test]
    fn arguments_become_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            HostPath::parse(OsStr::new("x")).unwrap().as_path(),
            here.join("x")
        );
        assert!(HostPath::parse(OsStr::new("")).is_err());
        assert_eq!(
            FileOrPipe::parse(OsStr::new("-")).unwrap(),
            FileOrPipe::Pipe
        );
    }

    #[test]
    fn a_copy_side_is_a_container_unless_it_looks_like_a_path() {
        let side = |text: &str| CopySide::parse(OsStr::new(text)).unwrap();
        assert_eq!(
            side("web:/etc/a:b"),
            CopySide::Container {
                container: "web".to_owned(),
                path: "/etc/a:b".to_owned()
            }
        );
        assert!(matches!(side("./web:x"), CopySide::Host(_)));
        assert!(matches!(side("/srv/a:b"), CopySide::Host(_)));
        assert!(matches!(side(":x"), CopySide::Host(_)));
        assert!(CopySide::parse(OsStr::new("web:")).is_err());
        assert_eq!(side("-"), CopySide::Pipe);
        assert!(matches!(side("./-"), CopySide::Host(_)));
    }

    #[test]
    fn a_dot_at_the_end_of_a_side_on_the_host_stays() {
        let side = |text: &str| match CopySide::parse(OsStr::new(text)).unwrap() {
            CopySide::Host(path) => path.as_path().as_os_str().to_owned(),
            other => panic!("{other}"),
        };
        assert_eq!(side("/srv/site/."), "/srv/site/.");
        assert_eq!(side("/srv/site"), "/srv/site");
        assert_eq!(side("/srv/site/"), "/srv/site/");
        assert!(side(".").as_bytes().ends_with(b"/."));
    }
}
