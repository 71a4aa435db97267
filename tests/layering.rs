//! The rooms under `src` may import downwards only; this reads the sources and fails on a path
//! that leads up or sideways. It also holds the other rules that a reader of one file cannot
//! check: `unsafe` lives in `sys` alone, every file says what it is, and none is too long.
//!
//! It reads text, not syntax trees: comments and literals are blanked out first, and what is left
//! is searched for `crate::`, for chains of `super::`, and for the word `unsafe`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// Each room and the rooms that it may import.
const ROOMS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("sys", &["base"]),
    ("device", &["base", "sys"]),
    ("format", &["base"]),
    ("space", &["base", "format", "device"]),
    ("log", &["base", "format", "device"]),
    ("map", &["base", "format", "device", "space"]),
    ("pool", ENGINE),
    ("check", ENGINE),
    ("export", &["base", "sys", "pool"]),
    // Layers come from strangers: every path is resolved beneath the root by a system call.
    ("oci", &["base", "sys", "pool"]),
    ("container", &["base", "sys", "pool", "oci", "export"]),
    (
        "snapshotter",
        &["base", "pool", "oci", "export", "container"],
    ),
    ("docker", &["base", "container"]),
    ("daemon", BELOW_THE_TOP),
    // The two top rooms are one level; of them, the command line starts the daemon.
    ("cli", TOP),
];

const ENGINE: &[&str] = &["base", "sys", "device", "format", "space", "log", "map"];
const BELOW_THE_TOP: &[&str] = &[
    "base",
    "sys",
    "device",
    "format",
    "space",
    "log",
    "map",
    "pool",
    "check",
    "export",
    "oci",
    "container",
    "snapshotter",
];
const TOP: &[&str] = &[
    "base",
    "sys",
    "device",
    "format",
    "space",
    "log",
    "map",
    "pool",
    "check",
    "export",
    "oci",
    "container",
    "snapshotter",
    "docker",
    "daemon",
];

/// The crate's roots, which wire the rooms together.
const ROOTS: &[&str] = &["lib.rs", "main.rs"];

/// No file is longer than this.
const LINES_MAX: usize = 600;

#[test]
fn every_source_file_keeps_the_layers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = source_files(&src);
    assert!(
        files.len() > 5,
        "only {} files under {}",
        files.len(),
        src.display()
    );
    let faults: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            let inside = file.strip_prefix(&src).unwrap();
            faults_of(inside, &text)
        })
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn planted_faults_are_found() {
    for (file, text, wanted) in [
        (
            "space/group.rs",
            "//! x\nuse crate::map::Node;\n",
            "imports map",
        ),
        (
            "space/group.rs",
            "//! x\nuse crate::{base::Name, log};\n",
            "imports log",
        ),
        (
            "space/group.rs",
            "//! x\nuse crate::{\n base::{Name, crc},\n pool::Pool,\n};\n",
            "imports pool",
        ),
        (
            "oci/layer.rs",
            "//! x\nfn f() { crate::export::fuse() }\n",
            "imports export",
        ),
        (
            "daemon/mod.rs",
            "//! x\nuse crate::cli::run;\n",
            "imports cli",
        ),
        (
            "base/mod.rs",
            "//! x\nuse super::sys::map;\n",
            "imports sys",
        ),
        (
            "base/name.rs",
            "//! x\nuse super::super::{error, pool};\n",
            "imports pool",
        ),
        (
            "base/name.rs",
            "//! x\nmod a { use super::super::super::pool; }\n",
            "imports pool",
        ),
        ("map/node.rs", "//! x\nuse crate::Error;\n", "no room Error"),
        ("map/node.rs", "//! x\nuse crate::*;\n", "no room *"),
        ("news/mod.rs", "//! x\n", "room news"),
        (
            "pool/mod.rs",
            "//! x\nfn f() { unsafe { g() } }\n",
            "unsafe",
        ),
        ("pool/mod.rs", "use crate::base::Name;\n", "//!"),
    ] {
        let found = faults_of(Path::new(file), text).join("\n");
        assert!(found.contains(wanted), "{text:?} gave {found:?}");
    }
    let long = format!("//! x\n{}", "\n".repeat(LINES_MAX));
    assert!(faults_of(Path::new("map/node.rs"), &long)[0].contains("lines"));
}

