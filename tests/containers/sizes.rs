//! The size of an image's file systems: it follows the image, or is the requested one.

use crate::stage::{ImageFolder, Stage, pool_of, shell};
use crate::trees;
use cowshed_format::base::Name;
use cowshed_host::{CreateContainer, Error, ImportOptions, ImportedImage, Result, Shortage};
use cowshed_oci::SourceInput;
use nix::sys::statvfs::statvfs;
use std::fs;
use std::path::Path;

/// The default size in these tests: that of the smallest file system.
const USUAL: u64 = 64 << 20;
const LARGE: &str = "head -c 300M /dev/urandom > large; mkdir few; echo 1 > few/one";
/// More files than the smallest file system has inodes (one for 8 KiB).
const MANY: &str = "seq -f %05g 12000 | xargs touch; mkdir few; echo 1 > few/one";

fn import(stage: &Stage, path: &Path, options: &ImportOptions) -> Result<ImportedImage> {
    let input = SourceInput::Path(path.to_owned());
    let image = stage.host.images().open(input, None)?;
    stage.host.images().import(&image, options, &mut |_| true)
}

fn following() -> ImportOptions {
    ImportOptions {
        usual_bytes: Some(USUAL),
        ..ImportOptions::default()
    }
}

fn fixed(size_bytes: u64) -> ImportOptions {
    ImportOptions {
        file_system_bytes: Some(size_bytes),
        ..ImportOptions::default()
    }
}

fn bytes_left(root: &Path) -> u64 {
    let found = statvfs(root).unwrap();
    found.blocks_available() * found.fragment_size()
}

#[test]
fn a_file_system_grows_with_an_image_that_is_larger_and_leaves_the_usual_room() {
    let stage = Stage::new();
    let image = ImageFolder::new(stage.folder("image"))
        .layer("echo base > base")
        .layer(LARGE)
        .layer("head -c 200M /dev/urandom > more");
    let imported = import(&stage, &image.archive("large:1"), &following()).unwrap();
    assert_eq!(imported.notes, Vec::<String>::new());
    let root = stage.container("large:1", "c");
    trees::assert_same(&root, &image.expected_tree());
    let left = bytes_left(&root);
    assert!(left >= USUAL, "a container has {left} bytes");
    fs::write(root.join("own"), vec![1; 48 << 20]).unwrap();
    // What is committed on top of it is compared block by block.
    let changes = stage.host.containers().diff("c").unwrap();
    let paths: Vec<_> = changes.iter().map(|change| change.path.clone()).collect();
    assert_eq!(paths, [Path::new("/own")]);
    stage.host.containers().unmount("c").unwrap();
    stage.check_file_systems();
}

#[test]
fn a_file_system_grows_with_an_image_of_more_files_than_it_has_inodes() {
    let stage = Stage::new();
    let image = ImageFolder::new(stage.folder("image")).layer(MANY);
    import(&stage, &image.archive("many:1"), &following()).unwrap();
    let root = stage.container("many:1", "c");
    trees::assert_same(&root, &image.expected_tree());
    let left = statvfs(&root).unwrap().files_available();
    // The smallest file system has half a group of blocks and all of its inodes, so that they are
    // rarer once it has grown.
    assert!(left >= USUAL / 16384, "a container has {left} inodes");
    stage.host.containers().unmount("c").unwrap();
    stage.check_file_systems();
}

#[test]
fn a_clone_of_a_crowded_file_system_needs_more_than_its_size() {
    let stage = Stage::new();
    let image = ImageFolder::new(stage.folder("image")).layer(LARGE);
    import(&stage, &image.archive("large:1"), &fixed(384 << 20)).unwrap();
    let mut layer = stage.volumes().into_iter();
    let layer = layer.rfind(|name| name.starts_with("layer/"));
    let volume = stage.pool.volume(&layer.unwrap()).unwrap();
    let size_of = |usual| stage.host.layers().size_with_room(&volume, usual).unwrap();
    let wanted = size_of(256 << 20).unwrap();
    assert!(wanted >= (300 + 256) << 20, "{wanted}");
    // One with enough space left, and one that was made small on purpose.
    assert_eq!(size_of(32 << 20), None);
    assert_eq!(size_of(1 << 30), None);
}

