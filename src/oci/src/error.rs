//! The errors of an image, kept distinct up to the command line.
//!
//! Text from an image is shown escaped ([`Printable`]): a hostile name must not reach a terminal
//! unescaped.

use super::digest::Digest;
use cowshed_format::base::Cancelled;
use std::fmt;
use std::io;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why an image could not be read, applied or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host failed.
    #[error("{action}: {source}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The host's error, with its errno.
        source: io::Error,
    },
    /// One entry of a layer, or one file of a tree, could not be created or read.
    #[error("{action} {entry}: {source}")]
    Entry {
        /// The action that failed.
        action: &'static str,
        /// Its path in the image.
        entry: Printable,
        /// The host's error, with its errno.
        source: io::Error,
    },
    /// The archive or its compression is damaged or ends too early.
    #[error("the archive is damaged: {0}; fetch or export it again")]
    Archive(io::Error),
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A header of the archive contradicts itself or exceeds a limit.
    #[error("the archive is damaged at {entry}: {fault}; fetch or export it again")]
    Header {
        /// The entry, as far as its name is known.
        entry: Printable,
        /// The fault.
        fault: HeaderFault,
    },
    /// An entry is of a kind that makes no file here.
    #[error("{entry} cannot be imported: {why}")]
    Unsupported {
        /// The entry.
        entry: Printable,
        /// The kind of the entry, and the remedy.
        why: &'static str,
    },
    /// The extended attributes of an entry do not fit the file system.
    #[error(
        "the extended attributes of {entry} do not fit: {name} has {len_bytes} bytes, and ext4 takes about 4000 for all attributes of a file; make them smaller"
    )]
    Attributes {
        /// The entry.
        entry: Printable,
        /// The attribute that did not fit.
        name: Printable,
        /// The size of its value.
        len_bytes: usize,
    },
    /// The compressed stream requires more memory than allowed.
    #[error(
        "its decompression needs more than 128 MiB of memory; compress it again with a smaller window (zstd without --long or --ultra, xz -9 or less)"
    )]
    Window,
    /// A compressed stream is followed by unexpected data.
    #[error(
        "the compressed stream is followed by something that is neither padding nor a further stream; fetch or export it again"
    )]
    Trailing,
    /// An entry's path or link would leave the root.
    #[error("the entry {entry} would lie outside of the image's root; do not trust this image")]
    Escapes {
        /// The path or the hard link's target.
        entry: Printable,
    },
    /// An entry would replace an object that must not be lost.
    #[error("{entry} is {what} there, which is not replaced; remove it first")]
    InTheWay {
        /// The entry's path.
        entry: Printable,
        /// The kind of the object.
        what: &'static str,
    },
    /// A file's name has a special meaning in a layer.
    #[error(
        "{0} cannot be stored in a layer, because names that begin with .wh. mark removals; rename it"
    )]
    ReservedName(Printable),
    /// Content does not have its stated digest.
    #[error("{what} should be {expected} but is {found}; fetch or export the image again")]
    DigestMismatch {
        /// The content.
        what: Part,
        /// The stated digest.
        expected: Digest,
        /// The actual digest.
        found: Digest,
    },
    /// Content does not have its stated size.
    #[error(
        "{what} should have {expected_bytes} bytes but has {found_bytes}; fetch or export the image again"
    )]
    SizeMismatch {
        /// The content.
        what: Part,
        /// The stated size.
        expected_bytes: u64,
        /// The actual size.
        found_bytes: u64,
    },
    /// The text is not a digest, or one of an algorithm other than SHA-256.
    #[error("{0} is not a sha256 digest, the only kind that is supported")]
    UnsupportedDigest(Printable),
    /// The content is of a kind that cannot be imported.
    #[error("{what} has the media type {media_type}, which is not supported; convert the image")]
    UnsupportedMediaType {
        /// The content.
        what: Part,
        /// Its media type.
        media_type: Printable,
    },
    /// A JSON document does not have the expected form.
    #[error("{what} is not valid: {source}")]
    Json {
        /// The document.
        what: Part,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A document contradicts itself or exceeds a limit.
    #[error("{what} is not valid: {fault}")]
    Document {
        /// The document.
        what: Part,
        /// The fault.
        fault: &'static str,
    },
    /// The image states a number of layers other than its configuration.
    #[error("the manifest has {layers} layers but the configuration has {diff_ids} diff ids")]
    LayerCount {
        /// Number of layers in the manifest.
        layers: usize,
        /// Number of diff ids in the configuration.
        diff_ids: usize,
    },
    /// A blob that the image refers to is missing.
    #[error("{what} ({name}) is missing from the image; export it completely")]
    Missing {
        /// The content.
        what: Part,
        /// Its file or digest.
        name: Printable,
    },
    /// The input holds no image.
    #[error(
        "this is not an image (an OCI layout, a docker-archive, or a root file system as a directory or tar): {0}"
    )]
    NotAnImage(&'static str),
    /// The input looks like an image, but a part of it is missing.
    #[error(
        "this looks like {form}, but {fault}; export the image again, or say that it is a root file system"
    )]
    NotWhole {
        /// The format that it resembles.
        form: &'static str,
        /// The missing or wrong part.
        fault: &'static str,
    },
    /// The input holds a root file system in one of its folders.
    #[error(
        "this is {form}, which has its root file system in its directory rootfs; import that directory"
    )]
    RootInside {
        /// The format of the input.
        form: &'static str,
    },
    /// Several folders hold an image each.
    #[error("it holds images in several directories; import one of them: {available}")]
    SeveralFolders {
        /// The folders.
        available: PrintableList,
    },
    /// No image in the input has this name.
    #[error("there is no image {wanted} in it; it holds {available}")]
    NoSuchReference {
        /// The requested name.
        wanted: Printable,
        /// The names in the input.
        available: PrintableList,
    },
    /// There are several images and none was chosen.
    #[error("it holds several images; choose one by name: {available}")]
    SeveralImages {
        /// The names in the input.
        available: PrintableList,
    },
    /// No image is for this host.
    #[error("there is no image for {wanted} in it; it has {available}")]
    NoPlatform {
        /// The host's platform.
        wanted: Printable,
        /// The platforms in the input.
        available: PrintableList,
    },
    /// The image is for another operating system.
    #[error(
        "the image is for {platform} and this host is {host}; to import it nevertheless, ask for that platform"
    )]
    OtherSystem {
        /// The image's platform.
        platform: Printable,
        /// The host's platform.
        host: Printable,
    },
    /// A layer of a stream was opened a second time.
    #[error("the layer comes from a pipe and has been read already; import from a file instead")]
    AlreadyRead,
    /// The folder is no store of images.
    #[error(
        "it holds no images of Docker, containerd or containers/storage; give the folder that `docker info` calls Docker Root Dir, containerd's root, or the graph root of `podman info`"
    )]
    NotAStore,
    /// A program has the old store open.
    #[error("{user} is using it ({file} is locked); stop {user} first")]
    StoreInUse {
        /// The program.
        user: &'static str,
        /// The locked file.
        file: Printable,
    },
    /// A file that an old store refers to is missing.
    #[error("{file} is missing from the store")]
    NotInStore {
        /// The file.
        file: Printable,
    },
    /// A file of an old store is not what it should be.
    #[error("{file} in the store is damaged: {fault}")]
    StoreFile {
        /// The file.
        file: Printable,
        /// The fault.
        fault: &'static str,
    },
    /// A symbolic link is on the way to a file of an old store.
    #[error(
        "a symbolic link leads to {0} in the store, and links are not followed there; bind-mount its target in its place (mount --bind TARGET DIRECTORY)"
    )]
    StoreLink(Printable),
    /// A file of a layer in an old store is not what it was.
    #[error("the file {file} of the layer has changed in the store: {fault}")]
    LayerFile {
        /// The file.
        file: Printable,
        /// The fault.
        fault: &'static str,
    },
    /// An old store has its layers in a form that cannot be read.
    #[error(
        "the storage driver {0} keeps its layers in no folders; start Docker, and pass the image on with `docker save`"
    )]
    StorageDriver(Printable),
    /// The place that has the image failed.
    #[error(transparent)]
    Remote(Box<dyn std::error::Error + Send + Sync>),
    /// The process that passes the image on has ended or failed.
    #[error("{0}")]
    PassedOn(Printable),
}

