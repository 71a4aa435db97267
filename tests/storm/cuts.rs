//! Power cuts beneath a mounted file system: the pool is in memory, where it is known what was
//! flushed. A copy with everything that was flushed, and any part of the rest, must open, mount and
//! pass the checker of its file system, with everything that was synced.

use crate::file_system::{FileSystem, Mounted};
use crate::harness::noise;
use crate::ledger::{BLOCK, Compared, Ledger, Version, Written, block_of};
use cowshed_check::{CheckOptions, check};
use cowshed_engine::{CreateOptions, OpenOptions, Pool};
use cowshed_export::{Export, ExportOptions};
use cowshed_format::base::Name;
use cowshed_format::device::{DeviceImage, MemoryDevice, RecordedOp, Recording};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const POOL_BYTES: u64 = 1 << 30;
const VOLUME_BYTES: u64 = 384 << 20;
/// Number of files that are written and synced; a third of them is removed again.
const FILES: u64 = 60;
const FILE_BYTES_MAX: usize = 100_000;
/// Number of batches of blocks that are written in place and synced.
const BATCHES: u64 = 80;
const PLACES: usize = 64;
const CUTS: usize = 5;
const ROUNDS_MIN: u64 = 3;
const SECTOR: usize = 512;

/// A pool in memory with its volume on a loop device. The fields are dropped in this order.
struct Stage {
    mounted: Option<Mounted>,
    export: Export,
    pool: Pool,
    folder: tempfile::TempDir,
    device: PathBuf,
}

impl Stage {
    fn new(memory: Arc<MemoryDevice>) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-storm-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let pool = Pool::open(memory, &OpenOptions::default()).unwrap();
        let name = Name::new("disk").unwrap();
        let volume = pool
            .volume("disk")
            .or_else(|_| pool.create_volume(&name, VOLUME_BYTES))
            .unwrap();
        let volumes = folder.path().join("volumes");
        let export = Export::mount(pool.clone(), &volumes, ExportOptions::default()).unwrap();
        let device = export.attach_loop(&volume, false).unwrap();
        Self {
            mounted: None,
            export,
            pool,
            folder,
            device,
        }
    }

    fn mount(&mut self, file_system: FileSystem) -> PathBuf {
        let at = self.folder.path().join("mounted");
        self.mounted = Some(file_system.mount(&self.device, &at));
        at
    }

    /// Shuts everything down in order; the file system and the pool must be sound.
    fn finish(mut self, file_system: FileSystem) {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount();
        }
        file_system.expect_clean(&self.device);
        self.export.unmount().unwrap();
        self.pool.close().unwrap();
    }
}

/// The work done.
#[derive(Default)]
struct Tally {
    rounds: u64,
    cuts: u64,
    epochs: usize,
    compared: Compared,
}

/// Runs rounds until the time is over, at least a few; returns a summary.
pub(crate) fn power_cuts(file_system: FileSystem, time: Duration, seed: u64) -> String {
    let started = Instant::now();
    let blank = blank(file_system);
    let mut tally = Tally::default();
    while tally.rounds < ROUNDS_MIN || started.elapsed() < time {
        round(file_system, &blank, seed + tally.rounds, &mut tally);
        tally.rounds += 1;
    }
    let Tally {
        rounds,
        cuts,
        epochs,
        compared,
    } = tally;
    format!(
        "{}: {cuts} power cuts in {rounds} rounds of {epochs} epochs from seed {seed}, {:.0} s; \
         {} synced files and {} blocks compared, {} bytes",
        file_system.name(),
        started.elapsed().as_secs_f64(),
        compared.files,
        compared.blocks,
        compared.bytes,
    )
}

/// Creates a pool with an empty file system.
fn blank(file_system: FileSystem) -> DeviceImage {
    let memory = Arc::new(MemoryDevice::new(POOL_BYTES));
    Pool::create(&*memory, &CreateOptions::default()).unwrap();
    let stage = Stage::new(memory.clone());
    file_system.make(&stage.device);
    stage.finish(file_system);
    memory.snapshot_image()
}

