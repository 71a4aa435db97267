//! The volumes of a pool, each with what it is, what it costs, and the volumes on it.

use crate::kept_names::RECIPE;
use cowshed_daemon::snapshotter::{self, SnapshotUse};
use cowshed_engine::{Pool, VolumeKind};
use cowshed_format::base::VolumeId;
use cowshed_host::{VolumeRole, VolumeRoles};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// What a volume is to its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The topmost layer of an image.
    Image,
    /// A layer below that, or a committed snapshot of containerd.
    Layer,
    /// The root of a container.
    Container,
    /// A root that containerd has.
    Root,
    /// A writable volume.
    Volume,
    /// A frozen volume.
    Snapshot,
    /// The recipe of a layer's tar.
    Recipe,
    /// An empty file system, of which others are clones.
    Template,
    /// Of a command that runs, or was killed.
    Work,
    /// Removed, but others share its blocks.
    Removed,
}

impl Kind {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Layer => "layer",
            Self::Container => "container",
            Self::Root => "root",
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Recipe => "recipe",
            Self::Template => "template",
            Self::Work => "work",
            Self::Removed => "removed",
        }
    }

    /// Returns true for volumes that only cowshed itself uses.
    const fn is_internal(self) -> bool {
        matches!(
            self,
            Self::Recipe | Self::Template | Self::Work | Self::Removed
        )
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// A volume. In JSON it has its children behind these fields.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Node {
    pub id: u64,
    /// What its users call it.
    pub name: String,
    /// Its own name; `None` once it is removed.
    pub volume: Option<String>,
    pub kind: Kind,
    /// Data and map that only this volume owns.
    pub own_bytes: u64,
    /// Data that it reads from volumes above it.
    pub shared_bytes: u64,
    /// All data that it maps.
    pub referenced_bytes: u64,
    /// The volumes on it, as indices into the forest.
    #[serde(skip)]
    pub children: Vec<usize>,
}

/// The volumes, with those that stand on none.
#[derive(Clone, Debug, Default)]
pub(super) struct Forest {
    pub nodes: Vec<Node>,
    pub roots: Vec<usize>,
}

/// One step of a walk through the forest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// To a volume, from the one on which it stands.
    Enter {
        node: usize,
        /// The number of volumes above it.
        depth: usize,
        /// True if no other volume follows that stands on the same one.
        is_last: bool,
    },
    /// Back from a volume whose children have all been visited.
    Leave,
}

impl Forest {
    /// Returns the forest of `pool`, without internal volumes unless `all` is given, and why the
    /// names of images and containers are missing if they are.
    pub(super) fn of(pool: &Pool, all: bool) -> (Self, Option<String>) {
        let roles = VolumeRoles::of(pool);
        let mut fault = roles.as_ref().err().map(ToString::to_string);
        let roles = roles.unwrap_or_default();
        let snapshots = snapshotter::snapshot_uses(pool).unwrap_or_else(|| {
            fault.get_or_insert("the record of a snapshot of containerd is unreadable".to_owned());
            Vec::new()
        });
        let owners = snapshots.into_iter().filter(|it| it.owns_volume);
        let owners: BTreeMap<VolumeId, SnapshotUse> = owners.map(|it| (it.volume, it)).collect();
        let mut nodes: BTreeMap<u64, (Option<u64>, Node)> = BTreeMap::new();
        for info in pool.volumes() {
            let volume = info.name.to_string();
            let snapshot = owners.get(&info.id);
            let (kind, name) = what(&volume, info.kind, roles.of_volume(&volume), snapshot);
            let node = Node {
                id: info.id.0,
                name,
                volume: Some(volume),
                kind,
                own_bytes: info.own_bytes,
                shared_bytes: info.referenced_bytes.saturating_sub(info.own_bytes),
                referenced_bytes: info.referenced_bytes,
                children: Vec::new(),
            };
            nodes.insert(node.id, (info.parent.map(|id| id.0), node));
        }
        for it in pool.removed_volumes().into_iter().filter(|it| it.is_needed) {
            let node = Node {
                id: it.id.0,
                name: format!("(removed {})", it.id),
                volume: None,
                kind: Kind::Removed,
                own_bytes: it.own_bytes,
                shared_bytes: it.referenced_bytes.saturating_sub(it.own_bytes),
                referenced_bytes: it.referenced_bytes,
                children: Vec::new(),
            };
            // A volume that was removed between the two lists stays what it was.
            nodes
                .entry(node.id)
                .or_insert((it.parent.map(|id| id.0), node));
        }
        (Self::linked(nodes.into_values().collect(), all), fault)
    }

    /// Links nodes, each given with its parent's id, in the order of their ids.
    fn linked(given: Vec<(Option<u64>, Node)>, all: bool) -> Self {
        let (parents, nodes): (Vec<_>, Vec<_>) = given.into_iter().unzip();
        let places = nodes.iter().enumerate();
        let places: BTreeMap<u64, usize> = places.map(|(place, node)| (node.id, place)).collect();
        let mut forest = Self {
            nodes,
            roots: Vec::new(),
        };
        for (place, parent) in parents.into_iter().enumerate() {
            match parent.and_then(|parent| places.get(&parent)) {
                Some(parent) => forest.nodes[*parent].children.push(place),
                None => forest.roots.push(place),
            }
        }
        if all {
            forest
        } else {
            forest.without_internal()
        }
    }

