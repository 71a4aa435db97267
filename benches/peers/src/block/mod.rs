//! Block devices: each peer makes one out of the same backing.

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

/// What makes block devices.
pub(crate) trait Peer {
    /// One or two words, with which `--peer` finds it.
    fn name(&self) -> &str;

    /// What it is, for the report.
    fn what(&self) -> String;

    /// Why it cannot be had here.
    fn missing(&self) -> Option<String>;

    /// Whether it can take snapshots.
    fn has_snapshots(&self) -> bool {
        false
    }

    /// Makes a device of `size_bytes`, with nothing written yet.
    ///
    /// # Errors
    /// When it cannot be made.
    fn prepare(&self, place: &Place) -> anyhow::Result<Box<dyn Subject>>;
}

/// Where a subject is made, and how large.
pub(crate) struct Place<'a> {
    /// A folder of the backing; the subject makes its own in it.
    pub(crate) folder: &'a Path,
    /// A name that no other subject has.
    pub(crate) name: &'a str,
    pub(crate) size_bytes: u64,
}

/// A device that takes itself away when it is dropped.
pub(crate) trait Subject {
    fn target(&self) -> &Target;

    /// Takes a snapshot of what has been written, and times it.
    ///
    /// # Errors
    /// When it cannot.
    fn snapshot(&mut self, _name: &str) -> anyhow::Result<Ran> {
        bail!("it has no snapshots")
    }

    /// Removes a snapshot, and times it.
    ///
    /// # Errors
    /// When it cannot.
    fn remove_snapshot(&mut self, _name: &str) -> anyhow::Result<Ran> {
        bail!("it has no snapshots")
    }

    /// Finishes what goes on in the background, and gives the host what is free.
    ///
    /// # Errors
    /// When it cannot.
    fn settle(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// What the host gives for it.
    ///
    /// # Errors
    /// When that cannot be read.
    fn host_bytes(&self) -> anyhow::Result<u64>;

    /// Stops serving, and has the image's own tool take a snapshot, where there is such a tool.
    fn snapshot_unserved(self: Box<Self>, _name: &str) -> Option<anyhow::Result<Ran>> {
        None
    }

    /// Whether what is written can be read again; only a limit's subject does not keep it.
    fn keeps_what_is_written(&self) -> bool {
        true
    }

    /// Asks for a checkpoint, where there is such a thing.
    fn checkpoint(&self) -> Option<std::process::Command> {
        None
    }
}

/// All peers, in the order of the report.
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

/// Two builds of cowshed, and nothing else.
pub(crate) fn builds(before: &Path, after: &Path) -> Vec<Box<dyn Peer>> {
    Build::compared(before, after)
        .into_iter()
        .map(|(name, build)| -> Box<dyn Peer> { Box::new(cowshed::Cowshed::new(name, build)) })
        .collect()
}
