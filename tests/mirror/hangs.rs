//! A side that does not answer: what the other sides have can be read and copied meanwhile.

use super::life::{self, options};
use super::world::{World, assembled, path};
use cowshed_engine::{Name, NewSide, Pool, Volume};
use cowshed_format::base::Result;
use cowshed_format::device::{Device, MemoryDevice};
use std::io::IoSlice;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const PIECES: u8 = 16;
const PIECE_BYTES: usize = 256 << 10;
/// The end of the pieces.
const END: u64 = PIECES as u64 * PIECE_BYTES as u64;

/// A device whose calls do not return while it is shut.
struct Hanging {
    inner: Arc<dyn Device>,
    /// Which calls hang: reads, changes.
    shut: Mutex<(bool, bool)>,
    opened: Condvar,
}

impl Hanging {
    fn set(&self, reads: bool, changes: bool) {
        *self.shut.lock().unwrap() = (reads, changes);
        self.opened.notify_all();
    }

    fn pass(&self, is_shut: impl Fn(&(bool, bool)) -> bool) {
        let shut = self.shut.lock().unwrap();
        let wait = |shut: &mut (bool, bool)| is_shut(shut);
        drop(self.opened.wait_while(shut, wait).unwrap());
    }
}

impl Device for Hanging {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.pass(|shut| shut.0);
        self.inner.read_at(buf, offset_bytes)
    }

    fn fill_gaps(&self, offset_bytes: u64, len_bytes: u64) {
        self.pass(|shut| shut.1);
        self.inner.fill_gaps(offset_bytes, len_bytes);
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        self.pass(|shut| shut.1);
        self.inner.write_at(buf, offset_bytes)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        self.pass(|shut| shut.1);
        self.inner.write_vectored_at(bufs, offset_bytes)
    }

    fn flush(&self) -> Result<()> {
        self.pass(|shut| shut.1);
        self.inner.flush()
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.pass(|shut| shut.1);
        self.inner.discard(offset_bytes, len_bytes)
    }

    fn grow(&self, len_bytes: u64) -> Result<()> {
        self.inner.grow(len_bytes)
    }

    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.inner.map_log(offset_bytes, len_bytes)
    }

    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.pass(|shut| shut.1);
        self.inner.store_log(offset_bytes, bytes)
    }

    fn host_bytes(&self) -> Result<u64> {
        self.inner.host_bytes()
    }
}

/// Reads all of the volume in another thread, with a limit that only a failure reaches.
fn read_all(volume: &Volume, hanging: &Hanging, what: &str) {
    let (tell, told) = mpsc::channel();
    let volume = volume.clone();
    let reader = thread::spawn(move || {
        for piece in 0..PIECES {
            let mut found = vec![0; PIECE_BYTES];
            let offset_bytes = u64::from(piece) * PIECE_BYTES as u64;
            volume.read_at(&mut found, offset_bytes).unwrap();
            assert!(found.iter().all(|byte| *byte == piece + 1), "piece {piece}");
        }
        tell.send(()).unwrap();
    });
    let outcome = told.recv_timeout(Duration::from_secs(60));
    if outcome.is_err() {
        hanging.set(false, false);
    }
    reader.join().unwrap();
    assert!(
        outcome.is_ok(),
        "{what}: a read waited for the side that hangs"
    );
}

/// Makes a pool whose side `number` can hang, with a volume that is full of pieces, and a block longer.
fn filled(number: usize) -> (Arc<Hanging>, Pool, Volume) {
    let world = World::zeroed(2, life::POOL_BYTES);
    life::create(vec![(0, world.device(0)), (1, world.device(1))]).unwrap();
    let hanging = Arc::new(Hanging {
        inner: world.device(number),
        shut: Mutex::default(),
        opened: Condvar::new(),
    });
    let seen = Arc::clone(&hanging) as Arc<dyn Device>;
    let other = 1 - number;
    let mirror = assembled([(number, seen), (other, world.device(other))]).unwrap();
    let pool = Pool::open(mirror, &options()).unwrap();
    let name = Name::new("v").unwrap();
    let volume = pool.create_volume(&name, END + 4096).unwrap();
    for piece in 0..PIECES {
        let offset_bytes = u64::from(piece) * PIECE_BYTES as u64;
        volume
            .write_at(&vec![piece + 1; PIECE_BYTES], offset_bytes)
            .unwrap();
    }
    pool.checkpoint().unwrap();
    (hanging, pool, volume)
}

#[test]
fn a_side_that_hangs_stops_no_read_that_another_side_can_answer() {
    for number in 0..2 {
        let (hanging, pool, volume) = filled(number);
        // From then on, the host is to store blocks ahead.
        for byte in 1..=6 {
            volume.write_at(&[byte; 4096], END).unwrap();
            volume.flush().unwrap();
        }
        pool.checkpoint().unwrap();
        hanging.set(true, false);
        read_all(&volume, &hanging, "reads hang");
        hanging.set(true, true);
        let writer = {
            let volume = volume.clone();
            thread::spawn(move || {
                volume.write_at(&[9; 4096], END)?;
                volume.flush()
            })
        };
        read_all(&volume, &hanging, "everything hangs");
        pool.volume("v").unwrap();
        pool.status().unwrap();
        hanging.set(false, false);
        writer.join().unwrap().unwrap();
        let mut found = [0; 4096];
        volume.read_at(&mut found, END).unwrap();
        assert_eq!(found, [9; 4096]);
        // What hung was a delay, not a failure.
        assert!(!pool.status().unwrap().degraded);
        pool.close().unwrap();
    }
}

#[test]
fn a_side_whose_reads_hang_stops_no_copying_from_another_one() {
    for number in 0..2 {
        let (hanging, pool, volume) = filled(number);
        hanging.set(true, false);
        let third = Arc::new(MemoryDevice::new(life::POOL_BYTES)) as Arc<dyn Device>;
        let (tell, told) = mpsc::channel();
        let copying = {
            let (pool, third) = (pool.clone(), Arc::clone(&third));
            thread::spawn(move || {
                let new = NewSide {
                    path: path(2),
                    open: Box::new(move |_| Ok(third)),
                    force: false,
                };
                tell.send(pool.add_side(new, &mut |_, _| true)).unwrap();
            })
        };
        let outcome = told.recv_timeout(Duration::from_secs(60));
        hanging.set(false, false);
        copying.join().unwrap();
        outcome
            .expect("the copying waited for the side that hangs")
            .unwrap();
        assert!(!pool.status().unwrap().degraded);
        pool.close().unwrap();
        drop((pool, volume));
        let alone = Pool::open(assembled([(2, third)]).unwrap(), &options()).unwrap();
        read_all(&alone.volume("v").unwrap(), &hanging, "nothing hangs");
    }
}
