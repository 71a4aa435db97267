//! The images: generated, identical in every run, as tars of plain files.

use crate::guards::Folder;
use crate::host::{run, text};
use crate::options::Scale;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files of a few KiB, for roots.
pub(super) const BASE: &str = "base";
/// Many small files, one of which changes.
pub(super) const TREE: &str = "tree";
/// One large file, one byte of which changes.
pub(super) const LARGE: &str = "large";
/// The path of the large file.
pub(super) const LARGE_FILE: &str = "data/large";

const FILES_IN_A_FOLDER: u32 = 100;
const PART_BYTES: usize = 1 << 20;
const SEED: u64 = 5;

/// The images' tars.
pub(super) struct Images {
    folder: Folder,
}

/// The contents to pack.
struct Plan {
    name: &'static str,
    files: u32,
    file_bytes_max: usize,
    large_bytes: u64,
}

impl Images {
    /// Creates the wanted ones.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn make(folder: &Path, scale: &Scale, wanted: &[&str]) -> anyhow::Result<Self> {
        let images = Self {
            folder: Folder::at(folder.join("images"))?,
        };
        let plan = |name, files, file_bytes_max, large_bytes| Plan {
            name,
            files,
            file_bytes_max,
            large_bytes,
        };
        let plans = [
            plan(BASE, scale.root_files, 20_000, 0),
            plan(TREE, scale.tree_files, 2_000, 0),
            plan(LARGE, 10, 1_000, scale.large_file_bytes),
        ];
        for plan in plans.iter().filter(|plan| wanted.contains(&plan.name)) {
            images.pack(plan)?;
        }
        Ok(images)
    }

    /// Returns the tar of an image.
    pub(super) fn tar(&self, name: &str) -> PathBuf {
        self.folder.join(&format!("{name}.tar"))
    }

    fn pack(&self, plan: &Plan) -> anyhow::Result<()> {
        let tree = Folder::at(self.folder.join(plan.name))?;
        let mut random = StdRng::seed_from_u64(SEED);
        for number in 0..plan.files {
            let path = tree.path().join(file(number));
            if number % FILES_IN_A_FOLDER == 0
                && let Some(folder) = path.parent()
            {
                crate::signals::go_on()?;
                fs::create_dir_all(folder)?;
            }
            let mut bytes = vec![0; random.random_range(100..plan.file_bytes_max)];
            random.fill_bytes(&mut bytes);
            fs::write(path, bytes)?;
        }
        if plan.large_bytes > 0 {
            let path = tree.path().join(LARGE_FILE);
            fs::create_dir_all(tree.path().join("data"))?;
            let mut large = File::create(path)?;
            let mut part = vec![0; PART_BYTES];
            for _ in 0..plan.large_bytes / PART_BYTES as u64 {
                random.fill_bytes(&mut part);
                large.write_all(&part)?;
            }
        }
        let (tar, tree) = (self.tar(plan.name), text(tree.path())?.to_owned());
        let words = [
            "--create",
            "--sort=name",
            "--numeric-owner",
            "--directory",
            &tree,
        ];
        run("tar", words.iter().chain(&["--file", text(&tar)?, "."]))?;
        Ok(())
    }
}

/// Returns the path of small file `number` of an image.
pub(super) fn file(number: u32) -> PathBuf {
    let folder = number / FILES_IN_A_FOLDER;
    format!("usr/lib{}/{folder}/file{number}", folder / 10).into()
}
