//! The controller's RPCs over the socket, beside the bare calls of librbd that each must make, in
//! one run on one cluster.
//!
//! `make bench` runs this on a lab of its own, and writes the tables and plots of
//! `docs/performance.md`. Any other driver's socket can be measured the same way: see `Target`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on panics, and its figures are its output"
)]

mod alone;
mod measure;
mod plots;
mod report;
mod scale;
mod target;
mod together;

#[path = "../../tests/common/mod.rs"]
mod common;

use measure::Settings;
use target::Target;

fn main() {
    // Cargo calls benches with `--bench`, and the tests of all targets without.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let settings = Settings::from_environment();
    let target = Target::from_environment();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let alone = runtime.block_on(alone::measure(&target, &settings));
    println!("{}", report::alone(&alone));
    let together = runtime.block_on(together::measure(&target, &settings));
    println!("{}", report::together(&together));
    let scale = runtime.block_on(scale::measure(&target, &settings));
    println!("{}", report::scale(&scale));
    if let Some(page) = &settings.page {
        report::write(page, &alone, &together, &scale);
    }
}
