//! Imports, lists, removes and exports images.

use crate::stage::{ImageFolder, Stage, shell, small_image};
use crate::trees;
use cowshed_engine::RecordKind;
use cowshed_format::base::Name;
use cowshed_host::{CreateContainer, Error, ImportOptions};
use cowshed_oci::{Compression, SourceInput};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

/// Layers with every kind of entry.
fn rich_image(stage: &Stage) -> ImageFolder {
    ImageFolder::new(stage.folder("rich"))
        .layer(
            "mkdir -p a/b/c gone opaque/old keep; echo 1 > a/one; ln a/one a/b/one-again
             echo x > gone/x; echo y > opaque/old/y; echo z > opaque/z; ln -s /etc/passwd keep/link
             mknod keep/null c 1 3; mkfifo keep/fifo; chown 70000:80000 keep/fifo
             echo s > keep/setuid; chmod 6755 keep/setuid; setfattr -n user.mark -v value keep/setuid
             setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 a/one
             truncate -s 64M keep/sparse; echo end >> keep/sparse
             name=$(printf 'n%.0s' $(seq 200)); echo long > a/$name; mkdir a/$name-dir
             touch -d '2001-02-03 04:05:06.123456789' keep/setuid keep; echo $'new\\nline' > $'a/new\\nline'
             chmod 750 a; chmod 711 .",
        )
        .layer(
            "mkdir -p opaque a; touch .wh.gone opaque/.wh..wh..opq; echo fresh > opaque/fresh
             echo changed > a/one; touch -d '2010-01-01' a/one; chmod 711 .",
        )
        .layer("mkdir -p gone; echo back > gone/again; mkdir -p a/b; touch a/b/.wh.c; chmod 755 .")
}

#[test]
fn an_imported_image_has_the_tree_that_gnu_tar_makes_of_its_layers() {
    let stage = Stage::new();
    let image = rich_image(&stage);
    // The newline's whiteout scan in the shell would stumble over the odd name, but it hides
    // nothing.
    let imported = stage.import(&image.archive("rich:1"), "rich:1");
    assert_eq!(imported.layers.len(), 3);
    assert!(imported.layers.iter().all(|layer| !layer.reused));
    let root = stage.container("rich:1", "one");
    trees::assert_same(&root, &image.expected_tree());
    let sparse = fs::metadata(root.join("keep/sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "the hole is filled");
    stage.host.containers().unmount("one").unwrap();
    stage.check_file_systems();
}

#[test]
fn layers_are_shared_by_chain_id_and_go_with_their_last_image() {
    let stage = Stage::new();
    let base = ImageFolder::new(stage.folder("base")).layer("echo base > base");
    let first = stage.import(&base.archive("base:1"), "base:1");
    let more = base.layer("echo more > more");
    let second = stage.import(&more.archive("more:1"), "more:1");
    assert!(second.layers[0].reused && !second.layers[1].reused);
    assert_eq!(second.layers[0].chain_id, first.layers[0].chain_id);
    let listed = stage.host.images().list().unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|image| image.size_bytes > 0));
    let removed = stage.host.images().remove("base:1").unwrap();
    assert_eq!(removed.removed, Some(first.id));
    assert!(removed.layers.is_empty(), "the other image still has it");
    let root = stage.container("more:1", "c");
    assert_eq!(fs::read_to_string(root.join("base")).unwrap(), "base\n");
    let refused = stage.host.images().remove("more:1").unwrap_err();
    assert!(matches!(&refused, Error::ImageInUse { .. }), "{refused}");
    assert!(refused.to_string().contains(" c;"), "{refused}");
    stage.host.containers().remove("c").unwrap();
    let removed = stage.host.images().remove(&second.id.hex()[..12]).unwrap();
    assert_eq!(removed.layers.len(), 2);
    assert_eq!(
        stage.volumes().len(),
        1,
        "only the template: {:?}",
        stage.volumes()
    );
}

#[test]
fn importing_again_applies_nothing_and_a_second_name_keeps_the_image() {
    let stage = Stage::new();
    let path = small_image(stage.folder("small"));
    let first = stage.import(&path, "small:1");
    let volumes = stage.volumes();
    let again = stage.import(&path, "other/name:2");
    assert_eq!(again.id, first.id);
    assert!(again.layers.iter().all(|layer| layer.reused));
    assert_eq!(stage.volumes(), volumes);
    let removed = stage.host.images().remove("small:1").unwrap();
    assert_eq!((removed.removed, removed.untagged.len()), (None, 1));
    assert_eq!(
        stage.host.images().inspect("other/name:2").unwrap().names,
        ["other/name:2"]
    );
    assert!(matches!(
        stage.host.images().inspect("small:1"),
        Err(Error::NotFound { .. })
    ));
    let details = stage.host.images().inspect("other/name:2").unwrap();
    assert_eq!(details.config["unknown"]["kept"][0], 1);
    let steps = stage.host.images().history("other/name:2").unwrap();
    assert_eq!(steps[0].created_by.as_deref(), Some("step 1"));
    assert_eq!(steps[0].diff_id, Some(first.layers[1].diff_id));
}

