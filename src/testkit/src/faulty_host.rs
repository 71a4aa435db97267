//! A file whose calls fail, wait or find nobody, as a test says: on a FUSE mount that the test
//! itself serves. What the file holds outlives the mount.
//!
//! # Invariants
//! - A flush that fails, and the death of the server, lose what was written since the last flush that
//!   did not fail, as a host may that cannot write its cache back.

use cowshed_engine::{Error, Extent, ExtentKind, Name, Result, VolumeId, Waiter};
use cowshed_export::{
    BlockTarget, Directory, Export, ExportOptions, Space, TargetHold, TargetInfo,
};
use cowshed_format::base::BLOCK_BYTES;
use cowshed_format::device::{Lasting, Operation};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MntFlags, umount2};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::SystemTime;

const BLOCK: u64 = BLOCK_BYTES as u64;
const ID: VolumeId = VolumeId(1);
const NAME: &str = "file";
/// More than the reads of one side that can wait at the same time.
const THREADS: usize = 40;
/// The free space that the mount shows while nothing says that it is full.
const FREE_BYTES: u64 = 1 << 30;

/// A file on a mount of its own; both are gone once this is dropped, also when the test fails.
pub struct FaultyHost {
    file: Arc<FaultyFile>,
    /// `None` while nobody serves the mount.
    export: Option<Export>,
    folder: tempfile::TempDir,
}

impl FaultyHost {
    /// Mounts a file of zeros.
    pub fn new(len_bytes: u64) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-faulty-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let backing = tempfile::tempfile_in("/var/tmp").unwrap();
        backing.set_len(len_bytes).unwrap();
        let file = FaultyFile {
            backing,
            len_bytes,
            made: SystemTime::now(),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        let mut host = Self {
            file: Arc::new(file),
            export: None,
            folder,
        };
        host.come_back();
        host
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// Returns the path of the file.
    pub fn path(&self) -> PathBuf {
        self.mount_point().join(NAME)
    }

    /// Lets the next call of this kind fail, or all of them.
    pub fn fail(&self, operation: Operation, errno: i32, lasting: Lasting) {
        self.file.state().trouble = Some(Trouble {
            operation,
            errno,
            lasting,
        });
    }

    /// Lets reads wait until `heal` is called, or until the server dies.
    pub fn hang(&self) {
        self.file.state().hangs = true;
    }

    /// Returns the number of reads that wait.
    pub fn waiting(&self) -> usize {
        self.file.state().waiting
    }

    /// Returns the number of calls that have failed.
    pub fn failures(&self) -> u64 {
        self.file.state().failures
    }

    /// Ends all faults, except that a server that has died is dead.
    pub fn heal(&self) {
        let mut state = self.file.state();
        state.trouble = None;
        state.hangs = false;
        self.file.changed.notify_all();
    }

    /// Ends the connection as the death of its server does: all calls fail from now on, also those
    /// that wait. The mount stays as long as it is in use.
    pub fn die(&self) {
        // Refused while it is in use, but the connection is over.
        let _ = umount2(&self.mount_point(), MntFlags::MNT_FORCE);
        let mut state = self.file.state();
        self.file.lose(&mut state).unwrap();
    }

    /// Serves the file at the same place again, as a new file to whoever has the old one open.
    pub fn come_back(&mut self) {
        self.leave();
        let files: Arc<dyn Directory> = Arc::new(OneFile(Arc::clone(&self.file)));
        let options = ExportOptions {
            threads: Some(THREADS),
            ..ExportOptions::default()
        };
        let export = Export::over(files, &self.mount_point(), options);
        self.export = Some(export.unwrap());
    }

    fn leave(&mut self) {
        self.heal();
        self.die();
        // It may be gone already. Whoever has the file open does not keep the name.
        let _ = umount2(&self.mount_point(), MntFlags::MNT_DETACH);
        self.export = None;
    }
}

impl Drop for FaultyHost {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Calls that fail.
#[derive(Clone, Copy)]
struct Trouble {
    operation: Operation,
    errno: i32,
    lasting: Lasting,
}

#[derive(Default)]
struct State {
    trouble: Option<Trouble>,
    hangs: bool,
    waiting: usize,
    failures: u64,
    /// What the blocks that were written since the last flush held before.
    unflushed: BTreeMap<u64, [u8; BLOCK_BYTES]>,
}

impl State {
    fn call(&mut self, operation: Operation) -> Result<()> {
        let Some(trouble) = self.trouble.filter(|it| it.operation == operation) else {
            return Ok(());
        };
        if trouble.lasting == Lasting::Once {
            self.trouble = None;
        }
        self.failures += 1;
        Err(failed(io::Error::from_raw_os_error(trouble.errno)))
    }

