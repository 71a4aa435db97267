//! The time for which a device does not reply: one block at a time, written and read past the
//! cache.

use crate::harness::noise;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const PLACES: u64 = 256;
/// The pause between operations, so that the probe measures the other load and adds none itself.
const BETWEEN: Duration = Duration::from_millis(1);

/// The result of a probe.
#[derive(Debug, Default)]
pub(crate) struct Probed {
    pub(crate) operations: u64,
    pub(crate) longest: Duration,
}

/// Writes and reads until told to stop; the first error or wrong block ends it.
pub(crate) fn probe(device: &Path, stop: &AtomicBool) -> Result<Probed, String> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let file = options.open(device).map_err(|error| error.to_string())?;
    let mut memory = vec![0; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let block = &mut memory[start..start + BLOCK];
    let mut versions = vec![0; usize::try_from(PLACES).unwrap()];
    let mut probed = Probed::default();
    for version in 1_u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let place = version * 7919 % PLACES;
        block.copy_from_slice(&noise(BLOCK, version));
        let started = Instant::now();
        file.write_all_at(block, place * BLOCK as u64)
            .map_err(|error| format!("write {version}: {error}"))?;
        versions[usize::try_from(place).unwrap()] = version;
        let old = version * 31 % PLACES;
        file.read_exact_at(block, old * BLOCK as u64)
            .map_err(|error| format!("read after {version}: {error}"))?;
        probed.longest = probed.longest.max(started.elapsed());
        probed.operations += 2;
        let wanted = match versions[usize::try_from(old).unwrap()] {
            0 => vec![0; BLOCK],
            version => noise(BLOCK, version),
        };
        if block != wanted {
            return Err(format!("place {old} is wrong after version {version}"));
        }
        thread::sleep(BETWEEN);
    }
    Ok(probed)
}
