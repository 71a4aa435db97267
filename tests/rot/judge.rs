//! The permitted behaviour of a damaged pool: it returns correct bytes or an error, reports what is
//! wrong, and is repaired without loss of readable data.

use crate::golden::{BLOCK, State, open};
use cowshed_check::{CheckOptions, check};
use cowshed_engine::{Pool, ScrubFault, ScrubReport};
use cowshed_format::base::{Error, Name};
use cowshed_format::device::{DeviceImage, MemoryDevice};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The blocks of each volume that could be read.
pub(crate) type Readable = BTreeMap<String, BTreeSet<u64>>;

/// The behaviour of a damaged pool.
pub(crate) struct Verdict {
    /// The readable blocks, if it opened.
    pub(crate) readable: Option<Readable>,
    /// True if the check found something, or refused.
    pub(crate) found: bool,
    /// True if a check after a repair found nothing more.
    pub(crate) mended: bool,
    /// True if it opens after the repair.
    pub(crate) opens_after: bool,
}

const fn checking(repair: bool) -> CheckOptions {
    CheckOptions {
        deep: true,
        repair,
        forget: false,
    }
}

/// Opens, reads, checks, scrubs and repairs a damaged pool, each on its own copy.
///
/// # Errors
/// A description of forbidden behaviour.
pub(crate) fn judge(
    image: &DeviceImage,
    allowed: &[State],
    any: &[State],
) -> Result<Verdict, String> {
    let copy = || Arc::new(MemoryDevice::from_image(image.clone()));
    let checked = check(&*copy(), checking(false), &mut |_| {});
    let found = checked.as_ref().map_or(true, |report| !report.clean());
    let mut verdict = Verdict {
        readable: None,
        found,
        mended: false,
        opens_after: false,
    };
    match open(&copy()) {
        Err(error) => {
            refuses_well(&error)?;
            if !found {
                return Err(format!("the check finds nothing, but: {error}"));
            }
        }
        Ok(pool) => {
            let readable = read_all(&pool, allowed)?;
            let report = pool
                .scrub(&mut |_, _| true)
                .map_err(|error| error.to_string())?;
            if !report.finished {
                return Err("the scrub did not finish".into());
            }
            pool.status().map_err(|error| error.to_string())?;
            all_is_named(&pool, &readable, &report, found)?;
            goes_on(&pool);
            // New data must not overwrite blocks in use.
            if read_all(&pool, allowed)? != readable {
                return Err("writing has changed what could be read".into());
            }
            verdict.readable = Some(readable);
        }
    }
    // A pool that is refused because of its log opens in the state before the log's damage, once
    // the damaged part is cut off.
    let after = if verdict.readable.is_some() {
        allowed
    } else {
        any
    };
    mend(&copy(), after, &mut verdict)?;
    Ok(verdict)
}

fn refuses_well(error: &Error) -> Result<(), String> {
    match error {
        Error::Corrupt(_) | Error::NotAPool | Error::Incompatible { .. } => Ok(()),
        other => Err(format!("it is refused with {other}")),
    }
}

/// Asserts that the check finds every unreadable block, and that the scrub says where it is.
fn all_is_named(
    pool: &Pool,
    readable: &Readable,
    scrub: &ScrubReport,
    found: bool,
) -> Result<(), String> {
    for (name, blocks) in readable {
        let volume = pool.volume(name).map_err(|error| error.to_string())?;
        let all = 0..volume.size_bytes() / BLOCK;
        for block in all.filter(|block| !blocks.contains(block)) {
            let names = |fault: &ScrubFault| {
                let offset = block * BLOCK;
                (fault.offset_bytes..fault.offset_bytes + fault.len_bytes).contains(&offset)
            };
            if !found || !scrub.bad.iter().any(names) {
                return Err(format!(
                    "block {block} of {name} is bad; the check finds something: {found}; \
                     the scrub says {:?}",
                    scrub.bad
                ));
            }
        }
    }
    Ok(())
}

/// Writes and removes until the pool is full; any call may fail, but none may do harm.
fn goes_on(pool: &Pool) {
    if let Ok(volume) = pool.create_volume(&Name::new("filler").unwrap(), 1 << 30) {
        for number in 0..1u64 << 12 {
            let bytes = [number.to_le_bytes()[0] | 1; 16 << 10];
            if volume
                .write_at(&bytes, number * bytes.len() as u64)
                .is_err()
            {
                break;
            }
        }
        let _ = pool.checkpoint();
        let _ = pool.remove(&volume);
    }
    let _ = pool.reclaim();
}

