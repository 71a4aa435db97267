//! Of the room `map`, the entries, and the models of them.

#[path = "../../../../src/map/entries.rs"]
mod entries;
#[path = "models.rs"]
pub(crate) mod models;
