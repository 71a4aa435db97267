//! The work of the diff service: unpacks layers into roots, and writes the changes of roots as
//! layers.
//!
//! Both work on mounts that the snapshots service has handed out. For any other mounts, for media
//! types of other programs and for digests that cannot be verified here, the reply is
//! `Unimplemented`, and containerd asks its next differ.

use super::content::{Contents, Failure};
use super::convert::OVERLAY;
use super::diff_wire::{ApplyRequest, ApplyResponse, Descriptor, DiffRequest, DiffResponse};
use super::record::{Index, Kind};
use super::wire::Mount;
use cowshed_engine::Volume;
use cowshed_format::base::sync::RwLock;
use cowshed_format::base::{self, VolumeId};
use cowshed_host::{self as container, Host, LayerOptions, Sizing};
use cowshed_oci::{self as oci, Compression, Digest, LayerInfo, LayerReader, LayerSummary, Time};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use tonic::{Code, Status};

/// The label of a compressed blob that holds the digest of its uncompressed content.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Docker's media types of layers; OCI's are in `Compression`.
const DOCKER_LAYERS: [&str; 6] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
];
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_FOREIGN_LAYER: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";

/// The reason why a call is refused or failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the mounts are not those of a snapshot of cowshed")]
    NotOurs,
    #[error("the media type {0} is not supported")]
    MediaType(Box<str>),
    #[error("the digest {0} is not supported; use sha256")]
    DigestKind(Box<str>),
    #[error("the request has no {0}")]
    Missing(&'static str),
    #[error("the source-date-epoch {0} has an invalid number of nanoseconds")]
    Epoch(i32),
    #[error("the snapshot is read-only; a layer is applied to one that is prepared")]
    ReadOnly,
    #[error("the blob {digest} has {found_bytes} bytes, not the {stated_bytes} of its descriptor")]
    Size {
        digest: Digest,
        found_bytes: i64,
        stated_bytes: i64,
    },
    #[error("{}", .0.message())]
    Contents(#[from] Box<Status>),
    #[error(transparent)]
    Host(#[from] container::Error),
    #[error(transparent)]
    Oci(#[from] oci::Error),
}

type Result<T, E = Error> = std::result::Result<T, E>;

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Contents(Box::new(status))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NotOurs | Error::MediaType(_) | Error::DigestKind(_) => Code::Unimplemented,
            Error::Missing(_) | Error::Epoch(_) | Error::Size { .. } => Code::InvalidArgument,
            Error::ReadOnly => Code::FailedPrecondition,
            Error::Contents(status) => return Status::clone(status),
            Error::Host(error) => host_code(error),
            Error::Oci(error) => layer_code(error),
        };
        Self::new(code, error.to_string())
    }
}

fn host_code(error: &container::Error) -> Code {
    match error {
        error if error.is_no_space() => Code::ResourceExhausted,
        error if error.is_cancelled() => Code::Cancelled,
        container::Error::Incomplete(_) => Code::FailedPrecondition,
        container::Error::Oci(error) => layer_code(error),
        container::Error::Pool(base::Error::Corrupt(_)) => Code::DataLoss,
        container::Error::Pool(base::Error::Closed) => Code::Unavailable,
        _ => Code::Unknown,
    }
}

const fn layer_code(error: &oci::Error) -> Code {
    match error {
        oci::Error::Cancelled(_) => Code::Cancelled,
        oci::Error::DigestMismatch { .. } | oci::Error::SizeMismatch { .. } => Code::DataLoss,
        oci::Error::Archive(_)
        | oci::Error::Header { .. }
        | oci::Error::Escapes { .. }
        | oci::Error::ReservedName(_)
        | oci::Error::Unsupported { .. }
        | oci::Error::Attributes { .. }
        | oci::Error::Window
        | oci::Error::NotAnImage(_) => Code::InvalidArgument,
        _ => Code::Unknown,
    }
}

