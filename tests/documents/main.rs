//! That README.md and the files in docs say what is: links lead somewhere, commands are such that
//! the program takes them, samples of configuration are well-formed, quoted messages are in the
//! source, the example of the format is what the code writes, and the tour works.
//!
//! None needs a network, and only [`tour`] and [`picture`] need root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod document;
mod format_example;
mod links;
mod messages;
mod picture;
mod samples;
mod shell;
mod tour;
