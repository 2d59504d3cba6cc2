//! The model answers as librbd does: random calls on both get the same answers and the same end,
//! and a process killed inside librbd leaves what the model says.
//!
//! `AGREEMENT_SEQUENCES` and `AGREEMENT_KILLS` set how much is tried, `AGREEMENT_SEED` where the
//! random numbers begin; a failure prints the seed that repeats it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod full;
mod graph;
mod killed;
mod operation;
mod pools;
mod side;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cinderblock::rbd::model::{Model, PoolGraph};
use common::Lab;
use common::random::Random;
use operation::{Operation, Present};
use pools::Pools;
use side::Side;

/// Calls in one sequence.
const LENGTH: usize = 60;

/// Sequences of a normal run: about half a minute with a quick monitor round.
const SEQUENCES: u64 = 20;

#[test]
fn random_sequences_get_the_same_answers() {
    let lab = Lab::from_environment();
    let first = number("AGREEMENT_SEED").unwrap_or_else(Random::seed_of_now);
    for seed in (first..).take(count("AGREEMENT_SEQUENCES", SEQUENCES)) {
        println!("seed {seed}");
        run_sequence(&lab, seed);
    }
}

/// Runs the sequence of `seed` on both sides, in fresh pools.
fn run_sequence(lab: &Lab, seed: u64) {
    let cluster = lab.connect();
    let pools = Pools::new(&*cluster);
    let model = pools.model();
    let mut real = Side::new(&*cluster, &pools);
    let mut modelled = Side::new(&*model.connect().cluster(), &pools);
    let mut random = Random::new(seed);
    let mut history = Vec::new();
    let returns = Returns::watch(seed);
    for number in 0..LENGTH {
        let operation = Operation::random(&mut random, &present(&model, &pools));
        returns.expect(format!("call {number}, {operation:?}"));
        let (expected, answered) = (real.run(&operation), modelled.run(&operation));
        history.push(format!("{number:>3} {operation:?}\n      {expected}"));
        assert_eq!(
            answered,
            expected,
            "the model (left) disagrees with librbd (right) at the end of AGREEMENT_SEED={seed}:\n{}\n{}",
            history.join("\n"),
            model.graph()
        );
    }
    let (expected, answered) = (real.graph(), modelled.graph());
    assert_eq!(
        answered,
        expected,
        "the model (left) ended unlike librbd (right), AGREEMENT_SEED={seed}:\n{}\n{}",
        history.join("\n"),
        model.graph()
    );
}

/// Ends the process when a call does not return, which no test could do otherwise.
struct Returns(mpsc::Sender<String>);

impl Returns {
    /// Far longer than any call of a sequence takes.
    const PATIENCE: Duration = Duration::from_mins(5);

    #[expect(clippy::print_stderr, reason = "a process that ends shows no panic")]
    fn watch(seed: u64) -> Returns {
        let (sender, calls) = mpsc::channel();
        thread::spawn(move || {
            let mut last = String::from("the beginning");
            loop {
                match calls.recv_timeout(Returns::PATIENCE) {
                    Ok(call) => last = call,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        eprintln!("error: {last} of AGREEMENT_SEED={seed} does not return");
                        std::process::exit(101);
                    }
                }
            }
        });
        Returns(sender)
    }

    fn expect(&self, call: String) {
        self.0.send(call).unwrap();
    }
}

/// What there is in each pool, from the model.
fn present(model: &Model, pools: &Pools) -> [Present; 2] {
    let graph = model.graph();
    let empty = PoolGraph::default();
    pools.names().map(|pool| {
        Present::of(graph.pools.get(&(pool.to_owned(), String::new())).unwrap_or(&empty))
    })
}

/// The number in an environment variable, if it is set.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, not a number")))
}

fn count(variable: &str, normally: u64) -> usize {
    usize::try_from(number(variable).unwrap_or(normally)).unwrap()
}