/// The root whose changes are written.
enum Upper {
    /// A volume that began as a clone.
    Root(Volume),
    /// The own volume of an overlay.
    Overlay(Volume),
}

/// Unpacks and writes layers of one pool's roots.
pub(super) struct Differ {
    host: Arc<Host>,
    /// The records of the snapshots.
    index: Arc<RwLock<Index>>,
    /// The usual size of a snapshot.
    usual_bytes: u64,
}

impl Differ {
    pub(super) const fn new(host: Arc<Host>, index: Arc<RwLock<Index>>, usual_bytes: u64) -> Self {
        Self {
            host,
            index,
            usual_bytes,
        }
    }

    /// Returns the sizing of a volume: a snapshot that is to be filled grows with the layer; any
    /// other keeps the size that was asked for.
    fn sizing_of(&self, volume: &Volume) -> Sizing {
        let index = self.index.read();
        let mut of_it = index
            .iter()
            .filter(|(_, record)| record.volume() == volume.id());
        if of_it.any(|(_, record)| record.fill) {
            Sizing::Following {
                usual_bytes: self.usual_bytes,
            }
        } else {
            Sizing::Fixed
        }
    }

    /// Returns the namespace of the snapshots that the mounts show, if all are of the same one:
    /// containerd gives its snapshotters keys that begin with the namespace, and never a parent of
    /// another namespace.
    pub(super) fn namespace_of<'m>(
        &self,
        mounts: impl Iterator<Item = &'m Mount>,
    ) -> Option<String> {
        let volumes: Vec<_> = mounts.filter_map(|mount| self.shown(mount)).collect();
        let index = self.index.read();
        let owners = index
            .iter()
            .filter(|(_, record)| record.kind != Kind::View && volumes.contains(&record.volume()));
        let mut names = owners.map(|(key, _)| namespace_of_key(key));
        let first = names.next()??;
        let is_one = names.all(|name| name == Some(first));
        is_one.then(|| first.to_owned())
    }

    /// Unpacks a blob into the root that the mounts show.
    pub(super) fn apply(
        &self,
        request: &ApplyRequest,
        contents: &Contents,
    ) -> Result<ApplyResponse> {
        let layer = request.diff.as_ref().ok_or(Error::Missing("descriptor"))?;
        check_layer_type(&layer.media_type)?;
        let unknown = |_| Error::DigestKind(shortened(&layer.digest));
        let digest: Digest = layer.digest.parse().map_err(unknown)?;
        let volume = self.volume_of(&request.mounts)?;
        if volume.is_frozen() {
            return Err(Error::ReadOnly);
        }
        let found = contents.info(&layer.digest)?;
        if layer.size > 0 && layer.size != found.size {
            return Err(Error::Size {
                digest,
                found_bytes: found.size,
                stated_bytes: layer.size,
            });
        }
        let size_bytes = u64::try_from(found.size).ok();
        let stored = size_bytes.and_then(|size_bytes| contents.file(digest, size_bytes));
        let (blob, failure): (Box<dyn Read + Send>, _) = match stored {
            Some(file) => (Box::new(file), Failure::default()),
            None => {
                let (blob, failure) = contents.read(&layer.digest);
                (Box::new(blob), failure)
            }
        };
        let info = LayerInfo {
            media_type: layer.media_type.clone(),
            compressed_digest: Some(digest),
            size_bytes,
            ..LayerInfo::of_plain_tar()
        };
        let reader = LayerReader::over(blob, &info)?;
        let sizing = self.sizing_of(&volume);
        let applied = self.host.roots().fill(&volume, reader, sizing);
        let (applied, dropped) = applied.map_err(|error| said_better(error, &failure))?;
        for line in dropped.lines() {
            tracing::warn!(layer = %digest, "{line}");
        }
        if request.sync_fs {
            self.host.roots().sync(&volume)?;
        }
        Ok(ApplyResponse {
            applied: Some(Descriptor {
                media_type: OCI_LAYER.to_owned(),
                digest: applied.diff_id.to_string(),
                size: i64::try_from(applied.size_bytes).unwrap_or(i64::MAX),
                ..Descriptor::default()
            }),
        })
    }

    /// Writes what changed from the left root to the right one as a blob.
    pub(super) fn compare(
        &self,
        request: DiffRequest,
        contents: &mut Contents,
    ) -> Result<DiffResponse> {
        let compression = compression_of(&request.media_type)?;
        let latest = request.source_date_epoch.map(time).transpose()?;
        let lower = self.volume_of(&request.left)?;
        let upper = self.upper_of(&request.right, &lower)?;
        let options = LayerOptions {
            compression,
            latest,
        };
        contents.lease();
        let own = request.r#ref.is_empty();
        let reference = if own {
            format!("cowshed-diff-{:032x}", rand::random::<u128>())
        } else {
            request.r#ref.clone()
        };
        let written = self.write(
            &lower,
            &upper,
            options,
            &reference,
            request.labels,
            contents,
        );
        if written.is_err() && own {
            // No other call knows the ref. If containerd does not reply, it collects the data by
            // itself.
            let _ = contents.abort(&reference);
        }
        let summary = written?;
        Ok(DiffResponse {
            diff: Some(Descriptor {
                media_type: compression.layer_media_type().to_owned(),
                digest: summary.blob_digest.to_string(),
                size: i64::try_from(summary.blob_size_bytes).unwrap_or(i64::MAX),
                ..Descriptor::default()
            }),
        })
    }

    fn write(
        &self,
        lower: &Volume,
        upper: &Upper,
        options: LayerOptions,
        reference: &str,
        mut labels: super::record::Labels,
        contents: &Contents,
    ) -> Result<LayerSummary> {
        let writer = contents.write(reference)?;
        let failure = writer.failure();
        let roots = self.host.roots();
        let written = match upper {
            Upper::Root(upper) => roots.write_changes(lower, upper, writer, options),
            Upper::Overlay(own) => roots.write_overlay_changes(lower, own, writer, options),
        };
        let (writer, summary) = written.map_err(|error| said_better(error, &failure))?;
        let content = summary.diff_id.to_string();
        if options.compression != Compression::None {
            labels.insert(UNCOMPRESSED.to_owned(), content.clone());
        }
        let digest = summary.blob_digest.to_string();
        writer.commit(&digest, labels)?;
        if options.compression != Compression::None {
            // The same blob may have been in the store before, without the label.
            let found = contents.info(&digest)?;
            if !found.labels.contains_key(UNCOMPRESSED) {
                contents.label(&digest, UNCOMPRESSED, &content)?;
            }
        }
        Ok(summary)
    }

    /// Returns the right side of a comparison. An overlay can be compared with what is below it.
    fn upper_of(&self, mounts: &[Mount], lower: &Volume) -> Result<Upper> {
        let [mount] = mounts else {
            return Err(Error::NotOurs);
        };
        if mount.r#type != OVERLAY {
            return self.volume_of(mounts).map(Upper::Root);
        }
        let own = self.shown(mount).ok_or(Error::NotOurs)?;
        let is_over_it = {
            let index = self.index.read();
            index.iter().any(|(_, record)| {
                record.volume() == own
                    && record.is_overlay()
                    && index.read_by(record) == Some(lower.id())
            })
        };
        let roots = self.host.roots();
        let is_theirs = is_over_it && roots.is_overlay_of(&mount.options, own, lower.id());
        let volume = self.host.pool().volume_by_id(own).ok();
        let volume = volume.filter(|_| is_theirs && mount.target.is_empty());
        volume.map(Upper::Overlay).ok_or(Error::NotOurs)
    }

    /// Returns the own volume of the snapshot that a mount shows.
    fn shown(&self, mount: &Mount) -> Option<VolumeId> {
        let roots = self.host.roots();
        if mount.r#type == OVERLAY {
            roots.overlay_at(&mount.options)
        } else {
            roots.at(Path::new(&mount.source))
        }
    }

    /// Returns the volume that the mounts show as it is. An overlay's own volume is not shown so: it
    /// holds the upper folder and overlayfs's own.
    fn volume_of(&self, mounts: &[Mount]) -> Result<Volume> {
        let [mount] = mounts else {
            return Err(Error::NotOurs);
        };
        let is_known = matches!(mount.r#type.as_str(), "bind" | "ext4");
        if !is_known || !mount.target.is_empty() {
            return Err(Error::NotOurs);
        }
        let id = self.host.roots().at(Path::new(&mount.source));
        let id = id.filter(|&id| !self.index.read().is_own_of_overlay(id));
        let volume = id.and_then(|id| self.host.pool().volume_by_id(id).ok());
        volume.ok_or(Error::NotOurs)
    }
}

