//! The plugin protocol's messages as JSON has them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What answers are declared as.
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
    /// Who uses it: one for each container, chosen by Docker.
    #[serde(rename = "ID", default)]
    pub id: String,
}

/// The answer to any call: each uses some of the fields.
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
    /// Why it failed; empty when it did not.
    pub err: String,
}

/// What the driver can do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Capabilities {
    /// `local`: the volumes are this host's.
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

/// What only cowshed tells of a volume.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    /// The name for `cowshed volume`.
    pub volume: String,
    pub size_bytes: u64,
    pub own_bytes: u64,
    pub referenced_bytes: u64,
}
