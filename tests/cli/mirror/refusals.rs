//! Files and devices that cannot become a side or a pool: each is refused in one line, and nothing is
//! changed, made or removed.

use super::{mirrored, ok_at, run_at, said, states, text};
use crate::harness::{Bench, expect_failure, host};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device over a file, with a mounted file system or without; gone in any case.
pub(super) struct Loop {
    pub(super) device: PathBuf,
    mounted: Option<PathBuf>,
}

impl Loop {
    pub(super) fn over(file: &Path) -> Self {
        let device = host("losetup", ["--find", "--show", text(file)]);
        Self {
            device: PathBuf::from(device.trim()),
            mounted: None,
        }
    }

    fn mounted(file: &Path, at: PathBuf) -> Self {
        File::create(file).unwrap().set_len(96 << 20).unwrap();
        let mut device = Self::over(file);
        host("mkfs.ext4", ["-q", text(&device.device)]);
        fs::create_dir(&at).unwrap();
        host("mount", [text(&device.device), text(&at)]);
        device.mounted = Some(at);
        device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(at) = &self.mounted {
            drop(Command::new("umount").arg(at).status());
        }
        let mut detach = Command::new("losetup");
        drop(detach.arg("--detach").arg(&self.device).status());
    }
}

/// Returns a file with `bytes` at its beginning.
fn file(bench: &Bench, name: &str, len_bytes: u64, bytes: &[u8]) -> PathBuf {
    let path = bench.path(name);
    fs::write(&path, bytes).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(len_bytes)
        .unwrap();
    path
}

/// Asserts that a side cannot be added at `path`, and that nothing is changed.
fn refuse(bench: &Bench, path: &Path, why: &str) {
    let content = |path: &Path| {
        fs::symlink_metadata(path).ok().map(|it| {
            let bytes = it.is_file().then(|| fs::read(path).unwrap());
            (it.len(), bytes)
        })
    };
    let is_own = why.contains("already");
    let (before, had) = (content(path), states(&bench.pool()));
    bench.fails(["pool", "mirror", "add", text(path)], 1, why);
    // A name of the pool's own file shows what any open changes there.
    assert!(
        is_own || content(path) == before,
        "{} was changed",
        path.display()
    );
    assert_eq!(states(&bench.pool()), had, "{}", path.display());
}

fn refuse_all(bench: &Bench) {
    let pool = bench.pool();
    refuse(
        bench,
        &file(bench, "small", 1 << 20, b""),
        "has 1 MiB, and the pool needs 64 MiB",
    );
    refuse(
        bench,
        &file(bench, "data", 64 << 20, b"data"),
        "already holds data; use --force",
    );
    let folder = bench.path("folder");
    fs::create_dir(&folder).unwrap();
    refuse(
        bench,
        &folder,
        "make it a side: it is neither a regular file nor a block device",
    );
    let other = bench.path("other");
    ok_at(&other, &["pool", "create", "--size", "64M"]);
    refuse(bench, &other, "belongs to another pool; use --force");
    let [other, side] = [bench.path("third"), bench.path("its-side")];
    ok_at(
        &other,
        &["pool", "create", "--size", "64M", "--mirror", text(&side)],
    );
    refuse(bench, &side, "belongs to another pool; use --force");
    let used = file(bench, "used", 64 << 20, b"");
    let lock = File::open(&used).unwrap();
    lock.lock().unwrap();
    refuse(
        bench,
        &used,
        "is in use: it is mounted, or another process has it open",
    );
    let link = bench.path("link");
    symlink(&pool, &link).unwrap();
    refuse(bench, &link, "is a side of the pool already");
    let hard = bench.path("hard");
    fs::hard_link(&pool, &hard).unwrap();
    refuse(bench, &hard, "is a side of the pool already");
    let dangling = bench.path("dangling");
    symlink(bench.path("nothing"), &dangling).unwrap();
    refuse(bench, &dangling, "File exists");
    refuse(
        bench,
        &bench.path("no-folder/side"),
        "No such file or directory",
    );
    let mut long = bench.path("long");
    for _ in 0..3 {
        long.push("x".repeat(200));
    }
    fs::create_dir_all(&long).unwrap();
    let long = long.join("side");
    refuse(bench, &long, "at most 512 bytes");
    assert!(!long.exists());
    let mounted = Loop::mounted(&bench.path("disk"), bench.path("mounted"));
    refuse(
        bench,
        &mounted.device,
        "is in use: it is mounted, or another process has it open",
    );
    let over = Loop::over(&pool);
    refuse(
        bench,
        &over.device,
        "is in use: it is mounted, or another process has it open",
    );
}

