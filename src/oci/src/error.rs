//! What can go wrong with an image, kept distinct up to the command line.
//!
//! Text that comes from an image is shown escaped ([`Printable`]): a hostile name must not reach
//! a terminal as it is.

use super::digest::Digest;
use cowshed_format::base::Cancelled;
use std::fmt;
use std::io;

/// The module's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be read, applied or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host failed.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The host's error, with its errno.
        source: io::Error,
    },
    /// One entry of a layer, or one file of a tree, could not be made or read.
    #[error("{action} {entry}: {source}")]
    Entry {
        /// What was being done to it.
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
    /// A header of the archive contradicts itself or a limit.
    #[error("the archive is damaged at {entry}: {fault}; fetch or export it again")]
    Header {
        /// The entry, as far as its name is known.
        entry: Printable,
        /// What is wrong.
        fault: HeaderFault,
    },
    /// An entry is of a kind that makes no file here.
    #[error("{entry} cannot be imported: {why}")]
    Unsupported {
        /// The entry.
        entry: Printable,
        /// What it is, and what to do.
        why: &'static str,
    },
    /// The extended attributes of an entry do not fit the file system.
    #[error(
        "the extended attributes of {entry} do not fit: {name} has {len_bytes} bytes, and ext4 takes about 4000 for all attributes of a file; make them smaller"
    )]
    Attributes {
        /// The entry.
        entry: Printable,
        /// The attribute that found no room.
        name: Printable,
        /// The bytes of its value.
        len_bytes: usize,
    },
    /// The compressed stream asks for more memory than is given.
    #[error(
        "it takes more than 128 MiB of memory to decompress; compress it again with a smaller window (zstd without --long or --ultra, xz -9 or less)"
    )]
    Window,
    /// A compressed stream is followed by something else.
    #[error(
        "the compressed stream is followed by something that is neither padding nor a further stream; fetch or export it again"
    )]
    Trailing,
    /// An entry's path or link would leave the root.
    #[error("the entry {entry} would leave the image's root; do not trust this image")]
    Escapes {
        /// The path or the hard link's target.
        entry: Printable,
    },
    /// An entry would replace what is not to be lost.
    #[error("{entry} is {what} there, which is not replaced; remove it first")]
    InTheWay {
        /// The entry's path.
        entry: Printable,
        /// What is there.
        what: &'static str,
    },
    /// A file's name means something else in a layer.
    #[error(
        "{0} cannot be stored in a layer, because names that begin with .wh. mark removals; rename it"
    )]
    ReservedName(Printable),
    /// Content does not have the digest that was stated for it.
    #[error("{what} should be {expected} but is {found}; fetch or export the image again")]
    DigestMismatch {
        /// Which content.
        what: Part,
        /// What was stated.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// Content does not have the size that was stated for it.
    #[error(
        "{what} should have {expected_bytes} bytes but has {found_bytes}; fetch or export the image again"
    )]
    SizeMismatch {
        /// Which content.
        what: Part,
        /// What was stated.
        expected_bytes: u64,
        /// What it is.
        found_bytes: u64,
    },
    /// The digest is none, or of an algorithm other than SHA-256.
    #[error("{0} is not a sha256 digest, the only kind that is supported")]
    UnsupportedDigest(Printable),
    /// The content is of a kind that cannot be imported.
    #[error("{what} has the media type {media_type}, which is not supported; convert the image")]
    UnsupportedMediaType {
        /// Which content.
        what: Part,
        /// Its media type.
        media_type: Printable,
    },
    /// A JSON document is not what it should be.
    #[error("{what} is not valid: {source}")]
    Json {
        /// Which document.
        what: Part,
        /// The parser's complaint.
        source: serde_json::Error,
    },
    /// A document contradicts itself or a limit.
    #[error("{what} is not valid: {fault}")]
    Document {
        /// Which document.
        what: Part,
        /// What is wrong.
        fault: &'static str,
    },
    /// The image states another number of layers than its configuration.
    #[error("the manifest has {layers} layers but the configuration has {diff_ids} diff ids")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Diff ids of the configuration.
        diff_ids: usize,
    },
    /// A blob that the image refers to is not there.
    #[error("{what} ({name}) is missing from the image; export it completely")]
    Missing {
        /// Which content.
        what: Part,
        /// Its file or digest.
        name: Printable,
    },
    /// The input holds no image.
    #[error(
        "this is not an image (an OCI layout, a docker-archive, or a root file system as a folder or tar): {0}"
    )]
    NotAnImage(&'static str),
    /// It looks like an image, but a part of it is not there.
    #[error(
        "this looks like {form}, but {fault}; export the image again, or say that it is a root file system"
    )]
    NotWhole {
        /// The form that it looks like.
        form: &'static str,
        /// What is missing or wrong.
        fault: &'static str,
    },
    /// It holds a root file system in one of its folders.
    #[error(
        "this is {form}, which has its root file system in its folder rootfs; import that folder"
    )]
    RootInside {
        /// What it is.
        form: &'static str,
    },
    /// Several folders hold an image each.
    #[error("it holds images in several folders, import one of them: {available}")]
    SeveralFolders {
        /// The folders.
        available: PrintableList,
    },
    /// No image in the input has this name.
    #[error("there is no image {wanted} in it; it holds {available}")]
    NoSuchReference {
        /// The name that was asked for.
        wanted: Printable,
        /// What there is.
        available: PrintableList,
    },
    /// There are several images and none was chosen.
    #[error("it holds several images, choose one by name: {available}")]
    SeveralImages {
        /// What there is.
        available: PrintableList,
    },
    /// No image is for this host.
    #[error("there is no image for {wanted} in it; it has {available}")]
    NoPlatform {
        /// The host's platform.
        wanted: Printable,
        /// What there is.
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
}

/// Which fact about a tar header was violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The header's checksum is wrong.
    #[error("its header has a wrong checksum")]
    Checksum,
    /// A numeric field is no number or too large.
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
    /// The header belongs to an entry that does not follow.
    #[error("the entry that its header announces is missing")]
    Dangling,
    /// The end marker is missing.
    #[error("the archive ends without its end marker")]
    NoEnd,
    /// An access control list is ill-formed.
    #[error("its access control list is ill-formed")]
    Acl,
    /// A parent of the entry is no directory.
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
    /// The names and images of a docker-archive before Docker 1.10.
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
    /// The stored layer with this index from 0.
    #[must_use]
    pub const fn layer(index: usize) -> Self {
        Self::Layer(index.saturating_add(1))
    }

    /// The uncompressed content of the layer with this index from 0.
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

/// Text from outside, shown with everything unprintable escaped and cut at a sane length.
#[derive(Clone, PartialEq, Eq)]
pub struct Printable(Box<str>);

impl Printable {
    /// The longest text that a message shows, in characters of the original.
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
    /// The most texts that a message shows.
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
    /// An error of the host while doing `action`; an error of this room that travelled inside an
    /// [`io::Error`] comes out as it went in.
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

    /// An error met while reading an archive: the host's where it has an errno, else damage.
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

    /// The host's errno behind this error, if there is one: `ENOSPC` tells a full volume.
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