    fn is_full(&self) -> bool {
        self.trouble.is_some_and(|it| it.errno == libc::ENOSPC)
    }
}

fn failed(source: io::Error) -> Error {
    Error::io("use a file of the test", source)
}

/// The file, and the faults of its host.
struct FaultyFile {
    backing: File,
    len_bytes: u64,
    made: SystemTime,
    state: Mutex<State>,
    changed: Condvar,
}

impl FaultyFile {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Keeps what the blocks of a range hold that have not been written since the last flush.
    fn keep(&self, state: &mut State, offset_bytes: u64, len: usize) -> io::Result<()> {
        let end = offset_bytes + len as u64;
        for block in offset_bytes / BLOCK..end.div_ceil(BLOCK) {
            if let Entry::Vacant(vacant) = state.unflushed.entry(block) {
                let mut bytes = [0; BLOCK_BYTES];
                self.backing.read_exact_at(&mut bytes, block * BLOCK)?;
                vacant.insert(bytes);
            }
        }
        Ok(())
    }

    /// Loses what was written since the last flush.
    fn lose(&self, state: &mut State) -> io::Result<()> {
        let mut blocks = std::mem::take(&mut state.unflushed).into_iter();
        blocks.try_for_each(|(block, bytes)| self.backing.write_all_at(&bytes, block * BLOCK))
    }
}

/// The mount's folder, which holds the file and nothing else.
struct OneFile(Arc<FaultyFile>);

/// The file as the mount shows it.
struct Target(Arc<FaultyFile>);

fn name() -> Name {
    Name::new(NAME).unwrap()
}

impl BlockTarget for Target {
    fn info(&self) -> Result<TargetInfo> {
        Ok(TargetInfo {
            id: ID,
            name: name(),
            size_bytes: self.0.len_bytes,
            allocated_bytes: self.0.len_bytes,
            is_read_only: false,
            created: self.0.made,
        })
    }

    fn id(&self) -> VolumeId {
        ID
    }

    fn name(&self) -> Name {
        name()
    }

    fn size_bytes(&self) -> u64 {
        self.0.len_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        let mut state = self.0.state();
        state.waiting += 1;
        let mut state = self.0.changed.wait_while(state, |it| it.hangs).unwrap();
        state.waiting -= 1;
        state.call(Operation::Read)?;
        self.0
            .backing
            .read_exact_at(buf, offset_bytes)
            .map_err(failed)
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64, _waiter: &dyn Waiter) -> Result<()> {
        let mut state = self.0.state();
        state.call(Operation::Write)?;
        self.0
            .keep(&mut state, offset_bytes, buf.len())
            .and_then(|()| self.0.backing.write_all_at(buf, offset_bytes))
            .map_err(failed)
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.0.state();
        if let Err(error) = state.call(Operation::Flush) {
            self.0.lose(&mut state).map_err(failed)?;
            return Err(error);
        }
        state.unflushed.clear();
        Ok(())
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        let _state = self.0.state();
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let [offset, len] = [offset_bytes, len_bytes].map(u64::cast_signed);
        fallocate(&self.0.backing, mode, offset, len).map_err(|errno| failed(errno.into()))
    }

    fn extent_at(&self, offset_bytes: u64) -> Result<Option<Extent>> {
        Ok((offset_bytes < self.0.len_bytes).then_some(Extent {
            offset_bytes,
            len_bytes: self.0.len_bytes - offset_bytes,
            kind: ExtentKind::Data,
        }))
    }

    fn hold(&self) -> Result<TargetHold> {
        Ok(Box::new(()))
    }
}

impl Directory for OneFile {
    fn list(&self) -> Vec<TargetInfo> {
        Target(Arc::clone(&self.0)).info().into_iter().collect()
    }

    fn by_name(&self, wanted: &Name) -> Result<Arc<dyn BlockTarget>> {
        if *wanted == name() {
            Ok(Arc::new(Target(Arc::clone(&self.0))))
        } else {
            Err(Error::NotFound(wanted.clone()))
        }
    }

    fn by_id(&self, id: VolumeId) -> Result<Arc<dyn BlockTarget>> {
        if id == ID {
            Ok(Arc::new(Target(Arc::clone(&self.0))))
        } else {
            Err(Error::NoSuchVolume(id))
        }
    }

    fn space(&self) -> Result<Space> {
        let is_full = self.0.state().is_full();
        Ok(Space {
            size_bytes: self.0.len_bytes + FREE_BYTES,
            free_bytes: if is_full { 0 } else { FREE_BYTES },
            targets: 1,
        })
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.0.backing.as_fd()]
    }
}
