//! Events during other work: a device that lets a test act before a call.

use super::*;
use cowshed_format::base::Result;
use parking_lot::Mutex;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The calls before which a test can act.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Read,
    Write,
    Flush,
    Discard,
    Grow,
}

type Step = (Call, Box<dyn FnOnce() + Send>);

/// A device in memory with steps that run once, in turn, each before the next call of its kind.
struct Stage {
    inner: Arc<MemoryDevice>,
    steps: Mutex<Vec<Step>>,
}

impl Stage {
    fn before(&self, call: Call, step: impl FnOnce() + Send + 'static) {
        self.steps.lock().push((call, Box::new(step)));
    }

    fn reach(&self, call: Call) {
        let step = {
            let mut steps = self.steps.lock();
            match steps.first() {
                Some((at, _)) if *at == call => Some(steps.remove(0).1),
                _ => None,
            }
        };
        if let Some(step) = step {
            step();
        }
    }
}

impl Device for Stage {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.reach(Call::Read);
        self.inner.read_at(buf, offset_bytes)
    }
    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        self.reach(Call::Write);
        self.inner.write_at(buf, offset_bytes)
    }
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        self.inner.write_vectored_at(bufs, offset_bytes)
    }
    fn flush(&self) -> Result<()> {
        self.reach(Call::Flush);
        self.inner.flush()
    }
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.reach(Call::Discard);
        self.inner.discard(offset_bytes, len_bytes)
    }
    fn grow(&self, len_bytes: u64) -> Result<()> {
        self.reach(Call::Grow);
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

fn staged(len_bytes: u64) -> (Arc<Stage>, Pool) {
    let inner = Arc::new(MemoryDevice::new(len_bytes));
    Pool::create(&*inner, &CreateOptions::default()).unwrap();
    let steps = Mutex::new(Vec::new());
    let stage = Arc::new(Stage { inner, steps });
    let pool = Pool::open(Arc::clone(&stage) as Arc<dyn Device>, &options()).unwrap();
    (stage, pool)
}

#[test]
fn a_checkpoint_and_a_write_find_room_while_the_pool_is_trimmed() {
    let (stage, pool) = staged(64 * MIB);
    let volume = pool.create_volume(&name("v"), MIB).unwrap();
    let (ran, steps) = (Arc::new(AtomicBool::new(false)), Arc::clone(&stage));
    let (inside, noted) = (pool.clone(), Arc::clone(&ran));
    steps.before(Call::Discard, move || {
        volume.write_at(&pattern(1, 4096), 0).unwrap();
        inside.checkpoint().unwrap();
        noted.store(true, Ordering::Relaxed);
    });
    let free = pool.status().unwrap().free_bytes;
    let trimmed = pool.trim().unwrap();
    assert!(ran.load(Ordering::Relaxed));
    assert!(trimmed >= free - MIB, "{trimmed} of {free} bytes");
}

#[test]
fn what_is_written_behind_a_cut_survives_a_kill_while_the_pool_is_closed() {
    let (stage, pool) = staged(64 * MIB);
    let volume = pool.create_volume(&name("v"), MIB).unwrap();
    volume.write_at(&pattern(1, 4096), 0).unwrap();
    let (closing, writer) = (pool.clone(), volume);
    let closer = Arc::new(Mutex::new(None));
    let started = Arc::clone(&closer);
    // The cut is taken: its nodes are being written.
    stage.before(Call::Write, move || {
        writer.write_at(&pattern(2, 4096), 4096).unwrap();
        writer.flush().unwrap();
        *started.lock() = Some(thread::spawn(move || closing.close()));
        while !matches!(writer.write_at(&pattern(3, 4096), 8192), Err(Error::Closed)) {
            thread::yield_now();
        }
    });
    // Flushes: the writer's, the checkpoint's barrier, the superblock's.
    let image = Arc::new(Mutex::new(None));
    for flush in 0..3 {
        let (inner, kept) = (Arc::clone(&stage.inner), Arc::clone(&image));
        stage.before(Call::Flush, move || {
            if flush == 2 {
                *kept.lock() = Some(inner.snapshot_image());
            }
        });
    }
    pool.checkpoint().unwrap();
    let image = image.lock().take().unwrap();
    closer.lock().take().unwrap().join().unwrap().unwrap();
    let pool = reopen(&Arc::new(MemoryDevice::from_image(image)));
    let mut bytes = [0; 4096];
    pool.volume("v").unwrap().read_at(&mut bytes, 4096).unwrap();
    assert!(bytes[..] == pattern(2, 4096), "it was flushed");
}

#[test]
fn of_two_growths_at_once_the_larger_one_stands() {
    let (stage, pool) = staged(64 * MIB);
    let other = Arc::new(Mutex::new(None));
    let (inside, started) = (pool.clone(), Arc::clone(&other));
    stage.before(Call::Grow, move || {
        let growth = thread::spawn(move || inside.grow(300 * MIB));
        let until = Instant::now() + Duration::from_millis(300);
        while !growth.is_finished() && Instant::now() < until {
            thread::yield_now();
        }
        *started.lock() = Some(growth);
    });
    pool.grow(200 * MIB).unwrap();
    other.lock().take().unwrap().join().unwrap().unwrap();
    assert_eq!(pool.status().unwrap().size_bytes, 300 * MIB);
    pool.checkpoint().unwrap();
    let (inner, size) = (Arc::clone(&stage.inner), 300 * MIB);
    drop(pool);
    assert_eq!(reopen(&inner).status().unwrap().size_bytes, size);
}

#[test]
fn a_walk_starts_anew_when_the_nodes_under_it_are_used_again() {
    let (stage, pool) = staged(64 * MIB);
    let volume = pool.create_volume(&name("v"), 4 * MIB).unwrap();
    let base = pool.snapshot(&volume, &name("base")).unwrap();
    volume.write_at(&pattern(1, 4 * MIB as usize), 0).unwrap();
    pool.close().unwrap();
    drop((volume, base, pool));
    for walk in 0..3 {
        let pool = Pool::open(Arc::clone(&stage) as Arc<dyn Device>, &options()).unwrap();
        let (volume, base) = (pool.volume("v").unwrap(), pool.volume("base").unwrap());
        let writer = volume.clone();
        // Every node moves, and data takes the old places.
        stage.before(Call::Read, move || {
            for turn in 0..3u8 {
                for leaf in 0..4u64 {
                    writer
                        .write_at(&pattern(turn, 4 * 4096), leaf * MIB + 8192)
                        .unwrap();
                }
                Pool::checkpoint(&Pool {
                    shared: Arc::clone(&writer.shared),
                })
                .unwrap();
            }
        });
        match walk {
            0 => {
                let extent = volume.extent_at(0).unwrap().unwrap();
                assert_eq!(extent.len_bytes, 4 * MIB);
            }
            1 => {
                let extents = pool.diff(&base, &volume).unwrap();
                assert_eq!(extents.len(), 1);
                assert_eq!(extents[0].len_bytes, 4 * MIB);
            }
            _ => {
                let report = pool.scrub(&mut |_, _| true).unwrap();
                assert!(report.bad.is_empty(), "{:?}", report.bad);
            }
        }
        pool.close().unwrap();
    }
}

#[test]
fn a_volume_that_is_removed_under_a_read_is_gone_and_not_damaged() {
    let (stage, pool) = staged(16 * MIB);
    let doomed = pool.create_volume(&name("doomed"), 8 * MIB).unwrap();
    doomed.write_at(&pattern(1, 8 * 4096), 0).unwrap();
    let removed = doomed.clone();
    stage.before(Call::Read, move || {
        pool.remove(&removed).unwrap();
        pool.reclaim().unwrap();
        let other = pool.create_volume(&name("other"), 16 * MIB).unwrap();
        let mut offset = 0;
        while other.write_at(&pattern(2, 4096), offset).is_ok() {
            offset += 4096;
        }
    });
    let found = doomed.read_at(&mut [0; 8 * 4096], 0);
    assert!(matches!(found, Err(Error::NoSuchVolume(_))), "{found:?}");
    let found = doomed.extent_at(0);
    assert!(!matches!(found, Err(Error::Corrupt(_))), "{found:?}");
}

#[test]
fn a_removed_volume_answers_that_it_is_gone_and_not_that_it_is_frozen() {
    let (_stage, pool) = staged(16 * MIB);
    let doomed = pool.create_volume(&name("doomed"), 8 * MIB).unwrap();
    // As a caller does that has read the size before the volume was removed.
    pool.remove(&doomed).unwrap();
    let found = doomed.check_unfrozen();
    assert!(matches!(found, Err(Error::NoSuchVolume(_))), "{found:?}");
}

#[test]
fn a_read_that_a_removal_overtakes_never_gives_what_others_wrote_since() {
    let (stage, pool) = staged(64 * MIB);
    let volume = pool.create_volume(&name("v"), 8 * MIB).unwrap();
    volume.write_at(&pattern(1, 4096), 0).unwrap();
    volume.write_at(&pattern(1, 4096), MIB).unwrap();
    let snapshot = pool.snapshot(&volume, &name("s")).unwrap();
    let (doomed, heir) = (snapshot.clone(), volume.clone());
    // Between the lookups of the two blocks. The snapshot's map becomes the volume's, which may
    // change it in place.
    stage.before(Call::Read, move || {
        pool.remove(&doomed).unwrap();
        pool.shared.reclaim_all(prune::Pace::Now).unwrap();
        heir.write_at(&pattern(2, 4096), MIB).unwrap();
    });
    let found = snapshot.read_at(&mut vec![0; 2 << 20], 0);
    assert!(matches!(found, Err(Error::NoSuchVolume(_))), "{found:?}");
    let mut held = vec![0; 4096];
    volume.read_at(&mut held, MIB).unwrap();
    assert_eq!(held, pattern(2, 4096));
}

#[test]
fn what_is_looked_for_while_a_volume_is_removed_or_rolled_back_is_not_taken_from_its_old_map() {
    let (_stage, pool) = staged(16 * MIB);
    let volume = pool.create_volume(&name("v"), MIB).unwrap();
    let snapshot = pool.snapshot(&volume, &name("s")).unwrap();
    let mut looks = 0;
    let found = volume.look(|| {
        looks += 1;
        if looks == 1 {
            pool.rollback(&volume, &snapshot)?;
        }
        Ok(looks)
    });
    assert_eq!(found.unwrap(), 2);
    let found = volume.look(|| pool.remove(&volume));
    assert!(matches!(found, Err(Error::NoSuchVolume(_))), "{found:?}");
}
