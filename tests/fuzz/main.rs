//! Bytes thrown at everything that reads what comes from outside ([`cinderblock::fuzz`]): none
//! panics, none needs more memory than its input explains, and what is understood is printed in a
//! form that is understood as the same.
//!
//! Inputs are mutations of ones that are understood: bits, bytes and numbers changed, parts
//! repeated, moved, joined with others. `FUZZ_CASES` says how many there are in all (50 000),
//! `FUZZ_SEED` where the random numbers begin; the seed is printed, and an input that breaks
//! something is, too. `make test-fuzz` runs ten million.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a report")]

#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
#[path = "../common/random.rs"]
mod random;

use std::alloc::System;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use cap::Cap;
use cinderblock::fuzz::{DECODERS, Decoder};
use random::Random;

/// Counts what is allocated, and gives nothing beyond the limit.
#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Bytes an input has at most.
const INPUT_BYTES: usize = 64 << 10;
/// Bytes that reading one input may need: the process is given no more, and dies if it wants it.
const MEMORY_BYTES: usize = 32 << 20;
/// How long reading one input may take. Enough for a machine that is busy; quadratic work takes
/// longer.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    // As libtest does when asked for tests there are not: `cargo test words` runs those of other
    // targets.
    if std::env::args().skip(1).any(|word| !word.starts_with('-') && !"fuzz".contains(&word)) {
        return;
    }
    let cases = number("FUZZ_CASES").unwrap_or(50_000);
    let seed = number("FUZZ_SEED").unwrap_or_else(Random::seed_of_now);
    println!("fuzz: FUZZ_SEED={seed}");
    let started = Instant::now();
    let each = cases.div_ceil(DECODERS.len() as u64);
    for (number, decoder) in DECODERS.iter().enumerate() {
        let began = Instant::now();
        let mut random = Random::new(seed.wrapping_add(number as u64));
        throw(decoder, each, &mut random);
        println!("fuzz: {:24} {each} inputs in {:.1?}", decoder.name, began.elapsed());
    }
    println!(
        "fuzz: {} inputs in {:.1?}, never more than {} KiB at once",
        each * DECODERS.len() as u64,
        started.elapsed(),
        MEMORY.max_allocated() >> 10
    );
}

/// Gives the decoder that many inputs.
fn throw(decoder: &Decoder, inputs: u64, random: &mut Random) {
    let seeds: Vec<Vec<u8>> = decoder.seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    // What comes once in a process is not the input's.
    (decoder.run)(&seeds[0]);
    for _ in 0..inputs {
        let input = mutate(&seeds, random);
        let began = Instant::now();
        let before = MEMORY.allocated();
        MEMORY.set_limit(before + MEMORY_BYTES).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| (decoder.run)(&input)));
        MEMORY.set_limit(usize::MAX).unwrap();
        let name = decoder.name;
        assert!(outcome.is_ok(), "{name} panics on {}", input.escape_ascii());
        assert!(
            began.elapsed() < PATIENCE,
            "{name} takes {:.1?} for {}",
            began.elapsed(),
            input.escape_ascii()
        );
        assert_eq!(MEMORY.allocated(), before, "{name} keeps memory of {}", input.escape_ascii());
    }
}

/// Pieces that mean something to some decoder.
const WORDS: &[&str] = &[
    "/",
    "@",
    "..",
    ".",
    "-",
    "_",
    ":",
    ",",
    "=",
    "\0",
    "\n",
    "\r",
    "\t",
    " ",
    "\"",
    "'",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: ",
    "!!binary ",
    "---\n",
    "- ",
    "#",
    "%",
    "\\040",
    "\\",
    "null",
    "true",
    "-1",
    "0",
    "18446744073709551616",
    "1e999",
    "0x1f",
    "NaN",
    "é",
    "🦀",
    "\u{feff}",
    "\u{202e}",
    "version",
    "state",
    "clusterID",
    "monitors",
    "csi.storage.k8s.io/",
    "\\ud800",
    "\\u0000",
];

fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[index(random, seeds.len())].clone();
    for _ in 0..=random.below(6) {
        mutate_once(&mut input, seeds, random);
        input.truncate(INPUT_BYTES);
    }
    input
}

fn mutate_once(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = index(random, input.len() + 1);
    let end = at + index(random, input.len() - at + 1);
    match random.below(12) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = byte(random),
        2 => input.insert(at, byte(random)),
        3 => drop(input.drain(at..end)),
        4 => input.truncate(at),
        5 | 6 => drop(input.splice(at..at, random.pick(WORDS).bytes())),
        7 => {
            let part = input[at..end].to_vec();
            let place = index(random, input.len() + 1);
            drop(input.splice(place..place, part));
        }
        8 => {
            let other = &seeds[index(random, seeds.len())];
            let from = index(random, other.len() + 1);
            drop(input.splice(at..end, other[from..].iter().copied()));
        }
        9 => {
            // A number where there is one.
            let number = random.pick(&["0", "-1", "99999999999999999999", "4294967296", "1.5", ""]);
            let digits = |place: usize| input.get(place).is_some_and(u8::is_ascii_digit);
            if let Some(first) = (at..input.len()).find(|place| digits(*place)) {
                let last =
                    (first..input.len()).find(|place| !digits(*place)).unwrap_or(input.len());
                drop(input.splice(first..last, number.bytes()));
            }
        }
        10 if random.once_in(50) => {
            // Very much of one thing: depth, length, repetition.
            let word = random.pick(WORDS).repeat(1 + index(random, 30_000));
            drop(input.splice(at..at, word.into_bytes()));
        }
        11 if random.once_in(20) => *input = (0..random.below(200)).map(|_| byte(random)).collect(),
        _ => {}
    }
}

fn byte(random: &mut Random) -> u8 {
    u8::try_from(random.below(256)).unwrap()
}

fn index(random: &mut Random, below: usize) -> usize {
    usize::try_from(random.below(below as u64)).unwrap()
}
