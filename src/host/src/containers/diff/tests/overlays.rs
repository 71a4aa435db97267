//! The changes of overlay roots: against the merged tree that the kernel shows, and against a block
//! root with the same changes.

use super::mutations::Mutator;
use super::stage::{Stage, shell};
use super::{BATCH_MAX, COMPARISONS, DEFAULT_SECONDS};
use crate::mounts::hold;
use crate::record::{self, RootKind};
use cowshed_ext4diff::{TreeChange, TreeChanges, compare_trees};
use cowshed_format::base::Name;
use cowshed_oci::Digest;
use cowshed_sys::xattr;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::env;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Makes a tree one that an overlay shows as it is: a file has one name, as overlayfs copies each
/// name up alone, and there is no device 0/0, which would be a whiteout.
const FOR_OVERLAYS: &str = "
    find . -type f -links +1 -print0 | while IFS= read -rd '' f; do
        cp -a \"$f\" \"${f%/*}/.copy\"; mv -f \"${f%/*}/.copy\" \"$f\"; done
    find . ! -type d -links +1 -delete
    find . -type c -print0 | while IFS= read -rd '' f; do
        [[ $(stat -c %t:%T \"$f\") != 0:0 ]] || rm \"$f\"; done";

fn upper_changes(stage: &Stage, name: &str) -> TreeChanges {
    let containers = stage.host.containers();
    let record = record::find_container(&stage.pool, name).unwrap();
    let lock = containers.locks.of(&record.id);
    let _held = hold(&lock).unwrap();
    containers.upper(&record).unwrap().changes().unwrap()
}

/// Returns the changes of a mounted overlay, compared object by object with its lower layer.
fn merged_changes(stage: &Stage, name: &str, root: &Path) -> TreeChanges {
    let containers = stage.host.containers();
    let record = record::find_container(&stage.pool, name).unwrap();
    let lower = containers.image_top(&record).unwrap();
    let base = stage.host.mounts().view(&lower).unwrap();
    compare_trees(base.path(), root).unwrap()
}

fn commit(stage: &Stage, container: &str, image: &str) -> Digest {
    let name = Name::new(image).unwrap();
    let image = stage.host.containers().commit(container, &name, None);
    image.unwrap().layers.last().unwrap().diff_id
}

#[test]
fn random_changes_of_an_overlay_are_found_as_the_merged_tree_shows_them() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse().unwrap());
    let seconds = Duration::from_secs(number("COWSHED_TEST_SECONDS").unwrap_or(DEFAULT_SECONDS));
    let fixed = number("COWSHED_TEST_SEED");
    let started = Instant::now();
    let mut listed = 0;
    for seed in fixed.unwrap_or_else(|| rand::rng().random::<u32>().into()).. {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let stage = Stage::new();
        stage.image("base:0", |root| {
            Mutator::new(root, StdRng::seed_from_u64(seed)).fill();
            shell(root, FOR_OVERLAYS);
        });
        let root = stage.container_with("base:0", "c", RootKind::Overlay);
        assert_eq!(
            upper_changes(&stage, "c"),
            TreeChanges::new(),
            "seed {seed}"
        );
        let mut mutator = Mutator::new(&root, StdRng::seed_from_u64(random.random()));
        for round in 0..COMPARISONS {
            mutator.mutate(random.random_range(1..=BATCH_MAX));
            let found = upper_changes(&stage, "c");
            assert_eq!(
                found,
                merged_changes(&stage, "c", &root),
                "seed {seed}, round {round}"
            );
            listed += found.len();
        }
        drop(mutator);
        commit(&stage, "c", "base:1");
        let committed = stage.container("base:1", "d");
        let mut left = compare_trees(&root, &committed).unwrap();
        // A layer holds no sockets; they are listed with the folders above them.
        let left_sockets: Vec<_> = left
            .iter()
            .filter(|(path, change)| {
                let kind = fs::symlink_metadata(root.join(path.as_path()));
                let is_socket = kind.is_ok_and(|found| found.file_type().is_socket());
                is_socket && **change == TreeChange::Removed
            })
            .map(|(path, _)| path.as_path().to_owned())
            .collect();
        let has_sockets = |path: &Path| left_sockets.iter().any(|socket| socket.starts_with(path));
        left.retain(|path, _| !has_sockets(path.as_path()));
        assert_eq!(left, TreeChanges::new(), "seed {seed}");
        if fixed.is_some() || started.elapsed() > seconds {
            break;
        }
    }
    assert!(listed > 0);
}

/// The image of the test with both kinds, with times long ago.
const IMAGE: &str = "
    for d in a a/b a/b/c e fixed; do mkdir $d; for n in 1 2 3; do
        seq 500 > $d/file-$n; done; done; chmod 1777 e; ln -s 1 a/link
    find . -print0 | xargs -0 touch -h -d @900000000";

/// Makes the same random changes wherever it runs: each depends on the tree and on the seed alone.
/// Hard links are made and kept in one folder, since moving a folder is copying it in an overlay,
/// and the times of all that changed are those that the seed has.
const SCRIPT: &str = r#"
    RANDOM=$SEED
    one() { LC_ALL=C sort | awk -v r=$r '{ n[NR] = $0 } END { if (NR) print n[r % NR + 1] }'; }
    pick() { find . -mindepth 1 -not -path './fixed*' "$@" | one; }
    fixed() { find ./fixed -type f | one; }
    for step in $(seq 60); do
        # A subshell has random numbers of its own.
        r=$RANDOM
        f=$(pick -type f); d=$(pick -type d); a=$(pick); x=$(fixed)
        e=$(pick -type d -path './*/*')
        case $((RANDOM % 19)) in
            0|1) echo "new $step" > "$d/new-$step";;
            2) echo more >> "$f";;
            3) printf X | dd of="$f" bs=1 seek=3 conv=notrunc status=none;;
            4) rm "$f";;
            5) rm -r "$e"; mkdir "$e"; echo again > "$e/again";;
            6) rm -r "$e"; echo file > "$e";;
            7) rm "$f"; mkdir "$f"; echo inside > "$f/inside";;
            8) mv "$f" "$d/moved-$step";;
            9) mv "$e" "moved-dir-$step";;
            10) ln "$x" "fixed/link-$step";;
            11) rm "$x"; echo replaced > "$x";;
            12) chmod 750 "$a";;
            13) chown -h 7:8 "$a";;
            14) truncate -s 300000 "$f"; echo end >> "$f";;
            15) mknod "$d/node-$step" c 5 $step; mkfifo "$d/fifo-$step";;
            16) ln -sfn "target-$step" "$d/symlink-$step";;
            17) rm -r "$e";;
            18) mv "$f" "$d/other-$step"; mkdir "$f";;
        esac || true
    done"#;