fn round(file_system: FileSystem, blank: &DeviceImage, seed: u64, tally: &mut Tally) {
    let memory = Arc::new(MemoryDevice::recording_from(blank.clone()));
    let mut stage = Stage::new(memory.clone());
    let folder = stage.mount(file_system);
    let (recording, ledger, begun) = load(&memory, &folder, seed);
    stage.finish(file_system);
    drop(memory);
    let mut rng = StdRng::seed_from_u64(seed);
    let all = recording.epochs.len();
    tally.epochs += all;
    // A comparison that does not notice data synced after the cut would prove nothing.
    let early = recording.crash_image(begun, []);
    expect_recovered(file_system, early, &ledger, all).expect_err("what was synced later is there");
    for cut in 0..CUTS {
        // The last position first, whose unflushed changes are those of a busy system.
        let epochs = match cut {
            0 => all,
            _ => rng.random_range(begun..=all),
        };
        let image = cut_image(&recording, epochs, &mut rng);
        let compared =
            expect_recovered(file_system, image, &ledger, epochs).unwrap_or_else(|failure| {
                panic!("seed {seed}, cut {cut} in epoch {epochs}: {failure}")
            });
        tally.compared.files += compared.files;
        tally.compared.blocks += compared.blocks;
        tally.compared.bytes += compared.bytes;
        tally.cuts += 1;
    }
}

/// Returns an image with all of the first epochs, and of the next one each change lost, complete or
/// torn.
fn cut_image(recording: &Recording, epochs: usize, rng: &mut StdRng) -> DeviceImage {
    let mut image = recording.crash_image(epochs, []);
    let next = recording.epochs.get(epochs).unwrap_or(&recording.unflushed);
    // Sometimes almost all of them, sometimes almost none.
    let chance = f64::from(rng.random_range(0..=4_u32)) / 4.0;
    for change in next {
        if !rng.random_bool(chance) {
            continue;
        }
        match change {
            RecordedOp::Write { .. } if rng.random_bool(0.1) => {
                image.apply(&torn(&image, change, rng));
            }
            change => image.apply(change),
        }
    }
    image
}

/// Returns a write some of whose sectors have their old contents.
fn torn(image: &DeviceImage, change: &RecordedOp, rng: &mut StdRng) -> RecordedOp {
    let RecordedOp::Write {
        offset_bytes,
        bytes,
        mapped,
    } = change
    else {
        return change.clone();
    };
    let mut torn = vec![0; bytes.len()];
    image.read(&mut torn, *offset_bytes);
    let sectors = torn.chunks_mut(SECTOR).zip(bytes.chunks(SECTOR));
    for (sector, new) in sectors.filter(|_| rng.random()) {
        sector.copy_from_slice(new);
    }
    RecordedOp::Write {
        offset_bytes: *offset_bytes,
        bytes: torn.into(),
        mapped: *mapped,
    }
}

fn expect_recovered(
    file_system: FileSystem,
    image: DeviceImage,
    ledger: &Ledger,
    epochs: usize,
) -> Result<Compared, String> {
    let memory = Arc::new(MemoryDevice::from_image(image));
    let mut stage = Stage::new(memory.clone());
    let folder = stage.mount(file_system);
    let compared = ledger.compare(&folder, epochs)?;
    stage.finish(file_system);
    let deep = CheckOptions {
        deep: true,
        repair: false,
        forget: false,
    };
    let report = check(&*memory, deep, &mut |_| {}).map_err(|error| error.to_string())?;
    if !report.clean() {
        return Err(format!("the check found {:#?}", report.findings));
    }
    Ok(compared)
}

/// Loads the file system, and stops observing while it is still busy. Returns the record of the
/// device, what must be there of it, and the position when the first claims were made.
fn load(memory: &MemoryDevice, folder: &Path, seed: u64) -> (Recording, Ledger, usize) {
    let moment = || memory.moment().unwrap().0;
    let ledger = Mutex::new(Ledger::default());
    let stop = AtomicBool::new(false);
    let blocks = first_blocks(folder, &ledger, &moment).unwrap();
    let begun = moment();
    let recorded = thread::scope(|scope| {
        let unsynced = scope.spawn(|| write_unsynced(folder, seed, &stop));
        let files = scope.spawn(|| write_files(folder, seed, &ledger, &moment));
        let places = scope.spawn(|| write_blocks(&blocks, seed, &ledger, &moment));
        let worked = [files.join(), places.join()];
        // The claims first: a later record contains more, not less.
        let claims = ledger.lock().unwrap().clone();
        let recording = memory.recorded().unwrap();
        stop.store(true, Ordering::SeqCst);
        for result in worked.into_iter().chain([unsynced.join()]) {
            result.unwrap().unwrap();
        }
        (recording, claims)
    });
    (recorded.0, recorded.1, begun)
}

