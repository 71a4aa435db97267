//! Requests to present volumes as files or block devices of this host.

use serde::{Deserialize, Serialize};

/// A request about attached volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Attaches a volume.
    Attach(Attach),
    /// Lists what is attached.
    List,
    /// Undoes one attach.
    Detach {
        /// The volume, by name or id.
        volume: String,
    },
}

/// How a volume is to be attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The volume, by name or id.
    pub volume: String,
    /// The form in which it is presented.
    pub kind: Kind,
    /// Refuses writes through it.
    #[serde(default)]
    pub read_only: bool,
    /// Allows others to write beside it. Without it a second writer is refused.
    #[serde(default)]
    pub shared: bool,
    /// The sectors of the loop device, which are kept with the volume. Without it those that were
    /// kept, or 4096 bytes. Only for `Kind::Loop`.
    pub sector_size: Option<SectorSize>,
}

/// The form in which a volume is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A file.
    File,
    /// A loop device.
    Loop,
}

/// The size of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SectorSize {
    /// 512 bytes.
    #[serde(rename = "512")]
    Small,
    /// 4096 bytes.
    #[serde(rename = "4096")]
    Large,
}

impl SectorSize {
    /// Returns the size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Small => 512,
            Self::Large => 4096,
        }
    }
}
