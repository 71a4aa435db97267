//! The fuzz targets: plain functions that take hostile bytes, and must neither panic nor hang nor
//! use memory without bound, nor report success wrongly.
//!
//! Each target repairs the checksums of its input, or builds its own input from it, so that the
//! bytes pass the first check. `tools/fuzz/run` runs them: short runs with the mutator of `mutate`,
//! on a stable toolchain without instrumentation, and guided runs with libFuzzer.
//!
//! Every finding becomes a named test in the module where it was fixed.

#![allow(clippy::unwrap_used, reason = "a target fails by panicking")]

pub mod archives;
pub mod decoders;
pub mod filters;
pub mod images;
pub mod mirrors;
pub mod mutate;
pub mod operations;
use cowshed_testkit::oracle;
mod parts;
mod plant;
pub mod recipes;
pub mod requests;
pub mod stores;
pub mod streams;

/// A fuzz target.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Runs the target once.
    pub run: fn(&[u8]),
    /// Returns the initial inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Number of inputs of a short run: a few seconds' worth.
    pub short_run: usize,
}

/// All targets.
pub const TARGETS: [Target; 12] = [
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
        name: "mirrors",
        run: mirrors::run,
        seeds: mirrors::seeds,
        short_run: 4_000,
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
        name: "recipes",
        run: recipes::run,
        seeds: recipes::seeds,
        short_run: 100_000,
    },
    Target {
        name: "sources",
        run: archives::run_source,
        seeds: archives::source_seeds,
        short_run: 1_000,
    },
    Target {
        name: "stores",
        run: stores::run,
        seeds: stores::seeds,
        short_run: 2_000,
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
    Target {
        name: "streams",
        run: streams::run,
        seeds: streams::seeds,
        short_run: 20_000,
    },
];
