//! Another program takes over from the one that serves, or proves unable to; and what a service
//! manager sees.

use crate::harness::{Bench, Daemon, Reaped, eventually, expect_failure, host, program};
use crate::load::{check_device, goes_on, on_device, serving};
use cowshed_daemon::request::{Command as Requested, Style, serving};
use cowshed_daemon::{Answer, Client, Connection, Request};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns the program that a process runs.
fn program_of(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

/// Makes the daemon hand over to the program at `path`, as the command does.
fn upgrade_to(bench: &Bench, path: &Path) -> Answer {
    let Ok(Connection::Daemon(client)) = Client::connect(&bench.path("pool.sock")) else {
        panic!("no daemon");
    };
    let upgrade = Request {
        style: Style::default(),
        command: Requested::Serving(serving::Command::Upgrade),
    };
    let program = File::open(path).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    client
        .run(&upgrade, [program.as_fd(), null.as_fd(), null.as_fd()])
        .unwrap()
}

#[test]
fn another_program_takes_over_under_load() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "8M"]);
    let device = bench.ok(["attach", "disk"]).trim().to_owned();
    let load = on_device(&device);
    goes_on(&load, 50);
    for round in 1..=3_u64 {
        let other = bench.path(&format!("cowshed-{round}"));
        fs::copy(program(), &other).unwrap();
        let answer = Command::new(&other)
            .arg("--pool")
            .arg(bench.pool())
            .args(["serve", "--upgrade", "--json"])
            .output()
            .unwrap();
        assert!(answer.status.success(), "{answer:?}");
        goes_on(&load, 50);
        eventually("the keeper's change", || program_of(daemon.pid()) == other);
        let now = serving(&bench);
        assert_eq!(now["upgrades"], round, "{now}");
        assert_eq!(now["restarts"], round - 1, "{now}");
        assert_eq!(program_of(daemon.worker().unwrap()), other);
        // The new keeper works as a keeper.
        daemon.kill_worker();
        goes_on(&load, 50);
        eventually("another worker", || serving(&bench)["restarts"] == round);
        assert_eq!(program_of(daemon.worker().unwrap()), other);
    }
    let versions = load.end().unwrap();
    check_device(&device, &versions);
    bench.ok(["detach", "disk"]);
    daemon.stop();
    bench.expect_sound();
}

/// Compiles a program that claims that it can take over, and then does something else.
fn broken(bench: &Bench, name: &str, does: &str) -> PathBuf {
    let source = bench.path(&format!("{name}.c"));
    let text = format!(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n\
         int main(int argc, char **argv) {{\n\
         for (int i = 1; i < argc; i++) if (!strcmp(argv[i], \"--can-take-over\")) {{\n\
         puts(\"{{\\\"version\\\":\\\"broken\\\"}}\"); return 0; }}\n\
         {does}\nreturn 7; }}\n"
    );
    fs::write(&source, text).unwrap();
    let made = bench.path(name);
    host("cc", [source.as_os_str(), "-o".as_ref(), made.as_os_str()]);
    made
}

#[test]
fn a_program_that_cannot_serve_is_followed_by_the_old_one() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "8M"]);
    let device = bench.ok(["attach", "disk"]).trim().to_owned();
    let load = on_device(&device);
    for (number, (name, does)) in (1..).zip([("ends", ""), ("crashes", "abort();")]) {
        goes_on(&load, 20);
        let answer = upgrade_to(&bench, &broken(&bench, name, does));
        assert_eq!(answer.status, 0, "{answer:?}");
        eventually("an end of it", || serving(&bench)["upgrades"] == number);
        let now = serving(&bench);
        let failure = now["upgrade_failure"].as_str().unwrap();
        assert!(failure.contains("could not serve"), "{now}");
        assert_eq!(program_of(daemon.pid()), program());
        assert_eq!(program_of(daemon.worker().unwrap()), program());
    }
    goes_on(&load, 20);
    check_device(&device, &load.end().unwrap());
    bench.ok(["detach", "disk"]);
    daemon.stop();
    bench.expect_sound();
}

/// Returns how often the daemon's log says that a program does not come to serve.
fn refusals(said: &str) -> usize {
    said.lines()
        .filter(|line| line.contains("does not come to serve"))
        .count()
}

#[test]
fn a_program_that_hangs_is_given_up_before_users_are_paused() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "8M"]);
    let device = bench.ok(["attach", "disk"]).trim().to_owned();
    let load = on_device(&device);
    goes_on(&load, 20);
    let before = serving(&bench);
    let hangs = broken(&bench, "hangs", "for (;;) pause();");
    assert_eq!(upgrade_to(&bench, &hangs).status, 0);
    eventually("an end of it", || serving(&bench)["upgrades"] == 1);
    let now = serving(&bench);
    let failure = now["upgrade_failure"].as_str().unwrap();
    assert!(failure.contains("could not serve"), "{now}");
    // The worker that served then still does: users have not waited.
    assert_eq!(now["worker"], before["worker"], "{now}");
    assert_eq!(now["restarts"], before["restarts"], "{now}");
    assert_eq!(now["worker"], daemon.worker().unwrap(), "{now}");
    goes_on(&load, 20);
    check_device(&device, &load.end().unwrap());
    // No leftover of the failed program hinders the next one.
    bench.ok_quietly(["serve", "--upgrade"]);
    bench.ok(["detach", "disk"]);
    daemon.signal("TERM");
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
    assert_eq!(refusals(&said), 1, "{said}");
}

