//! `cowshed gc`: removes what is no longer needed, and explains why everything else is kept.
//!
//! Nothing is collected while a command or a snapshot still refers to it. Garbage is what a killed
//! command could not clear away: a volume whose name is under `work/` and that has no volumes on it
//! and is not open; or a volume with a place whose record is gone. A very new volume may belong to
//! a running command.

use super::console::Console;
use super::output::{Column, counted};
use super::pool;
use anyhow::Context;
use cowshed_daemon::open_pool::{OpenPool, clear_folder};
use cowshed_daemon::request::gc::Gc;
use cowshed_daemon::snapshotter;
use cowshed_daemon::state_folder::StateFolder;
use cowshed_engine::{Pool, RemovedVolume, VolumeInfo};
use cowshed_format::base::size::human;
use cowshed_format::base::{self, VolumeId};
use cowshed_host::VolumeUsers;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// A younger volume may belong to a running command that has not used it yet.
const YOUNG: Duration = Duration::from_secs(60);
/// Number of users of a volume that are named.
const USERS_SHOWN: usize = 3;

/// The reason why one volume is kept, or that it is not.
#[derive(Debug, Serialize)]
struct Explained {
    id: u64,
    /// `None` for a volume that was removed.
    name: Option<String>,
    own_bytes: u64,
    /// Images, containers and snapshots that need it.
    used_by: Vec<String>,
    /// The reasons why it is kept.
    kept: Vec<String>,
    /// True if nothing needs it: `cowshed gc` removes it.
    garbage: bool,
}

/// Returns the users of the volumes of `pool`, by their names. If some records are unreadable, the
/// other users are still returned.
pub(super) fn users_of(pool: &Pool) -> VolumeUsers {
    let mut users = VolumeUsers::of(pool).unwrap_or_default();
    let names: BTreeMap<VolumeId, String> = pool
        .volumes()
        .into_iter()
        .map(|info| (info.id, info.name.as_str().to_owned()))
        .collect();
    for snapshot in snapshotter::snapshot_uses(pool).unwrap_or_default() {
        if let Some(name) = names.get(&snapshot.volume) {
            let what = if snapshot.owns_volume {
                "snapshot"
            } else {
                "view"
            };
            users.add(name, format!("{what} {}", snapshot.key));
        }
    }
    users
}

/// Explains, or removes garbage.
///
/// # Errors
/// When a record is unreadable: then garbage cannot be determined.
pub(super) fn run(gc: &Gc, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let pool = open_pool.pool();
    if let Some(missing) = pool::missing_line(&pool.status()?.missing) {
        anyhow::bail!("what is unused cannot be told: {missing}");
    }
    VolumeUsers::of(pool).context("find the users of volumes")?;
    snapshotter::snapshot_uses(pool).context("the record of a snapshot is unreadable")?;
    let alone = open_pool.serving().is_none();
    let all = explain(pool, young(alone));
    if gc.explain {
        return show(&all, console);
    }
    if alone && nix::unistd::geteuid().is_root() {
        // Opening the pool for containers unmounts what killed commands had mounted.
        open_pool.containers()?;
    }
    if nix::unistd::geteuid().is_root() {
        clear_abandoned(console);
    }
    let mut removed = Vec::new();
    let mut bytes = 0;
    for garbage in all.into_iter().filter(|it| it.garbage) {
        console.cancel().check()?;
        match remove(open_pool, VolumeId(garbage.id), alone) {
            Ok(false) => {}
            Ok(true) => {
                bytes += garbage.own_bytes;
                removed.extend(garbage.name);
            }
            Err(error) => {
                console.message(&format!("cannot remove volume {}: {error:#}", garbage.id))
            }
        }
    }
    pool.flush()?;
    console.result(&json!({ "removed": removed, "own_bytes": bytes }), || {
        let what = counted(removed.len(), "volume", "volumes");
        format!("{what} removed, {} freed", human(bytes))
    })
}

