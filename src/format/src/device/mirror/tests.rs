//! Tests of the mirror alone; `tests/mirror` has those of whole pools.

use super::{Found, MirrorDevice, SideStanding, newest_label};
use crate::base::{Error, Generation, MirrorError, Result};
use crate::device::{Device, Effect, FaultyDevice, Lasting, MemoryDevice, Operation};
use crate::side::{Lack, SideState};
use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const LEN_BYTES: u64 = 8 << 20;
const POOL: [u8; 16] = [7; 16];

fn found(devices: &[Arc<dyn Device>]) -> Vec<Found> {
    let path = |number| PathBuf::from(format!("/side/{number}"));
    let found = |(number, device): (usize, &Arc<dyn Device>)| Found {
        path: path(number),
        device: Arc::clone(device),
    };
    devices.iter().enumerate().map(found).collect()
}

/// Returns a mirror in use, as a pool's device is.
fn mirror(devices: &[Arc<dyn Device>]) -> Result<Arc<MirrorDevice>> {
    MirrorDevice::new(found(devices))?.name_pool(POOL)?;
    let mirror = MirrorDevice::assemble(found(devices))?;
    let ids: Vec<_> = mirror.open_sides().iter().map(|side| side.id()).collect();
    mirror.begin(&ids, &[], Generation(5), false)?;
    Ok(Arc::new(mirror))
}

/// A device whose writes of labels wait until they are let through.
struct Gated {
    inner: MemoryDevice,
    waits: SyncSender<()>,
    go: Mutex<Option<Receiver<()>>>,
}

impl Device for Gated {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.inner.read_at(buf, offset_bytes)
    }
    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        if (8192..24_576).contains(&offset_bytes)
            && let Some(go) = self.go.lock().unwrap().take()
        {
            self.waits.send(()).unwrap();
            go.recv().unwrap();
        }
        self.inner.write_at(buf, offset_bytes)
    }
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        self.inner.write_vectored_at(bufs, offset_bytes)
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.inner.discard(offset_bytes, len_bytes)
    }
    fn grow(&self, len_bytes: u64) -> Result<()> {
        self.inner.grow(len_bytes)
    }
    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.inner.map_log(offset_bytes, len_bytes)
    }
    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.inner.store_log(offset_bytes, bytes)
    }
    fn host_bytes(&self) -> Result<u64> {
        self.inner.host_bytes()
    }
}

#[test]
fn nothing_returns_before_the_labels_say_that_a_side_is_behind() {
    let (waits, waiting) = sync_channel(1);
    let (let_go, go) = sync_channel(1);
    let gated = Arc::new(Gated {
        inner: MemoryDevice::new(LEN_BYTES),
        waits,
        go: Mutex::new(None),
    });
    let faulty = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::new(LEN_BYTES))));
    let devices: [Arc<dyn Device>; 2] = [Arc::clone(&gated) as _, Arc::clone(&faulty) as _];
    let mirror = mirror(&devices).unwrap();
    mirror.map_log(65_536, 65_536).unwrap();
    *gated.go.lock().unwrap() = Some(go);
    faulty.fail_next(Operation::Write, Lasting::Forever, Effect::Errno(libc::EIO));

    let act = |act: fn(&MirrorDevice) -> Result<()>| {
        let mirror = Arc::clone(&mirror);
        thread::spawn(move || act(&mirror).unwrap())
    };
    let first = act(|mirror| mirror.write_at(&[1; 4096], 1 << 20));
    waiting.recv().unwrap();
    let others = [
        act(|mirror| mirror.write_at(&[2; 4096], 2 << 20)),
        act(|mirror| mirror.store_log(0, &[3; 64])),
        act(Device::flush),
    ];
    thread::sleep(Duration::from_millis(200));
    assert!(!first.is_finished());
    assert!(others.iter().all(|other| !other.is_finished()));
    // Reads need not wait.
    mirror.read_at(&mut [0; 4096], 2 << 20).unwrap();
    let_go.send(()).unwrap();
    first.join().unwrap();
    others.into_iter().for_each(|other| other.join().unwrap());

    let (label, _) = newest_label(&*gated).unwrap();
    let states: Vec<_> = label.set.sides.iter().map(|entry| entry.state).collect();
    assert_eq!(
        states,
        [
            SideState::Good,
            SideState::Behind(Lack::since(Generation(5)))
        ]
    );
    let lack = Lack::since(Generation(5));
    assert_eq!(mirror.report()[1].standing, SideStanding::Missing(lack));
}

