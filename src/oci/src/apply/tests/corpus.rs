//! Archives written by common tools with various options, compared with the same tool's extraction.
//! Needs GNU tar, bsdtar, xz, bzip2, zstd, pigz, setfacl and getfacl.

use super::*;
use crate::source::{Image, Select, SourceInput};
use crate::testing::{make_sparse, set_xattr};
use nix::sys::stat::{Mode, SFlag, mknod};
use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::PathBuf;
use std::process::Command;

/// Folders with a source, and with the results of other tools and of this crate.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["source", "theirs", "ours"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a script in the folder.
    fn run(&self, script: &str) -> String {
        let output = Command::new("bash")
            .args(["-euc", script])
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn clear(&self) {
        self.run("rm -rf theirs ours layer.tar* list; mkdir theirs ours");
    }

    /// Applies `layer.tar`.
    fn apply(&self) -> Result<Applied> {
        apply_to(&self.at("ours"), &fs::read(self.at("layer.tar")).unwrap())
    }
}

/// Creates objects that every format can hold: short ASCII names, whole seconds, small numbers.
fn make_plain(root: &Path) {
    let at = |path: &str| root.join(path);
    fs::create_dir_all(at("bin/deeper")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("bin/su"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(at("bin/su"), PermissionsExt::from_mode(0o4755)).unwrap();
    fs::hard_link(at("bin/su"), at("bin/su-again")).unwrap();
    fs::write(at("bin/deeper").join("n".repeat(80)), vec![7; 70_000]).unwrap();
    fs::write(at("none"), b"").unwrap();
    lchown(at("none"), Some(1000), Some(50)).unwrap();
    symlink("bin/su", at("link")).unwrap();
    make_sparse(&at("holes"), 40);
    for path in tree(root).into_keys() {
        set_time(&root.join(path), 1_000_000_000, 0);
    }
}

/// As `make_plain`, plus objects that v7 cannot hold.
fn make_more(root: &Path) {
    make_plain(root);
    let at = |path: &str| root.join(path);
    mknod(
        &at("null"),
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        nix::sys::stat::makedev(1, 3),
    )
    .unwrap();
    mknod(
        &at("pipe"),
        SFlag::S_IFIFO,
        Mode::from_bits_truncate(0o600),
        0,
    )
    .unwrap();
    let long = ["d".repeat(60), "e".repeat(60)].join("/");
    fs::create_dir_all(at(&long)).unwrap();
    fs::write(at(&long).join("name"), b"in the prefix").unwrap();
    for path in tree(root).into_keys() {
        set_time(&root.join(path), 1_000_000_000, 0);
    }
}

#[test]
fn every_format_of_gnu_tar_becomes_what_gnu_tar_makes_of_it() {
    let bench = Bench::new();
    make_plain(&bench.at("source"));
    for format in ["v7", "oldgnu", "gnu", "ustar", "pax", "posix"] {
        if format == "oldgnu" {
            make_more_in(&bench);
        }
        for options in ["", "-S", "--blocking-factor=1", "--xattrs --acls --selinux"] {
            let holds = !(options == "-S" && ["v7", "ustar"].contains(&format));
            let holds =
                holds && (!options.contains("xattrs") || ["pax", "posix"].contains(&format));
            if !holds {
                continue;
            }
            bench.clear();
            bench.run(&format!(
                "tar -cf layer.tar --format={format} {options} -C source . 2>errors"
            ));
            gnu_extract(&bench.at("layer.tar"), &bench.at("theirs"));
            let applied = bench.apply().unwrap();
            assert_eq!(applied.dropped, Dropped::default(), "{format} {options}");
            assert_same(&tree(&bench.at("ours")), &tree(&bench.at("theirs")));
        }
    }
}

fn make_more_in(bench: &Bench) {
    bench.run("rm -rf source; mkdir source");
    make_more(&bench.at("source"));
}

#[test]
fn every_format_of_bsdtar_becomes_what_bsdtar_makes_of_it() {
    let bench = Bench::new();
    make_plain(&bench.at("source"));
    for format in [
        "v7tar",
        "ustar",
        "gnutar",
        "pax",
        "pax --options=xattrheader=LIBARCHIVE",
    ] {
        if format == "ustar" {
            make_more_in(&bench);
            set_xattr(&bench.at("source/none"), c"user.of=bsd", b"a\0b");
            set_time(&bench.at("source/none"), 1_000_000_000, 0);
        }
        bench.clear();
        bench.run(&format!(
            "bsdtar -cf layer.tar --format={format} -C source ."
        ));
        bench.run("bsdtar -xpf layer.tar -C theirs --numeric-owner");
        bench.apply().unwrap();
        // bsdtar keeps the time of the folder that it extracts into.
        let below = |name: &str| {
            let mut found = tree(&bench.at(name));
            found.remove(Path::new(""));
            found
        };
        assert_same(&below("ours"), &below("theirs"));
    }
}

#[test]
fn access_control_lists_in_text_form_are_set_by_number_or_by_the_names_of_the_image() {
    let bench = Bench::new();
    bench.run(
        "cd source; mkdir -p etc dir; echo x > file
         echo 'lisa:x:4242:4242::/:/bin/sh' > etc/passwd; echo 'serve_threads:x:777:' > etc/group
         setfacl -m u:12345:rwx,g:54321:r-x file
         setfacl -m u:22222:rx -d -m u:1234:rwX,g::r-x,m::rwx dir",
    );
    let lists = "getfacl -Rn . | grep -v '^# file'";
    let wanted = bench.run(&format!("cd source; {lists}"));
    assert!(wanted.contains("default:user:1234:rwx"), "{wanted}");
    for command in [
        "tar --numeric-owner --acls --format=pax -cf layer.tar -C source .",
        "tar --numeric-owner --acls --xattrs --xattrs-include=* --format=pax -cf layer.tar -C source .",
        "bsdtar --acls --format=pax -cf layer.tar -C source .",
    ] {
        bench.clear();
        bench.run(command);
        let applied = bench.apply().unwrap();
        assert_eq!(applied.dropped, Dropped::default(), "{command}");
        assert_eq!(bench.run(&format!("cd ours; {lists}")), wanted, "{command}");
    }
    // Names without numbers refer to the image, and not to this host.
    let record = |user: &str| {
        let mut records = Vec::new();
        let list = format!(
            "user::rw-\nuser:{user}:r--\ngroup::r--\ngroup:serve_threads:rw-\nmask::rw-\nother::r--\n"
        );
        put_record(&mut records, b"SCHILY.acl.access", list.as_bytes());
        records
    };
    let layer = Tarball::new()
        .file("etc/passwd", b"lisa:x:4242:4242::/:/bin/sh\n")
        .file("etc/group", b"serve_threads:x:777:\n")
        .raw(EntryType::XHeader, "x", "", &record("lisa"))
        .file("known", b"1")
        .raw(EntryType::XHeader, "x", "", &record("nobody-here"))
        .file("unknown", b"2");
    bench.clear();
    fs::write(bench.at("layer.tar"), layer.bytes()).unwrap();
    let applied = bench.apply().unwrap();
    let found = bench.run("cd ours; getfacl -n known");
    assert!(
        found.contains("user:4242:r--\n") && found.contains("group:777:rw-\n"),
        "{found}"
    );
    assert_eq!(applied.dropped.count(Loss::NamedAcl), 1);
    let lines: Vec<_> = applied.dropped.lines().collect();
    assert!(lines[0].contains("(unknown)"), "{lines:?}");
}

#[test]
fn archives_of_incremental_backups_and_labels_are_understood_and_said() {
    let bench = Bench::new();
    make_more(&bench.at("source"));
    for format in ["gnu", "pax"] {
        bench.clear();
        bench.run(&format!(
            "tar -cf layer.tar --format={format} -V 'a label' --listed-incremental=list -C source ."
        ));
        let applied = bench.apply().unwrap();
        assert!(applied.dropped.count(Loss::DirectoryList) >= 5, "{format}");
        if format == "gnu" {
            assert_eq!(applied.dropped.count(Loss::VolumeLabel), 1);
        }
        assert_same(&tree(&bench.at("ours")), &tree(&bench.at("source")));
    }
}

#[test]
fn a_later_volume_of_several_is_refused_with_what_to_do() {
    for format in ["gnu", "pax"] {
        let bench = Bench::new();
        bench.run("head -c 40000 /dev/urandom > source/file");
        bench.run(&format!(
            "tar -cM --format={format} -L 20 -f one -f layer.tar -f three -C source file"
        ));
        let refused = bench.apply().unwrap_err();
        assert!(
            matches!(refused, Error::Unsupported { .. }),
            "{format}: {refused}"
        );
        let text = refused.to_string();
        assert!(text.contains("extract all volumes together"), "{text}");
    }
}

#[test]
fn every_compression_is_read_with_members_padding_and_large_windows() {
    let bench = Bench::new();
    make_plain(&bench.at("source"));
    bench.run("tar -cf layer.tar -C source .; head -c 100000 layer.tar > a; tail -c +100001 layer.tar > b");
    let wanted = crate::Digest::of(&fs::read(bench.at("layer.tar")).unwrap());
    let open = |name: &str| {
        let input = SourceInput::Path(bench.at(name));
        let image = Image::open(input, bench.folder.path(), &Select::named(None))?;
        image.open_layer(0)?.finish()
    };
    for script in [
        "gzip -c layer.tar",
        "gzip -c a; gzip -c b",
        "pigz -p 4 -b 128 -i -c layer.tar",
        "gzip -c layer.tar; head -c 5000 /dev/zero",
        "xz -c layer.tar",
        "xz -9e -T2 --block-size=100000 -c layer.tar",
        "xz -c a; head -c 8 /dev/zero; xz --check=none -c b",
        "bzip2 -c layer.tar",
        "bzip2 -c a; bzip2 -c b; head -c 512 /dev/zero",
        "zstd -q -c layer.tar",
        "zstd -q --long=27 -c layer.tar",
        "zstd -q -c a; zstd -q --format=zstd -19 -c b; head -c 512 /dev/zero",
    ] {
        bench.run(&format!("{{ {script}; }} > packed"));
        let found = open("packed").map(|found| found.diff_id);
        assert_eq!(found.unwrap(), wanted, "{script}");
    }
    for script in [
        // The window depends on the content's size unless that is not known.
        "cat layer.tar /dev/zero | head -c 300M | zstd -q --long=30 -c",
        "xz --format=xz --lzma2=preset=0,dict=512MiB -c layer.tar",
    ] {
        bench.run(&format!("{{ {script}; }} > packed"));
        let refused = open("packed").unwrap_err();
        assert!(matches!(refused, Error::Window), "{script}: {refused}");
    }
}

#[test]
fn an_archive_without_entries_is_an_empty_root_and_zeros_alone_are_none() {
    let bench = Bench::new();
    bench.run("tar -cf layer.tar -T /dev/null");
    let applied = bench.apply().unwrap();
    assert_eq!(
        (applied.entries, applied.dropped.count(Loss::Nothing)),
        (0, 1)
    );
    let input = SourceInput::Path(bench.at("layer.tar"));
    let image = Image::open(input, bench.folder.path(), &Select::named(None)).unwrap();
    assert_eq!(
        image.open_layer(0).unwrap().finish().unwrap().size_bytes,
        10_240
    );
    bench.run("(head -c 2048 /dev/zero; echo no archive) > layer.tar");
    assert!(matches!(bench.apply(), Err(Error::NotAnImage(_))));
}

#[test]
fn what_follows_the_end_of_an_archive_is_said() {
    let bench = Bench::new();
    make_plain(&bench.at("source"));
    bench.run("tar -cf one -C source bin; tar -cf two -C source none; cat one two > layer.tar");
    let applied = bench.apply().unwrap();
    assert_eq!(applied.dropped.count(Loss::AfterEnd), 1);
    assert!(!bench.at("ours/none").exists());
}

#[test]
fn the_deepest_tree_that_can_be_written_can_be_read_and_removed() {
    let bench = Bench::new();
    let deep = "d/".repeat(2040);
    let source = bench.at("source");
    bench.run(&format!(
        "cd source; mkdir -p {deep}; echo deep > {deep}file"
    ));
    let input = SourceInput::Path(source);
    let image = Image::open(input, bench.folder.path(), &Select::named(None)).unwrap();
    let ours = bench.at("ours");
    let options = ApplyOptions::default();
    apply(
        open_folder(&ours).as_fd(),
        image.open_layer(0).unwrap(),
        options,
    )
    .unwrap();
    assert_eq!(bench.run(&format!("cd ours; cat {deep}file")), "deep\n");
    // A whiteout has four letters more than the name, and is applied with one descriptor open.
    let mut records = Vec::new();
    let path = format!("{deep}.wh.file");
    put_record(&mut records, b"path", path.as_bytes());
    let layer = Tarball::new()
        .raw(EntryType::XHeader, "x", "", &records)
        .file("long", b"")
        .file("d/.wh.d", b"");
    apply_to(&ours, &layer.bytes()).unwrap();
    assert_eq!(paths(&tree(&ours)), ["d"]);
    bench.run("rm -r source");
}

#[test]
fn kinds_of_entries_of_other_tars_are_made_left_out_with_a_line_or_refused() {
    let kind = |letter: u8| EntryType::new(letter);
    let layer = Tarball::new()
        .raw(kind(b'7'), "contiguous", "", b"in one piece")
        .raw(kind(b'A'), "acl-of-solaris", "", b"user::rwx")
        .raw(kind(b'E'), "attribute-file", "", &[1; 700])
        .file("file", b"content")
        .raw(EntryType::Link, "link", "file", b"content")
        .raw(EntryType::Link, "other-link", "file", &[7; 513])
        .raw(kind(b'D'), "dumped/", "", b"Yfile\0Nother\0\0")
        .file("dumped/file", b"");
    let root = tempfile::tempdir().unwrap();
    let applied = apply_to(root.path(), &layer.bytes()).unwrap();
    let there = [
        "contiguous",
        "dumped",
        "dumped/file",
        "file",
        "link",
        "other-link",
    ];
    assert_eq!(paths(&tree(root.path())), there);
    assert_eq!(
        fs::read(root.path().join("other-link")).unwrap(),
        b"content"
    );
    for (loss, count) in [
        (Loss::OtherAcl, 1),
        (Loss::OtherMetadata, 1),
        (Loss::LinkContent, 2),
        (Loss::DirectoryList, 1),
    ] {
        assert_eq!(applied.dropped.count(loss), count, "{loss}");
    }
    let mut text = String::new();
    for line in applied.dropped.lines() {
        writeln!(text, "{line}").unwrap();
    }
    assert!(text.contains("(2 times, first at link)"), "{text}");
    for letter in *b"MN" {
        let refused = refuse(&Tarball::new().raw(kind(letter), "x", "", b""));
        assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
    }
    let refused = refuse(&Tarball::new().raw(kind(b'q'), "x", "", b""));
    let fault = HeaderFault::Kind;
    assert!(matches!(&refused, Error::Header { fault: found, .. } if *found == fault));
}

#[test]
fn what_records_say_and_a_root_cannot_hold_is_said() {
    let record = |key: &str, value: &str| {
        let mut records = Vec::new();
        put_record(&mut records, key.as_bytes(), value.as_bytes());
        records
    };
    let mut layer = Tarball::new();
    for (key, value) in [
        ("RHT.security.selinux", "system_u:object_r:bin_t:s0\0"),
        ("SCHILY.fflags", "nodump"),
        ("SCHILY.acl.ace", "owner@:rwx:allow"),
        ("SCHILY.acl.default", "user::rwx,group::r-x,other::r-x"),
        ("SCHILY.xattr.no-such-namespace.x", "1"),
    ] {
        layer = layer
            .raw(EntryType::XHeader, "x", "", &record(key, value))
            .file(key, b"1");
    }
    let root = tempfile::tempdir().unwrap();
    let applied = apply_to(root.path(), &layer.bytes()).unwrap();
    for loss in [
        Loss::SecurityLabel,
        Loss::FileFlags,
        Loss::OtherAcl,
        Loss::DefaultAcl,
        Loss::Attribute,
    ] {
        assert_eq!(applied.dropped.count(loss), 1, "{loss}");
    }
    for (key, value) in [("SUN.holesdata", " 0 512"), ("GNU.volume.offset", "512")] {
        let layer = Tarball::new()
            .raw(EntryType::XHeader, "x", "", &record(key, value))
            .file("x", b"1");
        assert!(matches!(refuse(&layer), Error::Unsupported { .. }), "{key}");
    }
    let list = record("SCHILY.acl.access", "no list at all");
    let layer = Tarball::new()
        .raw(EntryType::XHeader, "x", "", &list)
        .file("x", b"1");
    let fault = HeaderFault::Acl;
    assert!(matches!(refuse(&layer), Error::Header { fault: found, .. } if found == fault));
}

#[test]
fn the_prefix_of_stars_headers_ends_before_their_times() {
    let mut header = tar::Header::new_ustar();
    let bytes = header.as_mut_bytes();
    bytes[..4].copy_from_slice(b"name");
    bytes[345..476].copy_from_slice(&[b'p'; 131]);
    bytes[476..488].copy_from_slice(b"07000000000 ");
    bytes[508..].copy_from_slice(b"tar\0");
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(1_000_000_000);
    header.set_cksum();
    let layer = [header.as_bytes().as_slice(), &[0; 1024]].concat();
    let root = tempfile::tempdir().unwrap();
    apply_to(root.path(), &layer).unwrap();
    let folder = "p".repeat(131);
    assert_eq!(
        paths(&tree(root.path())),
        [folder.clone(), format!("{folder}/name")]
    );
}
