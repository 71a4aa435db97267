//! Sets of images, containers and volumes sent as streams through real pipes between two pools, and
//! kills of either side at any moment.

use crate::harness::{Bench, Daemon, eventually, expect_failure, noise};
use serde_json::{Value, json};
use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MIB: usize = 1 << 20;

fn run_ok(bench: &Bench, words: &str) -> String {
    bench.ok(words.split(' '))
}

/// Connects the output of a command on one pool with the input of one on another.
fn piped(from: &Bench, send: &str, to: &Bench, receive: &str) -> (Output, Output) {
    let mut sender = from.command(send.split(' '));
    sender.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut sender = sender.spawn().unwrap();
    let mut receiver = to.command(receive.split(' '));
    receiver.stdin(sender.stdout.take().unwrap());
    let received = receiver.output().unwrap();
    // It has the reading end of the pipe, too, and the sender would wait for a reader.
    drop(receiver);
    (sender.wait_with_output().unwrap(), received)
}

/// As `piped`; both must succeed. Returns what the receiver reports.
fn exchanged(from: &Bench, send: &str, to: &Bench, receive: &str) -> Value {
    let (sent, received) = piped(from, send, to, &format!("{receive} --json"));
    assert!(sent.status.success() && sent.stderr.is_empty(), "{sent:?}");
    assert!(received.status.success(), "{received:?}");
    serde_json::from_slice(&received.stdout).unwrap()
}

