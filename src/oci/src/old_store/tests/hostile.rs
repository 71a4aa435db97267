//! Stores that lead elsewhere.

use super::super::split::SplitTar;
use super::*;
use crate::testing::open_folder;

/// Makes the tar of these lines and of the files in `root`.
fn made(store: &Store, root: &str, lines: &[Value]) -> Result<Vec<u8>> {
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    store.write("split", gzip(text.join("\n").as_bytes()));
    let split = fs::File::open(store.path("split")).unwrap();
    let mut tar = SplitTar::new("split", split, open_folder(&store.path(root)), false)?;
    let mut bytes = Vec::new();
    tar.read_to_end(&mut bytes).map_err(Error::archive)?;
    Ok(bytes)
}

#[test]
fn a_name_never_leads_out_of_the_layer() {
    let store = Store::new();
    store.write("secret", "secret");
    store.write("layer/etc/inside", "inside");
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, store.path("layer").join(name)).unwrap();
    };
    link("/etc/inside", "absolute");
    link("../secret", "relative");
    link("..", "above");
    let of = |name: &str| {
        made(
            &store,
            "layer",
            &[json!({"type": 1, "name": name, "size": 6})],
        )
    };
    assert_eq!(of("absolute").unwrap(), b"inside");
    for name in [
        "../secret",
        "relative",
        "above/secret",
        "/secret",
        "etc/../../secret",
    ] {
        let error = of(name).unwrap_err();
        assert!(matches!(error, Error::LayerFile { .. }), "{name}: {error}");
    }
}

#[test]
fn only_regular_files_are_read() {
    let store = Store::new();
    fs::create_dir_all(store.path("layer/folder")).unwrap();
    let pipe = store.path("layer/pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in ["folder", "pipe"] {
        let error = made(
            &store,
            "layer",
            &[json!({"type": 1, "name": name, "size": 1})],
        );
        let error = error.unwrap_err().to_string();
        assert!(error.ends_with("it is not a regular file"), "{error}");
    }
}

#[test]
fn lines_that_tar_split_does_not_write_are_refused() {
    let store = Store::new();
    store.write("layer/x", "x");
    for (line, wanted) in [
        (json!({"type": 3}), "a part is of an unknown kind"),
        (json!({"type": 2, "payload": "?"}), "a part is not base64"),
        (json!({"type": 1, "size": 1}), "a file has no name"),
        (
            json!({"type": 1, "size": 1, "name_raw": "?"}),
            "a name is not base64",
        ),
        (
            json!({"type": 1, "size": 1, "name": "a\0b"}),
            "a name is not one of a file",
        ),
        (
            json!({"type": 1, "size": -1, "name": "x"}),
            "it is not what tar-split writes",
        ),
        (json!([]), "it is not what tar-split writes"),
    ] {
        let error = made(&store, "layer", &[line]).unwrap_err().to_string();
        assert_eq!(error, format!("split in the store is damaged: {wanted}"));
    }
    let raw = json!({"type": 1, "size": 1, "name_raw": STANDARD.encode("x")});
    assert_eq!(made(&store, "layer", &[raw]).unwrap(), b"x");
}

#[test]
fn a_symbolic_link_in_the_store_is_not_followed() {
    let store = Store::new();
    store.write("elsewhere/repositories.json", "{}");
    store.write("elsewhere/imagedb/content/sha256/x", "");
    fs::create_dir_all(store.path("image/overlay2/imagedb")).unwrap();
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, store.path(name)).unwrap();
    };
    let fault = || store.open().err().unwrap().to_string();
    link(
        "../../elsewhere/repositories.json",
        "image/overlay2/repositories.json",
    );
    assert!(fault().contains("bind-mount its target"), "{}", fault());
    fs::remove_file(store.path("image/overlay2/repositories.json")).unwrap();
    link(
        "../../../elsewhere/imagedb/content",
        "image/overlay2/imagedb/content",
    );
    let start = "a symbolic link leads to image/overlay2/imagedb/content/sha256 in the store";
    assert!(fault().starts_with(start), "{}", fault());
}
