//! Volumes as disks: sectors and partitions, imports of disk images, shared mappings, and the loop
//! devices that are left when all processes are killed.

use crate::harness::{
    Bench, Reaped, clear_mounts, expect_failure, host, loops_below, mounts_below, noise,
};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

fn sectors(device: &str) -> String {
    host("blockdev", ["--getss", device]).trim().to_owned()
}

/// Creates a disk image with a DOS partition table of one partition, which begins with `inside`.
fn partitioned(bench: &Bench, inside: &[u8]) -> String {
    let path = bench.path("disk.img");
    let file = File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    let mut table = [0; 512];
    // Type Linux, from sector 2048 on, 8192 sectors.
    table[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0x20, 0, 0]);
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(&table, 0).unwrap();
    file.write_all_at(inside, 2048 * 512).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn sectors_are_kept_with_a_volume_and_what_is_cloned_from_it() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "16M"]);
    let attached = |name: &str| bench.ok(["attach", name]).trim().to_owned();
    let device = attached("disk");
    assert_eq!(sectors(&device), "4096");
    bench.fails(
        ["attach", "disk", "--sector-size", "512"],
        1,
        "sectors of 4096 bytes",
    );
    bench.ok(["detach", "disk"]);
    let device = bench
        .ok(["attach", "disk", "--sector-size", "512"])
        .trim()
        .to_owned();
    assert_eq!(sectors(&device), "512");
    // Parts of blocks, past all caches.
    let bytes = noise(512, 7);
    host(
        "dd",
        [
            "if=/dev/zero",
            &format!("of={device}"),
            "bs=512",
            "count=1",
            "seek=5",
            "oflag=direct",
            "status=none",
        ],
    );
    let whole = File::options().write(true).open(&device).unwrap();
    whole.write_all_at(&bytes, 512 * 3).unwrap();
    whole.sync_all().unwrap();
    drop(whole);
    bench.ok(["detach", "disk"]);
    assert_eq!(sectors(&attached("disk")), "512");
    bench.ok(["detach", "disk"]);
    bench.ok(["volume", "snapshot", "disk", "snap"]);
    bench.ok(["volume", "clone", "snap", "copy"]);
    let copy = attached("copy");
    assert_eq!(sectors(&copy), "512");
    let mut found = vec![0; 512];
    File::open(&copy)
        .unwrap()
        .read_exact_at(&mut found, 512 * 3)
        .unwrap();
    assert_eq!(found, bytes);
    bench.ok(["detach", "copy"]);
    bench.ok(["attach", "copy", "--sector-size", "4096"]);
    bench.ok(["detach", "copy"]);
    assert_eq!(sectors(&attached("copy")), "4096");
    bench.ok(["detach", "copy"]);
    let output = bench.run(["attach", "copy", "--as", "file", "--sector-size", "512"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn an_imported_disk_has_the_sectors_it_was_made_for_and_shows_its_partitions() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    let inside = noise(4096, 8);
    let image = partitioned(&bench, &inside);
    bench.ok(["volume", "import", "disk", &image]);
    let device = bench.ok(["attach", "disk"]).trim().to_owned();
    assert_eq!(sectors(&device), "512");
    let part = format!("{device}p1");
    if !Path::new(&part).exists() {
        // A kernel that does not read such tables is given the partition.
        println!("NOT TESTED: this kernel reads no partition tables by itself");
        host("partx", ["--add", &device]);
    }
    let numbers = |node: &str| fs::metadata(node).unwrap().rdev();
    assert_ne!(numbers(&part), numbers(&device));
    let mut found = vec![0; inside.len()];
    File::open(&part)
        .unwrap()
        .read_exact_at(&mut found, 0)
        .unwrap();
    assert!(found == inside, "the partition is elsewhere");
    // A user of a partition is a user of the device.
    host("mkfs.ext4", ["-q", &part]);
    let place = bench.path("at");
    fs::create_dir(&place).unwrap();
    host("mount", [part.as_str(), place.to_str().unwrap()]);
    let output = bench.run(["detach", "disk"]);
    host("umount", [&place]);
    expect_failure(&output, 1, place.to_str().unwrap());
    bench.ok(["detach", "disk"]);
    assert!(
        !Path::new(&part).exists(),
        "a partition of nothing was left"
    );

    // XFS contains its sector size, and is refused on larger sectors.
    if Command::new("mkfs.xfs").arg("-V").output().is_ok() {
        let image = bench.path("xfs.img");
        File::create(&image).unwrap().set_len(400 << 20).unwrap();
        host("mkfs.xfs", ["-q", image.to_str().unwrap()]);
        bench.ok(["volume", "import", "xfs", image.to_str().unwrap()]);
        let device = bench.ok(["attach", "xfs"]).trim().to_owned();
        host("mount", [device.as_str(), place.to_str().unwrap()]);
        host("umount", [&place]);
        bench.ok(["detach", "xfs"]);
    }
    daemon.stop();
}

#[test]
fn a_containers_root_takes_direct_writes_of_512_bytes_from_many_at_once() {
    let bench = Bench::with_pool("2G");
    let root = bench.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("f"), "x").unwrap();
    let daemon = bench.serve();
    bench.ok(["image", "import", root.to_str().unwrap(), "--name", "i"]);
    let place = bench.ok(["container", "create", "i", "--name", "c", "--mount"]);
    let file = Path::new(place.trim()).join("file");
    fs::write(&file, vec![0; 64 << 10]).unwrap();
    host("sync", ["-f", file.to_str().unwrap()]);
    // Each writer has every eighth sector, so all of them write parts of the same blocks.
    std::thread::scope(|scope| {
        for writer in 0..8_usize {
            let file = &file;
            scope.spawn(move || {
                let direct = OpenOptions::new()
                    .write(true)
                    .custom_flags(libc::O_DIRECT)
                    .open(file)
                    .unwrap();
                let mut memory = vec![0; 1024];
                let start = memory.as_ptr().align_offset(512);
                let sector = &mut memory[start..start + 512];
                for round in 1..=4_u8 {
                    for block in 0..16 {
                        sector.fill(u8::try_from(writer).unwrap() * 16 + round);
                        let at = (block * 8 + writer) as u64 * 512;
                        direct.write_all_at(sector, at).unwrap();
                    }
                }
            });
        }
    });
    bench.ok(["container", "unmount", "c"]);
    let place = bench.ok(["container", "mount", "c"]);
    let found = fs::read(Path::new(place.trim()).join("file")).unwrap();
    for (index, sector) in found.chunks(512).enumerate() {
        let wanted = u8::try_from(index % 8).unwrap() * 16 + 4;
        assert!(sector.iter().all(|byte| *byte == wanted), "sector {index}");
    }
    bench.ok(["container", "rm", "c"]);
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn a_file_that_is_no_raw_disk_is_refused_with_the_command_that_makes_it_one() {
    let bench = Bench::with_pool("256M");
    let mut qcow2 = b"QFI\xfb\0\0\0\x03".to_vec();
    qcow2.resize(196_608, 0);
    let mut vdi = b"<<< Oracle VM VirtualBox Disk Image >>>\n".to_vec();
    vdi.resize(64, 0);
    vdi.extend(b"\x7f\x10\xda\xbe");
    vdi.resize(2 << 20, 0);
    // A format with its mark only at the end.
    let mut vhd = noise(1 << 20, 3);
    vhd.extend(b"conectix");
    vhd.resize((1 << 20) + 512, 0);
    for (name, bytes, command) in [
        ("a.qcow2", qcow2, "qemu-img convert -f qcow2"),
        ("a.vdi", vdi, "qemu-img convert -f vdi"),
        ("a.vhd", vhd, "qemu-img convert -f vpc"),
        ("a.gz", b"\x1f\x8b\x08\0".repeat(99), "gzip -dc"),
        ("a.zst", b"\x28\xb5\x2f\xfd".repeat(99), "zstd -dc"),
    ] {
        let path = bench.path(name);
        fs::write(&path, &bytes).unwrap();
        let path = path.to_str().unwrap();
        bench.fails(["volume", "import", "vm", path], 1, command);
        let import = |raw: bool| {
            let mut import = bench.command(["volume", "import", "vm", "-"]);
            import.args(raw.then_some("--raw"));
            let import = import.stdin(Stdio::piped()).stdout(Stdio::null());
            let mut child = Reaped(import.stderr(Stdio::piped()).spawn().unwrap());
            let mut pipe = child.0.stdin.take().unwrap();
            // A refused source is not read to its end.
            let _ = pipe.write_all(&bytes);
            drop(pipe);
            let mut said = String::new();
            std::io::Read::read_to_string(&mut child.0.stderr.take().unwrap(), &mut said).unwrap();
            (child.0.wait().unwrap().success(), said)
        };
        let (done, said) = import(false);
        assert!(!done && said.contains(command), "{name}: {said}");
        assert!(bench.volumes().is_empty(), "{name} left a volume");
        assert!(import(true).0, "{name}");
        assert!(
            bench.run(["volume", "export", "vm", "-"]).stdout == bytes,
            "{name}"
        );
        bench.ok(["volume", "rm", "vm"]);
        bench.ok(["volume", "import", "vm", path, "--raw"]);
        bench.ok(["volume", "rm", "vm"]);
    }
}

#[test]
fn a_volumes_file_is_mapped_shared_and_holds_what_was_stored() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "16M"]);
    let path = bench
        .ok(["attach", "disk", "--as", "file"])
        .trim()
        .to_owned();
    let fio = |more: &[&str]| {
        let mut fio = Command::new("fio");
        fio.args([
            "--name=map",
            // It would leave files in the working directory.
            "--verify_state_save=0",
            "--size=16M",
            "--bs=4k",
            "--allow_file_create=0",
            "--rw=randwrite",
        ]);
        fio.args([
            "--ioengine=mmap",
            "--verify=crc32c",
            "--output-format=terse",
        ]);
        let output = fio
            .arg(format!("--filename={path}"))
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    fio(&["--fsync=64"]);
    bench.ok(["volume", "snapshot", "disk", "snap"]);
    // The same blocks, read from the snapshot.
    let snap = daemon.mount.join("snap");
    let read = Command::new("cmp").arg(&path).arg(&snap).status().unwrap();
    assert!(read.success());
    let disk = fs::read(&path).unwrap();
    assert!(
        disk.chunks(4096)
            .filter(|block| block.iter().any(|byte| *byte != 0))
            .count()
            > 4000
    );
    fio(&["--verify_only"]);
    bench.ok(["detach", "disk"]);
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn a_volumes_file_asks_for_large_reads() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "16M"]);
    let found = fs::metadata(daemon.mount.join("disk")).unwrap();
    assert!(found.blksize() >= 64 << 10, "{}", found.blksize());
    daemon.stop();
}