#[test]
fn the_last_good_side_fails_for_good() {
    let sides = [0, 1].map(|_| Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::new(LEN_BYTES)))));
    let devices = sides.clone().map(|side| side as Arc<dyn Device>);
    let mirror = mirror(&devices).unwrap();
    for side in &sides {
        side.fail_next(Operation::Flush, Lasting::Once, Effect::Errno(libc::EIO));
    }
    assert!(mirror.flush().is_err());
    for outcome in [mirror.flush(), mirror.write_at(&[1; 4096], 1 << 20)] {
        assert!(matches!(outcome, Err(Error::Io { .. })));
    }
}

#[test]
fn a_host_without_space_refuses_a_record_on_all_sides() {
    let memory = [0, 1].map(|_| Arc::new(MemoryDevice::new(LEN_BYTES)));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory[1]) as Arc<dyn Device>));
    let devices: [Arc<dyn Device>; 2] = [Arc::clone(&memory[0]) as _, Arc::clone(&faulty) as _];
    let mirror = mirror(&devices).unwrap();
    mirror.map_log(65_536, 65_536).unwrap();
    faulty.fail_next(Operation::Store, Lasting::Once, Effect::Errno(libc::ENOSPC));
    let refused = mirror.store_log(4096, &[9; 256]);
    assert!(refused.is_err_and(|error| error.is_host_full()));
    let mut found = [0; 4096];
    memory[0].read_at(&mut found, 65_536 + 4096).unwrap();
    assert!(found[..40] == [0; 40], "the record's header is there");
    mirror.store_log(4096, &[9; 256]).unwrap();
    assert!(!mirror.is_degraded());
}

#[test]
fn what_one_side_has_wrong_is_read_from_another_and_healed() {
    let memory = [0, 1].map(|_| Arc::new(MemoryDevice::new(LEN_BYTES)));
    let devices = memory.clone().map(|side| side as Arc<dyn Device>);
    let mirror = mirror(&devices).unwrap();
    for side in &memory {
        mirror.write_at(&[5; 4096], 1 << 20).unwrap();
        side.write_at(&[6; 4096], 1 << 20).unwrap();
        let mut found = [0; 4096];
        let is_right = |bytes: &[u8]| bytes == [5; 4096];
        let accepted = mirror.read_verified(&mut found, 1 << 20, true, &is_right);
        assert!(accepted.unwrap() && is_right(&found));
        side.read_at(&mut found, 1 << 20).unwrap();
        assert!(is_right(&found));
    }
    assert_eq!(mirror.healed_blocks(), 2);
    let nothing = mirror.read_verified(&mut [0; 4096], 1 << 20, true, &|_| false);
    assert!(!nothing.unwrap());
}

#[test]
fn labels_of_sides_that_went_apart_do_not_make_a_mirror() {
    let memory = [0, 1].map(|_| Arc::new(MemoryDevice::new(LEN_BYTES)) as Arc<dyn Device>);
    mirror(&memory).unwrap();
    for side in 0..2 {
        let alone = MirrorDevice::assemble(found(&memory).into_iter().skip(side).take(1).collect());
        let alone = alone.unwrap();
        let id = alone.open_sides()[0].id();
        alone.begin(&[id], &[], Generation(9), false).unwrap();
    }
    let refused = MirrorDevice::assemble(found(&memory)).err();
    assert!(matches!(
        refused,
        Some(Error::Mirror(MirrorError::Diverged { .. }))
    ));
}