#[test]
fn what_is_allowed_is_not_reported() {
    for (file, text) in [
        (
            "space/group.rs",
            "//! x\nuse crate::base::Name;\nuse crate::space::run;\n",
        ),
        (
            "space/group.rs",
            "//! x\nuse crate::{base::{Name, map}, device};\n",
        ),
        (
            "space/group.rs",
            "//! See [`crate::pool::Pool`].\n/* crate::pool /* nested */ crate::pool */\n",
        ),
        (
            "space/group.rs",
            "//! x\nconst A: &str = \"unsafe crate::pool\";\nconst B: &str = r#\"crate::\"map\"#;\n",
        ),
        (
            "space/group.rs",
            "//! x\nfn f<'a>(x: &'a str) -> char { '\"' }\nconst C: char = '\\'';\nuse crate::base;\n",
        ),
        (
            "space/group.rs",
            "//! x\n#![allow(unsafe_code)]\nfn unsafely() {}\n",
        ),
        (
            "space/group.rs",
            "//! x\nmod tests { use super::*; use super::super::run; }\n",
        ),
        (
            "base/name.rs",
            "//! x\nmod a { mod b { use super::super::super::sys; } }\n",
        ),
        ("sys/ring.rs", "//! x\nfn f() { unsafe { g() } }\n"),
        ("cli/serve.rs", "//! x\nuse crate::daemon::Daemon;\n"),
        ("main.rs", "//! x\nuse cowshed::cli;\n"),
    ] {
        let found = faults_of(Path::new(file), text);
        assert!(found.is_empty(), "{text:?} gave {found:?}");
    }
}

/// All `.rs` files below `folder`, sorted.
fn source_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(source_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// What is wrong with one file, `inside` being its path below `src`.
fn faults_of(inside: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |what: String| faults.push(format!("src/{}: {what}", inside.display()));
    // The tests of a module are described by the module.
    let describes_itself = inside.file_name().is_none_or(|name| name != "tests.rs");
    if describes_itself && !text.starts_with("//!") {
        fault("does not start with //! and what it is".into());
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        fault(format!("{lines} lines; split it by verb"));
    }
    let modules = module_path(inside);
    let code = blank_comments_and_literals(text);
    let Some(room) = modules.first() else {
        return faults;
    };
    let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| name == room) else {
        fault(format!(
            "the room {room} is in no level; add it to the table in this test"
        ));
        return faults;
    };
    if room != "sys" && words(&code).any(|(_, word)| word == "unsafe") {
        fault("unsafe code outside src/sys".into());
    }
    for (line, target) in imports(&code, modules.len()) {
        if target == *room || allowed.contains(&target.as_str()) {
            continue;
        }
        if ROOMS.iter().any(|(name, _)| *name == target) {
            fault(format!(
                "line {line}: imports {target}, which {room} may not know"
            ));
        } else {
            fault(format!(
                "line {line}: there is no room {target}; import from the room itself"
            ));
        }
    }
    faults
}

/// `pool/volume/mod.rs` is `[pool, volume]`; the crate's roots are `[]`.
fn module_path(inside: &Path) -> Vec<String> {
    let text = inside.to_str().unwrap();
    if ROOTS.contains(&text) {
        return Vec::new();
    }
    let mut modules: Vec<String> = text
        .trim_end_matches(".rs")
        .split('/')
        .map(str::to_owned)
        .collect();
    if modules.last().is_some_and(|last| last == "mod") {
        modules.pop();
    }
    modules
}