#[test]
fn a_program_that_hangs_after_it_has_shown_itself_is_given_up_soon_and_told_once() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "8M"]);
    let device = bench.ok(["attach", "disk"]).trim().to_owned();
    let load = on_device(&device);
    goes_on(&load, 20);
    let before = serving(&bench);
    // Its arguments are in inherited memory, each terminated by a zero byte.
    let shows_itself = "static char told[65536];\n\
        for (int i = 1; i + 1 < argc; i++) if (!strcmp(argv[i], \"--arguments\")) {\n\
        int len = pread(atoi(argv[i + 1]), told, sizeof told - 1, 0);\n\
        for (int at = 0; at < len; at++) if (!told[at]) told[at] = ' '; }\n\
        char *found = strstr(told, \"\\\"control\\\":\");\n\
        if (found) dprintf(atoi(found + 10), \"\\\"Prepared\\\"\\n\");\n\
        for (;;) pause();";
    let hangs = broken(&bench, "hangs", shows_itself);
    assert_eq!(upgrade_to(&bench, &hangs).status, 0);
    eventually("an end of it", || serving(&bench)["upgrades"] == 1);
    let now = serving(&bench);
    let failure = now["upgrade_failure"].as_str().unwrap();
    assert!(failure.contains("did not serve in time"), "{now}");
    assert_ne!(now["worker"], before["worker"], "{now}");
    assert_eq!(program_of(daemon.worker().unwrap()), program());
    goes_on(&load, 20);
    check_device(&device, &load.end().unwrap());
    bench.ok(["detach", "disk"]);
    daemon.signal("TERM");
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
    assert_eq!(refusals(&said), 1, "{said}");
    bench.expect_sound();
}

#[test]
fn a_program_that_never_says_whether_it_can_take_over_is_refused_with_what_it_started() {
    let bench = Bench::with_pool("64M");
    let daemon = bench.serve();
    let before = serving(&bench);
    let source = bench.path("silent.c");
    // A child process keeps the program's streams open.
    let text = "#include <unistd.h>\nint main(void) { fork(); for (;;) pause(); }\n";
    fs::write(&source, text).unwrap();
    let silent = bench.path("silent");
    host(
        "cc",
        [source.as_os_str(), "-o".as_ref(), silent.as_os_str()],
    );
    assert_eq!(upgrade_to(&bench, &silent).status, 1);
    assert_eq!(serving(&bench), before);
    daemon.stop();
}

