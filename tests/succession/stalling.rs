//! A pool whose volumes can be made to take requests and never reply.

use cowshed_engine::{Extent, Pool, Waiter};
use cowshed_export::{BlockTarget, Directory, Space, TargetHold, TargetInfo};
use cowshed_format::base::{Name, Result, VolumeId};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// True if requests stall from now on.
pub(crate) static STALLS: AtomicBool = AtomicBool::new(false);

/// The pool.
pub(crate) struct Stalling(pub(crate) Pool);

struct Target(Arc<dyn BlockTarget>);

/// Reports that a request has come, and blocks.
fn pass() {
    if STALLS.load(SeqCst) {
        println!("answer: arrived");
        loop {
            std::thread::park();
        }
    }
}

impl BlockTarget for Target {
    fn info(&self) -> Result<TargetInfo> {
        self.0.info()
    }

    fn id(&self) -> VolumeId {
        self.0.id()
    }

    fn name(&self) -> Name {
        self.0.name()
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        pass();
        self.0.read_at(buf, offset_bytes)
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64, waiter: &dyn Waiter) -> Result<()> {
        pass();
        self.0.write_at(buf, offset_bytes, waiter)
    }

    fn flush(&self) -> Result<()> {
        pass();
        self.0.flush()
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        pass();
        self.0.discard(offset_bytes, len_bytes)
    }

    fn extent_at(&self, offset_bytes: u64) -> Result<Option<Extent>> {
        self.0.extent_at(offset_bytes)
    }

    fn hold(&self) -> Result<TargetHold> {
        pass();
        self.0.hold()
    }
}

impl Directory for Stalling {
    fn list(&self) -> Vec<TargetInfo> {
        Directory::list(&self.0)
    }

    fn by_name(&self, name: &Name) -> Result<Arc<dyn BlockTarget>> {
        Ok(Arc::new(Target(self.0.by_name(name)?)))
    }

    fn by_id(&self, id: VolumeId) -> Result<Arc<dyn BlockTarget>> {
        Ok(Arc::new(Target(self.0.by_id(id)?)))
    }

    fn space(&self) -> Result<Space> {
        self.0.space()
    }

    fn flush(&self) -> Result<()> {
        Directory::flush(&self.0)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.0.descriptors()
    }
}
