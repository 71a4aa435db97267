//! Copies into containers and out of them.

use crate::stage::{Stage, shell, small_image};
use crate::trees;
use cowshed_format::base::{Cancel, Name};
use cowshed_host::{CopyOptions, CopySide, CreateContainer, Error};
use nix::sys::stat::{Mode, SFlag, mknod};
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;

fn prepared() -> Stage {
    let stage = Stage::new();
    let path = small_image(stage.folder("small"));
    stage.import(&path, "small:1");
    let name = Some(Name::new("one").unwrap());
    stage
        .host
        .containers()
        .create(
            "small:1",
            &CreateContainer {
                name,
                ..Default::default()
            },
        )
        .unwrap();
    stage
}

/// Creates a folder in the container, which is not mounted.
fn with_folder(stage: &Stage, name: &str) {
    let mounted = stage.host.containers().mount("one", None).unwrap().path;
    fs::create_dir(mounted.join(name)).unwrap();
    stage.host.containers().unmount("one").unwrap();
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
        .containers()
        .copy(&outside(&folder.join("t")), &inside("/srv"))
        .unwrap();
    assert_eq!(report.objects, 7);
    stage
        .host
        .containers()
        .copy(&inside("/srv/."), &outside(&folder.join("back")))
        .unwrap();
    trees::assert_same(&folder.join("back"), &folder.join("t"));
    let mounted = stage.host.containers().mount("one", None).unwrap().path;
    trees::assert_same(&mounted.join("srv"), &folder.join("t"));
    // Into an existing directory: under its own name, or its contents only.
    stage
        .host
        .containers()
        .copy(&outside(&folder.join("t")), &inside("/srv/"))
        .unwrap();
    trees::assert_same(&mounted.join("srv/t"), &folder.join("t"));
    stage
        .host
        .containers()
        .copy(&outside(&folder.join("t/.")), &inside("/tmp"))
        .unwrap();
    trees::assert_same(&mounted.join("tmp/d"), &folder.join("t/d"));
    stage.host.containers().unmount("one").unwrap();
    stage.check_file_systems();
}

#[test]
fn a_file_goes_where_its_target_says() {
    let stage = prepared();
    let folder = stage.folder("there");
    fs::write(folder.join("file"), "content").unwrap();
    let file = outside(&folder.join("file"));
    let mounted = stage.host.containers().mount("one", None).unwrap().path;
    let read = |path: &str| fs::read_to_string(mounted.join(path)).unwrap();
    stage
        .host
        .containers()
        .copy(&file, &inside("/etc/renamed"))
        .unwrap();
    assert_eq!(read("etc/renamed"), "content");
    stage
        .host
        .containers()
        .copy(&file, &inside("/etc"))
        .unwrap();
    assert_eq!(read("etc/file"), "content");
    stage
        .host
        .containers()
        .copy(&file, &inside("etc/one"))
        .unwrap();
    assert_eq!(read("etc/one"), "content");
    assert_eq!(
        read("etc/one-again"),
        "one\n",
        "another name keeps its content"
    );
    assert!(
        stage
            .host
            .containers()
            .copy(&file, &inside("/missing/"))
            .is_err()
    );
    assert!(
        stage
            .host
            .containers()
            .copy(&file, &inside("/missing/file"))
            .is_err()
    );
    assert!(
        stage
            .host
            .containers()
            .copy(&outside(&folder.join("missing")), &inside("/etc"))
            .is_err()
    );
    let onto_file = stage
        .host
        .containers()
        .copy(&outside(&folder), &inside("/etc/one"));
    assert!(
        matches!(onto_file, Err(Error::NotADirectory { .. })),
        "{onto_file:?}"
    );
    let both = stage
        .host
        .containers()
        .copy(&inside("/etc"), &inside("/tmp"));
    assert!(matches!(both, Err(Error::CopySides)));
}

