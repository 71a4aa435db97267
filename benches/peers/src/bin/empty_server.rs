//! `empty_server MOUNTPOINT --size BYTES [--fuse threads|io-uring]`: a mount of one file,
//! `MOUNTPOINT/empty`, that is served as volumes are but has no pool. What is read is whatever the
//! buffer held, and what is written is forgotten: it shows what the way from the kernel to a volume
//! and back costs by itself, which limits every volume on that way.
//!
//! It is no part of the product: its reads show what other requests of the same mount left in
//! memory. It prints the file's path once it is served, and ends by SIGTERM or SIGINT, when it
//! unmounts. A loop device on the file is its user's to make and to detach.

use clap::Parser;
use cowshed_engine::{Error, Extent, ExtentKind, Name, Result, VolumeId, Waiter};
use cowshed_export::{
    BlockTarget, Directory, Export, ExportOptions, Space, TargetHold, TargetInfo, Transport,
};
use nix::sys::signal::{SigSet, Signal};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// The file's name.
const EMPTY_FILE: &str = "empty";
/// The file's id.
const ID: VolumeId = VolumeId(1);

/// The file, and the directory that it is in.
#[derive(Clone)]
struct Empty {
    name: Name,
    size_bytes: u64,
    made: SystemTime,
}

impl Empty {
    /// Creates a file of `size_bytes`.
    ///
    /// # Errors
    /// `InvalidName`, if the name of the constant were none.
    fn new(size_bytes: u64) -> Result<Self> {
        Ok(Self {
            name: Name::new(EMPTY_FILE)?,
            size_bytes,
            made: SystemTime::now(),
        })
    }
}

impl BlockTarget for Empty {
    fn info(&self) -> Result<TargetInfo> {
        Ok(TargetInfo {
            id: ID,
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            allocated_bytes: self.size_bytes,
            is_read_only: false,
            created: self.made,
        })
    }

    fn id(&self) -> VolumeId {
        ID
    }

    fn name(&self) -> Name {
        self.name.clone()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, _buf: &mut [u8], _offset_bytes: u64) -> Result<()> {
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset_bytes: u64, _waiter: &dyn Waiter) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _offset_bytes: u64, _len_bytes: u64) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset_bytes: u64) -> Result<Option<Extent>> {
        Ok((offset_bytes < self.size_bytes).then_some(Extent {
            offset_bytes: 0,
            len_bytes: self.size_bytes,
            kind: ExtentKind::Data,
        }))
    }

    fn hold(&self) -> Result<TargetHold> {
        Ok(Box::new(()))
    }
}

impl Directory for Empty {
    fn list(&self) -> Vec<TargetInfo> {
        self.info().into_iter().collect()
    }

    fn by_name(&self, name: &Name) -> Result<Arc<dyn BlockTarget>> {
        if *name == self.name {
            Ok(Arc::new(self.clone()))
        } else {
            Err(Error::NotFound(name.clone()))
        }
    }

    fn by_id(&self, id: VolumeId) -> Result<Arc<dyn BlockTarget>> {
        if id == ID {
            Ok(Arc::new(self.clone()))
        } else {
            Err(Error::NoSuchVolume(id))
        }
    }

    fn space(&self) -> Result<Space> {
        Ok(Space {
            size_bytes: self.size_bytes,
            free_bytes: 0,
            targets: 1,
        })
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

/// The transport of requests from the kernel to the server.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Fuse {
    Threads,
    IoUring,
}

/// Serve a file that keeps nothing
#[derive(Parser)]
struct Arguments {
    /// Where the file appears
    mount_point: PathBuf,
    /// The file's size in bytes
    #[arg(long, value_name = "BYTES")]
    size: u64,
    /// The transport of requests
    #[arg(long, value_enum, default_value_t = Fuse::Threads)]
    fuse: Fuse,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // Before any thread is started, so that none of them is sent the signal.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let options = ExportOptions {
        transport: match arguments.fuse {
            Fuse::Threads => Transport::Threads,
            Fuse::IoUring => Transport::IoUring,
        },
        ..ExportOptions::default()
    };
    let directory = Arc::new(Empty::new(arguments.size)?);
    let export = Export::over(directory, &arguments.mount_point, options)?;
    println!("{}", export.mount_point().join(EMPTY_FILE).display());
    signals.wait()?;
    Ok(export.unmount()?)
}
