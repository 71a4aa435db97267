//! The messages of `containerd.services.content.v1`, and those that are needed of
//! `containerd.services.leases.v1` and `containerd.services.introspection.v1`, written by hand
//! after containerd's `.proto` files, which fix the field numbers and types.

#![allow(missing_docs, reason = "the fields are described where they come from")]

use super::wire::FieldMask;
use prost::Message;
use std::collections::BTreeMap;

/// `Info`, without its times.
#[derive(Clone, PartialEq, Message)]
pub struct Info {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub size: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: BTreeMap<String, String>,
}

/// `InfoRequest`
#[derive(Clone, PartialEq, Message)]
pub struct InfoRequest {
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// `InfoResponse` and `UpdateResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// `UpdateRequest`
#[derive(Clone, PartialEq, Message)]
pub struct UpdateRequest {
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
    #[prost(message, optional, tag = "2")]
    pub update_mask: Option<FieldMask>,
}

/// `ReadContentRequest`
#[derive(Clone, PartialEq, Message)]
pub struct ReadRequest {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub offset: i64,
    /// Zero means the whole blob.
    #[prost(int64, tag = "3")]
    pub size: i64,
}

/// `ReadContentResponse`
#[derive(Clone, PartialEq, Message)]
pub struct ReadResponse {
    #[prost(int64, tag = "1")]
    pub offset: i64,
    #[prost(bytes = "bytes", tag = "2")]
    pub data: prost::bytes::Bytes,
}

/// `WriteAction`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum WriteAction {
    Stat = 0,
    Write = 1,
    Commit = 2,
}

/// `WriteContentRequest`
#[derive(Clone, PartialEq, Message)]
pub struct WriteRequest {
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    #[prost(string, tag = "2")]
    pub r#ref: String,
    #[prost(int64, tag = "3")]
    pub total: i64,
    #[prost(string, tag = "4")]
    pub expected: String,
    #[prost(int64, tag = "5")]
    pub offset: i64,
    #[prost(bytes = "bytes", tag = "6")]
    pub data: prost::bytes::Bytes,
    #[prost(btree_map = "string, string", tag = "7")]
    pub labels: BTreeMap<String, String>,
}

/// `WriteContentResponse`, without its times.
#[derive(Clone, PartialEq, Message)]
pub struct WriteResponse {
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    #[prost(int64, tag = "4")]
    pub offset: i64,
    #[prost(int64, tag = "5")]
    pub total: i64,
    #[prost(string, tag = "6")]
    pub digest: String,
}

/// `AbortRequest`
#[derive(Clone, PartialEq, Message)]
pub struct AbortRequest {
    #[prost(string, tag = "1")]
    pub r#ref: String,
}

/// The leases' `CreateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct LeaseRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: BTreeMap<String, String>,
}

/// `PluginsRequest`
#[derive(Clone, PartialEq, Message)]
pub struct PluginsRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// `Plugin`, limited to the field that says where the plugin keeps its data.
#[derive(Clone, PartialEq, Message)]
pub struct Plugin {
    #[prost(btree_map = "string, string", tag = "5")]
    pub exports: BTreeMap<String, String>,
}

/// `PluginsResponse`
#[derive(Clone, PartialEq, Message)]
pub struct PluginsResponse {
    #[prost(message, repeated, tag = "1")]
    pub plugins: Vec<Plugin>,
}