#[test]
fn links_in_a_container_lead_nowhere_but_into_the_container() {
    let stage = prepared();
    let folder = stage.folder("there");
    fs::write(folder.join("secret"), "of the host").unwrap();
    fs::write(folder.join("file"), "new").unwrap();
    let mounted = stage.host.containers().mount("one", None).unwrap().path;
    symlink(&folder, mounted.join("absolute")).unwrap();
    symlink("../../../../../../..", mounted.join("etc/up")).unwrap();
    symlink(folder.join("secret"), mounted.join("to-secret")).unwrap();
    let out = outside(&folder.join("out"));
    assert!(
        stage
            .host
            .containers()
            .copy(&inside("/absolute/secret"), &out)
            .is_err()
    );
    stage
        .host
        .containers()
        .copy(&inside("/etc/up/etc/passwd"), &out)
        .unwrap();
    assert_eq!(
        fs::read_to_string(folder.join("out")).unwrap(),
        "root:x:0:0\n"
    );
    assert!(
        stage
            .host
            .containers()
            .copy(&outside(&folder.join("file")), &inside("/absolute/secret"))
            .is_err()
    );
    let through_link = stage
        .host
        .containers()
        .copy(&outside(&folder.join("file")), &inside("/to-secret"));
    assert!(
        through_link.is_err(),
        "the folder is not there in the container"
    );
    assert_eq!(
        fs::read_to_string(folder.join("secret")).unwrap(),
        "of the host"
    );
    // A symbolic link at the end is copied as a link.
    stage
        .host
        .containers()
        .copy(&inside("/to-secret"), &outside(&folder.join("link")))
        .unwrap();
    assert!(
        fs::symlink_metadata(folder.join("link"))
            .unwrap()
            .is_symlink()
    );
}

/// The targets with which each source is tried.
const TARGETS: &str = "echo old > file; mkdir dir; ln -s file to-file
    ln -s dir to-dir; ln -s device to-device; ln -s made dangling; ln -s to-device twice
    mknod device c 1 3; mkfifo fifo";
/// The sources.
const SOURCES: &str = "echo new > file; mkdir dir; echo inner > dir/inner; ln -s file link
    mknod device c 7 99; mkfifo fifo";

/// Source, target, and the result: `path=kind` of each changed path, or `-` if the copy is refused.
const COPIES: [(&str, &str, &str); 42] = [
    ("file", "missing", "missing=new"),
    ("file", "missing/", "-"),
    ("file", "file", "file=new"),
    ("file", "file/", "-"),
    ("file", "dir", "dir/file=new"),
    ("file", "dir/", "dir/file=new"),
    ("file", "dir/.", "dir/file=new"),
    ("file", "to-file", "file=new"),
    ("file", "to-dir", "dir/file=new"),
    ("file", "dangling", "made=new"),
    ("file", "to-device", "-"),
    ("file", "twice", "-"),
    ("file", "device", "-"),
    ("file", "device/", "-"),
    ("file", "fifo", "-"),
    ("file", "fifo/", "-"),
    ("file", "socket", "-"),
    ("file/", "missing", "-"),
    ("dir", "missing", "missing/inner=inner"),
    ("dir", "missing/", "missing/inner=inner"),
    ("dir", "file", "-"),
    ("dir", "dir", "dir/dir/inner=inner"),
    ("dir/.", "dir", "dir/inner=inner"),
    ("dir/.", "to-dir", "dir/inner=inner"),
    ("dir", "to-file", "-"),
    ("dir", "dangling", "-"),
    ("dir", "to-device", "-"),
    ("dir", "device", "-"),
    ("dir", "fifo", "-"),
    ("dir", "socket", "-"),
    ("link", "missing", "missing=link"),
    ("link", "file", "file=link"),
    ("link", "device", "-"),
    ("link/", "missing", "-"),
    ("device", "missing", "missing=device"),
    ("device", "device", "-"),
    ("device", "fifo", "-"),
    ("fifo", "missing", "missing=fifo"),
    ("fifo", "fifo", "-"),
    ("fifo", "device", "-"),
    ("socket", "missing", "-"),
    ("socket", "dir", "-"),
];

/// Runs the script in the folder and creates a socket there.
fn fill(folder: &Path, script: &str) {
    shell(folder, script);
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    mknod(&folder.join("socket"), SFlag::S_IFSOCK, mode, 0).unwrap();
}