/// The fault of a tar header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The header's checksum is wrong.
    #[error("its header has a wrong checksum")]
    Checksum,
    /// A numeric field is not a number or too large.
    #[error("its {0} is not a valid number")]
    Number(&'static str),
    /// The path is empty, too long, too deep or holds a NUL.
    #[error("its path is empty, too long or too deep")]
    Path,
    /// The link target is empty, too long or holds a NUL.
    #[error("its link target is empty or too long")]
    Link,
    /// An extended header is ill-formed.
    #[error("its extended header is ill-formed")]
    Pax,
    /// An extended header is too large.
    #[error("its extended header is larger than 1 MiB")]
    PaxSize,
    /// The map of a sparse file is ill-formed.
    #[error("its sparse map is ill-formed")]
    Sparse,
    /// The entry is of an unknown kind.
    #[error("its kind is unknown")]
    Kind,
    /// The header belongs to a missing entry.
    #[error("the entry that its header announces is missing")]
    Dangling,
    /// The end marker is missing.
    #[error("the archive ends without its end marker")]
    NoEnd,
    /// An access control list is ill-formed.
    #[error("its access control list is ill-formed")]
    Acl,
    /// A parent of the entry is not a directory.
    #[error("one of its parents is not a directory")]
    Parent,
}

/// A part of an image, as messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The file `oci-layout`.
    LayoutFile,
    /// `index.json` or an index that it refers to.
    Index,
    /// The image's manifest.
    Manifest,
    /// The docker-archive's `manifest.json`.
    DockerManifest,
    /// The names and images of a docker-archive from before Docker 1.10.
    Repositories,
    /// The description of a layer in such an archive.
    LayerDescription,
    /// The image's configuration.
    Config,
    /// A layer as it is stored, counted from 1 at the bottom.
    Layer(usize),
    /// A layer's uncompressed content, counted from 1 at the bottom.
    LayerContent(usize),
}