/// Returns the namespace in a key of containerd's metadata store: `NAMESPACE/NUMBER/KEY`. No
/// namespace contains a slash.
fn namespace_of_key(key: &str) -> Option<&str> {
    let (name, rest) = key.split_once('/')?;
    let (number, _) = rest.split_once('/')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (!name.is_empty() && is_number).then_some(name)
}

/// Returns the peer's error if that caused the failure. A volume that cannot be shown here because
/// it is shown elsewhere counts as not ours to work on.
fn said_better(error: container::Error, failure: &Failure) -> Error {
    if let Some(status) = failure.take() {
        return status.into();
    }
    match error {
        error if error.is_shown_otherwise() => Error::NotOurs,
        error => error.into(),
    }
}

fn check_layer_type(media_type: &str) -> Result<()> {
    let plain = |text: &str| [OCI_LAYER, OCI_FOREIGN_LAYER].contains(&text);
    let is_known = DOCKER_LAYERS.contains(&media_type)
        || plain(media_type)
        || media_type
            .rsplit_once('+')
            .is_some_and(|(base, suffix)| plain(base) && ["gzip", "zstd"].contains(&suffix));
    if is_known {
        Ok(())
    } else {
        Err(Error::MediaType(shortened(media_type)))
    }
}

fn compression_of(media_type: &str) -> Result<Compression> {
    if media_type.is_empty() {
        return Ok(Compression::Gzip);
    }
    let all = [Compression::None, Compression::Gzip, Compression::Zstd];
    let found = all.iter().find(|one| one.layer_media_type() == media_type);
    found
        .copied()
        .ok_or_else(|| Error::MediaType(shortened(media_type)))
}

