//! What only a kernel with krbd and nbd can show. It runs in a guest (tests/guest.sh), one test
//! after the other, on the lab of tests/node with NODE_MOUNTER telling the mounter.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod kernels;
mod krbd;
#[path = "../node/lab.rs"]
#[allow(dead_code, reason = "these tests use a part of it")]
mod lab;
mod nbd;