/// Returns the maximum size that the pool may reach.
fn limit(bench: &Bench) -> u64 {
    bench.json(["pool", "status"])["limit_bytes"]
        .as_u64()
        .unwrap()
}

#[test]
fn options_given_with_an_upgrade_take_effect_and_the_others_are_refused_by_name() {
    const GIB: u64 = 1 << 30;
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve_with(["--full-policy", "wait=60"]);
    assert_eq!(limit(&bench), GIB / 4);
    bench.ok_quietly(["serve", "--upgrade", "--max-size", "20G"]);
    assert_eq!(limit(&bench), 20 * GIB);
    // The options stay: with the next worker, and with an upgrade that does not name them.
    daemon.kill_worker();
    eventually("another worker", || serving(&bench)["restarts"] == 1);
    assert_eq!(limit(&bench), 20 * GIB);
    bench.ok_quietly(["serve", "--upgrade"]);
    bench.ok_quietly(["serve", "--upgrade", "--full-policy", "wait=30"]);
    assert_eq!(limit(&bench), 20 * GIB);
    let before = serving(&bench);
    for (option, value) in [
        ("--mount", "/elsewhere"),
        ("--fuse", "io-uring"),
        ("--log", "/elsewhere"),
        ("--containerd-socket", "/elsewhere"),
        ("--docker-plugin-socket", "/elsewhere"),
        ("--snapshot-size", "3G"),
    ] {
        bench.fails(["serve", "--upgrade", option, value], 2, option);
    }
    assert_eq!(serving(&bench), before);
    let mount = daemon.mount.to_str().unwrap().to_owned();
    bench.ok_quietly(["serve", "--upgrade", "--mount", &mount]);
    bench.ok_quietly(["serve", "--upgrade", "--replace-options", "--direct"]);
    assert_eq!(limit(&bench), GIB / 4);
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn what_is_no_program_that_can_take_over_is_refused_and_nothing_changes() {
    let bench = Bench::with_pool("64M");
    bench.fails(["serve", "--upgrade"], 1, "no daemon answers");
    let daemon = bench.serve();
    let before = serving(&bench);
    for path in ["/bin/true", "/dev/null"] {
        assert_eq!(upgrade_to(&bench, Path::new(path)).status, 1);
    }
    assert_eq!(serving(&bench), before);
    let other = r#"{"handover":0,"format":1}"#;
    let asked = bench.run(["serve", "--can-take-over", other]);
    expect_failure(&asked, 1, "version 0");
    daemon.stop();
}

/// Returns the messages of the daemon to the service manager, up to the wanted line.
fn hear(socket: &UnixDatagram, wanted: &str) -> Vec<String> {
    socket
        .set_read_timeout(Some(crate::harness::PATIENCE))
        .unwrap();
    let mut heard = Vec::new();
    while !heard.iter().any(|text: &String| text.contains(wanted)) {
        let mut bytes = [0; 4096];
        let len = socket
            .recv(&mut bytes)
            .unwrap_or_else(|error| panic!("{wanted}: {error} after {heard:?}"));
        heard.push(String::from_utf8_lossy(&bytes[..len]).into_owned());
    }
    heard
}

#[test]
fn a_service_manager_is_told_how_the_daemon_fares() {
    let bench = Bench::with_pool("64M");
    let path = bench.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut command = bench.command(["serve", "--foreground", "--json"]);
    command.env("NOTIFY_SOCKET", &path);
    let daemon = Daemon::start(command);
    hear(&socket, "READY=1");
    daemon.kill_worker();
    hear(&socket, "restarting, 1 times");
    hear(&socket, "READY=1");
    let answer = bench.run(["serve", "--upgrade"]);
    assert!(answer.status.success(), "{answer:?}");
    hear(&socket, "RELOADING=1");
    hear(&socket, "READY=1");
    daemon.signal("TERM");
    hear(&socket, "STOPPING=1");
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
}

#[test]
fn the_watchdog_is_fed_only_while_the_worker_answers_and_a_hung_one_is_followed_by_another() {
    let bench = Bench::with_pool("64M");
    let path = bench.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut command = bench.command(["serve", "--foreground", "--json"]);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "4000000");
    let daemon = Daemon::start(command);
    for _ in 0..3 {
        hear(&socket, "WATCHDOG=1");
    }
    let worker = daemon.worker().unwrap();
    host("kill", ["-STOP", &worker.to_string()]);
    let heard = hear(&socket, "READY=1");
    let fed = heard.iter().filter(|text| text.contains("WATCHDOG=1"));
    // One may have been in flight.
    assert!(fed.count() <= 1, "{heard:?}");
    assert_ne!(daemon.worker(), Some(worker));
    hear(&socket, "WATCHDOG=1");
    assert_eq!(serving(&bench)["restarts"], 1);
    daemon.stop();
}

