//! The plugin protocol's messages in their JSON form.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The content type of replies.
pub(super) const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// `VolumeDriver.Create`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Create {
    pub name: String,
    #[serde(default)]
    pub opts: Option<BTreeMap<String, String>>,
}

/// `VolumeDriver.Remove`, `Path` and `Get`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct One {
    pub name: String,
}

/// `VolumeDriver.Mount` and `Unmount`.
#[derive(Debug, Deserialize)]
pub(super) struct Use {
    #[serde(rename = "Name")]
    pub name: String,
    /// The user of the volume: one id for each container, chosen by Docker.
    #[serde(rename = "ID", default)]
    pub id: String,
}

/// The reply to any call: each call uses some of the fields.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub implements: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<Volume>>,
    /// The reason for a failure; empty on success.
    pub err: String,
}

/// The driver's capabilities.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Capabilities {
    /// `local`: the volumes belong to this host.
    pub scope: &'static str,
}

/// A volume as `docker volume inspect` shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Volume {
    pub name: String,
    /// Empty while it is not mounted.
    pub mountpoint: String,
    pub created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

/// The information about a volume that only cowshed reports.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    /// The name for `cowshed volume`.
    pub volume: String,
    pub size_bytes: u64,
    pub own_bytes: u64,
    pub referenced_bytes: u64,
}
