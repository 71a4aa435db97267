//! The request to remove what nothing uses.

use serde::{Deserialize, Serialize};

/// The request to remove volumes and layers that nothing uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gc {
    /// Removes nothing, and lists each volume with the reason why it is kept. Without it garbage is
    /// removed.
    #[serde(default)]
    pub explain: bool,
}
