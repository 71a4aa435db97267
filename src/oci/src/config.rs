//! The image configuration: kept byte for byte, because its digest is the image's id, and read
//! only as far as layers and listings need.
//!
//! A changed configuration keeps every field that this crate does not know.

use super::digest::{Digest, chain_above};
use super::error::{Error, Part, Result};
use super::limits::LAYERS_MAX;
use super::platform::Platform;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// An image's configuration.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    raw: Vec<u8>,
    digest: Digest,
    view: View,
}

/// The configuration's record of one step of the image's making.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The time, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// The author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The author's comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// True if the step made no layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_layer: Option<bool>,
}

/// The origin of a new layer, for the image's history.
#[derive(Clone, Copy, Debug)]
pub struct LayerOrigin<'a> {
    /// The time of its creation, in RFC 3339.
    pub created: &'a str,
    /// The command that created it.
    pub created_by: &'a str,
}

#[derive(Clone, Debug, Deserialize)]
struct View {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    created: Option<String>,
    rootfs: RootFs,
    #[serde(default)]
    history: Option<Vec<History>>,
}

#[derive(Clone, Debug, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

impl ImageConfig {
    /// Parses a configuration.
    ///
    /// # Errors
    /// `Json` if it is not valid JSON, `Document` if it contradicts itself or exceeds a limit.
    pub fn parse(raw: Vec<u8>) -> Result<Self> {
        let what = Part::Config;
        let view: View =
            serde_json::from_slice(&raw).map_err(|source| Error::Json { what, source })?;
        if view.rootfs.kind != "layers" {
            return Err(Error::Document {
                what,
                fault: "its root file system is not of layers",
            });
        }
        let config = Self {
            digest: Digest::of(&raw),
            raw,
            view,
        };
        if config.diff_ids().len() > LAYERS_MAX {
            return Err(Error::Document {
                what,
                fault: "it has more than 1024 layers",
            });
        }
        Ok(config)
    }

    /// Returns the configuration of an image for this host whose only layer is `diff_id`.
    ///
    /// # Errors
    /// None in practice: the signature follows [`ImageConfig::parse`].
    pub fn of_single_layer(diff_id: Digest, origin: LayerOrigin<'_>) -> Result<Self> {
        let value = json!({
            "architecture": host_architecture(),
            "os": "linux",
            "created": origin.created,
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            "history": [history_of(origin)],
        });
        Self::of_value(&value)
    }

    /// Returns this configuration with one more layer on top.
    ///
    /// # Errors
    /// As [`ImageConfig::parse`].
    pub fn with_layer(&self, diff_id: Digest, origin: LayerOrigin<'_>) -> Result<Self> {
        let what = Part::Config;
        let mut value: Value =
            serde_json::from_slice(&self.raw).map_err(|source| Error::Json { what, source })?;
        let mut diff_ids = self.diff_ids().to_vec();
        diff_ids.push(diff_id);
        value["rootfs"]["diff_ids"] = json!(diff_ids);
        value["created"] = json!(origin.created);
        // A missing history says nothing; an existing one lists every layer.
        if self.view.history.is_some() || self.diff_ids().is_empty() {
            let history = match value["history"].take() {
                Value::Array(mut steps) => {
                    steps.push(history_of(origin));
                    steps
                }
                _ => vec![history_of(origin)],
            };
            value["history"] = Value::Array(history);
        }
        Self::of_value(&value)
    }

    /// Returns this configuration with other digests of the uncompressed layers; unchanged, byte by
    /// byte, if they are the same.
    ///
    /// # Errors
    /// As [`ImageConfig::parse`].
    pub fn with_diff_ids(self, diff_ids: &[Digest]) -> Result<Self> {
        if self.diff_ids() == diff_ids {
            return Ok(self);
        }
        let what = Part::Config;
        let mut value: Value =
            serde_json::from_slice(&self.raw).map_err(|source| Error::Json { what, source })?;
        value["rootfs"]["diff_ids"] = json!(diff_ids);
        Self::of_value(&value)
    }