#[test]
fn without_a_watchdog_nothing_is_fed_and_another_processs_is_left_alone() {
    let bench = Bench::with_pool("64M");
    let path = bench.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut command = bench.command(["serve", "--foreground", "--json"]);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "1000")
        .env("WATCHDOG_PID", "1");
    let daemon = Daemon::start(command);
    bench.ok(["volume", "ls"]);
    daemon.signal("TERM");
    let heard = hear(&socket, "STOPPING=1");
    assert!(
        heard.iter().all(|text| !text.contains("WATCHDOG")),
        "{heard:?}"
    );
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
}

#[test]
fn a_socket_of_the_service_manager_is_served_and_left() {
    let bench = Bench::with_pool("64M");
    let path = bench.path("pool.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // A client may connect before there is a daemon.
    let mut early = bench.command(["volume", "create", "disk", "--size", "1M"]);
    let mut early = Reaped(early.stdout(Stdio::null()).spawn().unwrap());
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg("exec 3<&0; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" </dev/null")
        .arg("sh")
        .arg(program())
        .arg("--pool")
        .arg(bench.pool())
        .args(["serve", "--foreground", "--json"])
        .stdin(OwnedFd::from(listener.try_clone().unwrap()));
    let daemon = Daemon::start(command);
    assert!(early.0.wait().unwrap().success());
    daemon.kill_worker();
    assert_eq!(bench.volumes(), ["disk"]);
    daemon.stop();
    assert!(path.exists(), "the service manager's socket was removed");
}

#[test]
fn the_units_are_what_systemd_understands() {
    let folder = tempfile::tempdir().unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/systemd");
    let mut paths = Vec::new();
    for (name, as_unit) in [
        ("cowshed.service", "cowshed.service"),
        ("cowshed.socket", "cowshed.socket"),
        ("cowshed@.service", "cowshed@srv-a.service"),
        ("cowshed@.socket", "cowshed@srv-a.socket"),
    ] {
        let text = fs::read_to_string(units.join(name)).unwrap();
        // It also checks that the program exists.
        let program = format!("={} ", program().display());
        let text = text.replace("=cowshed ", &program);
        fs::write(folder.path().join(as_unit), text).unwrap();
        paths.push(folder.path().join(as_unit));
    }
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .args(&paths)
        .output();
    match verified {
        Ok(verified) => assert!(
            verified.status.success() && verified.stderr.is_empty(),
            "{verified:?}"
        ),
        // Not every host has the program.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
}

/// The units for one pool and for several differ only in the names.
#[test]
fn the_units_for_several_pools_say_what_the_one_for_one_pool_says() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/systemd");
    let settings = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(units.join(name)).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| {
                line.replace("/var/lib/cowshed/pool", "%f")
                    .replace("RequiresMountsFor=/var/lib/cowshed", "RequiresMountsFor=%f")
                    .replace(" (%f)", "")
                    .replace("cowshed@%i", "cowshed")
            })
            .collect()
    };
    for kind in ["service", "socket"] {
        let (one, several) = (format!("cowshed.{kind}"), format!("cowshed@.{kind}"));
        assert_eq!(settings(&one), settings(&several));
    }
}