impl Part {
    /// Returns the stored layer with this index, which counts from 0.
    #[must_use]
    pub const fn layer(index: usize) -> Self {
        Self::Layer(index.saturating_add(1))
    }

    /// Returns the uncompressed content of the layer with this index, which counts from 0.
    #[must_use]
    pub const fn layer_content(index: usize) -> Self {
        Self::LayerContent(index.saturating_add(1))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LayoutFile => out.write_str("the file oci-layout"),
            Self::Index => out.write_str("the image index"),
            Self::Manifest => out.write_str("the image manifest"),
            Self::DockerManifest => out.write_str("the file manifest.json"),
            Self::Repositories => out.write_str("the file repositories"),
            Self::LayerDescription => out.write_str("the description of a layer"),
            Self::Config => out.write_str("the image configuration"),
            Self::Layer(number) => write!(out, "layer {number}"),
            Self::LayerContent(number) => write!(out, "the uncompressed layer {number}"),
        }
    }
}

/// Text from outside, shown with unprintable characters escaped and cut at a reasonable length.
#[derive(Clone, PartialEq, Eq)]
pub struct Printable(Box<str>);

impl Printable {
    /// The maximum length of a text in a message, in characters of the original.
    const CHARS_MAX: usize = 512;
}

impl From<&[u8]> for Printable {
    fn from(bytes: &[u8]) -> Self {
        Self::from(&*String::from_utf8_lossy(
            &bytes[..bytes.len().min(4 * Self::CHARS_MAX)],
        ))
    }
}