/// Returns every path below the folder, with its kind and contents.
fn state(folder: &Path) -> Vec<String> {
    let listed = std::process::Command::new("sh")
        .args(["-c", "find . -printf '%p %y %l %s\\n' | sort; grep -r . ."])
        .current_dir(folder)
        .output()
        .unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn kind(path: &Path) -> String {
    use std::os::unix::fs::FileTypeExt;
    let found = fs::symlink_metadata(path).unwrap().file_type();
    if found.is_symlink() {
        "link".to_owned()
    } else if found.is_char_device() {
        "device".to_owned()
    } else if found.is_fifo() {
        "fifo".to_owned()
    } else {
        fs::read_to_string(path).unwrap().trim().to_owned()
    }
}

#[test]
fn every_kind_of_source_goes_to_every_kind_of_target_as_docker_copies_it() {
    let stage = prepared();
    let there = stage.folder("there");
    let mounted = stage.host.containers().mount("one", None).unwrap().path;
    for sources in [there.join("s"), mounted.join("s")] {
        fs::create_dir(&sources).unwrap();
        fill(&sources, SOURCES);
    }
    for is_inward in [true, false] {
        for (source, target, expected) in COPIES {
            let at = if is_inward { &mounted } else { &there };
            shell(at, "rm -rf t; mkdir t");
            fill(&at.join("t"), TARGETS);
            let before = state(&at.join("t"));
            let host_side = |path: &str| outside(&there.join(path));
            let (from, to) = (format!("s/{source}"), format!("t/{target}"));
            let copied = if is_inward {
                stage
                    .host
                    .containers()
                    .copy(&host_side(&from), &inside(&to))
            } else {
                stage
                    .host
                    .containers()
                    .copy(&inside(&from), &host_side(&to))
            };
            let case = format!("{source} to {target}, inward: {is_inward}: {copied:?}");
            if expected == "-" {
                assert!(copied.is_err(), "{case}");
                assert_eq!(state(&at.join("t")), before, "{case}");
                continue;
            }
            assert!(copied.is_ok(), "{case}");
            let (path, what) = expected.split_once('=').unwrap();
            assert_eq!(kind(&at.join("t").join(path)), what, "{case}");
        }
    }
}

#[test]
fn a_tree_replaces_no_device_below_its_target_and_can_be_copied_again() {
    let stage = prepared();
    let there = stage.folder("there");
    shell(
        &there,
        "mkdir -p t/d; echo x > t/d/null; mknod t/d/dev c 7 99; mkfifo t/d/fifo",
    );
    let tree = outside(&there.join("t/."));
    stage
        .host
        .containers()
        .copy(&tree, &inside("/srv"))
        .unwrap();
    stage
        .host
        .containers()
        .copy(&tree, &inside("/srv"))
        .unwrap();
    let mounted = stage.host.containers().mount("one", None).unwrap().path;
    trees::assert_same(&mounted.join("srv"), &there.join("t"));
    shell(&mounted, "rm srv/d/null; mknod srv/d/null c 1 3");
    let refused = stage.host.containers().copy(&tree, &inside("/srv"));
    assert!(
        matches!(refused, Err(Error::CopyTarget { .. })),
        "{refused:?}"
    );
    assert_eq!(kind(&mounted.join("srv/d/null")), "device");
}

#[test]
fn a_link_at_the_end_of_the_source_is_followed_where_that_is_asked_for() {
    let stage = prepared();
    let there = stage.folder("there");
    let follow = CopyOptions { follow_link: true };
    let mounted = stage.host.containers().mount("one", None).unwrap().path;
    shell(
        &mounted,
        "mkdir -p srv/a/b; cd srv; echo x > a/b/f; ln -s /srv/a/b/f l1; ln -s l1 l2
        ln -s a/b ld; ln -s nowhere broken",
    );
    let copy = |from: &str, to: &str| {
        let to = outside(&there.join(to));
        stage
            .host
            .containers()
            .copy_with(&inside(from), &to, follow)
    };
    copy("/srv/l2", "file").unwrap();
    assert_eq!(kind(&there.join("file")), "x");
    copy("/srv/ld", "folder").unwrap();
    assert_eq!(kind(&there.join("folder/f")), "x");
    copy("/srv/ld", ".").unwrap();
    assert_eq!(kind(&there.join("ld/f")), "x", "under the link's name");
    assert!(copy("/srv/broken", "broken").is_err());
    let (tar, _) = stage
        .host
        .containers()
        .copy_out("one", Path::new("/srv/l2"), follow, Vec::new())
        .unwrap();
    fs::write(there.join("l.tar"), tar).unwrap();
    shell(&there, "tar -xf l.tar");
    assert_eq!(kind(&there.join("l2")), "x", "under the link's name");
}

#[test]
fn a_tar_stream_goes_out_and_in_as_the_tree_that_it_is() {
    let stage = prepared();
    let there = stage.folder("there");
    shell(
        &there,
        "mkdir -p t/d; echo 1 > t/d/1; ln t/d/1 t/2; ln -s d t/l; chmod 4750 t/2; touch t/.wh.kept
        chown -R 70000:3 t/d; setfattr -n user.a -v b t/d; mkfifo t/fifo; mknod t/dev b 7 99
        truncate -s 300M t/hole; printf x >> t/hole; touch -d '2003-03-03 03:03:03.333' t/2 t/d t
        tar --xattrs --xattrs-include='*' --format=posix -cf in.tar -C t .",
    );
    with_folder(&stage, "srv");
    let input = fs::File::open(there.join("in.tar")).unwrap();
    stage
        .host
        .containers()
        .copy_in(Box::new(input), "one", Path::new("/srv"))
        .unwrap();
    for (path, name) in [("/srv/.", "dot"), ("srv", "named"), ("/srv/", "slash")] {
        let tar = fs::File::create(there.join("out.tar")).unwrap();
        let options = CopyOptions::default();
        stage
            .host
            .containers()
            .copy_out("one", Path::new(path), options, tar)
            .unwrap();
        let tar = "tar --xattrs --xattrs-include='*' -xf out.tar -C";
        shell(&there, &format!("mkdir {name}; {tar} {name}"));
        let tree = match name {
            "dot" => there.join(name),
            _ => there.join(name).join("srv"),
        };
        trees::assert_same(&tree, &there.join("t"));
    }
}

#[test]
fn a_tar_stream_that_is_none_or_would_destroy_something_is_refused() {
    let stage = prepared();
    let there = stage.folder("there");
    let mounted = stage.host.containers().mount("one", None).unwrap().path;
    shell(
        &mounted,
        "mkdir -p srv/d/e; cd srv; echo x > d/e/f; mknod n c 1 3; echo y > file",
    );
    let unpack = |script: &str, into: &str| {
        shell(&there, &format!("rm -rf w a.tar; mkdir w; cd w; {script}"));
        let input = fs::File::open(there.join("a.tar")).unwrap();
        stage
            .host
            .containers()
            .copy_in(Box::new(input), "one", Path::new(into))
    };
    for (script, into) in [
        ("echo x > d; tar -cf ../a.tar d", "/srv"),
        ("echo x > n; tar -cf ../a.tar n", "/srv"),
        ("mkdir file; tar -cf ../a.tar file", "/srv"),
        ("echo x > f; tar -cf ../a.tar f", "/srv/file"),
        ("echo x > f; tar -cf ../a.tar f", "/srv/missing"),
        ("echo x > ../f; tar -P -cf ../a.tar ../f", "/srv"),
        ("echo x > f; tar -cf - f | head -c 600 > ../a.tar", "/srv"),
        (": > ../a.tar", "/srv"),
        ("seq 9999 > ../a.tar", "/srv"),
    ] {
        let refused = unpack(script, into);
        assert!(refused.is_err(), "{script}: {refused:?}");
    }
    assert_eq!(kind(&mounted.join("srv/d/e/f")), "x");
    assert_eq!(kind(&mounted.join("srv/n")), "device");
    assert_eq!(kind(&mounted.join("srv/file")), "y");
    unpack("mkdir d; echo z > d/g; tar -czf ../a.tar d", "/srv").unwrap();
    assert_eq!(kind(&mounted.join("srv/d/g")), "z");
    assert_eq!(
        kind(&mounted.join("srv/d/e/f")),
        "x",
        "what was there stays"
    );
}

/// Endless content, which cancels its token at the 64th read.
struct Endless(Cancel, u32);

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1 += 1;
        if self.1 == 64 {
            self.0.cancel();
        }
        buffer.fill(7);
        Ok(buffer.len())
    }
}

