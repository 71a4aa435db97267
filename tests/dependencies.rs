//! That the dependencies are what deny.toml allows: licences, versions and sources.
//!
//! cargo-deny checks more (known vulnerabilities, yanked versions), but takes long to build and
//! needs a network for it. This reads what Cargo knows offline.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// The policy.
struct Policy {
    licences: Vec<String>,
    /// Versions beside the newest that may be there, as `name@version`.
    skipped: Vec<String>,
}

fn policy() -> Policy {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    let table: toml::Table = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
    let licences = table["licenses"]["allow"].as_array().unwrap();
    let skipped = table["bans"]["skip"].as_array().unwrap();
    Policy {
        licences: licences.iter().map(text).collect(),
        skipped: skipped.iter().map(|entry| text(&entry["crate"])).collect(),
    }
}

/// Returns all packages that a build on this machine takes.
fn packages() -> Vec<Value> {
    let host = Command::new("rustc")
        .args(["--print", "host-tuple"])
        .output()
        .unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args([
            "--filter-platform",
            String::from_utf8(host.stdout).unwrap().trim(),
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = found["packages"].as_array().unwrap().clone();
    assert!(found.len() > 100, "only {} packages", found.len());
    found
}

/// Returns true if an expression of licences can be met with those that are allowed.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (met, rest) = either(&words, allowed);
    met && rest.is_empty()
}

fn either<'a>(words: &'a [&'a str], allowed: &[String]) -> (bool, &'a [&'a str]) {
    let (mut met, mut rest) = both(words, allowed);
    while let ["OR", more @ ..] = rest {
        let (other, behind) = both(more, allowed);
        met |= other;
        rest = behind;
    }
    (met, rest)
}

fn both<'a>(words: &'a [&'a str], allowed: &[String]) -> (bool, &'a [&'a str]) {
    let (mut met, mut rest) = one(words, allowed);
    while let ["AND", more @ ..] = rest {
        let (other, behind) = one(more, allowed);
        met &= other;
        rest = behind;
    }
    (met, rest)
}

fn one<'a>(words: &'a [&'a str], allowed: &[String]) -> (bool, &'a [&'a str]) {
    match words {
        ["(", inner @ ..] => {
            let (met, rest) = either(inner, allowed);
            match rest {
                [")", behind @ ..] => (met, behind),
                _ => (false, rest),
            }
        }
        // An exception gives more rights than the licence alone, but it must be allowed by name.
        [name, "WITH", exception, rest @ ..] => {
            let whole = format!("{name} WITH {exception}");
            (allowed.contains(&whole), rest)
        }
        [name, rest @ ..] => (allowed.iter().any(|other| other == name), rest),
        [] => (false, words),
    }
}

#[test]
fn each_licence_and_source_is_allowed() {
    let policy = policy();
    let mut faults = Vec::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("none");
        if !is_met(licence, &policy.licences) {
            faults.push(format!("{name}: the licence {licence}"));
        }
        let source = package["source"].as_str();
        if source.is_some_and(|source| !source.ends_with("rust-lang/crates.io-index")) {
            faults.push(format!("{name}: from {}", source.unwrap()));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn no_crate_has_several_versions_without_a_reason() {
    let policy = policy();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages() {
        let text = |field: &str| package[field].as_str().unwrap().to_owned();
        versions
            .entry(text("name"))
            .or_default()
            .push(text("version"));
    }
    let is_skipped = |name: &str, version: &str| {
        policy.skipped.iter().any(|skipped| {
            let (skipped_name, skipped_version) = skipped.split_once('@').unwrap();
            skipped_name == name
                && format!("{version}.").starts_with(&format!("{skipped_version}."))
        })
    };
    let mut faults = Vec::new();
    for (name, found) in &versions {
        let left = found.iter().filter(|version| !is_skipped(name, version));
        if left.count() > 1 {
            faults.push(format!("{name} {}", found.join(", ")));
        }
    }
    assert!(
        faults.is_empty(),
        "several versions:\n{}",
        faults.join("\n")
    );
    // What is skipped without need is left out.
    for skipped in &policy.skipped {
        let (name, _) = skipped.split_once('@').unwrap();
        let count = versions.get(name).map_or(0, Vec::len);
        assert!(count > 1, "{skipped} is skipped, and there is one version");
    }
}

#[test]
fn expressions_of_licences_are_understood() {
    let allowed = ["MIT", "Zlib", "Unicode-3.0"].map(str::to_owned);
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
        ("MIT WITH X OR Zlib", true),
        ("MIT WITH X", false),
        ("", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}
