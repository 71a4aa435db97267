//! Writes what describes the command line; see the library.
//!
//!     cowshed-manual --reference FILE     docs/cli.md
//!     cowshed-manual --package FOLDER     man pages in FOLDER/man1, completions in FOLDER/completions

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let written = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--reference", file] => std::fs::write(file, cowshed_manual::reference()),
        ["--package", folder] => cowshed_manual::write_package(Path::new(folder)),
        _ => {
            eprintln!("usage: cowshed-manual --reference FILE | --package FOLDER");
            return ExitCode::from(2);
        }
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cowshed-manual: {error}");
            ExitCode::FAILURE
        }
    }
}
