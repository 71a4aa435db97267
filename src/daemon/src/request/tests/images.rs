//! The texts of requests about images.

use super::*;

pub(super) fn golden() -> Vec<(Command, &'static str)> {
    use image::Command as I;
    let all = [
        (
            I::Import(image::Import {
                source: file("/root"),
                name: Some("debian:12".to_owned()),
                platform: Some("linux/arm/v7".parse().unwrap()),
                rootfs: true,
                size_bytes: Some(1 << 30),
            }),
            r#"{"image":{"import":{"source":{"file":"/root"},"name":"debian:12","platform":"linux/arm/v7","rootfs":true,"size_bytes":1073741824}}}"#,
        ),
        (
            I::Migrate(image::Migrate {
                from: HostPath::new("/var/lib/docker").unwrap(),
            }),
            r#"{"image":{"migrate":{"from":"/var/lib/docker"}}}"#,
        ),
        (
            I::Pull(image::Pull {
                name: "debian:12".to_owned(),
                size_bytes: None,
            }),
            r#"{"image":{"pull":{"name":"debian:12","size_bytes":null}}}"#,
        ),
        (
            I::Push(image::Push {
                image: "debian:12".to_owned(),
            }),
            r#"{"image":{"push":{"image":"debian:12"}}}"#,
        ),
        (I::List, r#"{"image":"list"}"#),
        (
            I::Inspect {
                image: "i".to_owned(),
            },
            r#"{"image":{"inspect":{"image":"i"}}}"#,
        ),
        (
            I::History {
                image: "i".to_owned(),
            },
            r#"{"image":{"history":{"image":"i"}}}"#,
        ),
        (
            I::Tag {
                image: "i".to_owned(),
                name: "app:1".to_owned(),
            },
            r#"{"image":{"tag":{"image":"i","name":"app:1"}}}"#,
        ),
        (
            I::Export(image::Export {
                images: vec!["i".to_owned()],
                file: FileOrPipe::Pipe,
                compression: Compression::Zstd,
            }),
            r#"{"image":{"export":{"images":["i"],"file":"pipe","compression":"zstd"}}}"#,
        ),
        (
            I::Send {
                images: vec!["i".to_owned()],
                options: send_options(),
            },
            r#"{"image":{"send":{"images":["i"],"options":{"from":"r","compress":true,"resume":"00ff","bytes_per_s":1000}}}}"#,
        ),
        (
            I::Receive(Receive {
                name: "-".to_owned(),
                step: ReceiveStep::Stream,
            }),
            r#"{"image":{"receive":{"name":"-","step":"stream"}}}"#,
        ),
        (
            I::Remove {
                images: vec!["i".to_owned()],
            },
            r#"{"image":{"remove":{"images":["i"]}}}"#,
        ),
    ];
    all.map(|(command, text)| (Command::Image(command), text))
        .into()
}
