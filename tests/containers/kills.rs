//! Imports that are killed leave the whole image or nothing.

use crate::stage::{ImageFolder, shell};
use crate::trees;
use cowshed_engine::{CreateOptions, OpenOptions, Pool};
use cowshed_format::base::Name;
use cowshed_format::device::{CreateFile, FileDevice, FileOptions};
use cowshed_host::{Host, ImportOptions};
use cowshed_oci::SourceInput;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// The variable that tells the child its folder.
const FOLDER: &str = "COWSHED_TEST_KILLED_IMPORT";
const NAME: &str = "image:1";

fn open(folder: &Path) -> (Pool, Host) {
    let device = FileDevice::open(folder.join("pool"), FileOptions::default()).unwrap();
    let pool = Pool::open(Arc::new(device), &OpenOptions::default()).unwrap();
    let host = Host::new(pool.clone(), &folder.join("state")).unwrap();
    (pool, host)
}

fn import(host: &Host, image: &Path) {
    let image = host
        .images()
        .open(SourceInput::Path(image.to_owned()), None)
        .unwrap();
    let options = ImportOptions {
        name: Some(Name::new(NAME).unwrap()),
        ..Default::default()
    };
    host.images()
        .import(&image, &options, &mut |_| true)
        .unwrap();
}

/// A child process that is killed when the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "started, and killed, by the other test"]
fn the_import_that_is_killed() {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    let (pool, host) = open(&folder);
    import(&host, &folder.join("image/image.tar"));
    host.close().unwrap();
    pool.close().unwrap();
}

#[test]
fn an_import_that_is_killed_leaves_the_whole_image_or_nothing() {
    let mut seen = [0, 0];
    for delay_ms in [20, 60, 120, 200, 300, 500, 8_000] {
        let is_whole = kill_after(Duration::from_millis(delay_ms));
        seen[usize::from(is_whole)] += 1;
    }
    assert!(
        seen[0] > 0 && seen[1] > 0,
        "the moments are badly chosen: {seen:?}"
    );
}

/// Returns true if the image was there after an import was killed at `delay`.
fn kill_after(delay: Duration) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    shell(folder, "mkdir image");
    let image = ImageFolder::new(folder.join("image"))
        .layer("head -c 30M /dev/urandom > a; mkdir d; for n in $(seq 300); do echo $n > d/$n; done")
        .layer("head -c 20M /dev/urandom > b; mkdir d; touch d/.wh.7 d; for n in 8 9; do echo x > d/$n; done")
        .layer("head -c 10M /dev/urandom > c");
    let archive = image.archive(NAME);
    let device = FileDevice::create(folder.join("pool"), 2 << 30, CreateFile::default()).unwrap();
    Pool::create(&device, &CreateOptions::default()).unwrap();
    drop(device);
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "kills::the_import_that_is_killed", "--ignored"])
        .env(FOLDER, folder)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let child = Killed(child);
    thread::sleep(delay);
    drop(child);
    let (pool, host) = open(folder);
    let is_whole = host.images().inspect(NAME).is_ok();
    let volumes = pool
        .volumes()
        .iter()
        .filter(|volume| !volume.name.as_str().starts_with("template/"))
        .count();
    // Three layers, and a recipe for each.
    assert_eq!(volumes, if is_whole { 6 } else { 0 }, "after {delay:?}");
    import(&host, &archive);
    let options = cowshed_host::CreateContainer::default();
    let created = host.containers().create(NAME, &options).unwrap();
    let root = host.containers().mount(&created.id, None).unwrap().path;
    trees::assert_same(&root, &image.expected_tree());
    host.close().unwrap();
    pool.close().unwrap();
    is_whole
}
