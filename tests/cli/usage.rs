//! The commands that are accepted, those that are refused, and the exit statuses.

use crate::harness::{Bench, Reaped, eventually, expect_failure, program};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

/// All commands with their subcommands.
const COMMANDS: [&[&str]; 51] = [
    &[],
    &["quickstart"],
    &["pool"],
    &["pool", "create"],
    &["pool", "status"],
    &["pool", "grow"],
    &["pool", "trim"],
    &["pool", "checkpoint"],
    &["pool", "check"],
    &["pool", "scrub"],
    &["volume"],
    &["volume", "create"],
    &["volume", "rm"],
    &["volume", "resize"],
    &["volume", "rename"],
    &["volume", "snapshot"],
    &["volume", "clone"],
    &["volume", "rollback"],
    &["volume", "ls"],
    &["volume", "show"],
    &["volume", "diff"],
    &["volume", "import"],
    &["volume", "export"],
    &["volume", "send"],
    &["volume", "receive"],
    &["volume", "bookmark"],
    &["volume", "hold"],
    &["volume", "release"],
    &["attach"],
    &["detach"],
    &["image", "import"],
    &["image", "ls"],
    &["image", "inspect"],
    &["image", "history"],
    &["image", "send"],
    &["image", "receive"],
    &["image", "rm"],
    &["container", "create"],
    &["container", "mount"],
    &["container", "diff"],
    &["container", "commit"],
    &["container", "send"],
    &["container", "receive"],
    &["container", "cp"],
    &["tree"],
    &["doctor"],
    &["setup"],
    &["setup", "containerd"],
    &["setup", "docker"],
    &["setup", "systemd"],
    &["serve"],
];

fn run(arguments: &[&str]) -> Output {
    Command::new(program())
        .args(arguments)
        .env_remove("COWSHED_POOL")
        .output()
        .unwrap()
}

#[test]
fn every_command_has_help_on_the_output() {
    for command in COMMANDS {
        let output = run(&[command, &["--help"]].concat());
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{command:?}"
        );
        assert!(
            String::from_utf8(output.stdout).unwrap().contains("Usage:"),
            "{command:?}"
        );
    }
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert!(
        String::from_utf8(version.stdout)
            .unwrap()
            .starts_with("cowshed ")
    );
}

#[test]
fn wrong_usage_is_status_2_and_touches_nothing() {
    let bench = Bench::empty();
    let pool = bench.pool();
    let pool = pool.to_str().unwrap();
    for wrong in [
        &[][..],
        &["no-such-command"],
        &["volume"],
        &["volume", "create", "x"],
        &["volume", "create", "x", "--size", "0"],
        &["volume", "create", "x", "--size", "12Q"],
        &["volume", "create", "x", "--size", "99999999999T"],
        &["volume", "rm"],
        &["pool", "create"],
        &["pool", "create", "--size", "-1"],
        &["attach"],
        &["attach", "x", "--ls"],
        &["attach", "x", "--as", "cheese"],
        &["container", "create", "x", "--dir", "/tmp"],
        &["container", "cp", "a:", "/tmp"],
        &["pool", "status", "-q", "-v"],
    ] {
        let output = run(&[&["--pool", pool], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{wrong:?}"
        );
    }
    assert_eq!(fs::read_dir(bench.path("")).unwrap().count(), 0);
}

#[test]
fn with_json_each_failure_is_one_json_document_on_the_error_stream() {
    let bench = Bench::with_pool("64M");
    let pool = bench.pool();
    let pool = pool.to_str().unwrap();
    for (status, arguments) in [
        (2, &["--pool", pool, "--json"][..]),
        (2, &["--pool", pool, "--json", "no-such-command"]),
        (2, &["--pool", pool, "volume", "create", "x", "--json"]),
        (1, &["--pool", pool, "volume", "export", "x", "-", "--json"]),
        (1, &["--pool", pool, "volume", "show", "x", "--json"]),
        (1, &["--pool", "/no/such/pool", "--json", "pool", "status"]),
        (1, &["--pool", "/no/such/pool", "--json", "serve"]),
        (
            1,
            &["--pool", "/no/such/pool", "--json", "serve", "--foreground"],
        ),
        (
            1,
            &[
                "--pool",
                "/no/such/pool",
                "--json",
                "pool",
                "create",
                "--size",
                "1G",
            ],
        ),
    ] {
        let output = run(arguments);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {output:?}"
        );
        assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
        let failure: serde_json::Value = serde_json::from_slice(&output.stderr)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"));
        assert_eq!(failure["status"], status, "{arguments:?}: {failure}");
        let why = failure["error"].as_str().unwrap();
        assert!(!why.is_empty() && !why.starts_with("cowshed:"), "{failure}");
    }
    // The same in the daemon.
    let daemon = bench.serve();
    let output = bench.run(["volume", "show", "x", "--json"]);
    let failure: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(failure["status"], 1, "{failure}");
    daemon.stop();
}

