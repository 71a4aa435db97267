//! `pool create` and `pool check`: the commands that need a pool that no process has open.

use super::arguments::size::Size;
use super::console::Console;
use super::failure::{Damage, Warning};
use super::open::{DEFAULT_POOL, Place};
use super::output::counted;
use anyhow::Context;
use clap::Args;
use cowshed_check::{self as check, CheckOptions, CheckReport, Detail, FindingKind, Refusal};
use cowshed_daemon::{Client, Connection};
use cowshed_engine::{CreateOptions, MetadataCopies, Pool};
use cowshed_format::base::Error;
use cowshed_format::device::{CreateFile, Device, FileDevice, FileOptions};
use serde_json::json;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::Path;

/// `cowshed pool create`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cowshed pool create --size 100G\n  \
    cowshed --pool /dev/vdb pool create --size 1T")]
pub(super) struct Create {
    /// The pool's size: 100M, 10G, 1T; a file is sparse unless --preallocate
    #[arg(long)]
    pub size: Size,
    /// Allocate the whole size on the host now, so that it cannot run out later
    #[arg(long)]
    pub preallocate: bool,
    /// The size of the log [default: a sixteenth of the pool, 256K to 256M]
    #[arg(long, value_name = "SIZE")]
    pub log_size: Option<Size>,
    /// Overwrite the contents of the file or device
    #[arg(long)]
    pub force: bool,
    /// The number of copies of map nodes and of the catalogue, 1 or 2. With 2, a damaged copy is
    /// read from the other one and written anew [default: 2, or 1 in a pool under 16M]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub metadata_copies: Option<u8>,
}

/// `cowshed pool upgrade`
#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    /// The number of copies of map nodes and of the catalogue, 1 or 2
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u8).range(1..=2))]
    pub metadata_copies: u8,
}

/// `cowshed pool check`
#[derive(Debug, Args)]
pub(super) struct Check {
    /// Repair what can be derived from the rest: bitmaps, counts, lost blocks
    #[arg(long)]
    pub repair: bool,
    /// With --repair: remove the damaged part of the catalogue, with the volumes, images and
    /// containers in it, and free their blocks
    #[arg(long, requires = "repair")]
    pub forget: bool,
    /// Read and verify every block, not only the structure
    #[arg(long)]
    pub deep: bool,
}

/// Creates a pool.
///
/// # Errors
/// The error of the engine or the host; a created file is removed then.
pub(super) fn create(create: &Create, place: &Place, console: &Console) -> anyhow::Result<()> {
    // Where there is no pool, no daemon has one open: then it is a service manager that listens.
    if place.pool.as_path().exists() {
        refuse_daemon(place, "make another one elsewhere")?;
    }
    let size_bytes = create_pool(create, place)?;
    let document = json!({ "path": place.pool, "size_bytes": size_bytes });
    console.result(&document, || place.pool.to_string())
}

/// Checks a pool that no process has open.
///
/// # Errors
/// `Damage` when a fault was found and not repaired.
pub(super) fn check(check: &Check, place: &Place, console: &Console) -> anyhow::Result<()> {
    refuse_daemon(place, "stop it, or use `cowshed pool scrub`")?;
    let options = CheckOptions {
        deep: check.deep,
        repair: check.repair,
        forget: check.forget,
    };
    let report =
        check_file(place.pool.as_path(), options, console).map_err(|error| place.explain(error))?;
    for note in &report.notes {
        console.message(&note.to_string());
    }
    show_check(&report, console)?;
    if report.clean() {
        return Ok(());
    }
    let findings = report.remaining.as_ref().unwrap_or(&report.findings);
    let found = findings.len();
    let is_copy = |kind| kind == FindingKind::CopyDamaged;
    if !check.repair && findings.iter().all(|finding| is_copy(finding.kind)) {
        let copies = counted(found, "copy is damaged", "copies are damaged");
        return Err(Warning(format!(
            "pool {}: {copies}, nothing is lost; --repair writes them anew, and so does an open \
             pool when it reads them",
            place.pool
        ))
        .into());
    }
    let faults = counted(found, "fault", "faults");
    let is_catalogue = |kind| {
        use FindingKind as K;
        matches!(kind, K::CatalogueBlock | K::CataloguePartMissing)
    };
    let may_forget = !check.forget && findings.iter().any(|it| is_catalogue(it.kind));
    let advice = match (&report.refused, check.repair) {
        (Some(Refusal::OwnershipUnknown) | None, true) if may_forget => {
            "part of the catalogue is lost; --repair --forget gives it up, with the volumes and \
             records that it named"
                .to_owned()
        }
        (Some(refusal), _) => refusal.to_string(),
        (None, true) => {
            "the remaining damage cannot be repaired; copy out the data that can be read".to_owned()
        }
        (None, false) => "--repair repairs what can be derived from sound data".to_owned(),
    };
    Err(Damage(format!("pool {}: {faults} found; {advice}", place.pool)).into())
}

/// Upgrades a pool that no process has open.
///
/// # Errors
/// The reason why it cannot be upgraded; nothing is changed then.
pub(super) fn upgrade(upgrade: &Upgrade, place: &Place, console: &Console) -> anyhow::Result<()> {
    refuse_daemon(place, "stop it first")?;
    let options = FileOptions::default();
    let device =
        FileDevice::open(place.pool.as_path(), options).map_err(|error| place.explain(error))?;
    let progress = console.progress("read", Some(0));
    let block_bytes = cowshed_format::base::BLOCK_BYTES as u64;
    let outcome = check::upgrade(&device, upgrade.metadata_copies, &mut |at| {
        let [done, all] = [at.blocks, at.blocks_expected];
        progress.set(
            done.saturating_mul(block_bytes),
            all.saturating_mul(block_bytes),
        );
    });
    drop(progress);
    let done = outcome
        .map_err(|error| place.explain(error))?
        .map_err(|refusal| anyhow::anyhow!("pool {}: {refusal}", place.pool))?;
    let document = json!({
        "path": place.pool,
        "from_version": done.from_version,
        "to_version": done.to_version,
        "from_copies": done.from_copies,
        "to_copies": done.to_copies,
        "rewritten_blocks": done.rewritten,
    });
    console.result(&document, || {
        let copies = counted(done.to_copies.into(), "copy", "copies");
        format!(
            "pool {}: format version {}, {copies} of its metadata; {} blocks written anew",
            place.pool, done.to_version, done.rewritten
        )
    })
}

