//! The messages of `containerd.services.diff.v1`, written by hand after containerd's `diff.proto`
//! and `descriptor.proto`, which fix the field numbers and types.

#![allow(missing_docs, reason = "the fields are described where they come from")]

use super::wire::Mount;
use prost::Message;
use std::collections::BTreeMap;

/// `containerd.types.Descriptor`
#[derive(Clone, PartialEq, Message)]
pub struct Descriptor {
    #[prost(string, tag = "1")]
    pub media_type: String,
    #[prost(string, tag = "2")]
    pub digest: String,
    #[prost(int64, tag = "3")]
    pub size: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub annotations: BTreeMap<String, String>,
}

/// `ApplyRequest`, without the payloads of processors that cowshed does not have.
#[derive(Clone, PartialEq, Message)]
pub struct ApplyRequest {
    #[prost(message, optional, tag = "1")]
    pub diff: Option<Descriptor>,
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    #[prost(bool, tag = "4")]
    pub sync_fs: bool,
}

/// `ApplyResponse`
#[derive(Clone, PartialEq, Message)]
pub struct ApplyResponse {
    #[prost(message, optional, tag = "1")]
    pub applied: Option<Descriptor>,
}

/// `DiffRequest`
#[derive(Clone, PartialEq, Message)]
pub struct DiffRequest {
    #[prost(message, repeated, tag = "1")]
    pub left: Vec<Mount>,
    #[prost(message, repeated, tag = "2")]
    pub right: Vec<Mount>,
    #[prost(string, tag = "3")]
    pub media_type: String,
    #[prost(string, tag = "4")]
    pub r#ref: String,
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "6")]
    pub source_date_epoch: Option<prost_types::Timestamp>,
}

/// `DiffResponse`
#[derive(Clone, PartialEq, Message)]
pub struct DiffResponse {
    #[prost(message, optional, tag = "3")]
    pub diff: Option<Descriptor>,
}