#[test]
fn a_root_file_system_is_an_image_of_one_layer_even_from_a_pipe() {
    let stage = Stage::new();
    let folder = stage.folder("root");
    shell(
        &folder,
        "mkdir -p tree/etc; echo hi > tree/etc/motd; tar -C tree --format=pax -czf root.tgz .",
    );
    let stream = Box::new(File::open(folder.join("root.tgz")).unwrap());
    let image = stage
        .host
        .images()
        .open(SourceInput::Stream(stream), None)
        .unwrap();
    let name = Some(Name::new("root").unwrap());
    let options = ImportOptions {
        name,
        file_system_bytes: Some(256 << 20),
        ..ImportOptions::default()
    };
    let piped = stage
        .host
        .images()
        .import(&image, &options, &mut |_| true)
        .unwrap();
    assert_eq!(piped.layers.len(), 1);
    let created = stage
        .host
        .containers()
        .create("root", &CreateContainer::default())
        .unwrap();
    let root = stage
        .host
        .containers()
        .mount(&created.name, None)
        .unwrap()
        .path;
    trees::assert_same(&root, &folder.join("tree"));
    // Imported as a folder, it is the same tree.
    stage.import(&folder.join("tree"), "folder");
    trees::assert_same(&stage.container("folder", "f"), &folder.join("tree"));
}

#[test]
fn an_exported_image_imports_elsewhere_with_the_same_tree_and_then_is_stable() {
    let stage = Stage::new();
    let image = rich_image(&stage);
    stage.import(&image.archive("rich:1"), "rich:1");
    let export = |stage: &Stage, name: &str| {
        let path = stage.folder("out").join(name);
        let file = File::create(&path).unwrap();
        let (_, exported) = stage
            .host
            .images()
            .export("rich:1", Compression::Gzip, file)
            .unwrap();
        (path, exported)
    };
    let (path, exported) = export(&stage, "first.tar");
    assert_eq!(exported.layers.len(), 3);
    let other = Stage::new();
    let imported = other.import(&path, "rich:1");
    assert_eq!(imported.id, exported.id);
    trees::assert_same(&other.container("rich:1", "c"), &image.expected_tree());
    // An image that we exported is exported again byte by byte.
    let (again, exported_again) = export(&other, "second.tar");
    assert_eq!(exported_again.id, exported.id);
    assert_eq!(fs::read(again).unwrap(), fs::read(path).unwrap());
}

#[test]
fn imports_of_one_image_at_once_agree_on_its_layers() {
    let stage = Stage::new();
    let path = small_image(stage.folder("small"));
    let imported: Vec<_> = std::thread::scope(|scope| {
        let start = |name: &'static str| {
            let (stage, path) = (&stage, &path);
            scope.spawn(move || stage.import(path, name))
        };
        let running: Vec<_> = ["a", "b", "c"].map(start).into();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(imported.iter().all(|image| image.id == imported[0].id));
    let layers = stage
        .volumes()
        .iter()
        .filter(|name| name.starts_with("layer/"))
        .count();
    assert_eq!(
        (layers, stage.volumes().len()),
        (2, 3),
        "{:?}",
        stage.volumes()
    );
    let root = stage.container("b", "c1");
    assert!(root.join("etc/second").exists() && !root.join("etc/two").exists());
    stage.host.containers().unmount("c1").unwrap();
    stage.check_file_systems();
}

#[test]
fn names_that_an_older_version_stored_are_found_and_shown_short() {
    let stage = Stage::new();
    let image = stage.import(&small_image(stage.folder("small")), "new:1");
    let folder = stage.folder("other");
    fs::write(folder.join("f"), b"x").unwrap();
    let other = stage.import(&folder, "other:1");
    let store = |name: &str, image: &cowshed_host::ImportedImage| {
        let mut transaction = stage.pool.transaction();
        let id = image.id.to_string();
        transaction.put_record(RecordKind::REFERENCE, name.as_bytes(), id.as_bytes());
        transaction.commit().unwrap();
    };
    // Names as given, in several forms, including some that are no longer valid.
    for name in ["app", "docker.io/library/debian:12", "Mine", "two"] {
        store(name, &image);
    }
    store("two:latest", &other);
    let find = |name: &str| stage.host.images().inspect(name).map(|found| found.id);
    for name in [
        "app",
        "app:latest",
        "docker.io/library/app",
        "debian:12",
        "Mine",
        "two",
    ] {
        assert_eq!(find(name).unwrap(), image.id, "{name}");
    }
    assert_eq!(find("two:latest").unwrap(), other.id);
    let mut names = stage.host.images().inspect("new:1").unwrap().names;
    names.sort();
    // A short form that would select another image is not shown.
    assert_eq!(names, ["Mine", "app:latest", "debian:12", "new:1", "two"]);
    // A name given again moves to the new image, whatever its form.
    stage.import(&folder, "app");
    assert_eq!(find("app").unwrap(), other.id);
    assert_eq!(find("docker.io/library/app:latest").unwrap(), other.id);
    let removed = stage.host.images().remove("debian:12").unwrap();
    assert_eq!(removed.untagged, ["debian:12"]);
    assert!(find("docker.io/library/debian:12").is_err());
    let removed = stage.host.images().remove("Mine").unwrap();
    assert_eq!(removed.untagged, ["Mine"]);
}