/// Checks the pool in a file that this process does not have open.
///
/// # Errors
/// Any failure of the check that is not a finding.
pub(super) fn check_file(
    path: &Path,
    options: CheckOptions,
    console: &Console,
) -> Result<CheckReport, Error> {
    let device = FileDevice::open(
        path,
        FileOptions {
            direct: false,
            read_only: !options.repair,
        },
    )?;
    let progress = console.progress("check", Some(0));
    let block_bytes = cowshed_format::base::BLOCK_BYTES as u64;
    check::check(&device, options, &mut |at| {
        let [done, all] = [at.blocks, at.blocks_expected];
        progress.set(
            done.saturating_mul(block_bytes),
            all.saturating_mul(block_bytes),
        );
    })
}

fn show_check(report: &CheckReport, console: &Console) -> anyhow::Result<()> {
    let shown = report.remaining.as_ref().unwrap_or(&report.findings);
    let errors: Vec<_> = shown
        .iter()
        .map(|finding| {
            let detail = match finding.detail {
                Detail::None => String::new(),
                detail => detail.to_string(),
            };
            json!({
                "kind": finding.kind.as_str(),
                "where": finding.place.to_string(),
                "detail": detail,
            })
        })
        .collect();
    let repaired: Vec<_> = report.repaired.iter().map(ToString::to_string).collect();
    let notes: Vec<_> = report.notes.iter().map(ToString::to_string).collect();
    let document = json!({
        "errors": errors,
        "omitted": report.findings_omitted,
        "clean": report.clean(),
        "repaired": repaired,
        "notes": notes,
        "blocks": report.blocks_used,
        "volumes": report.volumes,
    });
    console.result(&document, || {
        let mut lines: Vec<_> = shown.iter().map(ToString::to_string).collect();
        if report.findings_omitted > 0 {
            lines.push(format!("and {} more", report.findings_omitted));
        }
        lines.extend(repaired.iter().map(|what| format!("repaired: {what}")));
        if report.clean() {
            let volumes = usize::try_from(report.volumes).unwrap_or(usize::MAX);
            let volumes = counted(volumes, "volume", "volumes");
            lines.push(format!(
                "clean: {} blocks in use, {volumes}",
                report.blocks_used
            ));
        }
        lines.join("\n")
    })
}

/// Creates the pool and returns its size.
pub(super) fn create_pool(create: &Create, place: &Place) -> anyhow::Result<u64> {
    let path = place.pool.as_path();
    see_to_folder(path).with_context(|| format!("pool {}", place.pool))?;
    let existed = path.exists();
    refuse_foreign(path, create.force).map_err(|error| place.explain(error))?;
    let file = CreateFile {
        preallocate: create.preallocate,
        direct: false,
        overwrite: create.force,
    };
    let options = CreateOptions {
        log_bytes: create.log_size.map(|size| size.0),
        force: create.force,
        metadata_copies: create.metadata_copies.map(|copies| match copies {
            1 => MetadataCopies::One,
            _ => MetadataCopies::Two,
        }),
    };
    let size_bytes = create.size.0;
    let device =
        FileDevice::create(path, size_bytes, file).map_err(|error| place.explain(error))?;
    let created = Pool::create(&device, &options);
    if created.is_err() && !existed {
        // The reason why the pool was not created is reported; a remaining file is not worth
        // another message.
        let _ = fs::remove_file(path);
    }
    created.map_err(|error| place.explain(error))?;
    Ok(device.len_bytes())
}

/// Creates the folder of the superuser's default pool. Any other folder must exist: if it does not,
/// its name is probably wrong.
fn see_to_folder(path: &Path) -> anyhow::Result<()> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    if path == Path::new(DEFAULT_POOL) {
        let mut make = fs::DirBuilder::new();
        return Ok(make.recursive(true).mode(0o700).create(folder)?);
    }
    if let Err(error) = fs::metadata(folder)
        && error.kind() == io::ErrorKind::NotFound
    {
        let folder = folder.display();
        anyhow::bail!(
            "the directory {folder} does not exist; create it first, or correct the path"
        );
    }
    Ok(())
}

/// Returns an error for a non-empty file without `force`, before anything examines or truncates the
/// file.
fn refuse_foreign(path: &Path, force: bool) -> Result<(), Error> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() > 0 && !force => {
            Err(Error::DeviceNotEmpty { found: "data" })
        }
        Ok(found) if !found.is_file() && !found.file_type().is_block_device() => {
            let source = io::Error::other("it is neither a file nor a block device");
            Err(Error::io("create the pool", source))
        }
        _ => Ok(()),
    }
}

/// Returns an error if a daemon has the pool open.
pub(super) fn refuse_daemon(place: &Place, advice: &str) -> anyhow::Result<()> {
    match Client::connect(place.socket.as_path()) {
        Ok(Connection::Daemon(_)) => anyhow::bail!(
            "pool {}: a daemon has it open (it answers on {}); {advice}",
            place.pool,
            place.socket
        ),
        // A caller that cannot reach the socket cannot open the pool either, and gets an error
        // then.
        _ => Ok(()),
    }
}