#[test]
fn what_cannot_become_a_side_is_refused_by_a_pool_without_a_mirror() {
    let bench = Bench::with_pool("64M");
    refuse_all(&bench);
    assert!(states(&bench.pool()).is_empty());
    bench.expect_sound();
}

#[test]
fn what_cannot_become_a_side_is_refused_by_a_mirror() {
    let bench = Bench::empty();
    mirrored(&bench);
    refuse_all(&bench);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    bench.expect_sound();
}

#[test]
fn sides_that_are_needed_stay() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let third = bench.path("third");
    bench.fails(
        ["pool", "mirror", "rm", text(&third)],
        1,
        "is not a side of the pool",
    );
    bench.fails(
        [
            "pool",
            "mirror",
            "replace",
            text(&third),
            text(&bench.path("fourth")),
        ],
        1,
        "is not a side of the pool",
    );
    bench.fails(
        ["pool", "mirror", "replace", text(&second), text(&second)],
        1,
        "is a side of the pool already",
    );
    let link = bench.path("link");
    symlink(&second, &link).unwrap();
    bench.fails(
        ["pool", "mirror", "replace", text(&second), text(&link)],
        1,
        "is a side of the pool already",
    );
    bench.ok(["pool", "mirror", "add", text(&third)]);
    fs::rename(&second, bench.path("away")).unwrap();
    // While one is missing, another one is not replaced.
    let fourth = bench.path("fourth");
    bench.fails(
        ["pool", "mirror", "replace", text(&third), text(&fourth)],
        1,
        "is missing or behind; bring it back, replace it or remove it first",
    );
    assert!(!fourth.exists());
    bench.ok(["pool", "mirror", "rm", text(&third)]);
    let pool = bench.pool();
    bench.fails(
        ["pool", "mirror", "rm", text(&pool)],
        1,
        "the last side that has everything",
    );
    assert_eq!(states(&pool), ["good", "missing"]);
}

#[test]
fn creating_a_pool_removes_only_what_it_made() {
    let bench = Bench::empty();
    let (pool, second) = (bench.pool(), bench.path("second"));
    let create = ["pool", "create", "--size", "64M"];
    let with = |more: &[&str]| {
        let arguments: Vec<&str> = create.iter().chain(more).copied().collect();
        bench.run(arguments)
    };
    // A link that leads nowhere.
    symlink(bench.path("nothing"), &pool).unwrap();
    expect_failure(&with(&[]), 1, "File exists");
    assert!(fs::symlink_metadata(&pool).unwrap().is_symlink());
    fs::remove_file(&pool).unwrap();
    // A side that holds something.
    fs::write(&second, b"data").unwrap();
    expect_failure(
        &with(&["--mirror", text(&second)]),
        1,
        "already holds data; use --force",
    );
    assert!(!pool.exists() && fs::read(&second).unwrap() == b"data");
    // A pool that is there already.
    bench.ok(create);
    expect_failure(&with(&[]), 1, "already holds data; use --force");
    bench.ok(["volume", "create", "one", "--size", "1M"]);
    // A side that is in use: with --force, too, nothing is overwritten before all is checked.
    let lock = File::open(&second).unwrap();
    lock.lock().unwrap();
    let output = with(&["--force", "--mirror", text(&second)]);
    expect_failure(
        &output,
        1,
        "is in use: it is mounted, or another process has it open",
    );
    assert!(said(&output).contains(text(&second)), "{output:?}");
    drop(lock);
    assert_eq!(bench.volumes(), ["one"]);
    assert!(fs::read(&second).unwrap() == b"data");
    // One file twice, and too many.
    let output = with(&["--force", "--mirror", text(&pool)]);
    expect_failure(&output, 1, "is a side of the pool already");
    let names: Vec<String> = (0..4).map(|number| format!("side-{number}")).collect();
    let paths: Vec<PathBuf> = names.iter().map(|name| bench.path(name)).collect();
    let sides: Vec<&str> = paths
        .iter()
        .flat_map(|path| ["--mirror", text(path)])
        .collect();
    let output = with(&[&["--force"][..], &sides].concat());
    expect_failure(&output, 2, "up to 3 times");
    assert!(paths.iter().all(|path| !path.exists()));
    // The other process that makes a pool at the same path keeps its own.
    let lock = File::open(&pool).unwrap();
    lock.lock().unwrap();
    let output = run_at(&pool, &["pool", "create", "--size", "64M", "--force"]);
    expect_failure(&output, 1, "in use by another process");
    drop(lock);
    assert_eq!(bench.volumes(), ["one"]);
}
