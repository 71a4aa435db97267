//! Pools of which a part is lost for good: the rest is used, what is missing is told, and a repair
//! ends it when it is asked to.

use crate::harness::{Bench, noise};
use cowshed_format::base::BLOCK_BYTES;
use cowshed_format::{Superblock, node};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

fn pool_file(bench: &Bench) -> File {
    let mut options = File::options();
    options.read(true).write(true).open(bench.pool()).unwrap()
}

fn read_block(device: &File, offset: u64) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    device.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

fn newest(device: &File) -> Superblock {
    let found = [0, 4096].map(|offset| Superblock::decode(&read_block(device, offset)).ok());
    let newest = found.into_iter().flatten();
    newest.max_by_key(|found| found.generation).unwrap()
}

/// Overwrites every copy of one block of the catalogue that has the entry of `name`.
fn lose_entry(bench: &Bench, name: &str) {
    let device = pool_file(bench);
    let superblock = newest(&device);
    assert_eq!(superblock.catalogue_height, 1);
    let root = read_block(&device, superblock.catalogue_root.addr().offset_bytes());
    let holds = |bytes: &[u8]| {
        bytes
            .windows(name.len())
            .any(|each| each == name.as_bytes())
    };
    let start = superblock.layout.groups_start();
    let entries = node::decode(&root);
    let pointers = entries.iter().filter(|pointer| !pointer.is_hole());
    let mut lost =
        pointers.filter(|pointer| holds(&read_block(&device, pointer.addr().offset_bytes())));
    let pointer = lost.next().unwrap();
    for addr in pointer.places(start) {
        device
            .write_all_at(&[0x5a; BLOCK_BYTES], addr.offset_bytes())
            .unwrap();
    }
}

/// Returns a long name, so that few entries fit into a block of the catalogue.
fn long_name(number: u32) -> String {
    format!("volume-{number:03}-{}", "x".repeat(200))
}

#[test]
fn a_lost_block_of_the_catalogue_costs_what_it_named() {
    let bench = Bench::with_pool("256M");
    let file = bench.path("in");
    fs::write(&file, noise(100_000, 5)).unwrap();
    let file = file.to_str().unwrap();
    let names: Vec<String> = (0..40).map(long_name).collect();
    for name in &names {
        bench.ok(["volume", "import", name, file]);
    }
    lose_entry(&bench, &names[17]);

    let left = bench.volumes();
    assert!(!left.contains(&names[17]) && left.len() > 20, "{left:?}");
    let missing = (names.len() - left.len()) as u64;
    let listing = bench.run(["volume", "ls"]);
    let said = String::from_utf8_lossy(&listing.stderr);
    assert!(
        said.contains(&format!("{missing} volumes are missing")) && said.contains("--forget"),
        "{said}"
    );
    let status = bench.json(["pool", "status"]);
    assert_eq!(status["missing"]["volumes"], missing, "{status}");
    assert_eq!(status["missing"]["catalogue_blocks"], 1, "{status}");
    let judged = bench.run(["pool", "status", "--check"]);
    assert_eq!(judged.status.code(), Some(4), "{judged:?}");
    bench.fails(["gc"], 1, "what is unused cannot be told");

    // The rest is used as ever, also by a daemon.
    let daemon = bench.serve();
    assert!(bench.run(["volume", "export", &left[0], "-"]).stdout == fs::read(file).unwrap());
    bench.ok(["volume", "import", "new", file]);
    bench.ok(["volume", "snapshot", "new", "new@1"]);
    bench.ok(["volume", "rm", &left[1]]);
    daemon.stop();
    assert!(bench.run(["volume", "export", "new@1", "-"]).stdout == fs::read(file).unwrap());

    for (options, status, why) in [
        (&["--repair"][..], 3, "--repair --forget gives it up"),
        (&["--forget"], 2, "--repair"),
    ] {
        let refused = bench.run(["pool", "check"].iter().chain(options));
        assert_eq!(refused.status.code(), Some(status), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains(why), "{said}");
    }
    let repaired = bench.run(["pool", "check", "--repair", "--forget"]);
    assert!(repaired.status.success(), "{repaired:?}");
    let repaired = String::from_utf8_lossy(&repaired.stdout);
    assert!(
        repaired.contains("catalogue: 1 damaged block"),
        "{repaired}"
    );
    bench.expect_sound();
    let mut kept = left;
    kept.remove(1);
    kept.extend(["new".to_owned(), "new@1".to_owned()]);
    let mut now = bench.volumes();
    kept.sort();
    now.sort();
    assert_eq!(now, kept);
    assert_eq!(bench.json(["pool", "status"])["missing"]["volumes"], 0);
}

