//! The messages of `containerd.services.diff.v1`, written by hand after containerd's `diff.proto` and
//! `descriptor.proto`: field numbers and types are its, and fixed.

use super::wire::Mount;
use prost::Message;
use std::collections::BTreeMap;

/// `containerd.types.Descriptor`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Descriptor {
    #[prost(string, tag = "1")]
    pub(super) media_type: String,
    #[prost(string, tag = "2")]
    pub(super) digest: String,
    #[prost(int64, tag = "3")]
    pub(super) size: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// `ApplyRequest`, but for the payloads of processors that cowshed does not have.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ApplyRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) diff: Option<Descriptor>,
    #[prost(message, repeated, tag = "2")]
    pub(super) mounts: Vec<Mount>,
    #[prost(bool, tag = "4")]
    pub(super) sync_fs: bool,
}

/// `ApplyResponse`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ApplyResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) applied: Option<Descriptor>,
}

/// `DiffRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct DiffRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) left: Vec<Mount>,
    #[prost(message, repeated, tag = "2")]
    pub(super) right: Vec<Mount>,
    #[prost(string, tag = "3")]
    pub(super) media_type: String,
    #[prost(string, tag = "4")]
    pub(super) r#ref: String,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(super) labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "6")]
    pub(super) source_date_epoch: Option<prost_types::Timestamp>,
}

/// `DiffResponse`
#[derive(Clone, PartialEq, Message)]
pub(super) struct DiffResponse {
    #[prost(message, optional, tag = "3")]
    pub(super) diff: Option<Descriptor>,
}
