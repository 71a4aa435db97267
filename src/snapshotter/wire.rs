//! The messages of `containerd.services.snapshots.v1` and the types that it shares with other
//! services, written by hand after containerd's `snapshots.proto` and `mount.proto`: field numbers
//! and types are its, and fixed.

use prost::Message;
use std::collections::BTreeMap;

/// `containerd.types.Mount`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Mount {
    #[prost(string, tag = "1")]
    pub(super) r#type: String,
    #[prost(string, tag = "2")]
    pub(super) source: String,
    /// Where below the mount point; always empty here.
    #[prost(string, tag = "3")]
    pub(super) target: String,
    #[prost(string, repeated, tag = "4")]
    pub(super) options: Vec<String>,
}

/// `google.protobuf.Empty`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Empty {}

/// `google.protobuf.FieldMask`
#[derive(Clone, PartialEq, Message)]
pub(super) struct FieldMask {
    #[prost(string, repeated, tag = "1")]
    pub(super) paths: Vec<String>,
}

/// `PrepareSnapshotRequest` and `ViewSnapshotRequest`, which have the same fields.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PrepareRequest {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(super) key: String,
    #[prost(string, tag = "3")]
    pub(super) parent: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(super) labels: BTreeMap<String, String>,
}

/// `PrepareSnapshotResponse`, `ViewSnapshotResponse` and `MountsResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MountsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) mounts: Vec<Mount>,
}

/// `MountsRequest`, `RemoveSnapshotRequest`, `StatSnapshotRequest` and `UsageRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct KeyRequest {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(super) key: String,
}

/// `CommitSnapshotRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct CommitRequest {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) key: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(super) labels: BTreeMap<String, String>,
    #[prost(string, tag = "5")]
    pub(super) parent: String,
}

/// `Kind`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Kind {
    Unknown = 0,
    View = 1,
    Active = 2,
    Committed = 3,
}

/// `Info`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Info {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) parent: String,
    #[prost(enumeration = "Kind", tag = "3")]
    pub(super) kind: i32,
    #[prost(message, optional, tag = "4")]
    pub(super) created_at: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "5")]
    pub(super) updated_at: Option<prost_types::Timestamp>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(super) labels: BTreeMap<String, String>,
}

/// `StatSnapshotResponse` and `UpdateSnapshotResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) info: Option<Info>,
}

/// `UpdateSnapshotRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct UpdateRequest {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(message, optional, tag = "2")]
    pub(super) info: Option<Info>,
    #[prost(message, optional, tag = "3")]
    pub(super) update_mask: Option<FieldMask>,
}

/// `ListSnapshotsRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ListRequest {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) filters: Vec<String>,
}

/// `ListSnapshotsResponse`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) info: Vec<Info>,
}

/// `UsageResponse`
#[derive(Clone, PartialEq, Message)]
pub(super) struct UsageResponse {
    #[prost(int64, tag = "1")]
    pub(super) size: i64,
    #[prost(int64, tag = "2")]
    pub(super) inodes: i64,
}

/// `CleanupRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct CleanupRequest {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
}