/// The first names that paths from the crate's root lead to, each with its line: those that start
/// with `crate::`, and those whose `super::` climb out of a module `depth` deep.
fn imports(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut braces: Vec<bool> = Vec::new(); // for each open brace: does it open a module?
    let mut previous: Option<&str> = None;
    let mut opens_module = false;
    let mut at = 0;
    while at < code.len() {
        let rest = &code[at..];
        let word_len = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        if word_len == 0 {
            match rest.as_bytes()[0] {
                b'{' => braces.push(std::mem::take(&mut opens_module)),
                b'}' => drop(braces.pop()),
                b';' => opens_module = false,
                _ => {}
            }
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        }
        let word = &rest[..word_len];
        opens_module |= previous == Some("mod");
        previous = Some(word);
        let mut end = at + word_len;
        let climbs = match word {
            "crate" => usize::MAX,
            "super" => {
                let mut supers = 1;
                while let Some(next) = code[end..].strip_prefix("::super") {
                    end = code.len() - next.len();
                    supers += 1;
                }
                supers
            }
            _ => 0,
        };
        let inline = braces.iter().filter(|module| **module).count();
        if climbs >= depth + inline && code[end..].starts_with("::") {
            let line = code[..at].lines().count();
            found.extend(
                first_names(&code[end + 2..])
                    .into_iter()
                    .map(|name| (line, name)),
            );
        }
        at = end;
    }
    found
}

/// The names at the head of what follows a `::`: one, or each of a braced list.
fn first_names(tail: &str) -> Vec<String> {
    let name = |text: &str| {
        let text = text.trim_start();
        let len = text
            .find(|c: char| !is_word(c))
            .unwrap_or(text.len())
            .max(1);
        text.chars().take(len).collect::<String>()
    };
    let Some(list) = tail.strip_prefix('{') else {
        return vec![name(tail)];
    };
    let mut names = Vec::new();
    let mut nested = 0;
    let mut start = 0;
    for (at, c) in list.char_indices() {
        let ends_item = nested == 0 && (c == ',' || c == '}');
        if ends_item {
            let item = list[start..at].trim();
            if !item.is_empty() {
                names.push(name(item));
            }
            start = at + 1;
        }
        match c {
            '{' => nested += 1,
            '}' if nested == 0 => break,
            '}' => nested -= 1,
            _ => {}
        }
    }
    names
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The words of `code` and where they start.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.split(|c: char| !is_word(c))
        .filter(|word| !word.is_empty())
        .map(|word| (word.as_ptr().addr() - code.as_ptr().addr(), word))
}

/// `text` with comments, strings and characters replaced by spaces; lines stay where they are.
fn blank_comments_and_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = literal_len(rest, code.chars().next_back());
        if len == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..len].chars().map(|c| if c == '\n' { c } else { ' ' }));
            rest = &rest[len..];
        }
    }
    code
}

/// How long the comment or literal is that `rest` starts with; 0 when it starts with neither.
fn literal_len(rest: &str, before: Option<char>) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_len(rest);
    }
    let raw = rest.trim_start_matches('b').strip_prefix('r');
    let inside_word = before.is_some_and(is_word);
    if let (Some(raw), false) = (raw, inside_word) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let open = rest.len() - raw.len() + hashes + 1;
            let close = format!("\"{}", "#".repeat(hashes));
            return rest[open..]
                .find(&close)
                .map_or(rest.len(), |at| open + at + close.len());
        }
    }
    match rest.as_bytes()[0] {
        b'"' => quoted_len(rest, '"'),
        // A lifetime has no closing quote behind its first character.
        b'\'' if rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'') => {
            quoted_len(rest, '\'')
        }
        _ => 0,
    }
}

fn block_comment_len(rest: &str) -> usize {
    let mut nested = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            nested += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            nested -= 1;
            at += 2;
            if nested == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if !escaped && c == quote {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    rest.len()
}