/// Removes the mounts and loop devices of all pools whose processes were killed, also of pools that
/// no longer exist.
fn clear_abandoned(console: &Console) {
    for folder in StateFolder::abandoned() {
        if let Err(error) = clear_folder(folder.path()) {
            let path = folder.path().display();
            console.message(&format!(
                "cannot remove the mounts and loop devices in {path}: {error:#}"
            ));
        }
    }
}

/// Removes the volume if it is still garbage: a running command may use it by now.
fn remove(open_pool: &OpenPool, id: VolumeId, alone: bool) -> anyhow::Result<bool> {
    let pool = open_pool.pool();
    let volume = match pool.volume_by_id(id) {
        // Another command has removed it.
        Err(base::Error::NoSuchVolume(_)) => return Ok(true),
        found => found?,
    };
    let info = volume.info()?;
    let users = users_of(pool);
    let users = users.of_volume(info.name.as_str());
    if !of_volume(&info, users, volume.is_held(), young(alone)).garbage {
        return Ok(false);
    }
    pool.remove(&volume)?;
    Ok(true)
}

/// Returns the age below which a volume is kept. Without a daemon no other command runs.
const fn young(alone: bool) -> Duration {
    if alone { Duration::ZERO } else { YOUNG }
}

fn explain(pool: &Pool, young: Duration) -> Vec<Explained> {
    let users = users_of(pool);
    let volumes = pool.volumes();
    let names: BTreeMap<VolumeId, &str> = volumes
        .iter()
        .map(|info| (info.id, info.name.as_str()))
        .collect();
    let named = volumes.iter().map(|info| {
        let held = pool
            .volume_by_id(info.id)
            .is_ok_and(|volume| volume.is_held());
        of_volume(info, users.of_volume(info.name.as_str()), held, young)
    });
    let removed = pool.removed_volumes();
    let removed = removed.iter().map(|volume| of_removed(volume, &names));
    named.chain(removed).collect()
}

fn of_volume(info: &VolumeInfo, users: &[String], held: bool, young: Duration) -> Explained {
    let mut kept = Vec::new();
    if info.children > 0 {
        let children = usize::try_from(info.children).unwrap_or(usize::MAX);
        kept.push(format!(
            "{} on it",
            counted(children, "volume depends", "volumes depend")
        ));
    }
    if held {
        kept.push("it is attached, mounted or open".to_owned());
    }
    let name = info.name.as_str();
    let is_young = SystemTime::now()
        .duration_since(info.created)
        .is_ok_and(|age| age < young);
    let has_place = ["layer/", "recipe/", "container/", "snapshot/"]
        .iter()
        .any(|start| name.starts_with(start));
    let mut garbage = false;
    if name.starts_with("template/") {
        kept.push("new file systems are clones of it".to_owned());
    } else if name.starts_with("data/") {
        kept.push("it is a data volume".to_owned());
    } else if name.starts_with("unfinished/") {
        let why =
            "a command is making it, an interrupted receive keeps it, or the next start removes it";
        kept.push(why.to_owned());
    } else if name.starts_with("work/") || (has_place && users.is_empty()) {
        if is_young {
            kept.push("a command may be using it".to_owned());
        }
        garbage = kept.is_empty();
    } else if !has_place {
        kept.push("it has a name of its own".to_owned());
    }
    Explained {
        id: info.id.0,
        name: Some(name.to_owned()),
        own_bytes: info.own_bytes,
        used_by: users.to_vec(),
        kept,
        garbage,
    }
}

fn of_removed(volume: &RemovedVolume, names: &BTreeMap<VolumeId, &str>) -> Explained {
    let kept = match volume.children.as_slice() {
        [] => "it was removed, and its space is being reclaimed".to_owned(),
        [_] => "it was removed, and its blocks are being passed to the volume that depends on it"
            .to_owned(),
        children => {
            let names: Vec<_> = children
                .iter()
                .take(USERS_SHOWN)
                .map(|id| {
                    names
                        .get(id)
                        .map_or_else(|| id.to_string(), |name| (*name).to_owned())
                })
                .collect();
            let count = children.len();
            format!(
                "it was removed, but {count} volumes still share its blocks: {}{}",
                names.join(", "),
                if count > names.len() { ", …" } else { "" }
            )
        }
    };
    Explained {
        id: volume.id.0,
        name: None,
        own_bytes: volume.own_bytes,
        used_by: Vec::new(),
        kept: vec![kept],
        garbage: false,
    }
}

