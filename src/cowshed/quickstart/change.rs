//! The change that the quickstart makes inside a container, and the check that no other container
//! sees it.

use anyhow::{Context, ensure};
use cowshed_sys::program;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The file that is added.
const ADDED: &str = "quickstart.txt";
/// Its contents.
const GREETING: &str = "hello from one of five containers";
/// The most entries of a root that are examined.
const ENTRIES_MAX: usize = 1_000_000;
/// The most characters of a program's output that are shown.
const OUTPUT_MAX: usize = 200;

/// The largest file of the image.
pub(super) struct Large {
    /// Its path relative to the root.
    pub path: PathBuf,
    /// Its length.
    pub len_bytes: u64,
    /// The digest of its contents in the image.
    original: Vec<u8>,
}

impl Large {
    /// Finds the largest file below `root` and stores the digest of its contents.
    pub(super) fn find(root: &Path) -> anyhow::Result<Self> {
        let mut largest: Option<(u64, PathBuf)> = None;
        walk(root, &mut |path, metadata| {
            if largest
                .as_ref()
                .is_none_or(|(len_bytes, _)| metadata.len() > *len_bytes)
            {
                largest = Some((metadata.len(), path.to_owned()));
            }
        })?;
        let (len_bytes, path) = largest
            .filter(|(len, _)| *len > 0)
            .context("the image has no file that is not empty")?;
        let original = digest(&root.join(&path))?;
        Ok(Self {
            path,
            len_bytes,
            original,
        })
    }

    /// Changes the byte in its middle, durably.
    pub(super) fn change_byte(&self, root: &Path) -> anyhow::Result<()> {
        let what = || format!("change a byte in /{}", self.path.display());
        let changed = || -> io::Result<()> {
            let file = File::options()
                .read(true)
                .write(true)
                .open(root.join(&self.path))?;
            let mut byte = [0];
            let at = self.len_bytes / 2;
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[!byte[0]], at)?;
            file.sync_all()
        };
        changed().with_context(what)
    }

    /// Checks that this container's file differs from the image's.
    pub(super) fn expect_changed(&self, root: &Path) -> anyhow::Result<()> {
        let found = digest(&root.join(&self.path))?;
        ensure!(
            found != self.original,
            "/{} did not change",
            self.path.display()
        );
        Ok(())
    }

    /// Checks that another container's file equals the image's.
    pub(super) fn expect_original(&self, root: &Path) -> anyhow::Result<()> {
        let found = digest(&root.join(&self.path))?;
        ensure!(found == self.original, "/{} differs", self.path.display());
        Ok(())
    }
}

/// A file that was added and one that was removed.
pub(super) struct Change {
    /// The added file.
    pub added: PathBuf,
    /// The removed file; `None` if the image has no small file.
    pub removed: Option<PathBuf>,
}

impl Change {
    /// Adds a file to the root and removes a small one that is not a program.
    pub(super) fn make(root: &Path) -> anyhow::Result<Self> {
        let removed = small_file(root)?;
        if let Some(path) = &removed {
            let what = || format!("remove /{}", path.display());
            fs::remove_file(root.join(path)).with_context(what)?;
        }
        let added = PathBuf::from(ADDED);
        let written = File::create_new(root.join(&added)).and_then(|mut file| {
            writeln!(file, "{GREETING}")?;
            file.sync_all()
        });
        written.with_context(|| format!("add /{ADDED}"))?;
        Ok(Self { added, removed })
    }

    /// Checks that the change is not visible in another container.
    pub(super) fn expect_absent(&self, root: &Path) -> anyhow::Result<()> {
        let added = fs::symlink_metadata(root.join(&self.added));
        ensure!(added.is_err(), "/{} is there", self.added.display());
        if let Some(path) = &self.removed {
            let removed = fs::symlink_metadata(root.join(path));
            ensure!(removed.is_ok(), "/{} is gone", path.display());
        }
        Ok(())
    }
}

/// Runs the root's own shell in it; returns `None` if it has none, or none for this processor.
pub(super) fn run_shell(root: &Path) -> anyhow::Result<Option<String>> {
    if fs::symlink_metadata(root.join("bin/sh")).is_err() {
        return Ok(None);
    }
    let output = program::command("chroot")
        .arg(root)
        .args([
            "/bin/sh",
            "-c",
            "read line < /quickstart.txt; echo \"$line\"; echo /*",
        ])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .context("run chroot")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    if !output.status.success() || lines.next() != Some(GREETING) {
        // A shell for another processor, or one whose libraries the image lacks.
        return Ok(None);
    }
    Ok(Some(
        lines
            .collect::<Vec<_>>()
            .join(" ")
            .chars()
            .take(OUTPUT_MAX)
            .collect(),
    ))
}

/// Returns the smallest non-empty file that is not executable and has one name.
fn small_file(root: &Path) -> anyhow::Result<Option<PathBuf>> {
    let mut smallest: Option<(u64, PathBuf)> = None;
    walk(root, &mut |path, metadata| {
        let is_data = metadata.mode() & 0o111 == 0 && metadata.nlink() == 1;
        // The libraries that the shell needs are named like this on every system.
        let is_library = path.to_string_lossy().contains(".so");
        let is_smaller = || {
            smallest
                .as_ref()
                .is_none_or(|(len, _)| metadata.len() < *len)
        };
        if is_data && !is_library && metadata.len() > 0 && is_smaller() {
            smallest = Some((metadata.len(), path.to_owned()));
        }
    })?;
    Ok(smallest.map(|(_, path)| path))
}

/// Passes each regular file below `root` to `see`, with its path relative to `root`. Does not
/// follow symbolic links.
fn walk(root: &Path, see: &mut dyn FnMut(&Path, &fs::Metadata)) -> anyhow::Result<()> {
    let mut folders = vec![PathBuf::new()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        let what = || format!("list /{}", folder.display());
        for entry in fs::read_dir(root.join(&folder)).with_context(what)? {
            let entry = entry.with_context(what)?;
            let path = folder.join(entry.file_name());
            let metadata = entry.metadata().with_context(what)?;
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file() {
                see(&path, &metadata);
            }
            seen += 1;
            ensure!(
                seen <= ENTRIES_MAX,
                "the image has more than {ENTRIES_MAX} files"
            );
        }
    }
    Ok(())
}

fn digest(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut hasher = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    loop {
        match io::Read::read(&mut file, &mut buf) {
            Ok(0) => return Ok(hasher.finalize().to_vec()),
            Ok(len) => hasher.update(&buf[..len]),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
}
