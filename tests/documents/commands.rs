//! That the program takes each of its commands that a document shows, and that the scripts, tests,
//! files and options that documents name are there.

use crate::document::{self, Document};
use crate::shell;
use clap::Command;
use std::collections::BTreeSet;
use std::path::Path;

/// Options of other programs that the text names by themselves.
const OPTIONS_OF_OTHERS: &[&str] = &[
    "--local",       // ctr
    "--markdown",    // tools/bench
    "--reflink",     // cp
    "--storage-opt", // docker
];

/// Folders that the documents leave out of paths of source files.
const FOLDERS: &[&str] = &["", "src"];

/// Returns the commands in the document's scripts, with their places.
fn in_scripts(document: &Document) -> Vec<(String, Vec<String>)> {
    let scripts = document
        .blocks
        .iter()
        .filter(|block| block.language == "sh");
    scripts
        .flat_map(|block| {
            let at = document.at(block.line);
            shell::commands(&block.text)
                .into_iter()
                .map(move |words| (at.clone(), words))
        })
        .collect()
}

/// Returns the arguments if the words are a command of the program.
fn of_program(words: &[String]) -> Option<&[String]> {
    let words = match words {
        [first, rest @ ..] if first == "sudo" => rest,
        words => words,
    };
    match words {
        [first, ..] if Path::new(first).file_name() == Some("cowshed".as_ref()) => Some(words),
        _ => None,
    }
}

#[test]
fn the_program_takes_each_command_in_a_script() {
    let mut count = 0;
    let mut faults = Vec::new();
    for (at, words) in document::all().iter().flat_map(in_scripts) {
        let Some(words) = of_program(&words) else {
            continue;
        };
        count += 1;
        if let Err(error) = cowshed::command_line().try_get_matches_from(words)
            && error.use_stderr()
        {
            faults.push(format!("{at}: {}: {error}", words.join(" ")));
        }
    }
    assert!(count > 30, "only {count} commands");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_program_has_each_command_and_option_in_the_text() {
    let mut faults = Vec::new();
    for document in document::all() {
        // It names what there was.
        if document.path.ends_with("CHANGELOG.md") {
            continue;
        }
        for (line, code) in &document.codes {
            for words in shell::commands(code) {
                if let Some(words) = of_program(&words)
                    && let Err(fault) = known(&words[1..])
                {
                    faults.push(format!("{}: `{code}`: {fault}", document.at(*line)));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Checks words that need not be a whole command: subcommands and the names of options.
fn known(words: &[String]) -> Result<(), String> {
    let mut present = cowshed::command_line();
    present.build();
    let mut is_command = true;
    for word in words {
        if word.starts_with('-') {
            let name = word.split('=').next().unwrap();
            if !options(&present).contains(name) {
                return Err(format!("there is no {name}"));
            }
        } else if is_command && present.has_subcommands() {
            // A placeholder stands for any.
            if word.chars().all(|c| c.is_ascii_uppercase() || c == '…') {
                return Ok(());
            }
            let found = present.find_subcommand(word).cloned();
            present = found.ok_or_else(|| format!("there is no {word}"))?;
        } else {
            is_command = false;
        }
    }
    Ok(())
}

/// Returns the options of one command that are not hidden.
fn options(command: &Command) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for option in command
        .get_arguments()
        .filter(|option| !option.is_hide_set())
    {
        names.extend(option.get_long().map(|long| format!("--{long}")));
        names.extend(option.get_short().map(|short| format!("-{short}")));
        names.extend(option.get_short().map(|short| format!("-{short}{short}")));
    }
    names
}

fn all_options(command: &Command) -> BTreeSet<String> {
    let mut names = options(command);
    for inner in command.get_subcommands() {
        names.extend(all_options(inner));
    }
    names
}

#[test]
fn each_option_that_stands_alone_is_known() {
    let mut command = cowshed::command_line();
    command.build();
    let known = all_options(&command);
    let mut faults = Vec::new();
    for document in document::all() {
        for (line, code) in &document.codes {
            let name = code.split([' ', '=', ',']).next().unwrap();
            if name.starts_with("--") && !known.contains(name) && !OPTIONS_OF_OTHERS.contains(&name)
            {
                faults.push(format!("{}: there is no {name}", document.at(*line)));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn each_file_of_the_source_that_a_document_names_is_there() {
    let known = ["tests", "tools", "src", "benches", "docs", "examples"];
    let crates: Vec<String> = std::fs::read_dir(document::root().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut count = 0;
    let mut faults = Vec::new();
    for document in document::all() {
        let scripts = in_scripts(&document);
        let in_scripts = scripts
            .iter()
            .map(|(at, words)| (at.clone(), words[0].clone()));
        let in_text = document.codes.iter();
        let in_text = in_text.map(|(line, code)| (document.at(*line), code.clone()));
        for (at, code) in in_scripts.chain(in_text) {
            let path = code.split([' ', ':']).next().unwrap();
            let Some((first, _)) = path.split_once('/') else {
                continue;
            };
            if !known.contains(&first) && !crates.iter().any(|name| name == first) {
                continue;
            }
            count += 1;
            let path = path.split(['{', '*', '<']).next().unwrap();
            let is_there = FOLDERS
                .iter()
                .any(|folder| document::root().join(folder).join(path).exists());
            if !is_there {
                faults.push(format!("{at}: there is no {path}"));
            }
        }
    }
    assert!(count > 30, "only {count} files");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn each_test_and_benchmark_that_a_document_names_is_there() {
    let root = document::root();
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let is_there = |folder: &str, name: &str| {
        root.join(folder).join(format!("{name}.rs")).exists()
            || root.join(folder).join(name).join("main.rs").exists()
            || manifest.contains(&format!("[[bench]]\nname = \"{name}\""))
    };
    let mut faults = Vec::new();
    for document in document::all() {
        let in_text = document.codes.iter().flat_map(|(line, code)| {
            let at = document.at(*line);
            shell::commands(code)
                .into_iter()
                .map(move |words| (at.clone(), words))
        });
        for (at, words) in in_scripts(&document).into_iter().chain(in_text) {
            if words.first().is_none_or(|first| first != "cargo") {
                continue;
            }
            for pair in words.windows(2) {
                let missing = match (&*pair[0], &*pair[1]) {
                    ("--test", name) => !is_there("tests", name),
                    ("--bench", name) => !is_there("benches", name),
                    _ => false,
                };
                if missing {
                    faults.push(format!("{at}: there is no {}", pair[1]));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn planted_faults_are_found() {
    for (text, is_known) in [
        ("pool create --size 1G", true),
        ("COMMAND --help", true),
        ("pool make --size 1G", false),
        ("pool create --length 1G", false),
        ("serve --worker x", false),
    ] {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        assert_eq!(known(&words).is_ok(), is_known, "{text}");
    }
}