#[test]
fn a_small_image_keeps_the_usual_size() {
    let stage = Stage::new();
    let image = ImageFolder::new(stage.folder("image")).layer("head -c 4M /dev/urandom > some");
    import(&stage, &image.archive("small:1"), &following()).unwrap();
    let mut layer = stage.volumes().into_iter();
    let layer = layer.rfind(|name| name.starts_with("layer/"));
    let volume = stage.pool.volume(&layer.unwrap()).unwrap();
    assert_eq!(volume.size_bytes(), USUAL);
}

#[test]
fn a_size_that_was_asked_for_is_kept_and_its_lack_of_blocks_or_inodes_is_told() {
    let stage = Stage::new();
    let large = ImageFolder::new(stage.folder("large")).layer(LARGE);
    let large = large.archive("large:1");
    let many = ImageFolder::new(stage.folder("many")).layer(MANY);
    let many = many.archive("many:1");
    for (path, shortage) in [(&large, Shortage::Blocks), (&many, Shortage::Inodes)] {
        let refused = import(&stage, path, &fixed(USUAL)).unwrap_err();
        let Error::FileSystemFull {
            what, size_bytes, ..
        } = &refused
        else {
            panic!("{refused}");
        };
        assert_eq!((*what, *size_bytes), (shortage, USUAL), "{refused}");
        assert!(
            refused.to_string().contains("choose a larger size"),
            "{refused}"
        );
    }
    import(&stage, &large, &fixed(512 << 20)).unwrap();
    let root = stage.container("large:1", "c");
    let found = statvfs(&root).unwrap();
    assert!(found.blocks() * found.fragment_size() <= 512 << 20);
    stage.host.containers().unmount("c").unwrap();
    // If all layers exist already, the size has no effect, and the import says so.
    let again = import(&stage, &large, &fixed(1 << 30)).unwrap();
    assert!(
        again.notes[0].contains("the size has no effect"),
        "{:?}",
        again.notes
    );
    // A new layer on top can be larger than those below, but never smaller.
    let more = ImageFolder {
        folder: stage.folder("large"),
        layers: vec!["layer-1.tar".to_owned()],
    };
    let more = more.layer("echo more > more").archive("more:1");
    let refused = import(&stage, &more, &fixed(256 << 20)).unwrap_err();
    assert!(matches!(refused, Error::TooSmall { .. }), "{refused}");
    import(&stage, &more, &fixed(1 << 30)).unwrap();
    let options = CreateContainer {
        name: Some(Name::new("d").unwrap()),
        ..CreateContainer::default()
    };
    stage.host.containers().create("more:1", &options).unwrap();
    let root = stage.host.containers().mount("d", None).unwrap().path;
    let found = statvfs(&root).unwrap();
    assert!(found.blocks() * found.fragment_size() > 900 << 20);
}

#[test]
fn a_pool_that_is_full_is_blamed_and_not_the_file_system() {
    let stage = Stage::on(pool_of(128 << 20));
    let image = ImageFolder::new(stage.folder("large")).layer(LARGE);
    let image = image.archive("large:1");
    for options in [following(), fixed(1 << 30)] {
        let refused = import(&stage, &image, &options).unwrap_err();
        let text = refused.to_string();
        assert!(text.starts_with("no space left in the pool"), "{text}");
    }
    let left: Vec<_> = stage.volumes();
    assert!(
        left.iter().all(|name| name.starts_with("template/")),
        "{left:?}"
    );
}

#[test]
fn attributes_that_do_not_fit_are_told_from_a_lack_of_room() {
    let stage = Stage::new();
    let folder = stage.folder("content");
    // tmpfs takes attributes that ext4 does not.
    let script = "mount -t tmpfs none . ; cd . ; touch file
         setfattr -n user.large -v $(head -c 6000 /dev/zero | tr '\\0' x) file
         tar --format=pax --xattrs -cf ../content.tar file";
    let script = format!(
        "unshare -m bash -euc 'cd \"$PWD\"; {}'",
        script.replace('\'', "'\\''")
    );
    shell(&folder, &script);
    let path = folder.parent().unwrap().join("content.tar");
    let refused = import(&stage, &path, &following()).unwrap_err().to_string();
    assert!(
        refused.contains("extended attributes of file do not fit"),
        "{refused}"
    );
    assert!(refused.contains("user.large has 6000 bytes"), "{refused}");
}
