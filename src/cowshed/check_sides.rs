//! Checking a mirrored pool: all its sides as one device, which says whether anything is lost, and each
//! good side by itself; and mending one from another before anything is given up.

use super::console::Console;
use super::mirror::state;
use super::open::Place;
use cowshed_check::{self as check, CheckOptions, CheckReport};
use cowshed_engine::{OpenOptions, Pool, ScrubReport, is_side_alone, prepare};
use cowshed_format::base::{BLOCK_BYTES, Error};
use cowshed_format::device::mirror::{SideReport, SideStanding};
use cowshed_format::device::{Device, FileOptions, MirrorDevice};
use std::path::PathBuf;

/// The result of a check.
pub(super) struct Checked {
    /// The report of the pool.
    pub report: CheckReport,
    /// The sides, if it is mirrored.
    pub sides: Vec<CheckedSide>,
    /// What was written anew, and what is lost, before a repair.
    pub scrubbed: Option<ScrubReport>,
    /// True if all data was read and verified, and not only the structure.
    pub has_read_data: bool,
    /// True if the device is a side that has lost its label, so that no other side was looked at.
    pub has_lost_label: bool,
}

/// One side of the pool.
pub(super) struct CheckedSide {
    /// Its path.
    pub path: PathBuf,
    /// `good`, `behind` or `missing`.
    pub state: &'static str,
    /// Its own report, if it was checked by itself; or why there is none.
    pub report: Option<Result<CheckReport, Error>>,
}

impl CheckedSide {
    /// Returns true if it has everything.
    pub(super) fn is_good(&self) -> bool {
        self.state == state(SideStanding::Good)
    }

    /// Returns true if something was found on it.
    pub(super) fn is_damaged(&self) -> bool {
        match &self.report {
            None => false,
            Some(Ok(report)) => !report.clean(),
            Some(Err(_)) => true,
        }
    }
}

/// Checks the pool at `place`, which no process has open. With `this_side`, only the side there.
///
/// # Errors
/// Any failure of the check that is not a finding.
pub(super) fn check_pool(
    place: &Place,
    options: CheckOptions,
    this_side: bool,
    console: &Console,
) -> Result<Checked, Error> {
    let file = FileOptions {
        direct: false,
        read_only: !options.repair,
    };
    let device = if this_side {
        place.one_side()?
    } else {
        place.device(file)?
    };
    let has_lost_label = is_side_alone(&*device);
    let is_mirror = device.mirror().is_some();
    if is_mirror && options.repair {
        drop(device);
        return repair(place, options, console);
    }
    prepare(&*device, !options.repair)?;
    let report = check_device(&*device, options, console)?;
    let mirror = device.mirror().filter(|_| !this_side);
    let sides = mirror.map(|mirror| check_sides(mirror, options, console));
    Ok(Checked {
        report,
        sides: sides.unwrap_or_default(),
        scrubbed: None,
        has_read_data: options.deep,
        has_lost_label,
    })
}

/// Checks each good side by itself.
fn check_sides(
    mirror: &MirrorDevice,
    options: CheckOptions,
    console: &Console,
) -> Vec<CheckedSide> {
    let good = mirror.good_sides();
    let check = |side: SideReport| {
        let own = good.iter().find(|own| own.id() == side.id);
        CheckedSide {
            state: match side.standing {
                // The labels do not know yet that it has an older state.
                SideStanding::Good if own.is_none() => "behind",
                standing => state(standing),
            },
            path: side.path,
            report: own.map(|own| check_device(own.device(), options, console)),
        }
    };
    mirror.report().into_iter().map(check).collect()
}

/// Mends what one side has and another does not, and then what none has.
fn repair(place: &Place, options: CheckOptions, console: &Console) -> Result<Checked, Error> {
    let pool = place
        .device(FileOptions::default())
        .and_then(|device| Pool::open(device, &OpenOptions::default()));
    let scrubbed = match pool {
        Ok(pool) => {
            let progress = console.progress("scrub", Some(0));
            let scrubbed = pool.scrub(&mut |done, total| {
                progress.set(done, total);
                true
            });
            let closed = pool.close();
            let scrubbed = scrubbed?;
            closed?;
            Some(scrubbed)
        }
        // What no side has is what the repair is for.
        Err(Error::Corrupt(_)) => None,
        Err(error) => return Err(error),
    };
    let device = place.device(FileOptions::default())?;
    prepare(&*device, false)?;
    // What the scrub has found is to be among the findings.
    let found_bad = scrubbed.as_ref().is_some_and(|it| !it.bad.is_empty());
    let options = CheckOptions {
        deep: options.deep || found_bad,
        ..options
    };
    let report = check_device(&*device, options, console)?;
    let sides = device.mirror().map(MirrorDevice::report);
    let unchecked = |side: SideReport| CheckedSide {
        state: state(side.standing),
        path: side.path,
        report: None,
    };
    Ok(Checked {
        report,
        sides: sides.into_iter().flatten().map(unchecked).collect(),
        has_read_data: options.deep || scrubbed.is_some(),
        scrubbed,
        has_lost_label: false,
    })
}

/// Checks one device.
///
/// # Errors
/// Any failure of the check that is not a finding.
pub(super) fn check_device(
    device: &dyn Device,
    options: CheckOptions,
    console: &Console,
) -> Result<CheckReport, Error> {
    let progress = console.progress("check", Some(0));
    let block_bytes = BLOCK_BYTES as u64;
    check::check(device, options, &mut |at| {
        let [done, all] = [at.blocks, at.blocks_expected];
        progress.set(
            done.saturating_mul(block_bytes),
            all.saturating_mul(block_bytes),
        );
    })
}
