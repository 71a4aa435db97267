//! Serves a volume of one's own as a file: each of its blocks holds its number, and nothing can be
//! written to it. Nothing of a pool is needed for that, only the two traits of `cowshed-export`.
//!
//! `cargo run --example serve_volume MOUNTPOINT`, as root; ends by ctrl-C. Without a mount point it
//! serves in a temporary folder, reads one block through the kernel, and ends.

use cowshed_engine::{Error, Extent, ExtentKind, Name, Result, VolumeId, Waiter};
use cowshed_export::{
    BlockTarget, Directory, Export, ExportOptions, Space, TargetHold, TargetInfo,
};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

const BLOCK_BYTES: u64 = 4096;
const SIZE_BYTES: u64 = 1 << 30;
const ID: VolumeId = VolumeId(1);

/// The volume, and the folder that holds nothing else.
#[derive(Clone)]
struct Numbers {
    name: Name,
    made: SystemTime,
}

impl BlockTarget for Numbers {
    fn info(&self) -> Result<TargetInfo> {
        Ok(TargetInfo {
            id: ID,
            name: self.name.clone(),
            size_bytes: SIZE_BYTES,
            allocated_bytes: SIZE_BYTES,
            is_read_only: true,
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
        SIZE_BYTES
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        for (at, byte) in (offset_bytes..).zip(buf.iter_mut()) {
            let number = (at / BLOCK_BYTES).to_le_bytes();
            *byte = number[usize::try_from(at % 8).expect("below 8")];
        }
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset_bytes: u64, _waiter: &dyn Waiter) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _offset_bytes: u64, _len_bytes: u64) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn extent_at(&self, offset_bytes: u64) -> Result<Option<Extent>> {
        Ok((offset_bytes < SIZE_BYTES).then_some(Extent {
            offset_bytes,
            len_bytes: SIZE_BYTES - offset_bytes,
            kind: ExtentKind::Data,
        }))
    }

    fn hold(&self) -> Result<TargetHold> {
        Ok(Box::new(()))
    }
}

impl Directory for Numbers {
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
            size_bytes: SIZE_BYTES,
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

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let numbers = Numbers {
        name: Name::new("numbers")?,
        made: SystemTime::now(),
    };
    let folder = tempfile::tempdir()?;
    let asked = std::env::args_os().nth(1).map(PathBuf::from);
    let place = asked
        .clone()
        .unwrap_or_else(|| folder.path().join("volumes"));
    let export = Export::over(Arc::new(numbers), &place, ExportOptions::default())?;
    let path = export.mount_point().join("numbers");
    println!("{}", path.display());
    if asked.is_some() {
        let mut signals = signal_hook::iterator::Signals::new(signal_hook::consts::TERM_SIGNALS)?;
        signals.forever().next();
    } else {
        let mut found = [0; 8];
        File::open(&path)?.read_exact_at(&mut found, 1234 * BLOCK_BYTES)?;
        assert_eq!(u64::from_le_bytes(found), 1234);
    }
    export.unmount()?;
    Ok(())
}
