//! Copying into containers and out of them.

use crate::stage::{Stage, shell, small_image};
use crate::trees;
use cowshed::base::Name;
use cowshed::container::{CopySide, CreateContainer, Error};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

fn prepared() -> Stage {
    let stage = Stage::new();
    let path = small_image(stage.folder("small"));
    stage.import(&path, "small:1");
    let name = Some(Name::new("one").unwrap());
    stage
        .host
        .create_container(
            "small:1",
            &CreateContainer {
                name,
                size_bytes: None,
            },
        )
        .unwrap();
    stage
}

fn inside(path: &str) -> CopySide {
    CopySide::Container {
        container: "one".to_owned(),
        path: path.into(),
    }
}

fn outside(path: &Path) -> CopySide {
    CopySide::Host(path.to_owned())
}

#[test]
fn a_tree_survives_the_way_in_and_out() {
    let stage = prepared();
    let folder = stage.folder("there");
    shell(
        &folder,
        "mkdir -p t/d; echo 1 > t/d/1; ln t/d/1 t/2; ln -s d t/l; chmod 4750 t/2
        chown -R 70000:3 t/d; setfattr -n user.a -v b t/d; truncate -s 9M t/hole
        mknod t/dev b 7 99; touch -d '2003-03-03 03:03:03.333' t/2 t/d",
    );
    let report = stage
        .host
        .copy(&outside(&folder.join("t")), &inside("/srv"))
        .unwrap();
    assert_eq!(report.objects, 7);
    stage
        .host
        .copy(&inside("/srv/."), &outside(&folder.join("back")))
        .unwrap();
    trees::assert_same(&folder.join("back"), &folder.join("t"));
    let mounted = stage.host.mount_container("one", None).unwrap().path;
    trees::assert_same(&mounted.join("srv"), &folder.join("t"));
    // Into a directory that is there: under its own name, or its contents.
    stage
        .host
        .copy(&outside(&folder.join("t")), &inside("/srv/"))
        .unwrap();
    trees::assert_same(&mounted.join("srv/t"), &folder.join("t"));
    stage
        .host
        .copy(&outside(&folder.join("t/.")), &inside("/tmp"))
        .unwrap();
    trees::assert_same(&mounted.join("tmp/d"), &folder.join("t/d"));
    stage.host.unmount_container("one").unwrap();
    stage.check_file_systems();
}

#[test]
fn a_file_goes_where_its_target_says() {
    let stage = prepared();
    let folder = stage.folder("there");
    fs::write(folder.join("file"), "content").unwrap();
    let file = outside(&folder.join("file"));
    let mounted = stage.host.mount_container("one", None).unwrap().path;
    let read = |path: &str| fs::read_to_string(mounted.join(path)).unwrap();
    stage.host.copy(&file, &inside("/etc/renamed")).unwrap();
    assert_eq!(read("etc/renamed"), "content");
    stage.host.copy(&file, &inside("/etc")).unwrap();
    assert_eq!(read("etc/file"), "content");
    stage.host.copy(&file, &inside("etc/one")).unwrap();
    assert_eq!(read("etc/one"), "content");
    assert_eq!(
        read("etc/one-again"),
        "one\n",
        "another name keeps its content"
    );
    assert!(stage.host.copy(&file, &inside("/missing/")).is_err());
    assert!(stage.host.copy(&file, &inside("/missing/file")).is_err());
    assert!(
        stage
            .host
            .copy(&outside(&folder.join("missing")), &inside("/etc"))
            .is_err()
    );
    let onto_file = stage.host.copy(&outside(&folder), &inside("/etc/one"));
    assert!(
        matches!(onto_file, Err(Error::NotADirectory { .. })),
        "{onto_file:?}"
    );
    let both = stage.host.copy(&inside("/etc"), &inside("/tmp"));
    assert!(matches!(both, Err(Error::CopySides)));
}

#[test]
fn links_in_a_container_lead_nowhere_but_into_the_container() {
    let stage = prepared();
    let folder = stage.folder("there");
    fs::write(folder.join("secret"), "of the host").unwrap();
    fs::write(folder.join("file"), "new").unwrap();
    let mounted = stage.host.mount_container("one", None).unwrap().path;
    symlink(&folder, mounted.join("absolute")).unwrap();
    symlink("../../../../../../..", mounted.join("etc/up")).unwrap();
    symlink(folder.join("secret"), mounted.join("to-secret")).unwrap();
    let out = outside(&folder.join("out"));
    assert!(stage.host.copy(&inside("/absolute/secret"), &out).is_err());
    stage
        .host
        .copy(&inside("/etc/up/etc/passwd"), &out)
        .unwrap();
    assert_eq!(
        fs::read_to_string(folder.join("out")).unwrap(),
        "root:x:0:0\n"
    );
    assert!(
        stage
            .host
            .copy(&outside(&folder.join("file")), &inside("/absolute/secret"))
            .is_err()
    );
    let through_link = stage
        .host
        .copy(&outside(&folder.join("file")), &inside("/to-secret"));
    assert!(
        through_link.is_err(),
        "the folder is not there in the container"
    );
    assert_eq!(
        fs::read_to_string(folder.join("secret")).unwrap(),
        "of the host"
    );
    // A link at the end is copied as what it is.
    stage
        .host
        .copy(&inside("/to-secret"), &outside(&folder.join("link")))
        .unwrap();
    assert!(
        fs::symlink_metadata(folder.join("link"))
            .unwrap()
            .is_symlink()
    );
}