impl From<&str> for Printable {
    fn from(text: &str) -> Self {
        let mut shown = String::new();
        for (count, letter) in text.chars().enumerate() {
            if count == Self::CHARS_MAX {
                shown.push('…');
                break;
            }
            if letter.is_control() || ('\u{200b}'..='\u{202e}').contains(&letter) {
                shown.extend(letter.escape_default());
            } else {
                shown.push(letter);
            }
        }
        Self(shown.into())
    }
}

impl fmt::Display for Printable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            out.write_str("\"\"")
        } else {
            out.write_str(&self.0)
        }
    }
}

impl fmt::Debug for Printable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

/// Several texts from outside, shown with commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrintableList(Vec<Printable>);

impl PrintableList {
    /// The maximum number of texts in a message.
    const SHOWN_MAX: usize = 32;
}

impl<T: AsRef<str>> FromIterator<T> for PrintableList {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        Self(
            texts
                .into_iter()
                .map(|text| Printable::from(text.as_ref()))
                .collect(),
        )
    }
}

impl fmt::Display for PrintableList {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return out.write_str("none");
        }
        for (index, text) in self.0.iter().take(Self::SHOWN_MAX).enumerate() {
            write!(out, "{}{text}", if index == 0 { "" } else { ", " })?;
        }
        match self.0.len().checked_sub(Self::SHOWN_MAX) {
            Some(more) if more > 0 => write!(out, " and {more} more"),
            _ => Ok(()),
        }
    }
}

impl Error {
    /// Returns an error of the host during `action`; an error of this crate that was wrapped in an
    /// [`io::Error`] is unwrapped.
    #[must_use]
    pub fn io(action: &'static str, source: io::Error) -> Self {
        Self::unwrap(source).unwrap_or_else(|source| Self::Io { action, source })
    }

    /// As [`Error::io`], naming an entry of the image.
    #[must_use]
    pub fn entry(action: &'static str, entry: &[u8], source: impl Into<io::Error>) -> Self {
        Self::unwrap(source.into()).unwrap_or_else(|source| Self::Entry {
            action,
            entry: Printable::from(entry),
            source,
        })
    }

    /// Returns an error of reading an archive: the host's if it has an errno, else a damaged
    /// archive.
    #[must_use]
    pub fn archive(source: io::Error) -> Self {
        Self::unwrap(source).unwrap_or_else(|source| {
            if source.raw_os_error().is_some() {
                Self::Io {
                    action: "read the image",
                    source,
                }
            } else {
                Self::Archive(source)
            }
        })
    }

    /// Returns the host's errno behind this error, if there is one: `ENOSPC` means a full volume.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } | Self::Entry { source, .. } | Self::Archive(source) => {
                source.raw_os_error()
            }
            _ => None,
        }
    }

    fn unwrap(source: io::Error) -> Result<Self, io::Error> {
        let Some(inner) = source.get_ref() else {
            return Err(source);
        };
        if let Some(cancelled) = inner.downcast_ref::<Cancelled>() {
            return Ok(Self::Cancelled(*cancelled));
        }
        if inner.is::<Self>() {
            source.downcast::<Self>()
        } else {
            Err(source)
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_escaped_and_cut() {
        let shown = Printable::from(b"a\x1b[31m\nb".as_slice()).to_string();
        assert_eq!(shown, "a\\u{1b}[31m\\nb");
        let long = Printable::from("x".repeat(100_000).as_str()).to_string();
        assert!(long.chars().count() <= Printable::CHARS_MAX + 1);
    }

    #[test]
    fn an_error_survives_a_journey_through_io() {
        let carried = io::Error::from(Error::AlreadyRead);
        assert!(matches!(Error::archive(carried), Error::AlreadyRead));
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(
            Error::entry("write", b"a", full).raw_os_error(),
            Some(libc::ENOSPC)
        );
    }
}
