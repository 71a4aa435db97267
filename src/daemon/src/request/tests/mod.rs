//! Each request, and the text that stands for it in version 3 of the protocol.

mod images;

use super::attach::{Attach, Kind, SectorSize};
use super::container::MountAt;
use super::image::Compression;
use super::serving::Running;
use super::stream::{Receive, ReceiveStep, SendOptions};
use super::volume::{Import, Resize, Send};
use super::*;
use cowshed_host::RootKind;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// The commands in version 2 of the protocol. A change here is a change of what programs say to
/// each other: raise `VERSION`, and then write the new texts.
const GOLDEN_VERSION: u32 = 3;

fn path(text: &str) -> HostPath {
    HostPath::new(text).unwrap()
}

fn file(text: &str) -> FileOrPipe {
    FileOrPipe::File(path(text))
}

fn golden() -> Vec<(Command, &'static str)> {
    let mut all = golden_of_pool_and_volumes();
    all.extend(golden_of_attachments());
    all.extend(images::golden());
    all.extend(golden_of_containers());
    all
}

fn golden_of_pool_and_volumes() -> Vec<(Command, &'static str)> {
    use pool::{Command as P, Mirror as M};
    use volume::Command as V;
    let name = |name: &str| name.to_owned();
    let pool = [
        (
            P::Status { check: true },
            r#"{"pool":{"status":{"check":true}}}"#,
        ),
        (
            P::Grow {
                size_bytes: 1 << 40,
            },
            r#"{"pool":{"grow":{"size_bytes":1099511627776}}}"#,
        ),
        (P::Trim, r#"{"pool":"trim"}"#),
        (P::Checkpoint, r#"{"pool":"checkpoint"}"#),
        (
            P::Scrub {
                bytes_per_second: Some(1024),
            },
            r#"{"pool":{"scrub":{"bytes_per_second":1024}}}"#,
        ),
        (P::Mirror(M::Status), r#"{"pool":{"mirror":"status"}}"#),
        (
            P::Mirror(M::Begin {
                path: path("/b"),
                force: false,
            }),
            r#"{"pool":{"mirror":{"begin":{"path":"/b","force":false}}}}"#,
        ),
        (
            P::Mirror(M::Add {
                path: path("/b"),
                force: true,
            }),
            r#"{"pool":{"mirror":{"add":{"path":"/b","force":true}}}}"#,
        ),
        (
            P::Mirror(M::Rm { path: path("/b") }),
            r#"{"pool":{"mirror":{"rm":{"path":"/b"}}}}"#,
        ),
        (
            P::Mirror(M::Replace {
                old: path("/b"),
                new: path("/c"),
                force: false,
            }),
            r#"{"pool":{"mirror":{"replace":{"old":"/b","new":"/c","force":false}}}}"#,
        ),
    ];
    let volume = [
        (
            V::Create {
                name: name("a"),
                size_bytes: 4096,
            },
            r#"{"volume":{"create":{"name":"a","size_bytes":4096}}}"#,
        ),
        (
            V::Remove {
                volumes: vec![name("a"), name("7")],
            },
            r#"{"volume":{"remove":{"volumes":["a","7"]}}}"#,
        ),
        (
            V::Resize(Resize {
                volume: name("a"),
                size_bytes: 8192,
                shrink: true,
            }),
            r#"{"volume":{"resize":{"volume":"a","size_bytes":8192,"shrink":true}}}"#,
        ),
        (
            V::Rename {
                volume: name("a"),
                name: name("b"),
            },
            r#"{"volume":{"rename":{"volume":"a","name":"b"}}}"#,
        ),
        (
            V::Snapshot {
                volume: name("a"),
                name: name("s"),
            },
            r#"{"volume":{"snapshot":{"volume":"a","name":"s"}}}"#,
        ),
        (
            V::Clone {
                snapshot: name("s"),
                name: name("c"),
            },
            r#"{"volume":{"clone":{"snapshot":"s","name":"c"}}}"#,
        ),
        (
            V::Rollback {
                volume: name("a"),
                snapshot: name("s"),
            },
            r#"{"volume":{"rollback":{"volume":"a","snapshot":"s"}}}"#,
        ),
        (V::List, r#"{"volume":"list"}"#),
        (
            V::Show { volume: name("a") },
            r#"{"volume":{"show":{"volume":"a"}}}"#,
        ),
        (
            V::Diff {
                a: name("a"),
                b: name("s"),
            },
            r#"{"volume":{"diff":{"a":"a","b":"s"}}}"#,
        ),
        (
            V::Import(Import {
                name: name("a"),
                source: FileOrPipe::Pipe,
                raw: false,
            }),
            r#"{"volume":{"import":{"name":"a","source":"pipe","raw":false}}}"#,
        ),
        (
            V::Export {
                volume: name("a"),
                target: file("/a.raw"),
                skip_damaged: false,
            },
            r#"{"volume":{"export":{"volume":"a","target":{"file":"/a.raw"}}}}"#,
        ),
        (
            V::Export {
                volume: name("a"),
                target: FileOrPipe::Pipe,
                skip_damaged: true,
            },
            r#"{"volume":{"export":{"volume":"a","target":"pipe","skip_damaged":true}}}"#,
        ),
    ];
    let streams = golden_of_streams();
    let pool = pool.map(|(command, text)| (Command::Pool(command), text));
    let volume = volume.map(|(command, text)| (Command::Volume(command), text));
    pool.into_iter().chain(volume).chain(streams).collect()
}

fn send_options() -> SendOptions {
    SendOptions {
        from: Some("r".to_owned()),
        compress: true,
        resume: Some("00ff".to_owned()),
        bytes_per_s: Some(1000),
    }
}

fn golden_of_streams() -> impl Iterator<Item = (Command, &'static str)> {
    use volume::Command as V;
    let name = |name: &str| name.to_owned();
    let receive = |step| {
        V::Receive(Receive {
            name: name("c"),
            step,
        })
    };
    let streams = [
        (
            V::Send(Send {
                volumes: vec![name("s")],
                forest: true,
                options: send_options(),
            }),
            r#"{"volume":{"send":{"volumes":["s"],"forest":true,"options":{"from":"r","compress":true,"resume":"00ff","bytes_per_s":1000}}}}"#,
        ),
        (
            receive(ReceiveStep::Stream),
            r#"{"volume":{"receive":{"name":"c","step":"stream"}}}"#,
        ),
        (
            receive(ReceiveStep::Token),
            r#"{"volume":{"receive":{"name":"c","step":"token"}}}"#,
        ),
        (
            receive(ReceiveStep::Discard),
            r#"{"volume":{"receive":{"name":"c","step":"discard"}}}"#,
        ),
        (
            V::Bookmark {
                snapshot: name("s"),
                name: name("m"),
            },
            r#"{"volume":{"bookmark":{"snapshot":"s","name":"m"}}}"#,
        ),
        (
            V::Hold {
                volume: name("s"),
                tag: name("backup"),
            },
            r#"{"volume":{"hold":{"volume":"s","tag":"backup"}}}"#,
        ),
        (
            V::Release {
                volume: name("s"),
                tag: name("backup"),
            },
            r#"{"volume":{"release":{"volume":"s","tag":"backup"}}}"#,
        ),
    ];
    let streams = streams.into_iter();
    streams.map(|(command, text)| (Command::Volume(command), text))
}

fn golden_of_attachments() -> Vec<(Command, &'static str)> {
    use attach::Command as A;
    let attach = |kind, sector_size| {
        A::Attach(Attach {
            volume: "a".to_owned(),
            kind,
            read_only: true,
            shared: false,
            sector_size,
        })
    };
    let all = [
        (
            attach(Kind::Loop, Some(SectorSize::Small)),
            r#"{"attach":{"attach":{"volume":"a","kind":"loop","read_only":true,"shared":false,"sector_size":"512"}}}"#,
        ),
        (
            attach(Kind::File, None),
            r#"{"attach":{"attach":{"volume":"a","kind":"file","read_only":true,"shared":false,"sector_size":null}}}"#,
        ),
        (A::List, r#"{"attach":"list"}"#),
        (
            A::Detach {
                volume: "a".to_owned(),
            },
            r#"{"attach":{"detach":{"volume":"a"}}}"#,
        ),
    ];
    all.map(|(command, text)| (Command::Attach(command), text))
        .into()
}

fn golden_of_containers() -> Vec<(Command, &'static str)> {
    use container::Command as C;
    let web = || "web".to_owned();
    let inside = CopySide::Container {
        container: web(),
        path: "/etc".to_owned(),
    };
    let odd = HostPath::new(OsStr::from_bytes(b"/\xff")).unwrap();
    let all = [
        (
            C::Create(container::Create {
                image: "i".to_owned(),
                name: None,
                size_bytes: None,
                root: RootKind::Block,
                mount: Some(MountAt::NewFolder),
            }),
            r#"{"container":{"create":{"image":"i","name":null,"size_bytes":null,"mount":"new-folder"}}}"#,
        ),
        (
            C::Create(container::Create {
                image: "i".to_owned(),
                name: None,
                size_bytes: None,
                root: RootKind::Overlay,
                mount: None,
            }),
            r#"{"container":{"create":{"image":"i","name":null,"size_bytes":null,"root":"overlay","mount":null}}}"#,
        ),
        (
            C::Mount {
                container: web(),
                at: MountAt::Folder(path("/mnt")),
            },
            r#"{"container":{"mount":{"container":"web","at":{"folder":"/mnt"}}}}"#,
        ),
        (
            C::Unmount { container: web() },
            r#"{"container":{"unmount":{"container":"web"}}}"#,
        ),
        (
            C::Diff { container: web() },
            r#"{"container":{"diff":{"container":"web"}}}"#,
        ),
        (
            C::Commit {
                container: web(),
                image: "mine".to_owned(),
            },
            r#"{"container":{"commit":{"container":"web","image":"mine"}}}"#,
        ),
        (
            C::Copy(container::Copy {
                source: inside.clone(),
                target: CopySide::Host(odd),
                follow_link: false,
            }),
            r#"{"container":{"copy":{"source":{"container":{"container":"web","path":"/etc"}},"target":{"host":[47,255]},"follow_link":false}}}"#,
        ),
        (
            C::Copy(container::Copy {
                source: CopySide::Pipe,
                target: inside,
                follow_link: true,
            }),
            r#"{"container":{"copy":{"source":"pipe","target":{"container":{"container":"web","path":"/etc"}},"follow_link":true}}}"#,
        ),
        (
            C::Send {
                containers: vec![web()],
                options: SendOptions::default(),
            },
            r#"{"container":{"send":{"containers":["web"],"options":{"from":null,"compress":false,"resume":null,"bytes_per_s":null}}}}"#,
        ),
        (
            C::Receive(Receive {
                name: "b/".to_owned(),
                step: ReceiveStep::Discard,
            }),
            r#"{"container":{"receive":{"name":"b/","step":"discard"}}}"#,
        ),
        (C::List, r#"{"container":"list"}"#),
        (
            C::Remove {
                containers: vec![web()],
            },
            r#"{"container":{"remove":{"containers":["web"]}}}"#,
        ),
    ];
    let all = all.map(|(command, text)| (Command::Container(command), text));
    let gc = (
        Command::Gc(gc::Gc { explain: true }),
        r#"{"gc":{"explain":true}}"#,
    );
    let tree = (
        Command::Tree(tree::Tree {
            all: true,
            format: tree::Format::Svg,
            ascii: true,
        }),
        r#"{"tree":{"all":true,"format":"svg","ascii":true}}"#,
    );
    all.into_iter().chain([gc, tree]).collect()
}

#[test]
fn each_request_has_the_text_of_this_version_and_comes_back_from_it() {
    assert_eq!(
        VERSION, GOLDEN_VERSION,
        "write the texts of the new version"
    );
    let style = Style {
        json: true,
        quiet: false,
        no_trunc: true,
        verbose: 1,
        terminal_columns: Some(80),
    };
    let shown = r#"{"json":true,"quiet":false,"no_trunc":true,"verbose":1,"terminal_columns":80}"#;
    for (command, text) in golden() {
        let request = Request {
            style: style.clone(),
            command,
        };
        let wanted = format!(r#"{{"style":{shown},"command":{text}}}"#);
        let (version, body) = request.encode().unwrap();
        assert_eq!(version, VERSION);
        assert_eq!(String::from_utf8(body).unwrap(), wanted);
        assert_eq!(
            Request::decode(version, wanted.as_bytes()).unwrap(),
            request
        );
    }
}

#[test]
fn what_may_be_absent_may_be_and_nothing_else_and_nothing_unknown_is_ignored() {
    let decode = |command: &str| {
        let body = format!(
            r#"{{"style":{{"json":false,"quiet":false,"verbose":0}},"command":{command}}}"#
        );
        Request::decode(VERSION, body.as_bytes()).map(|request| request.command)
    };
    for (short, long) in [
        (r#"{"gc":{}}"#, r#"{"gc":{"explain":false}}"#),
        (
            r#"{"tree":{}}"#,
            r#"{"tree":{"all":false,"format":"text","ascii":false}}"#,
        ),
        (
            r#"{"pool":{"status":{}}}"#,
            r#"{"pool":{"status":{"check":false}}}"#,
        ),
        (
            r#"{"attach":{"attach":{"volume":"a","kind":"loop"}}}"#,
            r#"{"attach":{"attach":{"volume":"a","kind":"loop","read_only":false,"shared":false,"sector_size":null}}}"#,
        ),
        (
            r#"{"image":{"import":{"source":"pipe"}}}"#,
            r#"{"image":{"import":{"source":"pipe","name":null,"platform":null,"rootfs":false,"size_bytes":null}}}"#,
        ),
        (
            r#"{"volume":{"send":{"volumes":[],"options":{}}}}"#,
            r#"{"volume":{"send":{"volumes":[],"forest":false,"options":{"from":null,"compress":false,"resume":null,"bytes_per_s":null}}}}"#,
        ),
        (
            r#"{"container":{"create":{"image":"i"}}}"#,
            r#"{"container":{"create":{"image":"i","name":null,"size_bytes":null,"mount":null}}}"#,
        ),
    ] {
        assert_eq!(decode(short).unwrap(), decode(long).unwrap());
    }
    for wrong in [
        r#"{"gc":{"explian":true}}"#,
        r#"{"pool":{"status":{"check":true,"all":true}}}"#,
        r#"{"volume":{"create":{"name":"a"}}}"#,
        r#"{"volume":{"create":{"name":"a","size_bytes":1,"thick":true}}}"#,
        r#"{"image":{"import":{"source":"pipe","platform":"linux/"}}}"#,
        r#"{"container":{"copy":{"source":"pipe","target":{"host":"relative"}}}}"#,
        r#""serving""#,
        r#"{"serving":"Upgrade"}"#,
    ] {
        assert!(
            matches!(decode(wrong), Err(ProtocolError::Json(_))),
            "{wrong}"
        );
    }
}

#[test]
fn what_programs_say_to_take_over_from_each_other_has_the_form_of_version_1() {
    use serving::Command as S;
    let all = [
        (S::Serving, r#""Serving""#),
        (S::Running, r#""Running""#),
        (S::Upgrade, r#""Upgrade""#),
        (
            S::UpgradeWith {
                arguments: vec![b"serve".to_vec(), vec![0xff]],
            },
            r#"{"UpgradeWith":{"arguments":[[115,101,114,118,101],[255]]}}"#,
        ),
    ];
    for (command, text) in all {
        let request = Request {
            style: Style::default(),
            command: Command::Serving(command),
        };
        let (version, body) = request.encode().unwrap();
        assert_eq!(version, 1);
        let wanted = format!(
            r#"{{"style":{{"json":false,"quiet":false,"no_trunc":false,"verbose":0,"terminal_columns":null}},"command":{text}}}"#
        );
        assert_eq!(String::from_utf8(body).unwrap(), wanted);
        // The first programs that had version 1 sent this style.
        let oldest = format!(
            r#"{{"style":{{"json":false,"quiet":false,"verbose":0,"terminal":false}},"command":{text}}}"#
        );
        for sent in [wanted, oldest] {
            assert_eq!(Request::decode(1, sent.as_bytes()).unwrap(), request);
        }
    }
    let running = Running {
        pool: path("/pool"),
        socket: path("/pool.sock"),
        mount: path("/mnt"),
        arguments: vec![b"cowshed".to_vec()],
    };
    let text = r#"{"pool":"/pool","socket":"/pool.sock","mount":"/mnt","arguments":[[99,111,119,115,104,101,100]]}"#;
    assert_eq!(serde_json::to_string(&running).unwrap(), text);
    assert_eq!(serde_json::from_str::<Running>(text).unwrap(), running);
}

#[test]
fn a_command_of_another_version_is_told_apart_from_nonsense() {
    let old = br#"{"style":{"json":false,"quiet":false,"verbose":0},"command":{"Volume":"Ls"}}"#;
    for version in [0, 1, 2, VERSION + 1] {
        assert!(matches!(
            Request::decode(version, old),
            Err(ProtocolError::Version { theirs }) if theirs == version
        ));
    }
    assert!(matches!(
        Request::decode(VERSION, old),
        Err(ProtocolError::Json(_))
    ));
}
