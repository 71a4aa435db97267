//! Test programs with options of their own: the options that `cargo test` gives to every test
//! program, and running tests one after another.
//!
//! A crate for this takes one filter only; `cargo test -- NAME NAME` gives several.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// The options that `cargo test` and similar tools pass to each test program.
#[derive(clap::Args)]
pub struct Harness {
    /// Only the tests whose names contain one of these.
    filter: Vec<String>,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    no_capture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    skip: Vec<String>,
    #[arg(long, hide = true)]
    pub test_threads: Option<usize>,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(long, hide = true)]
    color: Option<String>,
}

impl Harness {
    /// Returns the tests that are wanted; `None` if only their names were, which are printed.
    pub fn choose<T>(
        &self,
        tests: impl IntoIterator<Item = T>,
        name: impl Fn(&T) -> &str,
    ) -> Option<Vec<T>> {
        let wanted: Vec<T> = tests
            .into_iter()
            .filter(|test| self.wants(name(test)))
            .collect();
        if self.list {
            for test in &wanted {
                println!("{}: test", name(test));
            }
            return None;
        }
        Some(wanted)
    }

    fn wants(&self, name: &str) -> bool {
        let matches = |text: &String| {
            if self.exact {
                name == text
            } else {
                name.contains(text.as_str())
            }
        };
        let chosen = self.filter.is_empty() || self.filter.iter().any(matches);
        chosen && !self.skip.iter().any(matches) && !self.ignored
    }
}

/// The outcome of several tests.
#[derive(Default)]
pub struct Outcomes {
    failed: bool,
}

impl Outcomes {
    /// Runs a test, which returns a summary or panics, and reports it; `seed` is told where it
    /// fails. What the test has started ends when its panic unwinds.
    pub fn run(&mut self, name: &str, seed: u64, test: impl FnOnce() -> String) {
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(test));
        let took = started.elapsed().as_secs_f64();
        if let Ok(summary) = outcome {
            if !summary.is_empty() {
                println!("{summary}");
            }
            println!("test {name} ... ok ({took:.1} s)");
        } else {
            println!("test {name} ... FAILED (seed {seed})");
            self.failed = true;
        }
    }

    pub fn exit_code(self) -> ExitCode {
        if self.failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        harness: Harness,
    }

    fn chosen(arguments: &[&str]) -> Option<Vec<&'static str>> {
        let arguments = ["program"].iter().chain(arguments);
        let options = Options::parse_from(arguments);
        let tests = ["a_test", "another_test", "third"];
        options.harness.choose(tests, |name| name)
    }

    #[test]
    fn names_choose_tests_as_cargo_does() {
        assert_eq!(chosen(&[]).unwrap().len(), 3);
        assert_eq!(
            chosen(&["another", "third"]).unwrap(),
            ["another_test", "third"]
        );
        assert_eq!(chosen(&["--exact", "third"]).unwrap(), ["third"]);
        assert_eq!(chosen(&["--exact", "thir"]).unwrap(), [""; 0]);
        assert_eq!(chosen(&["test", "--skip", "another"]).unwrap(), ["a_test"]);
        assert_eq!(chosen(&["--ignored"]).unwrap(), [""; 0]);
        assert_eq!(chosen(&["--list"]), None);
    }

    #[test]
    fn one_failure_fails_the_program() {
        let mut outcomes = Outcomes::default();
        outcomes.run("good", 1, String::new);
        assert!(!outcomes.failed);
        outcomes.run("bad", 1, || panic!("as wanted"));
        outcomes.run("good", 1, String::new);
        assert!(outcomes.failed);
    }
}
