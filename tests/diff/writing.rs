//! Layers of roots that are being written to.

use crate::diff_wire::DiffRequest;
use crate::differ::{TAR, between};
use crate::fixtures::reference;
use crate::harness::noise;
use crate::stage::{Stage, place};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const LAYERS: usize = 12;

/// Writes files and syncs each, in bursts, so that layers are made both during writes and between
/// them.
fn write_on(root: &Path, synced: &AtomicU64, stop: &AtomicBool) {
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let mut file = File::create(root.join(format!("file-{number}"))).unwrap();
        file.write_all(&content(number)).unwrap();
        file.sync_all().unwrap();
        synced.store(number + 1, Ordering::SeqCst);
        if number % 40 == 39 {
            thread::sleep(Duration::from_millis(150));
        }
    }
}

fn content(number: u64) -> Vec<u8> {
    noise(5_000 + usize::try_from(number % 7).unwrap() * 3_000, number)
}

#[test]
fn a_layer_holds_all_that_was_synced_before_while_more_is_written() {
    let mut stage = Stage::new();
    stage.commit("base", "", "mkdir etc; echo one > etc/one");
    let left = stage.client.view("left", "base").unwrap();
    let right = stage.client.prepare("right", "base").unwrap();
    let (synced, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let layers: Vec<_> = thread::scope(|scope| {
        scope.spawn(|| write_on(place(&right), &synced, &stop));
        let layers = (0..LAYERS).map(|_| {
            let before = synced.load(Ordering::SeqCst);
            let request = DiffRequest {
                media_type: TAR.to_owned(),
                ..between(&left, &right)
            };
            (before, stage.differ.compare(request).unwrap().digest)
        });
        let layers = layers.collect();
        stop.store(true, Ordering::SeqCst);
        layers
    });
    assert!(layers[LAYERS - 1].0 > 0, "nothing was written meanwhile");
    for (number, (synced_before, digest)) in layers.into_iter().enumerate() {
        let folder = stage.folder(&format!("tree-{number}"));
        let path = folder.with_extension("tar");
        fs::write(&path, stage.store.blob(&digest)).unwrap();
        reference::apply(&[path], &folder);
        for file in 0..synced_before {
            let found = fs::read(folder.join(format!("file-{file}"))).unwrap();
            assert!(
                found == content(file),
                "layer {number}: file-{file} of {synced_before}"
            );
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
