//! Images that are written as they were imported, byte by byte, with the recipes of their layers.

use crate::stage::Stage;
use cowshed_format::base::Name;
use cowshed_host::ExportedImage;
use cowshed_oci::Compression;
use cowshed_testkit::fixtures;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

fn tar(arguments: &[&str]) {
    fixtures::run("tar", arguments);
}

/// Makes an archive of a root file system, with all of GNU tar's ways to write what is unusual.
fn unusual(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
    fs::write(root.join("usr/lib").join("name-".repeat(40)), "x").unwrap();
    fs::write(root.join("file"), vec![5; 100_000]).unwrap();
    fs::hard_link(root.join("file"), root.join("again")).unwrap();
    // It is larger than what is written of holes.
    File::create(root.join("sparse"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let archive = folder.join("unusual.tar");
    let (root, path) = (root.to_str().unwrap(), archive.to_str().unwrap());
    tar(&[
        "--create",
        "--sparse",
        "--format=gnu",
        "--blocking-factor=40",
        "--file",
        path,
        "--directory",
        root,
        ".",
    ]);
    archive
}

fn export(stage: &Stage, image: &str, folder: &Path) -> (PathBuf, ExportedImage) {
    let path = folder.join("exported.tar");
    let file = File::create(&path).unwrap();
    let images = stage.host.images();
    let (_, exported) = images.export(image, Compression::None, file).unwrap();
    (path, exported)
}

fn expect_same(exported: &ExportedImage) {
    assert_eq!(exported.id, exported.image);
    for layer in &exported.layers {
        assert_eq!(layer.diff_id, layer.original_diff_id);
    }
}

#[test]
fn an_image_is_exported_as_it_was_imported_and_its_recipes_go_with_it() {
    let stage = Stage::new();
    let folder = stage.folder("unusual");
    let archive = unusual(&folder);
    let imported = stage.import(&archive, "unusual:1");
    stage.check_recipes(&imported.layers);
    let (path, exported) = export(&stage, "unusual:1", &folder);
    expect_same(&exported);
    let len = fs::metadata(&path).unwrap().len();
    assert!(len < 1 << 20, "the sparse file takes {len} bytes");

    let again = stage.import(&path, "again:1");
    assert_eq!(again.id, imported.id);
    assert!(again.layers.iter().all(|layer| layer.reused));
    stage.check_recipes(&imported.layers);

    // A recipe is counted with its layer.
    let images = stage.host.images();
    let recipe = format!("recipe/{}", imported.layers[0].chain_id);
    let recipe = stage.pool.volume(&recipe).unwrap().info().unwrap();
    let layer = format!("layer/{}", imported.layers[0].chain_id);
    let layer = stage.pool.volume(&layer).unwrap().info().unwrap();
    assert!(recipe.own_bytes > 0);
    let details = images.inspect("unusual:1").unwrap();
    assert_eq!(details.own_bytes, layer.own_bytes + recipe.own_bytes);
    assert_eq!(details.layers[0].own_bytes, details.own_bytes);

    // What a container changed is a layer of its own, which needs no recipe.
    let root = stage.container("unusual:1", "c");
    fs::write(root.join("note"), "new").unwrap();
    let name = Name::new("changed:1").unwrap();
    stage.host.containers().commit("c", &name, None).unwrap();
    stage.host.containers().remove("c").unwrap();
    let (_, exported) = export(&stage, "changed:1", &folder);
    assert_eq!(exported.layers.len(), 2);
    expect_same(&exported);

    for name in ["unusual:1", "again:1", "changed:1"] {
        images.remove(name).unwrap();
    }
    stage.check_recipes(&[]);
}

#[test]
fn a_layer_whose_recipe_does_not_fit_is_written_anew() {
    let stage = Stage::new();
    let folder = stage.folder("twice");
    // The second entry of the file replaces the first one.
    let archive = folder.join("twice.tar");
    let path = archive.to_str().unwrap();
    let root = folder.join("twice");
    fs::create_dir(&root).unwrap();
    let (file, root) = (root.join("file"), root.to_str().unwrap());
    fs::write(&file, "the first").unwrap();
    tar(&["--create", "--file", path, "--directory", root, "file"]);
    fs::write(&file, "the second, which is longer").unwrap();
    tar(&["--append", "--file", path, "--directory", root, "file"]);
    stage.import(&archive, "twice:1");
    let (path, exported) = export(&stage, "twice:1", &folder);
    assert_ne!(
        exported.layers[0].diff_id,
        exported.layers[0].original_diff_id
    );
    stage.import(&path, "once:1");
    let root = stage.container("once:1", "c");
    let text = fs::read_to_string(root.join("file")).unwrap();
    assert_eq!(text, "the second, which is longer");
}

/// Returns the reason why the lowest layer is not as it was imported.
fn why(exported: &ExportedImage) -> &str {
    exported.layers[0].why_anew.as_deref().unwrap()
}

#[test]
fn a_recipe_that_is_missing_or_of_a_newer_version_costs_only_the_digest() {
    let stage = Stage::new();
    let folder = stage.folder("unusual");
    let imported = stage.import(&unusual(&folder), "unusual:1");
    let name = Name::new(&format!("recipe/{}", imported.layers[0].chain_id)).unwrap();
    let recipe = stage.pool.volume(name.as_str()).unwrap();
    let mut head = [0; 4096];
    let len = usize::try_from(recipe.size_bytes()).unwrap().min(4096);
    recipe.read_at(&mut head[..len], 0).unwrap();
    let recipe_bytes = recipe.size_bytes();
    stage.pool.remove(&recipe).unwrap();
    let (_, anew) = export(&stage, "unusual:1", &folder);
    assert_ne!(anew.id, anew.image);
    assert_eq!(why(&anew), "the pool has no recipe of its tar");

    let newer = stage.pool.create_volume(&name, len as u64).unwrap();
    head[8] += 1;
    newer.write_at(&head[..len], 0).unwrap();
    let (_, again) = export(&stage, "unusual:1", &folder);
    assert_eq!(again.id, anew.id);
    assert_eq!(why(&again), "its recipe is of another version of cowshed");

    // A damaged one may fail after much was written.
    stage.pool.remove(&newer).unwrap();
    let damaged = stage.pool.create_volume(&name, recipe_bytes).unwrap();
    head[8] -= 1;
    damaged.write_at(&head[..len], 0).unwrap();
    damaged.write_at(&[0xff; 4], recipe_bytes - 4).unwrap();
    let (_, again) = export(&stage, "unusual:1", &folder);
    assert_eq!(again.id, anew.id);
    assert_eq!(why(&again), "its recipe is damaged");
    // A recipe that an older version left is replaced.
    stage.host.images().remove("unusual:1").unwrap();
    stage.pool.create_volume(&name, 4096).unwrap();
    let imported = stage.import(&folder.join("unusual.tar"), "unusual:1");
    stage.check_recipes(&imported.layers);
    expect_same(&export(&stage, "unusual:1", &folder).1);
}