fn show(all: &[Explained], console: &Console) -> anyhow::Result<()> {
    let garbage: u64 = all
        .iter()
        .filter(|it| it.garbage)
        .map(|it| it.own_bytes)
        .sum();
    console.result(&json!({ "volumes": all, "garbage_bytes": garbage }), || {
        let columns = [
            Column::Text("VOLUME"),
            Column::Number("OWN"),
            Column::Text("WHY IT IS KEPT"),
        ];
        console.table(&columns, all.iter().map(row))
    })
}

fn row(it: &Explained) -> Vec<String> {
    let name = it
        .name
        .clone()
        .unwrap_or_else(|| format!("(removed {})", it.id));
    let mut why: Vec<String> = it.used_by.iter().take(USERS_SHOWN).cloned().collect();
    if it.used_by.len() > USERS_SHOWN {
        why.push(format!("{} more", it.used_by.len() - USERS_SHOWN));
    }
    why.extend(it.kept.iter().cloned());
    if it.garbage {
        why.push("it is unused: cowshed gc removes it".to_owned());
    }
    vec![name, human(it.own_bytes), why.join("; ")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_engine::{Labels, VolumeKind};
    use cowshed_format::base::Name;

    fn info(name: &str, children: u32, age: Duration) -> VolumeInfo {
        VolumeInfo {
            id: VolumeId(7),
            name: Name::new(name).unwrap(),
            parent: None,
            kind: VolumeKind::Volume,
            size_bytes: 1,
            own_bytes: 2,
            referenced_bytes: 2,
            created: SystemTime::now() - age,
            labels: Labels::new(),
            children,
        }
    }

    #[test]
    fn only_what_nobody_leads_to_or_stands_on_is_garbage() {
        let old = Duration::from_secs(3600);
        let user = ["image x".to_owned()];
        for (name, children, users, held, age, garbage) in [
            ("work/00", 0, &[][..], false, old, true),
            ("work/00", 1, &[], false, old, false),
            ("work/00", 0, &[], true, old, false),
            ("work/00", 0, &[], false, Duration::ZERO, false),
            ("layer/00", 0, &[], false, old, true),
            ("layer/00", 0, &user, false, old, false),
            ("recipe/00", 0, &[], false, old, true),
            ("recipe/00", 0, &user, false, old, false),
            ("snapshot/00", 0, &[], false, old, true),
            ("template/ext4-1", 0, &[], false, old, false),
            ("unfinished/1", 0, &[], false, old, false),
            ("disk", 0, &[], false, old, false),
        ] {
            let told = of_volume(&info(name, children, age), users, held, YOUNG);
            assert_eq!(told.garbage, garbage, "{told:?}");
            assert!(
                garbage || !told.kept.is_empty() || !told.used_by.is_empty(),
                "{told:?}"
            );
        }
    }

    #[test]
    fn a_removed_volume_says_who_still_shares_it() {
        let names = BTreeMap::from([(VolumeId(1), "a"), (VolumeId(2), "b")]);
        let volume = |children: &[u64]| RemovedVolume {
            id: VolumeId(9),
            parent: None,
            size_bytes: 1,
            own_bytes: 1,
            referenced_bytes: 1,
            created: SystemTime::UNIX_EPOCH,
            is_needed: !children.is_empty(),
            children: children.iter().copied().map(VolumeId).collect(),
        };
        let shared = of_removed(&volume(&[1, 2]), &names);
        assert!(
            shared.kept[0].ends_with("2 volumes still share its blocks: a, b"),
            "{shared:?}"
        );
        assert!(!of_removed(&volume(&[]), &names).garbage);
    }
}
