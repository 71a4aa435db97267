//! Recipes of layers' tars: whatever is in one, only its tar is made of it, and of the files of its
//! root; and what applying a layer records makes that layer again, or nothing.

use crate::archives;
use cowshed_oci::recipe::{self, Recorder, Tar, rebuild};
use cowshed_oci::{
    Applied, ApplyOptions, Compression, Digest, Error, Result, Room, apply_recording,
};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use tempfile::TempDir;

/// The maximum number of bytes that are made, as a protection from decompression bombs.
const TAR_BYTES_MAX: usize = 16 << 20;

/// Room that never grows.
struct Present;

impl Room for Present {
    fn fits(&mut self, _: u64) -> bool {
        true
    }

    fn make(&mut self) -> Result<OwnedFd> {
        unreachable!("everything fits")
    }
}

/// What takes no more than a limit.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > TAR_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Applies a layer to `root`, and makes it again of what was recorded.
pub(crate) fn apply_and_rebuild(root: &Path, tar: &[u8]) -> Result<Applied> {
    let mut stream = Vec::new();
    let mut recorder = Recorder::new(Box::new(&mut stream)).unwrap();
    let opened = || OwnedFd::from(File::open(root).unwrap());
    let options = ApplyOptions::default();
    let applied = apply_recording(opened(), tar, options, &mut Present, &mut recorder);
    recorder.finish().unwrap();
    if applied.is_ok() {
        let head = recipe::head(stream.len() as u64, Digest::of(tar));
        let recipe = [&head[..], &stream].concat();
        let wanted = Tar {
            digest: Digest::of(tar),
            size_bytes: None,
        };
        let out = Limited(Vec::new());
        let made = rebuild(
            &recipe[..],
            wanted,
            opened().as_fd(),
            out,
            Compression::None,
        );
        if let Ok((made, _)) = made {
            assert!(made.0 == tar, "it is another tar");
        }
    }
    applied
}

/// A root with the files that the seeds name.
fn root() -> &'static Path {
    static ROOT: OnceLock<TempDir> = OnceLock::new();
    let made = ROOT.get_or_init(|| {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-fuzz-")
            .tempdir()
            .unwrap();
        fs::create_dir(folder.path().join("d")).unwrap();
        fs::write(folder.path().join("d/f"), b"content").unwrap();
        folder
    });
    made.path()
}

/// Carries out the input as the stream of a recipe.
pub fn run(data: &[u8]) {
    let head = recipe::head(data.len() as u64, Digest::of(b""));
    let recipe = [&head[..], data].concat();
    let root = File::open(root()).unwrap();
    let wanted = Tar {
        digest: Digest::of(b""),
        size_bytes: None,
    };
    let out = Limited(Vec::new());
    if let Ok((made, _)) = rebuild(&recipe[..], wanted, root.as_fd(), out, Compression::None) {
        assert!(made.0.is_empty(), "it is another tar");
    }
}

/// Returns the streams that layers leave.
pub fn seeds() -> Vec<Vec<u8>> {
    let recorded = archives::layer_seeds().into_iter().map(|tar| {
        let folder = tempfile::tempdir().unwrap();
        let mut stream = Vec::new();
        let mut recorder = Recorder::new(Box::new(&mut stream)).unwrap();
        let root = OwnedFd::from(File::open(folder.path()).unwrap());
        let options = ApplyOptions::default();
        // A layer that is refused leaves a recipe of its beginning.
        let _: Result<Applied, Error> =
            apply_recording(root, &tar[..], options, &mut Present, &mut recorder);
        recorder.finish().unwrap();
        stream
    });
    recorded.collect()
}