/// Gives all that changed since the image was made one time.
const SAME_TIMES: &str = "find . -newermt @1000000000 -print0 | xargs -0r touch -h -d @1500000000";

#[test]
fn the_same_changes_give_the_same_layer_and_image_in_both_kinds_of_roots() {
    let first = rand::rng().random::<u16>();
    for seed in first..first.saturating_add(2) {
        println!("seed {seed}");
        // A pool for each, as an image that one has made would be found there by the other.
        let done = [RootKind::Block, RootKind::Overlay].map(|kind| {
            let stage = Stage::new();
            stage.image("base:0", |root| shell(root, IMAGE));
            let name = kind.as_str();
            let root = stage.container_with("base:0", name, kind);
            shell(&root, &format!("SEED={seed}\n{SCRIPT}"));
            attributes(&root);
            shell(&root, SAME_TIMES);
            let lines: Vec<_> = stage.host.containers().diff(name).unwrap();
            let layer = commit(&stage, name, &format!("{name}:1"));
            let made = stage.container(&format!("{name}:1"), &format!("{name}-made"));
            // Not mounted, it is the same.
            stage.host.containers().unmount(name).unwrap();
            assert_eq!(stage.host.containers().diff(name).unwrap(), lines);
            (lines, layer, made, stage)
        });
        let [
            (block_lines, block_layer, block, _first),
            (lines, layer, overlay, _second),
        ] = done;
        assert_eq!(lines, block_lines, "seed {seed}");
        assert!(lines.len() > 10, "{lines:?}");
        assert_eq!(compare_trees(&block, &overlay).unwrap(), TreeChanges::new());
        assert_eq!(
            layer, block_layer,
            "seed {seed}: the layers are the same byte for byte"
        );
    }
}

/// Sets extended attributes and an access list where the script has left something.
fn attributes(root: &Path) {
    let mut paths: Vec<_> = fs::read_dir(root.join("fixed"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.push(root.to_owned());
    paths.sort();
    for path in paths.iter().step_by(2) {
        let file = File::open(path).unwrap();
        xattr::set(&file, c"user.mark", b"of a test").unwrap();
        xattr::set(&file, c"trusted.mark", b"1").unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o1705))
            .unwrap();
    }
}

#[test]
fn a_file_of_several_names_in_the_image_is_split_by_an_overlay_and_committed_so() {
    let stage = Stage::new();
    stage.image("base:0", |root| {
        shell(root, "echo old > one; ln one two; ln one three; mkdir d")
    });
    let root = stage.container_with("base:0", "c", RootKind::Overlay);
    shell(&root, "echo new >> one; rm three; mkdir -p d/e");
    let lines: Vec<_> = stage.host.containers().diff("c").unwrap();
    let lines: Vec<_> = lines
        .iter()
        .map(|line| format!("{} {}", line.kind, line.path.display()))
        .collect();
    assert_eq!(lines, ["C /d", "A /d/e", "C /one", "D /three"]);
    commit(&stage, "c", "base:1");
    let made = stage.container("base:1", "d");
    let read = |name| fs::read_to_string(made.join(name)).unwrap();
    assert_eq!(
        (read("one").as_str(), read("two").as_str()),
        ("old\nnew\n", "old\n")
    );
    assert!(!made.join("three").exists());
}
