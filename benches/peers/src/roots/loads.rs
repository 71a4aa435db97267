//! The loads in roots: installing packages and building, as far as a file system sees them.

use super::images;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

const FILE_BYTES: usize = 6000;
const FILES_IN_A_PACKAGE: u32 = 20;
const FILES_IN_A_FOLDER: u32 = 50;

/// Works like a package manager: each file is written under a temporary name, made durable and
/// renamed; after each package the list of packages is rewritten durably.
pub(super) fn install(root: &Path, files: u32) -> anyhow::Result<()> {
    let installed = root.join("opt/installed");
    let mut list = String::new();
    for number in 0..files {
        if number % FILES_IN_A_FOLDER == 0 {
            crate::signals::go_on()?;
        }
        let folder = installed.join((number / FILES_IN_A_FOLDER).to_string());
        fs::create_dir_all(&folder)?;
        let place = folder.join(number.to_string());
        durable(&place, &noise(number))?;
        if number % FILES_IN_A_PACKAGE == FILES_IN_A_PACKAGE - 1 {
            list.push_str(&format!("package {number}: installed\n"));
            durable(&installed.join("list"), list.as_bytes())?;
        }
    }
    Ok(())
}

fn durable(place: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let beside = place.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, place)?;
    Ok(())
}

/// Works like a build: all sources are read, an object is written for each of `files`, the objects
/// are read and joined, and then removed. Nothing is made durable.
pub(super) fn build(root: &Path, sources: u32, files: u32) -> anyhow::Result<()> {
    let objects = root.join("build");
    fs::create_dir_all(&objects)?;
    for number in 0..files {
        if number % FILES_IN_A_FOLDER == 0 {
            crate::signals::go_on()?;
        }
        let source = fs::read(root.join(images::file(number % sources)))?;
        let mut object = noise(number);
        object.truncate(FILE_BYTES - source.len() % 1000);
        fs::write(objects.join(format!("{number}.o")), object)?;
    }
    let mut program = File::create(root.join("program"))?;
    for number in 0..files {
        program.write_all(&fs::read(objects.join(format!("{number}.o")))?)?;
    }
    fs::remove_dir_all(objects)?;
    Ok(())
}

/// Returns bytes that differ from file to file.
fn noise(number: u32) -> Vec<u8> {
    let mut state = u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(FILE_BYTES).collect()
}
