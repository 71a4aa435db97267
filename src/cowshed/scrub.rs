//! `cowshed pool scrub`: finds bad blocks and the volumes that they belong to.

use super::console::Console;
use super::failure::{Damage, Warning};
use super::gc;
use super::output::counted;
use anyhow::Context;
use cowshed_engine::{Pool, ScrubFault, ScrubFaultKind, VolumeInfo};
use cowshed_format::base::rate_limit::RateLimit;
use cowshed_format::base::{BLOCK_BYTES, VolumeId};
use cowshed_host::VolumeUsers;
use serde_json::json;
use std::collections::BTreeSet;

/// The most blocks of a bad range that are read to check whether a descendant shares them.
const PROBED_BLOCKS: u64 = 256;

/// Reads and verifies every block in use.
///
/// # Errors
/// `Damage` when a bad block is found; the engine's error; that the output failed.
pub(super) fn scrub(
    pool: &Pool,
    bytes_per_second: Option<u64>,
    console: &Console,
) -> anyhow::Result<()> {
    let progress = console.progress("scrub", Some(0));
    let cancel = console.cancel().clone();
    let mut limit = bytes_per_second.map(RateLimit::new);
    let mut paid = 0;
    let report = pool
        .scrub(&mut |done, total| {
            progress.set(done, total);
            let goes_on = || !cancel.is_cancelled();
            let bytes = done.saturating_sub(std::mem::replace(&mut paid, done));
            match &mut limit {
                Some(limit) => limit.pay(bytes, goes_on),
                None => goes_on(),
            }
        })
        .context("scrub the pool")?;
    drop(progress);
    cancel.check().context("scrub the pool")?;
    let owners = Owners::of(pool);
    let bad: Vec<_> = report
        .bad
        .iter()
        .map(|fault| (fault, owners.affected(pool, fault)))
        .collect();
    let listed: Vec<_> = bad
        .iter()
        .map(|(fault, affects)| {
            json!({
                "kind": fault.kind.as_str(),
                "volume": fault.volume.0,
                "offset": fault.offset_bytes,
                "length": fault.len_bytes,
                "pool_offset": fault.pool_offset_bytes,
                "affects": affects,
            })
        })
        .collect();
    let document = json!({
        "blocks": report.blocks,
        "bad": listed,
        "omitted": report.bad_omitted,
        "healed": report.healed,
        "resumed": report.resumed,
    });
    console.result(&document, || {
        let from = if report.resumed {
            ", from where the last one stopped"
        } else {
            ""
        };
        let count = report.bad.len() as u64 + report.bad_omitted;
        let mut text = format!("{} blocks read{from}, {count} damaged", report.blocks);
        if report.healed > 0 {
            text.push_str(&format!(
                "; {} damaged blocks written anew from what has them",
                report.healed
            ));
        }
        for (fault, affects) in &bad {
            text.push_str(&describe(fault, affects));
        }
        if report.bad_omitted > 0 {
            text.push_str(&format!("\nand {} more", report.bad_omitted));
        }
        text
    })?;
    if report.bad.is_empty() {
        return Ok(());
    }
    let is_copy = |fault: &&ScrubFault| fault.kind == ScrubFaultKind::Copy;
    let copies = report.bad.iter().filter(is_copy).count();
    if copies == report.bad.len() {
        let copies = counted(copies, "copy", "copies");
        return Err(Warning(format!(
            "{copies} of metadata cannot be written; the others are good and nothing is lost, but \
             the device should be replaced"
        ))
        .into());
    }
    let bad = counted(report.bad.len(), "block is damaged", "blocks are damaged");
    Err(Damage(format!(
        "{bad}; their content is lost, the rest can be read"
    ))
    .into())
}

fn describe(fault: &ScrubFault, affects: &[String]) -> String {
    let kind = fault.kind.as_str();
    let at = fault.pool_offset_bytes;
    if fault.len_bytes == 0 {
        return format!("\n{kind}: byte {at} of the pool");
    }
    let (offset, len) = (fault.offset_bytes, fault.len_bytes);
    let mut line = format!("\n{kind}: {len} bytes at offset {offset} (byte {at} of the pool)");
    if !affects.is_empty() {
        line.push_str(&format!("; affects {}", affects.join(", ")));
    }
    line
}

/// The volumes and their users.
struct Owners {
    volumes: Vec<VolumeInfo>,
    named: BTreeSet<VolumeId>,
    users: VolumeUsers,
}

impl Owners {
    fn of(pool: &Pool) -> Self {
        let volumes = pool.volumes();
        Self {
            named: volumes.iter().map(|info| info.id).collect(),
            volumes,
            // An unreadable record must not hide the bad blocks.
            users: gc::users_of(pool),
        }
    }

    /// Returns the users of the volumes that cannot read the bad blocks: a bad block is found in
    /// the volume that owns it, and its descendants may share it.
    fn affected(&self, pool: &Pool, fault: &ScrubFault) -> Vec<String> {
        let mut affected = BTreeSet::new();
        let mut family = BTreeSet::from([fault.volume]);
        // Ids rise, but a snapshot is younger than the child whose place it took: repeat until
        // nothing is added.
        loop {
            let before = family.len();
            for info in &self.volumes {
                // A volume whose parent has no name may descend from any of these.
                let of = |parent| family.contains(&parent) || !self.named.contains(&parent);
                if info.parent.is_some_and(of) {
                    family.insert(info.id);
                }
            }
            if family.len() == before {
                break;
            }
        }
        for info in self.volumes.iter().filter(|info| family.contains(&info.id)) {
            if info.id != fault.volume && !shares(pool, info, fault) {
                continue;
            }
            match self.users.of_volume(info.name.as_str()) {
                [] => drop(affected.insert(format!("volume {}", info.name))),
                users => affected.extend(users.iter().cloned()),
            }
        }
        affected.into_iter().collect()
    }
}

/// Returns true if a volume cannot read the bad blocks of an ancestor.
fn shares(pool: &Pool, info: &VolumeInfo, fault: &ScrubFault) -> bool {
    let Ok(volume) = pool.volume_by_id(info.id) else {
        return false;
    };
    let block = BLOCK_BYTES as u64;
    let blocks = (fault.len_bytes / block).min(PROBED_BLOCKS);
    let mut bytes = [0; BLOCK_BYTES];
    (0..blocks).any(|number| {
        let offset = fault.offset_bytes.saturating_add(number * block);
        let len = usize::try_from(info.size_bytes.saturating_sub(offset).min(block)).unwrap_or(0);
        len > 0 && volume.read_at(&mut bytes[..len], offset).is_err()
    })
}