#[test]
fn a_cancelled_copy_ends_gives_its_lock_back_and_leaves_no_part_of_a_file() {
    let stage = prepared();
    let there = stage.folder("there");
    with_folder(&stage, "srv");
    let cancel = Cancel::default();
    let mut header = tar::Header::new_gnu();
    header.set_size(1 << 50);
    header.set_path("endless").unwrap();
    header.set_cksum();
    let head = std::io::Cursor::new(header.as_bytes().to_vec());
    let input = head.chain(Endless(cancel.clone(), 0));
    let into = Path::new("/srv");
    let ended = cancel.during(|| {
        stage
            .host
            .containers()
            .copy_in(Box::new(input), "one", into)
    });
    assert!(ended.as_ref().is_err_and(Error::is_cancelled), "{ended:?}");
    // With the token of work that has ended, nothing is begun.
    fs::write(there.join("file"), "x").unwrap();
    let file = outside(&there.join("file"));
    let ended = cancel.during(|| stage.host.containers().copy(&file, &inside("/srv/file")));
    assert!(ended.as_ref().is_err_and(Error::is_cancelled), "{ended:?}");
    let name = Name::new("c:1").unwrap();
    let ended = cancel.during(|| stage.host.containers().commit("one", &name, None));
    assert!(ended.as_ref().is_err_and(Error::is_cancelled), "{ended:?}");
    let work = stage
        .volumes()
        .into_iter()
        .filter(|name| name.starts_with("work/"));
    assert_eq!(work.count(), 0);
    let mounted = stage.host.containers().mount("one", None).unwrap().path;
    assert!(!mounted.join("srv/file").exists());
}
