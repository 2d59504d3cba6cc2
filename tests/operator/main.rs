//! The operator's tool on a real Ceph: what it shows, finds and does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../common/mod.rs"]
mod common;

mod check;
mod docs;
mod look;
mod orphans;
mod pictures;
mod trash;

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// The program with a configuration of its own.
struct Tool {
    directory: tempfile::TempDir,
}

impl Tool {
    /// With this text as its configuration, which it finds by the variable that the chart sets.
    fn new(config: &str) -> Tool {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.yaml"), config).unwrap();
        Tool { directory }
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("config.yaml")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderblock"));
        command.args(arguments).env("CINDERBLOCK_CONFIG", self.config());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it prints, when it ends with 0.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        text(&output.stdout)
    }

    /// The same as JSON.
    fn tells(&self, arguments: &[&str]) -> Value {
        let text = self.says(&[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