/// Writes files to a draft, syncs them, renames them and syncs their folder; removes some of them
/// later.
fn write_files(
    folder: &Path,
    seed: u64,
    ledger: &Mutex<Ledger>,
    moment: &(dyn Fn() -> usize + Sync),
) -> io::Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = File::open(folder)?;
    for number in 0..FILES {
        let mut file = Written {
            name: format!("file-{number}"),
            seed: seed << 32 | number,
            len: rng.random_range(1..FILE_BYTES_MAX),
            synced_at: 0,
            removed_from: None,
        };
        let draft = folder.join("draft");
        let open = File::create(&draft)?;
        open.write_all_at(&file.content(), 0)?;
        open.sync_all()?;
        fs::rename(&draft, folder.join(&file.name))?;
        directory.sync_all()?;
        file.synced_at = moment();
        ledger.lock().unwrap().files.push(file);
        if number % 3 == 2 {
            let mut ledger = ledger.lock().unwrap();
            let living = ledger.files.iter_mut();
            let living = living.filter(|file| file.removed_from.is_none());
            let doomed = living.choose(&mut rng).unwrap();
            doomed.removed_from = Some(moment());
            let path = folder.join(&doomed.name);
            drop(ledger);
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Writes and syncs a first version of every block of the file `blocks`.
fn first_blocks(
    folder: &Path,
    ledger: &Mutex<Ledger>,
    moment: &dyn Fn() -> usize,
) -> io::Result<File> {
    let path = folder.join("blocks");
    let file = File::create(&path)?;
    for place in 0..PLACES {
        file.write_all_at(&block_of(place, 1), (place * BLOCK) as u64)?;
    }
    file.sync_all()?;
    File::open(folder)?.sync_all()?;
    let synced_at = moment();
    let version = |place| Version {
        place,
        number: 1,
        begun_at: 0,
        synced_at: Some(synced_at),
    };
    let versions = (0..PLACES).map(version);
    ledger.lock().unwrap().versions.extend(versions);
    let mut options = File::options();
    options.write(true).custom_flags(libc::O_DIRECT).open(path)
}

/// Writes blocks in place past the cache, in batches that are synced.
fn write_blocks(
    file: &File,
    seed: u64,
    ledger: &Mutex<Ledger>,
    moment: &(dyn Fn() -> usize + Sync),
) -> io::Result<()> {
    let mut rng = StdRng::seed_from_u64(!seed);
    let mut memory = vec![0; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let mut number = 1;
    for _ in 0..BATCHES {
        let first = ledger.lock().unwrap().versions.len();
        for _ in 0..rng.random_range(1..8) {
            number += 1;
            let place = rng.random_range(0..PLACES);
            let version = Version {
                place,
                number,
                begun_at: moment(),
                synced_at: None,
            };
            ledger.lock().unwrap().versions.push(version);
            let block = &mut memory[start..start + BLOCK];
            block.copy_from_slice(&block_of(place, number));
            file.write_all_at(block, (place * BLOCK) as u64)?;
        }
        file.sync_data()?;
        let synced_at = moment();
        for version in &mut ledger.lock().unwrap().versions[first..] {
            version.synced_at = Some(synced_at);
        }
    }
    Ok(())
}

/// Writes files without syncing them; nothing is claimed of them.
fn write_unsynced(folder: &Path, seed: u64, stop: &AtomicBool) -> io::Result<()> {
    const AT_ONCE: u64 = 20;
    for number in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let name = |number: u64| folder.join(format!("unsynced-{number}"));
        fs::write(name(number), noise(8 * BLOCK, seed ^ number))?;
        if let Some(old) = number.checked_sub(AT_ONCE) {
            fs::remove_file(name(old))?;
        }
    }
    Ok(())
}
