//! The driver's two protocols that fence, as models that are explored exhaustively.
//!
//! - `nodes`: a lost node writes to nothing that another was given.
//! - `controllers`: an overtaken controller changes nothing that another took over.

#![cfg(test)]

mod controllers;
mod nodes;