/// Repairs; what could be read before must be readable afterwards.
fn mend(
    device: &Arc<MemoryDevice>,
    allowed: &[State],
    verdict: &mut Verdict,
) -> Result<(), String> {
    let repaired = check(&**device, checking(true), &mut |_| {});
    let again = check(&**device, checking(false), &mut |_| {});
    if repaired.is_ok() != again.is_ok() {
        return Err("the repair has made the pool unreadable for the check".into());
    }
    let opened = open(device);
    verdict.opens_after = opened.is_ok();
    let Some(before) = &verdict.readable else {
        if let Ok(pool) = opened {
            read_all(&pool, allowed)?;
        }
        verdict.mended = again.is_ok_and(|report| report.clean());
        return Ok(());
    };
    let pool = opened.map_err(|error| format!("after the repair it does not open: {error}"))?;
    let after = read_all(&pool, allowed)?;
    for (volume, blocks) in before {
        let now = after.get(volume).ok_or(format!("{volume} is gone"))?;
        if let Some(block) = blocks.difference(now).next() {
            return Err(format!(
                "after the repair block {block} of {volume} is lost"
            ));
        }
    }
    // The contents of the log are in their place now, so that a second repair can do the rest.
    match pool.close() {
        Ok(()) => {}
        Err(error) if error.is_no_room() => {}
        Err(error) => return Err(format!("after the repair it does not close: {error}")),
    }
    drop(pool);
    let device = Arc::new(MemoryDevice::from_image(device.snapshot_image()));
    let last = check(&*device, checking(true), &mut |_| {}).map_err(|error| error.to_string())?;
    verdict.mended = last.clean();
    forget(&device, allowed, &after)?;
    let pool = open(&device).map_err(|error| format!("mended twice, it does not open: {error}"))?;
    if read_all(&pool, allowed)? != after {
        return Err("the second repair has changed what can be read".into());
    }
    Ok(())
}

/// Forgets what is missing in a copy of the pool: everything else stays as it was, and a pool that
/// had nothing else wrong is sound.
fn forget(device: &MemoryDevice, allowed: &[State], before: &Readable) -> Result<(), String> {
    let device = Arc::new(MemoryDevice::from_image(device.snapshot_image()));
    let forgetting = CheckOptions {
        forget: true,
        ..checking(true)
    };
    let report = check(&*device, forgetting, &mut |_| {}).map_err(|error| error.to_string())?;
    let remaining = report.remaining.unwrap_or_default();
    if remaining
        .iter()
        .any(|it| it.kind.as_str().starts_with("catalogue"))
    {
        return Err(format!("it is not forgotten: {remaining:?}"));
    }
    let pool = open(&device).map_err(|error| format!("forgotten, it does not open: {error}"))?;
    if pool
        .status()
        .map_err(|error| error.to_string())?
        .missing
        .volumes
        > 0
    {
        return Err("forgotten, something is still missing".to_owned());
    }
    for (name, blocks) in before {
        let volume = pool.volume(name).map_err(|error| error.to_string())?;
        let state = allowed.iter().filter_map(|state| state.get(name));
        let contents: Vec<&Vec<u8>> = state.collect();
        for block in blocks {
            let mut found = [0; 4096];
            volume
                .read_at(&mut found, block * BLOCK)
                .map_err(|error| format!("forgotten, block {block} of {name}: {error}"))?;
            let start = usize::try_from(block * BLOCK).expect("it is small");
            let is_right = |bytes: &&Vec<u8>| bytes.get(start..start + 4096) == Some(&found[..]);
            if !contents.iter().any(is_right) {
                return Err(format!("forgotten, block {block} of {name} is wrong"));
            }
        }
    }
    Ok(())
}

/// Reads everything; returns the blocks that could be read.
fn read_all(pool: &Pool, allowed: &[State]) -> Result<Readable, String> {
    let mut why = String::new();
    for state in allowed.iter().rev() {
        match read_as(pool, state) {
            Ok(readable) => return Ok(readable),
            Err(difference) => why = format!("{difference}; {why}"),
        }
    }
    Err(why)
}

fn read_as(pool: &Pool, state: &State) -> Result<Readable, String> {
    let names: BTreeSet<String> = pool
        .volumes()
        .iter()
        .map(|info| info.name.to_string())
        .collect();
    let status = pool.status().map_err(|error| error.to_string())?;
    let may_miss = status.missing.volumes > 0;
    let missing = state.keys().find(|name| !names.contains(*name));
    if let Some(missing) = missing.filter(|_| !may_miss) {
        return Err(format!("there is no {missing}"));
    }
    if let Some(strange) = names.iter().find(|name| !state.contains_key(*name)) {
        return Err(format!("there is a {strange}"));
    }
    let mut readable = Readable::new();
    for (name, bytes) in state.iter().filter(|(name, _)| names.contains(*name)) {
        let volume = pool.volume(name).map_err(|error| error.to_string())?;
        if volume.size_bytes() != bytes.len() as u64 {
            return Err(format!("{name} has another size"));
        }
        let blocks = readable.entry(name.clone()).or_default();
        let mut found = vec![0xee; bytes.len()];
        if volume.read_at(&mut found, 0).is_ok() {
            if found != *bytes {
                return Err(format!("{name} gives wrong bytes"));
            }
            blocks.extend(0..bytes.len() as u64 / BLOCK);
            continue;
        }
        for (number, wanted) in (0..).zip(bytes.chunks(4096)) {
            let mut found = vec![0xee; wanted.len()];
            match volume.read_at(&mut found, number * BLOCK) {
                Ok(()) if found == wanted => drop(blocks.insert(number)),
                Ok(()) => return Err(format!("block {number} of {name} gives wrong bytes")),
                Err(error) if error.errno() == libc::EIO => {}
                Err(error) => return Err(format!("block {number} of {name}: {error}")),
            }
        }
    }
    Ok(readable)
}