    fn of_value(value: &Value) -> Result<Self> {
        let what = Part::Config;
        Self::parse(serde_json::to_vec(value).map_err(|source| Error::Json { what, source })?)
    }

    /// Returns the bytes as they were read or made.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Returns the digest of those bytes: the image's id.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns the digests of the uncompressed layers, lowest first.
    #[must_use]
    pub fn diff_ids(&self) -> &[Digest] {
        self.view.rootfs.diff_ids.as_deref().unwrap_or_default()
    }

    /// Returns the chain id up to each layer, lowest first.
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut below = None;
        let step = |diff_id: &Digest| {
            let chain_id = chain_above(below, *diff_id);
            below = Some(chain_id);
            chain_id
        };
        self.diff_ids().iter().map(step).collect()
    }

    /// Returns the processor architecture by Go's name; empty if it is not stated.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.view.architecture
    }

    /// Returns the operating system; empty if it is not stated.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.view.os
    }

    /// Returns the architecture's variant; empty if it is not stated.
    #[must_use]
    pub fn variant(&self) -> &str {
        self.view.variant.as_deref().unwrap_or_default()
    }

    /// Returns the platform of the image, if it is stated.
    #[must_use]
    pub fn platform(&self) -> Option<Platform> {
        let View {
            os, architecture, ..
        } = &self.view;
        let is_stated = !os.is_empty() && !architecture.is_empty();
        is_stated.then(|| Platform::new(os, architecture, self.variant()))
    }

    /// Returns the time when the image was made, in RFC 3339 as far as its maker followed it.
    #[must_use]
    pub fn created(&self) -> Option<&str> {
        self.view.created.as_deref()
    }

    /// Returns the steps of the image's making, lowest first.
    #[must_use]
    pub fn history(&self) -> &[History] {
        self.view.history.as_deref().unwrap_or_default()
    }
}

fn history_of(origin: LayerOrigin<'_>) -> Value {
    json!({ "created": origin.created, "created_by": origin.created_by })
}

/// Returns this host's architecture by Go's name.
#[must_use]
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: LayerOrigin<'_> = LayerOrigin {
        created: "2026-01-02T03:04:05Z",
        created_by: "test",
    };

    #[test]
    fn a_layer_more_keeps_what_is_unknown() {
        let (first, second) = (Digest::of(b"1"), Digest::of(b"2"));
        let raw = format!(
            r#"{{"rootfs":{{"type":"layers","diff_ids":["{first}"]}},"x":{{"y":[1,null]}},
                "config":{{"Env":["A=b"]}},"history":[{{"created_by":"a","z":2}}]}}"#
        );
        let config = ImageConfig::parse(raw.into_bytes()).unwrap();
        let more = config.with_layer(second, ORIGIN).unwrap();
        assert_eq!(more.diff_ids(), [first, second]);
        assert_eq!(more.chain_ids()[1], chain_above(Some(first), second));
        assert_eq!(more.history().len(), 2);
        let value: Value = serde_json::from_slice(more.raw()).unwrap();
        assert_eq!(value["x"], json!({"y": [1, null]}));
        assert_eq!(value["config"]["Env"], json!(["A=b"]));
        assert_eq!(value["history"][0]["z"], json!(2));
        assert_eq!(more.digest(), Digest::of(more.raw()));
    }

    #[test]
    fn a_single_layer_makes_a_whole_configuration() {
        let config = ImageConfig::of_single_layer(Digest::of(b"1"), ORIGIN).unwrap();
        assert_eq!(config.os(), "linux");
        assert_eq!(config.created(), Some(ORIGIN.created));
        assert_eq!(config.chain_ids(), [Digest::of(b"1")]);
    }

    #[test]
    fn a_document_that_is_no_configuration_is_refused() {
        for wrong in ["", "[]", "{}", r#"{"rootfs":{"type":"disk"}}"#] {
            assert!(
                ImageConfig::parse(wrong.as_bytes().to_vec()).is_err(),
                "{wrong}"
            );
        }
    }
}
