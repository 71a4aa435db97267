//! A document: its headings, links, blocks of code and code within lines.

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A fenced block.
pub(crate) struct Block {
    pub(crate) line: usize,
    pub(crate) language: String,
    pub(crate) text: String,
}

/// A document, with the line of each of its parts.
pub(crate) struct Document {
    /// The path below the folder of the source.
    pub(crate) path: PathBuf,
    /// The anchors of its headings, as GitHub names them.
    pub(crate) anchors: Vec<String>,
    /// The targets of links and images.
    pub(crate) links: Vec<(usize, String)>,
    pub(crate) blocks: Vec<Block>,
    /// Code within lines.
    pub(crate) codes: Vec<(usize, String)>,
}

/// Returns the folder of the source.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns all documents for users and contributors.
pub(crate) fn all() -> Vec<Document> {
    let mut paths: Vec<PathBuf> = ["", "docs"]
        .iter()
        .flat_map(|folder| fs::read_dir(root().join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    paths.sort();
    assert!(paths.len() > 10, "{paths:?}");
    paths.iter().map(|path| Document::read(path)).collect()
}

/// Returns one document.
pub(crate) fn one(path: &str) -> Document {
    Document::read(&root().join(path))
}

impl Document {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let inside = path.strip_prefix(root()).unwrap();
        Self::parse(inside, &text)
    }

    pub(crate) fn parse(path: &Path, text: &str) -> Self {
        let mut document = Self {
            path: path.to_owned(),
            anchors: Vec::new(),
            links: Vec::new(),
            blocks: Vec::new(),
            codes: Vec::new(),
        };
        let mut heading: Option<String> = None;
        let mut block: Option<Block> = None;
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            let line = text[..range.start].lines().count().max(1);
            match event {
                Event::Start(Tag::Heading { level, .. }) => {
                    assert!(level <= HeadingLevel::H4, "{}:{line}", path.display());
                    heading = Some(String::new());
                }
                Event::End(TagEnd::Heading(_)) => {
                    document
                        .anchors
                        .push(anchor(&heading.take().unwrap(), &mut seen));
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push((line, dest_url.into_string()));
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let language = match kind {
                        CodeBlockKind::Fenced(language) => language.into_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    let text = String::new();
                    block = Some(Block {
                        line,
                        language,
                        text,
                    });
                }
                Event::End(TagEnd::CodeBlock) => document.blocks.push(block.take().unwrap()),
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    document.codes.push((line, code.into_string()));
                }
                Event::Text(more) => {
                    if let Some(block) = &mut block {
                        block.text.push_str(&more);
                    } else if let Some(heading) = &mut heading {
                        heading.push_str(&more);
                    }
                }
                _ => {}
            }
        }
        document
    }

    /// Returns what names a line of it in a message.
    pub(crate) fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }
}

/// Returns the anchor that GitHub gives a heading.
fn anchor(heading: &str, seen: &mut BTreeMap<String, usize>) -> String {
    let kept: String = heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect();
    let before = seen.entry(kept.clone()).or_default();
    *before += 1;
    match *before {
        1 => kept,
        more => format!("{kept}-{}", more - 1),
    }
}

#[test]
fn a_document_is_taken_apart() {
    let text = "# The way: of a write\n## `x` y\n## `x` y\n[a](b.md#c) and ![d](e.svg)\n\n\
                ```sh\none \\\n  two\n```\n`three`\n";
    let document = Document::parse(Path::new("x.md"), text);
    assert_eq!(document.anchors, ["the-way-of-a-write", "x-y", "x-y-1"]);
    let links = document.links.iter().map(|(_, link)| &**link);
    assert_eq!(links.collect::<Vec<_>>(), ["b.md#c", "e.svg"]);
    assert_eq!(document.blocks[0].text, "one \\\n  two\n");
    assert_eq!(document.blocks[0].language, "sh");
    assert!(document.codes.iter().any(|(_, code)| code == "three"));
}