#[test]
fn a_pool_with_a_damaged_log_is_read_in_its_state_before_the_damage() {
    let bench = Bench::with_pool("256M");
    let file = bench.path("in");
    fs::write(&file, noise(50_000, 6)).unwrap();
    let file = file.to_str().unwrap();
    bench.ok(["volume", "import", "before", file]);
    let daemon = bench.serve();
    for number in 0..8 {
        bench.ok(["volume", "create", &long_name(number), "--size", "1M"]);
    }
    daemon.kill();
    // The record of the fourth volume: flushed, as later records say.
    let device = pool_file(&bench);
    let superblock = newest(&device);
    let (start, bytes) = (
        superblock.layout.log_offset_bytes(),
        superblock.layout.log_bytes(),
    );
    let mut ring = vec![0; usize::try_from(bytes).unwrap()];
    device.read_exact_at(&mut ring, start).unwrap();
    let name = long_name(3);
    let mut windows = ring.windows(name.len());
    let at = windows.position(|each| each == name.as_bytes());
    let at = at.expect("no checkpoint has emptied the log") as u64;
    device.write_all_at(b"?", start + at).unwrap();
    drop(device);

    let listing = bench.run(["volume", "ls", "--json"]);
    assert!(listing.status.success(), "{listing:?}");
    let said = String::from_utf8_lossy(&listing.stderr);
    assert!(said.contains("its log is damaged at record"), "{said}");
    let shown = String::from_utf8_lossy(&listing.stdout);
    assert!(shown.contains("before") && shown.contains(&long_name(2)));
    assert!(!shown.contains(&name), "{shown}");
    assert!(bench.run(["volume", "export", "before", "-"]).stdout == fs::read(file).unwrap());
    let refused = bench.run(["volume", "rm", "before"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the pool is open read-only"));
    // It does not become a mirror that nobody can open.
    let second = bench.path("second");
    let add = ["pool", "mirror", "add", second.to_str().unwrap()];
    bench.fails(add, 1, "its log is damaged at record");
    assert!(!second.exists());
    let labels = [2, 3, 4, 5].map(|block| read_block(&pool_file(&bench), block * 4096));
    assert!(labels.as_flattened().iter().all(|byte| *byte == 0));
    let status = bench.json(["pool", "status"]);
    assert_eq!(status["state"], "read-only");
    assert!(status["log_damaged_at"].is_u64(), "{status}");
    bench.fails(["serve"], 3, "pool check --repair");
    bench.ok_quietly(["pool", "check", "--repair"]);
    assert!(bench.volumes().contains(&long_name(2)));
    bench.ok(["volume", "rm", "before"]);
    bench.expect_sound();
}

#[test]
fn a_dump_has_the_structure_and_no_names_unless_asked() {
    let bench = Bench::with_pool("256M");
    let file = bench.path("in");
    fs::write(&file, noise(3 << 20, 7)).unwrap();
    bench.ok(["volume", "import", "secret", file.to_str().unwrap()]);
    bench.ok(["volume", "snapshot", "secret", "secret@1"]);
    let lines = |text: &str| -> Vec<serde_json::Value> {
        let line = |line: &str| serde_json::from_str(line).expect(line);
        text.lines().map(line).collect()
    };
    let text = bench.ok(["pool", "dump"]);
    assert!(!text.contains("secret"), "{text}");
    let dumped = lines(&text);
    let of = |kind: &str| dumped.iter().filter(|line| line["type"] == kind).count();
    assert_eq!((of("superblock"), of("volume"), of("damaged")), (4, 2, 0));
    assert_eq!(
        dumped.iter().filter(|line| line["counts"] == true).count(),
        2
    );
    let is_data = |line: &&serde_json::Value| line["type"] == "data" && line["volume"] != 0;
    let blocks = dumped
        .iter()
        .filter(is_data)
        .map(|line| line["blocks"].as_u64());
    // The snapshot has the same map, which is shown once.
    assert_eq!(blocks.map(Option::unwrap).sum::<u64>(), (3 << 20) / 4096);
    assert!(bench.ok(["pool", "dump", "--names"]).contains("secret@1"));
    lose_entry(&bench, "secret@1");
    let dumped = lines(&bench.ok(["pool", "dump"]));
    assert!(dumped.iter().any(|line| line["type"] == "damaged"));
    let daemon = bench.serve();
    bench.fails(["pool", "dump"], 1, "stop it");
    daemon.stop();
}

#[test]
fn a_daemon_scrubs_by_itself_and_the_status_says_so() {
    let bench = Bench::with_pool("256M");
    let file = bench.path("in");
    fs::write(&file, noise(3 << 20, 8)).unwrap();
    bench.ok(["volume", "import", "disk", file.to_str().unwrap()]);
    assert!(bench.json(["pool", "status"])["last_scrub"].is_null());
    for (options, why) in [
        (["serve", "--scrub-every", "soon"], "12h, 30d"),
        (["serve", "--scrub-limit", "1M"], "--scrub-every"),
    ] {
        let refused = bench.run(options);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains(why), "{said}");
    }
    let daemon = bench.serve_with(["--scrub-every", "1s", "--scrub-limit", "100M"]);
    let since = Instant::now();
    while bench.json(["pool", "status"])["last_scrub"].is_null() {
        assert!(since.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(100));
    }
    daemon.stop();
    assert_eq!(bench.json(["pool", "status"])["last_scrub"]["bad"], 0);
    let report = bench.json(["pool", "scrub", "--limit", "100M"]);
    assert_eq!(report["bad"], serde_json::json!([]));
    bench.expect_sound();
}
