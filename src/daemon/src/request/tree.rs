//! The request to draw the volumes of the pool as a forest.

use serde::{Deserialize, Serialize};

/// The request to show which volume stands on which, and what each costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tree {
    /// Shows volumes that only cowshed itself uses, too. Without it the volumes on one of them are
    /// shown on the next volume above that is shown.
    #[serde(default)]
    pub all: bool,
    /// The form of the drawing. Without it that is text.
    #[serde(default)]
    pub format: Format,
    /// Draws lines of text with ASCII characters. Without it they are drawn with box characters.
    #[serde(default)]
    pub ascii: bool,
}

/// The form of a drawing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A line for each volume.
    #[default]
    Text,
    /// A graph in the language of Graphviz.
    Dot,
    /// A picture.
    Svg,
}
