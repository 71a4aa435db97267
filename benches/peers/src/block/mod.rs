//! Block devices: each peer makes one from the same backing.

mod branching;
mod cowshed;
mod discard;
mod empty;
mod io;
mod pgbench;
mod plain;
mod qcow2;
mod qmp;
mod reflink;
mod tail;
mod thin;
mod work;

pub(crate) use work::works;

use crate::backing::Backing;
use crate::fio::Target;
use crate::host::Ran;
use crate::service::{Build, RINGS};
use anyhow::bail;
use std::path::Path;

/// A maker of block devices.
pub(crate) trait Peer {
    /// Returns one or two words, with which `--peer` finds it.
    fn name(&self) -> &str;

    /// Returns its description, for the report.
    fn what(&self) -> String;

    /// Returns the reason why it is unavailable here.
    fn missing(&self) -> Option<String>;

    /// Returns true if it can take snapshots.
    fn has_snapshots(&self) -> bool {
        false
    }

    /// Creates a device of `size_bytes`, with nothing written yet.
    ///
    /// # Errors
    /// When it cannot be made.
    fn prepare(&self, place: &Place) -> anyhow::Result<Box<dyn Subject>>;
}

/// The place and size of a subject.
pub(crate) struct Place<'a> {
    /// A folder of the backing; the subject creates its own folder in it.
    pub(crate) folder: &'a Path,
    /// A name that no other subject has.
    pub(crate) name: &'a str,
    pub(crate) size_bytes: u64,
}

/// A device that is removed when this is dropped.
pub(crate) trait Subject {
    fn target(&self) -> &Target;

    /// Takes a snapshot of what has been written, and measures the time.
    ///
    /// # Errors
    /// When it has no snapshots, or taking one fails.
    fn snapshot(&mut self, _name: &str) -> anyhow::Result<Ran> {
        bail!("it has no snapshots")
    }

    /// Removes a snapshot, and measures the time.
    ///
    /// # Errors
    /// When it has no snapshots, or removing one fails.
    fn remove_snapshot(&mut self, _name: &str) -> anyhow::Result<Ran> {
        bail!("it has no snapshots")
    }

    /// Finishes background work, and returns free space to the host.
    ///
    /// # Errors
    /// When that fails.
    fn settle(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Returns the space of the host that it takes.
    ///
    /// # Errors
    /// When that cannot be read.
    fn host_bytes(&self) -> anyhow::Result<u64>;

    /// Stops serving, and takes a snapshot with the image's own tool; `None` if there is no such
    /// tool.
    fn snapshot_unserved(self: Box<Self>, _name: &str) -> Option<anyhow::Result<Ran>> {
        None
    }

    /// Returns true if written data can be read again; only the subject of a limit does not keep
    /// it.
    fn keeps_what_is_written(&self) -> bool {
        true
    }

    /// Returns the command that requests a checkpoint, if there is one.
    fn checkpoint(&self) -> Option<std::process::Command> {
        None
    }
}

/// Returns all peers, in the order of the report.
pub(crate) fn peers(program: &Path, backing: &Backing) -> Vec<Box<dyn Peer>> {
    let mut peers: Vec<Box<dyn Peer>> = vec![Box::new(plain::Plain::direct())];
    if !backing.in_memory {
        peers.push(Box::new(plain::Plain::buffered()));
    }
    let rings: &[&str] = &["--fuse", RINGS];
    for (suffix, options) in [("", &[][..]), (" (io-uring)", rings)] {
        let name = format!("empty server{suffix}");
        peers.push(Box::new(empty::Empty::new(&name, options)));
    }
    for (suffix, options) in [("", &[][..]), (" (io-uring)", rings)] {
        let name = format!("cowshed{suffix}");
        let build = Build::new(program, options);
        peers.push(Box::new(cowshed::Cowshed::new(&name, build)));
    }
    if !backing.in_memory {
        let build = Build::new(program, &[cowshed::DIRECT]);
        peers.push(Box::new(cowshed::Cowshed::new("cowshed (direct)", build)));
    }
    peers.push(Box::new(qcow2::Qcow2::fuse()));
    peers.push(Box::new(qcow2::Qcow2::nbd()));
    peers.push(Box::new(reflink::Reflink::xfs()));
    peers.push(Box::new(reflink::Reflink::btrfs()));
    peers.push(Box::new(thin::Thin::lvm()));
    peers.push(Box::new(thin::Thin::zfs()));
    peers
}

/// Returns two builds of cowshed, and nothing else.
pub(crate) fn builds(before: &Path, after: &Path) -> Vec<Box<dyn Peer>> {
    Build::compared(before, after)
        .into_iter()
        .map(|(name, build)| -> Box<dyn Peer> { Box::new(cowshed::Cowshed::new(name, build)) })
        .collect()
}
