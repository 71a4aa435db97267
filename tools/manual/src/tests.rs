//! That what is made from the arguments is complete, and the stored reference up to date.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

#[test]
fn the_stored_reference_is_that_of_the_program() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let stored = fs::read_to_string(path).unwrap();
    assert!(
        stored == reference(),
        "docs/cli.md is out of date; run cargo run -p cowshed-manual -- --reference docs/cli.md"
    );
}

#[test]
fn no_hidden_option_is_shown_and_each_other_one_is() {
    fn walk(command: &Command, text: &str) {
        for option in command.get_arguments() {
            let Some(long) = option.get_long() else {
                continue;
            };
            if option.is_hide_set() {
                assert!(!text.contains(&format!("--{long} ")), "--{long} is shown");
            } else if long != "help" && long != "version" {
                assert!(text.contains(&format!("--{long}")), "--{long} is missing");
            }
        }
        command
            .get_subcommands()
            .for_each(|inner| walk(inner, text));
    }
    walk(&cowshed::command_line(), &reference());
}

#[test]
fn each_command_has_a_man_page_and_each_shell_completes() {
    let folder = std::env::temp_dir().join(format!("cowshed-manual-{}", std::process::id()));
    write_package(&folder).unwrap();
    for page in ["cowshed", "cowshed-pool-create", "cowshed-serve"] {
        let text = fs::read_to_string(folder.join(format!("man1/{page}.1"))).unwrap();
        assert!(text.contains(".TH cowshed"), "{page}: {text}");
    }
    assert!(!folder.join("man1/cowshed-help.1").exists());
    for file in ["cowshed.bash", "_cowshed", "cowshed.fish"] {
        let text = fs::read_to_string(folder.join("completions").join(file)).unwrap();
        assert!(text.contains("checkpoint"), "{file}");
    }
    fs::remove_dir_all(folder).unwrap();
}
