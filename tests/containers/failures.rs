//! Bad images and interruptions leave nothing behind.

use crate::stage::{ImageFolder, Stage, pool_of, small_image};
use cowshed_engine::RecordKind;
use cowshed_format::base::Name;
use cowshed_host::{Error, Host, ImportOptions};
use cowshed_oci::SourceInput;
use std::fs;
use std::sync::Arc;

fn assert_nothing_but(stage: &Stage, kept: &[String]) {
    let names: Vec<_> = stage
        .volumes()
        .into_iter()
        .filter(|name| !name.starts_with("template/"))
        .collect();
    assert_eq!(names, kept);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let state = stage
        .host
        .mounts()
        .state_dir()
        .to_string_lossy()
        .into_owned();
    assert!(!mounts.contains(&*state), "something is still mounted");
    assert!(stage.export.attachments().is_empty());
}

#[test]
fn a_layer_with_a_wrong_digest_leaves_nothing() {
    let stage = Stage::new();
    let image = ImageFolder::new(stage.folder("bad"))
        .layer("echo 1 > a")
        .layer("echo 2 > b");
    image.archive("bad:1");
    // The second layer is replaced after the configuration has named it.
    let second = fs::read(image.folder.join("layer-2.tar")).unwrap();
    let at = second.windows(2).position(|bytes| bytes == b"2\n").unwrap();
    let mut changed = second;
    changed[at] = b'3';
    fs::write(image.folder.join("layer-2.tar"), changed).unwrap();
    crate::stage::shell(
        &image.folder,
        "tar -cf bad.tar manifest.json config.json layer-1.tar layer-2.tar",
    );
    let failed = stage
        .try_import(&image.folder.join("bad.tar"), "bad:1")
        .unwrap_err();
    assert!(failed.to_string().contains("should be sha256:"), "{failed}");
    assert_nothing_but(&stage, &[]);
    assert!(stage.pool.records(RecordKind::IMAGE).is_empty());
    assert!(stage.pool.records(RecordKind::REFERENCE).is_empty());
}

#[test]
fn an_archive_that_was_cut_short_leaves_nothing() {
    let stage = Stage::new();
    let path = small_image(stage.folder("small"));
    let whole = fs::read(&path).unwrap();
    for part in [1, 2, 3] {
        let cut = stage.folder("cut").join("cut.tar");
        fs::write(&cut, &whole[..whole.len() * part / 4]).unwrap();
        let failed = stage.try_import(&cut, "cut:1");
        assert!(matches!(failed, Err(Error::Oci(_))), "{part}/4: {failed:?}");
        assert_nothing_but(&stage, &[]);
    }
}

#[test]
fn an_import_that_is_stopped_leaves_the_layers_of_others_only() {
    let stage = Stage::new();
    let base = ImageFolder::new(stage.folder("base")).layer("echo base > base");
    stage.import(&base.archive("base:1"), "base:1");
    let kept: Vec<_> = stage
        .volumes()
        .into_iter()
        .filter(|name| name.starts_with("layer/"))
        .collect();
    let more = base
        .layer("echo more > more")
        .layer("echo most > most")
        .archive("more:1");
    let image = stage
        .host
        .images()
        .open(SourceInput::Path(more), None)
        .unwrap();
    let stopped = stage
        .host
        .images()
        .import(&image, &ImportOptions::default(), &mut |progress| {
            progress.done_layers < 2
        });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_nothing_but(&stage, &kept);
    // Trying again works.
    stage
        .host
        .images()
        .import(&image, &ImportOptions::default(), &mut |_| true)
        .unwrap();
    assert_eq!(
        stage.host.images().inspect("more:1").unwrap().layers.len(),
        3
    );
}

#[test]
fn what_a_killed_process_left_is_removed_at_the_next_start() {
    let stage = Stage::new();
    let path = small_image(stage.folder("small"));
    stage.import(&path, "small:1");
    let before = stage.volumes();
    let layer = before
        .iter()
        .find(|name| name.starts_with("layer/"))
        .unwrap();
    let layer = stage.pool.volume(layer).unwrap();
    stage
        .pool
        .clone_volume(&layer, &Name::new("work/left").unwrap())
        .unwrap();
    let state = stage.host.mounts().state_dir().to_owned();
    fs::create_dir_all(state.join("work/left")).unwrap();
    let next = Host::with_export(stage.pool.clone(), &state, Arc::clone(&stage.export)).unwrap();
    assert_eq!(stage.volumes(), before);
    assert!(!state.join("work/left").exists());
    drop(next);
}

#[test]
fn a_source_that_is_no_image_is_refused_in_one_line() {
    let stage = Stage::new();
    let path = stage.folder("odd").join("odd");
    fs::write(&path, "this is no archive").unwrap();
    let failed = stage.try_import(&path, "odd:1").unwrap_err().to_string();
    assert!(!failed.contains('\n'), "{failed}");
    assert_nothing_but(&stage, &[]);
}

#[test]
fn a_pool_that_fills_up_in_the_middle_of_an_import_keeps_what_it_had() {
    let stage = Stage::on(pool_of(160 << 20));
    let path = small_image(stage.folder("small"));
    stage.import(&path, "small:1");
    let kept: Vec<_> = stage
        .volumes()
        .into_iter()
        .filter(|name| name.starts_with("layer/"))
        .collect();
    let large = ImageFolder::new(stage.folder("large"))
        .layer("echo first > first")
        .layer("head -c 300M /dev/urandom > large")
        .archive("large:1");
    let failed = stage.try_import(&large, "large:1").unwrap_err();
    assert!(failed.is_no_space(), "{failed}");
    assert_nothing_but(&stage, &kept);
    assert!(stage.host.images().inspect("large:1").is_err());
    stage.pool.reclaim().unwrap();
    let root = stage.container("small:1", "one");
    assert_eq!(
        fs::read_to_string(root.join("etc/second")).unwrap(),
        "second\n"
    );
    stage.host.containers().unmount("one").unwrap();
    stage.check_file_systems();
}
