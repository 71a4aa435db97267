//! Files as distributions and users have them, configured and put back.

use super::*;

/// The file of Debian's package.
const DEBIAN: &str = "\
version = 2

[plugins]
  [plugins.\"io.containerd.grpc.v1.cri\"]
    [plugins.\"io.containerd.grpc.v1.cri\".cni]
      bin_dir = \"/usr/lib/cni\"
      conf_dir = \"/etc/cni/net.d\"
  [plugins.\"io.containerd.internal.v1.opt\"]
    path = \"/var/lib/containerd\"
";

/// The file of Docker's own packages.
const DOCKERS: &str = "\
#   Copyright 2018-2022 Docker Inc.

#   Licensed under the Apache License, Version 2.0 (the \"License\");

disabled_plugins = [\"cri\"]

#root = \"/var/lib/containerd\"
#state = \"/run/containerd\"

#[grpc]
#  address = \"/run/containerd/containerd.sock\"
";

/// One of somebody who has done much of it already.
const USERS: &str = "\
version = 3 # ours
imports = [\"/etc/containerd/conf.d/*.toml\"]

[proxy_plugins.stargz]
  type = \"snapshot\" # lazy
  address = \"/run/stargz.sock\"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = \"stargz\"

[plugins.'io.containerd.service.v1.diff-service']
  default = [\"walking\"]

[plugins.'io.containerd.transfer.v1.local']
  unpack_config = [{ platform = \"linux/amd64\", snapshotter = \"stargz\", differ = \"walking\" }]
";

fn options(version: Option<Version>) -> Options {
    Options {
        version,
        socket: "/run/cowshed/containerd.sock".to_owned(),
        volumes: "/var/lib/cowshed/volumes".to_owned(),
        platform: "linux/amd64".to_owned(),
        pods: true,
        target: Target::Containerd,
    }
}

const VERSIONS: [Option<Version>; 5] =
    [None, Some((1, 6)), Some((1, 7)), Some((2, 0)), Some((2, 2))];

fn text<'d>(document: &'d DocumentMut, path: &[&str]) -> &'d str {
    find(document, path)
        .and_then(Item::as_str)
        .unwrap_or("(missing)")
}

#[test]
fn every_file_gets_the_plugin_and_has_it_taken_out_again() {
    for before in ["", "# nothing\n", DEBIAN, DOCKERS, USERS, "version = 2"] {
        for version in VERSIONS {
            let after = set(before, &options(version)).unwrap();
            assert_eq!(set(&after, &options(version)).unwrap(), after, "{after}");
            let document: DocumentMut = after.parse().unwrap();
            let at = |path: &[&str]| text(&document, path);
            assert_eq!(
                at(&["proxy_plugins", "cowshed", "type"]),
                "snapshot",
                "{after}"
            );
            assert_eq!(
                socket(&after).unwrap().unwrap(),
                "/run/cowshed/containerd.sock"
            );
            let root = ["proxy_plugins", "cowshed", "exports", "root"];
            assert_eq!(at(&root), "/var/lib/cowshed/volumes");
            let differ = at(&["proxy_plugins", "cowshed-diff", "type"]);
            let takes_diffs = version.is_some_and(|version| version >= (1, 7));
            assert_eq!(differ, if takes_diffs { "diff" } else { "(missing)" });
            assert_eq!(changed_for(&after), Some(Target::Containerd));
            let others = |line: &&str| !line.contains("snapshotter = \"stargz\"");
            for line in before.lines().filter(others) {
                let is_kept = after.contains(line.split('[').next().unwrap().trim_end());
                assert!(is_kept, "{line:?} is not in\n{after}");
            }
            let back = unset(&after, before).unwrap();
            if !before.is_empty() && !before.starts_with("# nothing") {
                assert_eq!(back.trim_end(), before.trim_end(), "{version:?}");
            }
            assert!(!back.contains("cowshed"), "{back}");
        }
    }
}

#[test]
fn names_of_plugins_are_those_of_the_files_version() {
    let of = |before: &str, version| -> DocumentMut {
        set(before, &options(Some(version)))
            .unwrap()
            .parse()
            .unwrap()
    };
    let old = of(DOCKERS, (1, 7));
    assert!(find(&old, &["plugins", "diff-service", "default"]).is_some());
    assert_eq!(
        text(&old, &["plugins", "cri", "containerd", "snapshotter"]),
        "cowshed"
    );
    assert!(find(&old, &["version"]).is_none());
    let old = of(DOCKERS, (2, 0));
    let service = [
        "plugins",
        "io.containerd.service.v1.diff-service",
        "default",
    ];
    assert!(find(&old, &service).is_some());
    let debian = of(DEBIAN, (1, 7));
    let pods = [
        "plugins",
        "io.containerd.grpc.v1.cri",
        "containerd",
        "snapshotter",
    ];
    assert_eq!(text(&debian, &pods), "cowshed");
    let new = of("", (2, 1));
    assert_eq!(find(&new, &["version"]).unwrap().as_integer(), Some(3));
    let pods = ["plugins", "io.containerd.cri.v1.images", "snapshotter"];
    assert_eq!(text(&new, &pods), "cowshed");
    assert_eq!(
        find(&of("", (1, 6)), &["version"]).unwrap().as_integer(),
        Some(2)
    );
}

#[test]
fn containerd_2_pulls_for_cowshed_and_what_it_pulled_for_before() {
    let list = |before: &str| {
        let after = set(before, &options(Some((2, 1)))).unwrap();
        let path = [TRANSFER, &["unpack_config"]].concat();
        let document: DocumentMut = after.parse().unwrap();
        let list = find(&document, &path).unwrap().to_string();
        let names = ["overlayfs", "stargz", "cowshed\""];
        names.map(|name| {
            list.matches(&format!("snapshotter = \"{name}").replace("\"\"", "\""))
                .count()
        })
    };
    assert_eq!(list(""), [1, 0, 1]);
    assert_eq!(list(USERS), [0, 1, 1]);
    let other = "version = 3\n[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
                 snapshotter = \"stargz\"\n";
    assert_eq!(list(other), [0, 1, 1]);
}

#[test]
fn an_edit_that_came_since_stays() {
    let after = set(DEBIAN, &options(Some((2, 0)))).unwrap();
    let edited = after.replace("/usr/lib/cni", "/opt/cni") + "\n[debug]\n  level = \"debug\"\n";
    let back = unset(&edited, DEBIAN).unwrap();
    assert!(back.contains("/opt/cni") && back.contains("[debug]") && !back.contains("cowshed"));
    let pods = after.replace(
        "snapshotter = \"cowshed\"\n",
        "snapshotter = \"overlayfs\"\n",
    );
    assert!(
        unset(&pods, DEBIAN)
            .unwrap()
            .contains("snapshotter = \"overlayfs\"")
    );
    assert!(
        unset(&set(USERS, &options(None)).unwrap(), USERS)
            .unwrap()
            .contains("\"stargz\"")
    );
}

#[test]
fn a_file_changed_for_docker_is_containerds_once_that_is_asked_for() {
    let docker = Options {
        target: Target::Docker,
        pods: false,
        ..options(Some((1, 7)))
    };
    let first = set(DEBIAN, &docker).unwrap();
    assert_eq!(changed_for(&first), Some(Target::Docker));
    let pods = Options {
        target: Target::Containerd,
        ..docker.clone()
    };
    let second = set(&first, &pods).unwrap();
    assert_eq!(changed_for(&second), Some(Target::Containerd));
    assert_eq!(set(&second, &docker).unwrap(), second);
    assert_eq!(changed_for(DEBIAN), None);
}

#[test]
fn what_cannot_be_changed_is_refused_with_the_reason() {
    let said = |text: &str| set(text, &options(None)).unwrap_err().to_string();
    let broken = said("version = 2\n[plugins\n");
    assert!(broken.starts_with("line 2: "), "{broken}");
    assert_eq!(
        said("version = 4"),
        "its `version` is 4, and 1, 2 and 3 are known"
    );
    assert_eq!(said("proxy_plugins = 1"), "`proxy_plugins` is not a table");
    let list = "[plugins.\"io.containerd.transfer.v1.local\"]\nunpack_config = 1\n";
    assert_eq!(said(list), "`unpack_config` is not a list");
}

#[test]
fn inline_and_dotted_tables_are_taken_too() {
    for before in [
        "version = 2\nproxy_plugins = { a = { type = \"snapshot\", address = \"/a\" } }\n",
        "version = 2\nproxy_plugins.a.type = \"snapshot\"\nproxy_plugins.a.address = \"/a\"\n",
    ] {
        let after = set(before, &options(Some((2, 0)))).unwrap();
        let document: DocumentMut = after.parse().unwrap();
        assert_eq!(
            text(&document, &["proxy_plugins", "a", "address"]),
            "/a",
            "{after}"
        );
        assert!(find(&document, &["proxy_plugins", "cowshed", "address"]).is_some());
    }
}
