//! Tests of copying on plain directories.

use super::*;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::time::{Duration, UNIX_EPOCH};

fn copy(from: &Path, to: &Path) -> CopyReport {
    let (source, target) = (File::open(from).unwrap(), File::open(to).unwrap());
    let mut transfer = Transfer::new(target.as_fd());
    transfer.contents(source.as_fd(), target.as_fd()).unwrap();
    transfer.report()
}

struct Folders {
    folder: tempfile::TempDir,
}

impl Folders {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("from")).unwrap();
        fs::create_dir(folder.path().join("to")).unwrap();
        Self { folder }
    }

    fn from(&self, name: &str) -> PathBuf {
        self.folder.path().join("from").join(name)
    }

    fn to(&self, name: &str) -> PathBuf {
        self.folder.path().join("to").join(name)
    }

    fn copy(&self) -> CopyReport {
        copy(&self.from(""), &self.to(""))
    }
}

#[test]
fn metadata_of_every_kind_of_object_is_kept() {
    let folders = Folders::new();
    fs::create_dir(folders.from("dir")).unwrap();
    fs::write(folders.from("dir/file"), "content").unwrap();
    symlink("nowhere", folders.from("link")).unwrap();
    let fifo = folders.from("fifo");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o640)).unwrap();
    for (number, name) in (70_000..).zip(["dir/file", "dir", "fifo"]) {
        chown(folders.from(name), Some(number), Some(number + 1)).unwrap();
    }
    std::os::unix::fs::lchown(folders.from("link"), Some(5), Some(6)).unwrap();
    fs::set_permissions(folders.from("dir/file"), Permissions::from_mode(0o6755)).unwrap();
    let file = File::open(folders.from("dir/file")).unwrap();
    xattr::set(&file, c"trusted.mark", b"\0bytes").unwrap();
    let time = UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for name in ["dir/file", "dir"] {
        File::open(folders.from(name))
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
    folders.copy();
    for name in ["dir", "dir/file", "link", "fifo", ""] {
        let metadata = |path: PathBuf| {
            let data = fs::symlink_metadata(path).unwrap();
            (
                data.mode(),
                data.uid(),
                data.gid(),
                data.mtime(),
                data.mtime_nsec(),
            )
        };
        assert_eq!(
            metadata(folders.to(name)),
            metadata(folders.from(name)),
            "{name}"
        );
    }
    let copied = File::open(folders.to("dir/file")).unwrap();
    assert_eq!(xattr::get(&copied, c"trusted.mark").unwrap(), b"\0bytes");
    assert_eq!(
        fs::read_link(folders.to("link")).unwrap(),
        Path::new("nowhere")
    );
}

#[test]
fn names_of_one_file_stay_one_file_and_holes_stay_holes() {
    let folders = Folders::new();
    let file = File::create(folders.from("a")).unwrap();
    file.write_all_at(b"end", 64 << 20).unwrap();
    file.set_len(128 << 20).unwrap();
    fs::create_dir(folders.from("dir")).unwrap();
    fs::hard_link(folders.from("a"), folders.from("dir/b")).unwrap();
    let report = folders.copy();
    let (a, b) = (folders.to("a"), folders.to("dir/b"));
    assert_eq!(
        fs::metadata(&a).unwrap().ino(),
        fs::metadata(&b).unwrap().ino()
    );
    assert_eq!(fs::metadata(&a).unwrap().len(), 128 << 20);
    assert!(report.copied_bytes < 1 << 20, "{report:?}");
    let mut end = [0; 3];
    File::open(&b)
        .unwrap()
        .read_exact_at(&mut end, 64 << 20)
        .unwrap();
    assert_eq!(&end, b"end");
}

#[test]
fn links_in_the_target_are_replaced_and_never_followed() {
    let folders = Folders::new();
    let outside = folders.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    fs::write(folders.from("name"), "new").unwrap();
    symlink(outside.join("file"), folders.to("name")).unwrap();
    folders.copy();
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
    assert_eq!(fs::read(folders.to("name")).unwrap(), b"new");
    // A directory does not replace a link to another directory either.
    fs::create_dir(folders.from("dir")).unwrap();
    fs::write(folders.from("dir/file"), "wrong").unwrap();
    symlink(&outside, folders.to("dir")).unwrap();
    let (source, target) = (
        File::open(folders.from("")).unwrap(),
        File::open(folders.to("")).unwrap(),
    );
    let failed = Transfer::new(target.as_fd()).contents(source.as_fd(), target.as_fd());
    assert!(
        matches!(failed, Err(Error::NotADirectory { .. })),
        "{failed:?}"
    );
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
}