fn time(stamp: prost_types::Timestamp) -> Result<Time> {
    let nanoseconds = u32::try_from(stamp.nanos).ok();
    let nanoseconds = nanoseconds.filter(|nanos| *nanos < 1_000_000_000);
    Ok(Time {
        seconds: stamp.seconds,
        nanoseconds: nanoseconds.ok_or(Error::Epoch(stamp.nanos))?,
    })
}

fn shortened(text: &str) -> Box<str> {
    text.chars().take(128).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_known_by_their_media_type_and_others_are_left_to_other_differs() {
        for known in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar",
        ] {
            assert!(check_layer_type(known).is_ok(), "{known}");
        }
        for other in [
            "",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.image.layer.v1.tar+bzip2",
            "application/vnd.erofs.layer.v1",
            "application/vnd.docker.image.rootfs.diff.tar+gzip",
        ] {
            let refused = check_layer_type(other).map_err(Status::from);
            assert_eq!(refused.unwrap_err().code(), Code::Unimplemented, "{other}");
        }
    }

    #[test]
    fn a_layer_is_gzipped_unless_another_form_is_asked_for() {
        let of = |text: &str| compression_of(text).ok();
        assert_eq!(of(""), Some(Compression::Gzip));
        assert_eq!(of(OCI_LAYER), Some(Compression::None));
        let zstd = format!("{OCI_LAYER}+zstd");
        assert_eq!(of(&zstd), Some(Compression::Zstd));
        assert_eq!(
            of("application/vnd.docker.image.rootfs.diff.tar.gzip"),
            None
        );
    }
}
