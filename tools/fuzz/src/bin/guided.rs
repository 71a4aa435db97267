//! Runs the target that `COWSHED_FUZZ_TARGET` names under libFuzzer. `tools/fuzz/run` builds and
//! runs it.

#![no_main]

use cowshed_fuzz::{TARGETS, Target};
use std::sync::LazyLock;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("COWSHED_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|target| target.name == name);
    found.expect("COWSHED_FUZZ_TARGET names a target")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