    /// Takes internal volumes out: what stands on one is then on the next volume above it.
    fn without_internal(self) -> Self {
        let mut shown = Self {
            nodes: self.nodes.clone(),
            roots: Vec::new(),
        };
        for node in &mut shown.nodes {
            node.children.clear();
        }
        let mut left: Vec<(usize, Option<usize>)> = Vec::new();
        left.extend(self.roots.iter().rev().map(|root| (*root, None)));
        while let Some((place, above)) = left.pop() {
            let node = &self.nodes[place];
            let mut on = above;
            if !node.kind.is_internal() {
                match above {
                    Some(above) => shown.nodes[above].children.push(place),
                    None => shown.roots.push(place),
                }
                on = Some(place);
            }
            left.extend(node.children.iter().rev().map(|child| (*child, on)));
        }
        shown
    }

    /// Visits every volume, each one before those that stand on it.
    pub(super) fn walk(&self) -> impl Iterator<Item = Step> {
        // For each volume on the way down, the list in which it is and the next place there.
        let mut way: Vec<(&[usize], usize)> = vec![(&self.roots, 0)];
        std::iter::from_fn(move || {
            let depth = way.len().checked_sub(1)?;
            let (siblings, next) = way.last_mut()?;
            if let Some(node) = siblings.get(*next).copied() {
                *next += 1;
                let is_last = *next == siblings.len();
                way.push((&self.nodes[node].children, 0));
                return Some(Step::Enter {
                    node,
                    depth,
                    is_last,
                });
            }
            way.pop();
            (depth > 0).then_some(Step::Leave)
        })
    }
}

/// Returns what a volume is, and what its users call it.
fn what(
    volume: &str,
    kind: VolumeKind,
    role: Option<&VolumeRole>,
    snapshot: Option<&SnapshotUse>,
) -> (Kind, String) {
    let named = |kind| (kind, volume.to_owned());
    if let Some(snapshot) = snapshot {
        let kind = match kind {
            VolumeKind::Snapshot => Kind::Layer,
            VolumeKind::Volume => Kind::Root,
        };
        return (kind, snapshot.key.clone());
    }
    match role {
        Some(VolumeRole::Image { names }) => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            (Kind::Image, names.join(", "))
        }
        Some(VolumeRole::Layer { number, image }) => {
            (Kind::Layer, format!("layer {number} of {image}"))
        }
        Some(VolumeRole::Container { name }) => (Kind::Container, name.clone()),
        None if volume.starts_with("template/") => named(Kind::Template),
        None if volume.starts_with(RECIPE) => named(Kind::Recipe),
        None if ["work/", "unfinished/"]
            .iter()
            .any(|it| volume.starts_with(it)) =>
        {
            named(Kind::Work)
        }
        None => named(match kind {
            VolumeKind::Volume => Kind::Volume,
            VolumeKind::Snapshot => Kind::Snapshot,
        }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::tree) fn node(id: u64, name: &str, kind: Kind, own_bytes: u64) -> Node {
        Node {
            id,
            name: name.to_owned(),
            volume: Some(name.to_owned()),
            kind,
            own_bytes,
            shared_bytes: 4096,
            referenced_bytes: own_bytes + 4096,
            children: Vec::new(),
        }
    }

    /// An image on a template, with two containers, and a volume on its snapshot.
    pub(in crate::tree) fn sample(all: bool) -> Forest {
        Forest::linked(
            vec![
                (None, node(1, "template/ext4-1", Kind::Template, 4 << 20)),
                (Some(1), node(2, "debian:12", Kind::Image, 1 << 20)),
                (Some(2), node(3, "web", Kind::Container, 16 << 10)),
                (Some(6), node(4, "disk", Kind::Volume, 0)),
                (Some(2), node(5, "w\"<&>\u{1b}", Kind::Container, 1234)),
                (None, node(6, "disk@1", Kind::Snapshot, 8192)),
            ],
            all,
        )
    }

    /// A chain of this many volumes.
    pub(in crate::tree) fn chain(len: u64) -> Forest {
        let volume = |id: u64| {
            let name = format!("v{id}");
            (id.checked_sub(1), node(id, &name, Kind::Volume, 4096))
        };
        Forest::linked((0..len).map(volume).collect(), false)
    }

    fn names(forest: &Forest) -> Vec<(usize, &str)> {
        let entered = forest.walk().filter_map(|step| match step {
            Step::Enter { node, depth, .. } => Some((depth, &*forest.nodes[node].name)),
            Step::Leave => None,
        });
        entered.collect()
    }

    #[test]
    fn what_stands_on_an_internal_volume_is_shown_above_it() {
        let all = names(&sample(true)).len();
        assert_eq!(all, 6);
        let shown = sample(false);
        let odd = "w\"<&>\u{1b}";
        assert_eq!(
            names(&shown),
            [
                (0, "debian:12"),
                (1, "web"),
                (1, odd),
                (0, "disk@1"),
                (1, "disk")
            ]
        );
    }

    #[test]
    fn each_volume_is_left_as_often_as_it_is_entered_however_deep() {
        let forest = chain(100_000);
        let entered = forest.walk().filter(|step| *step != Step::Leave).count();
        assert_eq!((entered, forest.walk().count()), (100_000, 200_000));
    }

    #[test]
    fn a_volume_whose_parent_is_missing_is_a_root() {
        let forest = Forest::linked(vec![(Some(9), node(1, "a", Kind::Volume, 0))], false);
        assert_eq!(names(&forest), [(0, "a")]);
    }
}
