//! The `cinderblock` binary.

fn main() {}
