//! That each link leads to a file and a heading that are there, and that each document can be
//! reached from README.md.

use crate::document::{self, Document};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// Returns the file and the heading that a link within the source leads to.
fn target(document: &Document, link: &str) -> Option<(PathBuf, Option<String>)> {
    if link.contains("://") {
        return None;
    }
    let (file, heading) = match link.split_once('#') {
        Some((file, heading)) => (file, Some(heading.to_owned())),
        None => (link, None),
    };
    if file.is_empty() {
        return Some((document.path.clone(), heading));
    }
    let folder = document.path.parent().unwrap_or(Path::new(""));
    Some((normal(&folder.join(file)), heading))
}

/// Returns the path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts
}

#[test]
fn each_link_leads_to_a_file_and_a_heading_that_are_there() {
    let documents = document::all();
    let mut faults = Vec::new();
    for document in &documents {
        for (line, link) in &document.links {
            let at = document.at(*line);
            if link.contains("://") {
                if !link.starts_with("https://") {
                    faults.push(format!("{at}: {link} is not https"));
                }
                continue;
            }
            let (file, heading) = target(document, link).unwrap();
            if !document::root().join(&file).exists() {
                faults.push(format!("{at}: there is no {}", file.display()));
            }
            let Some(heading) = heading else { continue };
            let found = documents.iter().find(|other| other.path == file);
            if !found.is_some_and(|other| other.anchors.contains(&heading)) {
                faults.push(format!(
                    "{at}: {} has no heading #{heading}",
                    file.display()
                ));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn each_document_can_be_reached_from_the_first() {
    let documents = document::all();
    let mut reached = BTreeSet::from([PathBuf::from("README.md")]);
    loop {
        let found: Vec<PathBuf> = documents
            .iter()
            .filter(|document| reached.contains(&document.path))
            .flat_map(|document| {
                let links = document.links.iter();
                links.filter_map(|(_, link)| Some(target(document, link)?.0))
            })
            .collect();
        let before = reached.len();
        reached.extend(found);
        if reached.len() == before {
            break;
        }
    }
    let lost: Vec<_> = documents
        .iter()
        .map(|document| &document.path)
        .filter(|path| !reached.contains(*path))
        .collect();
    assert!(lost.is_empty(), "no link leads to {lost:?}");
}

#[test]
fn the_first_page_stays_short() {
    let text = std::fs::read_to_string(document::root().join("README.md")).unwrap();
    let lines = text.lines().count();
    assert!(lines <= 150, "README.md has {lines} lines");
}
