//! The measured images, and file systems for the snapshotters that need their own.

use crate::Options;
use crate::fixtures::{debian, run};
use crate::harness::noise;
use crate::images::{self, Image};
use crate::world::{Setting, Snapshotter};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILES_IN_A_FOLDER: u64 = 100;
const MIB: usize = 1 << 20;
const SMALL_LAYERS: u64 = 60;
/// The maximum size of such a file system, and the size of each of blockfile's files, equal to that
/// of our snapshots.
const OWN_BYTES: u64 = 60 << 30;
const SCRATCH_BYTES: u64 = 10 << 30;

/// Archives of images with plain layers, so that no time goes into decompression.
pub(crate) struct Archives {
    pub(crate) debian: PathBuf,
    pub(crate) many_files: PathBuf,
    pub(crate) large_file: PathBuf,
    pub(crate) many_layers: PathBuf,
    pub(crate) shell: PathBuf,
    pub(crate) files: u64,
    pub(crate) large_bytes: u64,
}

/// The path of the large file.
pub(crate) const LARGE: &str = "large";

impl Archives {
    pub(crate) fn make(folder: &Path, options: &Options) -> Self {
        eprintln!("making images");
        let image =
            |name: &str| Image::new(folder.join(name)).named(&format!("docker.io/bench/{name}:1"));
        let large_mib = usize::try_from(options.large_mib).unwrap();
        let tar = folder.join("debian-layer.tar");
        fs::copy(debian::root_tar(), &tar).unwrap();
        let files = options.files;
        let mut layers = image("many-layers").filled(images::shell_root);
        for number in 1..SMALL_LAYERS {
            layers = layers.filled(|root| {
                fs::create_dir(root.join("layers")).unwrap();
                fs::write(root.join(format!("layers/{number}")), noise(10_000, number)).unwrap();
            });
        }
        Self {
            debian: image("debian").layer(&tar).write(),
            many_files: image("many-files")
                .filled(images::shell_root)
                .filled(|root| small_files(root, files))
                .write(),
            large_file: image("large-file")
                .filled(images::shell_root)
                .filled(|root| large_file(root, large_mib))
                .write(),
            many_layers: layers.write(),
            shell: image("shell").filled(images::shell_root).write(),
            files,
            large_bytes: (large_mib * MIB) as u64,
        }
    }
}

/// Returns the path of small file `number`.
pub(crate) fn small_file(number: u64) -> PathBuf {
    let folder = number / FILES_IN_A_FOLDER;
    format!("files/{}/{folder}/{number}", folder / 10).into()
}

fn small_files(root: &Path, count: u64) {
    for number in 0..count {
        let path = root.join(small_file(number));
        if number % FILES_IN_A_FOLDER == 0 {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(path, format!("file {number}\n").repeat(40)).unwrap();
    }
}

fn large_file(root: &Path, mib: usize) {
    let mut file = fs::File::create(root.join(LARGE)).unwrap();
    for part in 0..mib {
        file.write_all(&noise(MIB, part as u64)).unwrap();
    }
}

/// A file system for a snapshotter that needs its own, in a file on the same disk.
pub(crate) struct OwnFileSystem(PathBuf);

impl OwnFileSystem {
    /// Mounts it on the folder of all the snapshotter's data.
    pub(crate) fn mount(setting: &Setting) -> Option<Self> {
        let make: &[&str] = match setting.snapshotter {
            Snapshotter::Blockfile => &["mkfs.xfs", "-q", "-m", "reflink=1"],
            Snapshotter::Btrfs => &["mkfs.btrfs", "-q"],
            _ => return None,
        };
        let (file, root) = (
            setting.folder.join("own.img"),
            setting.snapshotter.root(&setting.folder),
        );
        fs::File::create(&file).unwrap().set_len(OWN_BYTES).unwrap();
        fs::create_dir_all(&root).unwrap();
        let (name, point) = (file.to_str().unwrap(), root.to_str().unwrap());
        run(make[0], make[1..].iter().copied().chain([name]));
        run("mount", ["-o", "loop", name, point]);
        let mounted = Self(root);
        if setting.snapshotter == Snapshotter::Blockfile {
            let scratch = mounted.0.join("empty.ext4");
            fs::File::create(&scratch)
                .unwrap()
                .set_len(SCRATCH_BYTES)
                .unwrap();
            run("mke2fs", ["-q", "-t", "ext4", scratch.to_str().unwrap()]);
        }
        Some(mounted)
    }
}

impl Drop for OwnFileSystem {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}