/// Kills all processes of a daemon that has a container mounted and a volume attached, and removes
/// the mounts; returns the loop devices that are left.
fn kill_and_unmount(bench: &Bench) -> Vec<String> {
    let root = bench.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("f"), "x").unwrap();
    let daemon = bench.serve();
    bench.ok(["image", "import", root.to_str().unwrap(), "--name", "i"]);
    bench.ok(["container", "create", "i", "--name", "c", "--mount"]);
    bench.ok(["volume", "create", "disk", "--size", "16M"]);
    bench.ok(["attach", "disk"]);
    let state = daemon.mount.parent().unwrap().to_owned();
    let devices = loops_below(&daemon.mount);
    assert_eq!(devices.len(), 2);
    daemon.kill();
    for mount in mounts_below(&state) {
        host("umount", [Path::new("-l"), &mount]);
    }
    assert!(
        loops_below(&state).is_empty(),
        "the path still tells whose they are"
    );
    devices
}

fn attached_still(devices: &[String]) -> Vec<String> {
    let list = host(
        "losetup",
        ["--list", "--noheadings", "--output", "NAME,BACK-FILE"],
    );
    let is_left = |device: &&String| {
        list.lines().any(|line| {
            let mut fields = line.split_whitespace();
            fields.next() == Some(device.as_str())
                && fields
                    .next()
                    .is_some_and(|file| !file.contains("/volumes/"))
        })
    };
    devices.iter().filter(is_left).cloned().collect()
}

#[test]
fn loop_devices_of_killed_processes_go_at_the_next_start_wherever_their_mounts_went() {
    let bench = Bench::with_pool("1G");
    let devices = kill_and_unmount(&bench);
    let daemon = bench.serve();
    let left = attached_still(&devices);
    for device in &left {
        drop(Command::new("losetup").args(["-d", device]).status());
    }
    assert_eq!(left, Vec::<String>::new());
    // Only existing devices are recorded.
    bench.ok(["attach", "disk"]);
    bench.ok(["detach", "disk"]);
    daemon.stop();
    clear_mounts(&bench.path(""));
    bench.expect_sound();
}

#[test]
fn loop_devices_of_a_pool_that_is_gone_go_with_gc_of_another() {
    let bench = Bench::with_pool("1G");
    let devices = kill_and_unmount(&bench);
    fs::remove_file(bench.pool()).unwrap();
    let other = Bench::with_pool("64M");
    assert!(!attached_still(&devices).is_empty());
    other.ok(["gc"]);
    let left = attached_still(&devices);
    for device in &left {
        drop(Command::new("losetup").args(["-d", device]).status());
    }
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(other.json(["volume", "ls"]), Value::Array(Vec::new()));
}
