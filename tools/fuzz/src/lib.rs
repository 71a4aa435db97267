//! What hostile or unlucky bytes may do to the engine: plain functions that take bytes, and must
//! neither panic nor hang nor take memory without bound, nor say that all is well where it is not.
//!
//! Each target repairs the checksums of what it is given, or builds its input from it, so that the
//! bytes get past the first check. `tools/fuzz/run` runs them: a short run with the mutator of
//! `mutate`, on a stable toolchain and without instruments, and guided runs with libFuzzer.
//!
//! Whatever is found becomes a named test in the room where it was mended.

#![allow(clippy::unwrap_used, reason = "a target fails by panicking")]

pub mod archives;
pub mod decoders;
pub mod filters;
pub mod images;
pub mod mutate;
pub mod operations;
use cowshed_testkit::oracle;
mod parts;
mod plant;
pub mod requests;

/// Something that can be fuzzed.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Runs it once.
    pub run: fn(&[u8]),
    /// Inputs to begin from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many inputs a short run takes: a few seconds' worth.
    pub short_run: usize,
}

/// All targets.
pub const TARGETS: [Target; 8] = [
    Target {
        name: "decoders",
        run: decoders::run,
        seeds: decoders::seeds,
        short_run: 4_000_000,
    },
    Target {
        name: "images",
        run: images::run,
        seeds: images::seeds,
        short_run: 3_000,
    },
    Target {
        name: "operations",
        run: operations::run,
        seeds: operations::seeds,
        short_run: 3_000,
    },
    Target {
        name: "layers",
        run: archives::run_layer,
        seeds: archives::layer_seeds,
        short_run: 400,
    },
    Target {
        name: "sources",
        run: archives::run_source,
        seeds: archives::source_seeds,
        short_run: 1_000,
    },
    Target {
        name: "configs",
        run: archives::run_config,
        seeds: archives::config_seeds,
        short_run: 3_000_000,
    },
    Target {
        name: "requests",
        run: requests::run,
        seeds: requests::seeds,
        short_run: 100_000,
    },
    Target {
        name: "filters",
        run: filters::run,
        seeds: filters::seeds,
        short_run: 1_000_000,
    },
];
