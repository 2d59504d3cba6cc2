//! Random sequences of requests, with kills, errors, lost replies, restarts, outsiders, and a
//! second controller in between.
//!
//! After every step the bytes of all volumes and snapshots are those that were written, and nothing
//! that was handed out is lost; whenever nothing is in flight and nothing was left by a fault, all
//! that must hold at rest holds. At the end everything is deleted, and the cluster is empty.
//!
//! A failing sequence is shrunk, printed, and its seed is kept in
//! `tests/interleavings/properties/regressions.txt`, which is committed and run first.
//! `PROPTEST_CASES=200000 cargo test --test interleavings properties` makes a longer run; the
//! number is for each of the tests.

mod request;
mod step;
mod world;

use proptest::collection::vec;
use proptest::test_runner::{Config, FileFailurePersistence};

use step::{Step, step, step_of_two};
use world::World;

/// Sequences of each test when the environment does not say.
const SEQUENCES: u32 = 5_000;

fn config() -> Config {
    let default = Config::default();
    let cases =
        if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { SEQUENCES };
    Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/interleavings/properties/regressions.txt",
        ))),
        max_shrink_iters: 4000,
        ..default
    }
}

fn play(steps: &[Step]) {
    let world = World::new();
    for step in steps {
        world.play(step);
    }
    world.end();
}

proptest::proptest! {
    #![proptest_config(config())]

    #[test]
    fn one_controller_that_dies_loses_and_leaks_nothing(steps in vec(step(), 1..24)) {
        play(&steps);
    }

    #[test]
    fn two_controllers_at_once_lose_and_leak_nothing(steps in vec(step_of_two(), 1..16)) {
        play(&steps);
    }
}
