//! A side that does not answer: what the other sides have can be read meanwhile.

use super::life::{self, options};
use super::world::{World, assembled};
use cowshed_engine::{Name, Pool, Volume};
use cowshed_format::base::Result;
use cowshed_format::device::Device;
use std::io::IoSlice;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const PIECES: u8 = 16;
const PIECE_BYTES: usize = 256 << 10;

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

#[test]
fn a_side_that_hangs_stops_no_read_that_another_side_can_answer() {
    for number in 0..2 {
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
        let bytes = u64::from(PIECES) * PIECE_BYTES as u64;
        let volume = pool
            .create_volume(&Name::new("v").unwrap(), bytes + 4096)
            .unwrap();
        for piece in 0..PIECES {
            let offset_bytes = u64::from(piece) * PIECE_BYTES as u64;
            volume
                .write_at(&vec![piece + 1; PIECE_BYTES], offset_bytes)
                .unwrap();
        }
        pool.checkpoint().unwrap();

        hanging.set(true, false);
        read_all(&volume, &hanging, "reads hang");
        hanging.set(true, true);
        let writer = {
            let volume = volume.clone();
            thread::spawn(move || {
                volume.write_at(&[9; 4096], bytes)?;
                volume.flush()
            })
        };
        read_all(&volume, &hanging, "everything hangs");
        hanging.set(false, false);
        writer.join().unwrap().unwrap();
        let mut found = [0; 4096];
        volume.read_at(&mut found, bytes).unwrap();
        assert_eq!(found, [9; 4096]);
        // What hung was a delay, not a failure.
        assert!(!pool.status().unwrap().degraded);
        pool.close().unwrap();
    }
}
