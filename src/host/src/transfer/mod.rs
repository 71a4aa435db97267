//! Images, containers and volumes as sets for streams: which volumes of the pool belong to a set
//! that is sent, and what the members of a received one become.
//!
//! `cowshed-stream` writes and reads the streams, and does not know what a member is for. `gather`
//! finds the members of a set and the records that belong to them; `settle` checks what a stream
//! says, and gives members and records their names in one transaction.
//!
//! # Invariants
//! - A container's image is in its set, and so are all layers of an image.
//! - What a stream says about images and containers is checked as if anybody had written it. What is
//!   in a layer or a root cannot be checked: whoever receives a set trusts its sender for that.
//! - A received layer does not replace one that the pool has: images use that one, and what was made
//!   of the received layer keeps what it shares with it.

mod gather;
mod settle;

pub use gather::{Chosen, Gathered};
pub use settle::{Plan, ReceivedSet};

use crate::host::Host;
use cowshed_engine::Pool;

/// The prefixes of the names of volumes that are not sent, because only this host or a command that
/// runs has a use for them; recipes neither, because a receiver of an older version would take them for
/// volumes of its user.
const NOT_SENT: [&str; 4] = ["snapshot/", "work/", "unfinished/", RECIPE];
/// A version that knows no recipes may send them, too.
const RECIPE: &str = "recipe/";
const LAYER: &str = "layer/";
const TEMPLATE: &str = "template/";
const CONTAINER: &str = "container/";

/// Sends and receives the sets of one pool.
pub struct Transfers<'a> {
    pool: &'a Pool,
    /// The host, if something may be mounted.
    host: Option<&'a Host>,
}

impl<'a> Transfers<'a> {
    /// Returns those of a pool from which nothing is mounted.
    #[must_use]
    pub const fn of_pool(pool: &'a Pool) -> Self {
        Self { pool, host: None }
    }

    /// Returns those of the pool of `host`, which quiesces what is mounted.
    #[must_use]
    pub fn of_host(host: &'a Host) -> Self {
        Self {
            pool: host.pool(),
            host: Some(host),
        }
    }
}

/// Returns true if a volume's name says that it belongs to an image, a container or an operation.
fn is_reserved(name: &str) -> bool {
    let reserved = [LAYER, TEMPLATE, CONTAINER];
    reserved
        .iter()
        .chain(&NOT_SENT)
        .any(|start| name.starts_with(start))
}
