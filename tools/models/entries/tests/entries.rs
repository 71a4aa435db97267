//! Runs the models of a node's entries: a reader never sees half of a write.
//!
//! It has no test harness: loom runs each model many times, and ends the process at the first
//! failure.

fn main() {
    for (name, model) in cowshed_engine::entries_models::ALL {
        model();
        println!("model {name} ... ok");
    }
}
