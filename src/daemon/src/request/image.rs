//! Requests about images. An image is meant by one of its names or by its id, which may be
//! shortened.

use super::path::{FileOrPipe, HostPath};
use super::stream::{Receive, SendOptions};
use cowshed_oci::Platform;
use serde::{Deserialize, Serialize};

/// A request about images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Imports an image, or all images of an archive.
    Import(Import),
    /// Takes over the images of another program's store on this host.
    Migrate(Migrate),
    /// Stores an image that the caller fetches from elsewhere: it comes over the input, a socket,
    /// as `cowshed_oci::relay` passes it on.
    Pull(Pull),
    /// Offers an image to the caller, who sends it elsewhere, over the input, a socket, as
    /// `cowshed_oci::offer` does.
    Push(Push),
    /// Lists all images.
    List,
    /// Shows one image.
    Inspect {
        /// The image.
        image: String,
    },
    /// Shows how an image was made, layer by layer.
    History {
        /// The image.
        image: String,
    },
    /// Gives an image one more name.
    Tag {
        /// The image.
        image: String,
        /// The name that it gets. An image that has it loses it.
        name: String,
    },
    /// Writes images as an OCI layout in a tar archive.
    Export(Export),
    /// Writes images as a stream to the output.
    Send {
        /// The images.
        images: Vec<String>,
        /// How they are sent.
        options: SendOptions,
    },
    /// Receives a set from the input.
    Receive(Receive),
    /// Removes images, and the layers that nothing else uses. One that cannot be removed does not
    /// keep the others.
    Remove {
        /// The images.
        images: Vec<String>,
    },
}

/// The import of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// The source: a file or folder, or an archive on the input.
    pub source: FileOrPipe,
    /// The name that the image gets, which also selects the image of an archive that has several.
    /// Without it the names that the images bring.
    pub name: Option<String>,
    /// The platform to take of an image for several, as `OS/ARCHITECTURE[/VARIANT]`. Without it
    /// the one that suits this host best.
    #[serde(default, with = "platform")]
    pub platform: Option<Platform>,
    /// Takes the source as a root file system, whatever it looks like. Without it the form of the
    /// source is recognised.
    #[serde(default)]
    pub rootfs: bool,
    /// The size of the image's file system in bytes. Without it the size follows the image.
    pub size_bytes: Option<u64>,
}

/// The images of another program's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The folder with the store, which is only read.
    pub from: HostPath,
}

/// An image that the caller fetches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    /// Its name, for messages.
    pub name: String,
    /// The size of the image's file system in bytes. Without it the size follows the image.
    pub size_bytes: Option<u64>,
}

/// An image that the caller sends elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Push {
    /// The image.
    pub image: String,
}

/// The export of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The images.
    pub images: Vec<String>,
    /// The target.
    pub file: FileOrPipe,
    /// The compression of the layers. Without it none.
    #[serde(default)]
    pub compression: Compression,
}

/// The compression of the layers of exported images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Plain tar.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// A platform as text.
mod platform {
    use super::Platform;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        platform: &Option<Platform>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = platform.as_ref().map(ToString::to_string);
        text.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Platform>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom))
            .transpose()
    }
}