#[test]
fn usage_errors_name_no_hidden_option() {
    for arguments in [
        &["-v"][..],
        &["serve", "--worke", "x"],
        &["serve", "--keepe", "x"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        for hidden in ["--keeper", "--worker"] {
            assert!(!said.contains(hidden), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn a_pool_is_not_made_in_a_folder_that_does_not_exist() {
    let bench = Bench::empty();
    let pool = bench.path("a/b/pool");
    let output = run(&[
        "--pool",
        pool.to_str().unwrap(),
        "pool",
        "create",
        "--size",
        "64M",
    ]);
    expect_failure(&output, 1, "does not exist");
    assert!(!bench.path("a").exists());
}

#[test]
fn programs_of_the_current_folder_are_never_run() {
    let bench = Bench::with_pool("256M");
    let folder = bench.path("user");
    fs::create_dir_all(folder.join("img/a")).unwrap();
    fs::write(folder.join("img/a/x"), "x").unwrap();
    let trap = "#!/bin/sh\necho > \"${0%/*}/ran\"\nexit 1\n";
    for name in ["mkfs.ext4", "debugfs", "resize2fs", "e2fsck", "sh"] {
        fs::write(folder.join(name), trap).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (image, search_path) in [("a:1", None), ("b:1", Some("")), ("c:1", Some(".:user"))] {
        let mut command = bench.command(["image", "import", "./img", "--name", image]);
        command.env_clear().current_dir(&folder);
        if let Some(search_path) = search_path {
            command.env("PATH", search_path);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{search_path:?}: {output:?}");
        assert!(!folder.join("ran").exists(), "{search_path:?}");
    }
}

/// Runs the command as an unprivileged user.
fn run_as_nobody(bench: &Bench, arguments: &[&str]) -> Output {
    let copy = bench.path("cowshed");
    if !copy.exists() {
        fs::copy(program(), &copy).unwrap();
        fs::set_permissions(bench.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let drop_rights = [
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
    ];
    let mut command = Command::new("setpriv");
    command
        .args(drop_rights)
        .arg(copy)
        .args(arguments)
        .env_remove("COWSHED_POOL")
        .env_remove("TMPDIR");
    command.output().unwrap()
}

#[test]
fn who_is_not_root_is_told_at_once_what_is_needed() {
    let bench = Bench::empty();
    expect_failure(&run_as_nobody(&bench, &["quickstart"]), 1, "it needs root");
    expect_failure(&run_as_nobody(&bench, &["volume", "ls"]), 2, "COWSHED_POOL");
    let pool = bench.pool();
    let pool = pool.to_str().unwrap();
    expect_failure(
        &run_as_nobody(&bench, &["--pool", pool, "serve"]),
        1,
        "needs root",
    );
    bench.ok(["pool", "create", "--size", "64M"]);
    let denied = run_as_nobody(&bench, &["--pool", pool, "volume", "ls"]);
    expect_failure(&denied, 1, "permission denied");
}

#[test]
fn a_user_without_rights_can_keep_volumes_in_a_pool_of_their_own() {
    let bench = Bench::empty();
    let home = bench.path("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    let pool = home.join("pool");
    let run = |arguments: &[&str]| {
        let output = run_as_nobody(
            &bench,
            &[&["--pool", pool.to_str().unwrap()], arguments].concat(),
        );
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    run(&["pool", "create", "--size", "64M"]);
    run(&["volume", "create", "disk", "--size", "1G"]);
    assert!(
        String::from_utf8(run(&["volume", "ls"]))
            .unwrap()
            .contains("disk")
    );
    let images = run_as_nobody(&bench, &["--pool", pool.to_str().unwrap(), "image", "ls"]);
    expect_failure(&images, 1, "run it as root");
}

#[test]
fn a_socket_on_which_another_user_listens_gets_nothing() {
    let bench = Bench::with_pool("64M");
    fs::set_permissions(bench.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    let socket = bench.path("pool.sock");
    let listen = "use IO::Socket::UNIX; \
        my $l = IO::Socket::UNIX->new(Type => SOCK_STREAM(), Local => $ARGV[0], Listen => 5) or die; \
        while (my $c = $l->accept) { my $got = <$c>; print $got // 'nothing'; exit }";
    let listener = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "perl",
            "-e",
            listen,
        ])
        .arg(&socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut listener = Reaped(listener);
    eventually("the socket", || socket.exists());
    let output = bench.run(["volume", "ls"]);
    expect_failure(&output, 1, "user 65534 listens there");
    let mut got = String::new();
    listener
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut got)
        .unwrap();
    assert_eq!(got, "nothing");
}
