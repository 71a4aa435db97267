//! The implementation of each call of the plugin protocol.

use super::wire::{Answer, Capabilities, Create, One, Status, Use, Volume};
use crate::size::{Size, SizeError};
use cowshed_host::{self as container, CreateDataVolume, DataVolume, Host};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// The reason why a call was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// A call of a newer protocol, or of another kind of plugin.
    #[error("the call {0} is not supported")]
    UnknownCall(String),
    /// The message is malformed.
    #[error("the request is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// The option is unknown.
    #[error("there is no option {0}; use size=SIZE or from=NAME")]
    UnknownOption(String),
    /// The option's value is invalid.
    #[error("size={text}: {error}")]
    Size { text: String, error: SizeError },
    /// Docker's messages are text, but the folder's name is not.
    #[error("the mount point {} is not UTF-8", .0.display())]
    PathText(PathBuf),
    /// The host's error.
    #[error(transparent)]
    Failed(#[from] container::Error),
}

/// Carries out the call `path` with the message `body`.
pub(super) fn call(host: &Host, path: &str, body: &[u8]) -> Result<Answer, Refusal> {
    match path {
        "/Plugin.Activate" => Ok(Answer {
            implements: Some(["VolumeDriver"]),
            ..Answer::default()
        }),
        "/VolumeDriver.Capabilities" => Ok(Answer {
            capabilities: Some(Capabilities { scope: "local" }),
            ..Answer::default()
        }),
        "/VolumeDriver.Create" => create(host, parse(body)?),
        "/VolumeDriver.Remove" => {
            let One { name } = parse(body)?;
            host.data().remove(&name)?;
            Ok(Answer::default())
        }
        "/VolumeDriver.Mount" => {
            let Use { name, id } = parse(body)?;
            mounted_at(&host.data().mount(&name, &id)?)
        }
        "/VolumeDriver.Unmount" => {
            let Use { name, id } = parse(body)?;
            host.data().unmount(&name, &id)?;
            Ok(Answer::default())
        }
        "/VolumeDriver.Path" => {
            let One { name } = parse(body)?;
            mounted_at(&host.data().get(&name)?.mounted.unwrap_or_default())
        }
        "/VolumeDriver.Get" => {
            let One { name } = parse(body)?;
            let found = host.data().get(&name)?;
            let status = Status {
                volume: found.volume.clone(),
                size_bytes: found.size_bytes,
                own_bytes: found.own_bytes,
                referenced_bytes: found.referenced_bytes,
            };
            let volume = Volume {
                status: Some(status),
                ..listed(found)?
            };
            Ok(Answer {
                volume: Some(volume),
                ..Answer::default()
            })
        }
        "/VolumeDriver.List" => {
            let all = host.data().list().into_iter().map(listed);
            Ok(Answer {
                volumes: Some(all.collect::<Result<_, _>>()?),
                ..Answer::default()
            })
        }
        other => Err(Refusal::UnknownCall(other.chars().take(128).collect())),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    Ok(serde_json::from_slice(body)?)
}

fn create(host: &Host, request: Create) -> Result<Answer, Refusal> {
    let mut options = CreateDataVolume::default();
    for (key, value) in request.opts.unwrap_or_default() {
        match key.as_str() {
            "size" => {
                let size: Result<Size, _> = value.parse();
                let size = size.map_err(|error| Refusal::Size { text: value, error })?;
                options.size_bytes = Some(size.0);
            }
            "from" => options.from = Some(value),
            _ => return Err(Refusal::UnknownOption(key)),
        }
    }
    host.data().create(&request.name, &options)?;
    Ok(Answer::default())
}

fn mounted_at(path: &Path) -> Result<Answer, Refusal> {
    Ok(Answer {
        mountpoint: Some(text(path)?),
        ..Answer::default()
    })
}

fn listed(found: DataVolume) -> Result<Volume, Refusal> {
    Ok(Volume {
        mountpoint: text(&found.mounted.unwrap_or_default())?,
        created_at: humantime::format_rfc3339_seconds(found.created).to_string(),
        name: found.name,
        status: None,
    })
}

fn text(path: &Path) -> Result<String, Refusal> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Refusal::PathText(path.to_owned()))
}