fn content(bench: &Bench, name: &str) -> Vec<u8> {
    let output = bench.run(["volume", "export", name, "-"]);
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Creates a pool with two images that share layers, two containers and a volume with snapshots.
fn furnished() -> Bench {
    let bench = Bench::with_pool("768M");
    fs::create_dir_all(bench.path("root/etc")).unwrap();
    fs::write(bench.path("root/etc/motd"), "hello").unwrap();
    fs::write(bench.path("root/blob"), noise(6 * MIB, 1)).unwrap();
    let root = bench.path("root");
    let import = ["image", "import", root.to_str().unwrap(), "--name", "app:1"];
    bench.ok(import.iter().chain(&["--size", "64M"]));
    run_ok(&bench, "container create app:1 --name web");
    fs::write(bench.path("file"), noise(MIB, 2)).unwrap();
    let file = bench.path("file");
    bench.ok(["container", "cp", file.to_str().unwrap(), "web:/data"]);
    run_ok(&bench, "container commit web app:2");
    run_ok(&bench, "container create app:2 --name db");
    bench.ok(["container", "cp", file.to_str().unwrap(), "db:/more"]);
    fs::write(bench.path("raw"), noise(5 * MIB + 99, 3)).unwrap();
    let raw = bench.path("raw");
    bench.ok(["volume", "import", "disk", raw.to_str().unwrap()]);
    run_ok(&bench, "volume snapshot disk disk@1");
    run_ok(&bench, "volume resize disk --size 9M");
    run_ok(&bench, "volume snapshot disk disk@2");
    run_ok(&bench, "volume clone disk@1 other");
    run_ok(&bench, "volume bookmark disk@1 mark");
    bench
}

fn fields(list: &Value, names: &[&str]) -> Vec<Value> {
    let all = list.as_array().unwrap().iter();
    let mut all: Vec<Value> = all
        .map(|row| names.iter().map(|name| row[*name].clone()).collect())
        .collect();
    all.sort_by_key(ToString::to_string);
    all
}

/// Asserts that two pools hold the same volumes, images and containers, byte by byte.
fn assert_same(here: &Bench, there: &Bench) {
    let named = |bench: &Bench| -> Vec<String> {
        let mut names = bench.volumes();
        // Templates are only a base, and removed volumes are what others still share.
        names.retain(|name| !name.starts_with("template/") && !name.starts_with("(removed"));
        names
    };
    let mut sent = named(here);
    sent.retain(|name| name != "mark");
    assert_eq!(named(there), sent);
    for name in &sent {
        assert!(content(here, name) == content(there, name), "{name}");
        let show = ["volume", "show", name];
        let (a, b) = (here.json(show), there.json(show));
        for field in ["kind", "size_bytes", "labels"] {
            assert_eq!(a[field], b[field], "{name}: {field}");
        }
        if a["kind"] == "snapshot" {
            assert_eq!(a["created"], b["created"], "{name}");
        }
    }
    for (list, names) in [
        (
            ["image", "ls"],
            &["id", "names", "layers", "size_bytes"][..],
        ),
        (["container", "ls"], &["id", "name", "image", "created"]),
    ] {
        let (a, b) = (here.json(list), there.json(list));
        assert_eq!(fields(&a, names), fields(&b, names));
    }
    for container in ["web", "db"] {
        let diff = ["container", "diff", container];
        assert_eq!(here.json(diff), there.json(diff));
    }
    let used = |bench: &Bench| {
        bench.json(["pool", "status"])["used_bytes"]
            .as_u64()
            .unwrap()
    };
    let (a, b) = (used(here), used(there));
    assert!(b < a + a / 8, "{b} bytes there, {a} here");
}

#[test]
fn two_pools_exchange_all_that_one_holds() {
    let (here, there) = (furnished(), Bench::with_pool("768M"));
    let report = exchanged(&here, "volume send -R", &there, "volume receive -");
    assert_eq!(report["images"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(report["containers"].as_array().unwrap().len(), 2);
    assert_eq!(
        report["volumes"],
        json!(["disk@1", "disk@2", "disk", "other"])
    );
    assert_same(&here, &there);
    there.expect_sound();
    here.expect_sound();
    // What came is as good as what was made here: it goes back, and is in use again.
    let back = Bench::with_pool("768M");
    exchanged(
        &there,
        "volume send -R --compress zstd",
        &back,
        "volume receive -",
    );
    assert_same(&there, &back);
    run_ok(&back, "container rm web db");
    run_ok(&back, "image rm app:1 app:2");
    back.expect_sound();
}

#[test]
fn a_second_set_lies_beside_the_first_under_a_prefix() {
    let (here, there) = (furnished(), Bench::with_pool("768M"));
    exchanged(&here, "volume send -R disk", &there, "volume receive old/");
    assert_eq!(there.volumes(), ["old/disk", "old/disk@1", "old/disk@2"]);
    // What descends from a snapshot belongs to its set.
    exchanged(
        &here,
        "volume send -R disk@1",
        &there,
        "volume receive new/",
    );
    for name in ["disk", "disk@1", "disk@2", "other"] {
        assert!(content(&there, &format!("new/{name}")) == content(&here, name));
    }
    // A set into names that are taken is refused before its data.
    let (_, again) = piped(&here, "volume send -R disk", &there, "volume receive old/");
    expect_failure(&again, 1, "old/disk already exists");
    // One snapshot is received under a name, a set also under none.
    let (_, one) = piped(&here, "volume send disk@1", &there, "volume receive -");
    expect_failure(&one, 2, "give its name");
    there.expect_sound();
}

#[test]
fn an_image_is_sent_without_the_layers_that_the_other_pool_has() {
    let (here, there) = (furnished(), Bench::with_pool("768M"));
    let bytes = |send: &str| here.run(send.split(' ')).stdout.len();
    let (whole, rest) = (
        bytes("image send app:2"),
        bytes("image send app:2 --from app:1"),
    );
    assert!(rest < whole / 3, "{rest} of {whole}");
    let (_, lacks) = piped(
        &here,
        "image send app:2 --from app:1",
        &there,
        "image receive",
    );
    expect_failure(&lacks, 1, "no snapshot of this pool is that one");
    assert!(there.volumes().is_empty());
    exchanged(&here, "image send app:1", &there, "image receive");
    let send = "image send app:2 --from app:1";
    exchanged(&here, send, &there, "image receive mine/");
    let names = fields(&there.json(["image", "ls"]), &["names"]);
    assert_eq!(names, [json!([["app:1"]]), json!([["mine/app:2"]])]);
    run_ok(&there, "container create mine/app:2 --name c");
    assert!(run_ok(&there, "container diff c").is_empty());
    // A pool that has the image from elsewhere keeps its own layers.
    let other = Bench::with_pool("768M");
    let root = here.path("root");
    let import = ["image", "import", root.to_str().unwrap(), "--name", "app:1"];
    other.ok(import.iter().chain(&["--size", "64M"]));
    let before = other.volumes();
    exchanged(&here, "image send app:1", &other, "image receive");
    assert_eq!(other.volumes(), before);
    other.expect_sound();
    there.expect_sound();
}

#[test]
fn a_running_container_is_sent_as_it_is() {
    let (here, there) = (furnished(), Bench::with_pool("768M"));
    let (sends, receives) = (here.serve(), there.serve());
    let mounted = here.json(["container", "mount", "web"]);
    let root = mounted["path"].as_str().unwrap();
    let bytes = noise(3 * MIB, 9);
    fs::write(format!("{root}/running"), &bytes).unwrap();
    let before = here.volumes();
    exchanged(
        &here,
        "container send web",
        &there,
        "container receive copy-",
    );
    assert_eq!(here.volumes(), before, "the snapshot for sending is gone");
    fs::write(format!("{root}/later"), "x").unwrap();
    let copy = there.json(["container", "mount", "copy-web"]);
    let copy = copy["path"].as_str().unwrap();
    assert!(fs::read(format!("{copy}/running")).unwrap() == bytes);
    assert_eq!(
        fs::read_to_string(format!("{copy}/etc/motd")).unwrap(),
        "hello"
    );
    assert!(fs::metadata(format!("{copy}/later")).is_err());
    fs::write(format!("{copy}/own"), "y").unwrap();
    // Once more, with the image there: a copy beside the first, with an id of its own.
    let send = "container send web --from app:1";
    exchanged(&here, send, &there, "container receive second-");
    let ids = fields(&there.json(["container", "ls"]), &["id"]);
    assert!(ids.len() == 2 && ids[0] != ids[1]);
    let (_, taken) = piped(&here, send, &there, "container receive second-");
    expect_failure(&taken, 1, "the container second-web already exists");
    run_ok(&there, "container unmount copy-web");
    run_ok(&here, "container unmount web");
    sends.stop();
    receives.stop();
    there.expect_sound();
    here.expect_sound();
}

#[test]
fn hostile_records_and_foreign_tokens_are_refused_in_one_line() {
    let (here, there) = (furnished(), Bench::with_pool("768M"));
    run_ok(&here, "volume snapshot other other@1");
    let sent = here.run(["volume", "send", "-R"]).stdout;
    fs::write(there.path("cut"), &sent[..sent.len() / 2]).unwrap();
    let receive = |arguments: &[&str]| {
        let mut command = there.command(["volume", "receive"]);
        command.args(arguments);
        command.stdin(fs::File::open(there.path("cut")).unwrap());
        command.output().unwrap()
    };
    expect_failure(&receive(&["-"]), 1, "it was cut off; what came is kept");
    let token = run_ok(&there, "volume receive - --token");
    let token = token.trim();
    for (send, why) in [
        (
            "volume send disk@1 --resume",
            "the token is of the stream of a set",
        ),
        (
            "volume send -R disk --resume",
            "the token is of another set",
        ),
    ] {
        here.fails(format!("{send} {token}").split(' '), 1, why);
    }
    let shown = there.json(["volume", "receive", "-", "--token"]);
    assert!(shown["members"].as_u64().unwrap() > 0, "{shown}");
    // The rest completes it.
    let rest = here.run(["volume", "send", "-R", "--resume", token]).stdout;
    assert!(rest.len() < sent.len(), "{} of {}", rest.len(), sent.len());
    fs::write(there.path("cut"), &rest).unwrap();
    assert!(receive(&["-"]).status.success());
    for refused in ["layer/", "container/x", "work/"] {
        expect_failure(&receive(&[refused]), 1, "is reserved");
    }
    expect_failure(&receive(&["two words"]), 1, "a name is");
    there.fails(["volume", "receive", "-", "--token"], 1, "no interrupted");
    here.fails(
        ["volume", "send", "-R", "nobody"],
        1,
        "there is no volume nobody",
    );
    here.fails(["volume", "send", "-R", "mark"], 1, "mark is a bookmark");
    here.fails(["volume", "send", "a", "b"], 2, "only one snapshot");
    here.fails(
        ["image", "send", "app:2", "--from", "x:1"],
        1,
        "no image x:1",
    );
    there.expect_sound();
}

/// A process that is killed with all that it has started when it is dropped.
fn start(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Sends and receives, and kills one of the processes that take part after `after`; returns true if
/// the receive came to its end nevertheless.
fn killed(
    (here, send): (&Bench, &[&str]),
    (there, receive): (&Bench, &[&str]),
    after: Duration,
    kill: impl FnOnce(&mut Child, &mut Child),
) -> bool {
    let mut sender = start(here.command(send));
    let mut command = there.command(receive);
    command.stdin(sender.stdout.take().unwrap());
    let mut receiver = start(command);
    thread::sleep(after);
    kill(&mut sender, &mut receiver);
    let received = receiver.wait_with_output().unwrap();
    sender.wait().unwrap();
    received.status.success()
}

/// Kills at random moments until the receive comes to its end, going on from what is kept.
fn exchange_with_kills(seed: u64, has_daemon: bool, is_set: bool) {
    println!("seed {seed}, a daemon: {has_daemon}, a set: {is_set}");
    let (here, there) = (Bench::with_pool("256M"), Bench::with_pool("256M"));
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut number = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    fs::write(here.path("raw"), noise(24 * MIB, seed)).unwrap();
    let raw = here.path("raw");
    here.ok(["volume", "import", "disk", raw.to_str().unwrap()]);
    run_ok(&here, "volume snapshot disk disk@1");
    if is_set {
        run_ok(&here, "volume clone disk@1 other");
        fs::write(here.path("raw"), noise(20 * MIB, seed + 1)).unwrap();
        here.ok(["volume", "import", "next", raw.to_str().unwrap()]);
        run_ok(&here, "volume snapshot next next@1");
    }
    let daemons: Option<(Daemon, Daemon)> = has_daemon.then(|| (here.serve(), there.serve()));
    let name = if is_set { "copy/" } else { "copy" };
    let receive = ["volume", "receive", name];
    for round in 0..40 {
        let mut kept = None;
        eventually("the end of the receive", || {
            let found = there.run(["volume", "receive", name, "--token"]);
            let said = String::from_utf8_lossy(&found.stderr).into_owned();
            kept = Some(found);
            !said.contains("being received") && !said.contains("in use by another")
        });
        let kept = kept.unwrap();
        let token = String::from_utf8(kept.stdout).unwrap();
        let mut send = vec!["volume", "send"];
        send.extend(if is_set { &["-R"][..] } else { &["disk@1"] });
        if kept.status.success() {
            send.extend(["--resume", token.trim()]);
        }
        let after = Duration::from_millis(number(700));
        send.extend(["--limit", if round < 8 { "40M" } else { "4G" }]);
        let who = number(3);
        let kill = |sender: &mut Child, receiver: &mut Child| match (who, &daemons) {
            (0, Some((worker, _))) | (1, Some((_, worker))) => worker.kill_worker(),
            (0, None) => sender.kill().unwrap(),
            (1, None) => receiver.kill().unwrap(),
            _ => {
                sender.kill().unwrap();
                receiver.kill().unwrap();
            }
        };
        let is_last = round >= 8;
        let done = killed(
            (&here, &send),
            (&there, &receive),
            after,
            |sender, receiver| {
                if !is_last {
                    kill(sender, receiver);
                }
            },
        );
        // A receiver may be killed after its end.
        let last = if is_set { "copy/next" } else { "copy" };
        if done || there.run(["volume", "show", last]).status.success() {
            break;
        }
        assert!(round < 39, "seed {seed}: it did not come to its end");
        thread::sleep(Duration::from_millis(number(100)));
    }
    if let Some((sends, receives)) = daemons {
        sends.stop();
        receives.stop();
    }
    let pairs: &[(&str, &str)] = if is_set {
        &[
            ("disk@1", "copy/disk@1"),
            ("disk", "copy/disk"),
            ("other", "copy/other"),
            ("next@1", "copy/next@1"),
            ("next", "copy/next"),
        ]
    } else {
        &[("disk@1", "copy")]
    };
    for (sent, came) in pairs {
        assert!(
            content(&here, sent) == content(&there, came),
            "seed {seed}: {came}"
        );
    }
    assert_eq!(there.volumes().len(), pairs.len(), "seed {seed}");
    // The snapshots for sending are gone, too, whoever was killed.
    let left = |name: &String| name.starts_with("unfinished/") || name.starts_with("work/");
    assert!(!here.volumes().iter().any(left), "seed {seed}");
    there.expect_sound();
    here.expect_sound();
}

#[test]
fn kills_of_either_side_at_any_moment_and_going_on_give_the_same() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = u64::try_from(now.as_micros() % 1_000_000).unwrap();
    exchange_with_kills(seed, false, false);
    exchange_with_kills(seed + 1, false, true);
    exchange_with_kills(seed + 2, true, false);
    exchange_with_kills(seed + 3, true, true);
}

#[test]
fn a_terminal_is_neither_written_nor_read() {
    let bench = Bench::with_pool("64M");
    run_ok(&bench, "volume create disk --size 1M");
    run_ok(&bench, "volume snapshot disk disk@1");
    for (words, why) in [
        ("volume send disk@1", "cannot be written to a terminal"),
        ("volume send -R", "cannot be written to a terminal"),
        ("volume receive copy", "the standard input is a terminal"),
    ] {
        let command = bench.command(words.split(' '));
        let arguments = command.get_args().map(|word| word.to_str().unwrap());
        let program = command.get_program().to_str().unwrap();
        let words: Vec<&str> = std::iter::once(program).chain(arguments).collect();
        // script(1) gives the command a terminal, and returns its status.
        let mut script = Command::new("script");
        script.args(["-qec", &words.join(" "), "/dev/null"]);
        let output = script.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(why), "{said}");
        assert_eq!(output.status.code(), Some(2), "{said}");
    }
    // A reader that goes away ends the sender without a word.
    fs::write(bench.path("raw"), noise(8 * MIB, 1)).unwrap();
    let raw = bench.path("raw");
    bench.ok(["volume", "import", "big", raw.to_str().unwrap()]);
    run_ok(&bench, "volume snapshot big big@1");
    let mut sender = start(bench.command(["volume", "send", "big@1"]));
    drop(sender.stdout.take());
    let output = sender.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
