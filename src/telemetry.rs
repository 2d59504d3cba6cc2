//! Logging.
//!
//! Log lines go to stderr, as text for people or as one JSON object per line for collectors. What must not be logged
//! is kept out at the source: the CSI messages' `Debug` hides credentials (`csi::proto`).

use std::io::{self, IsTerminal as _};

use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The logging flags of a command that runs as a service.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// The least severe level to log: error, warn, info, debug or trace; or filters per module, as in
    /// info,cinderblock::volume=debug.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "LEVEL", value_parser = levels)]
    pub log_level: Targets,

    /// How log lines are written to stderr.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Reads a filter. Libraries that log each frame of each connection do so only when they are named in it.
fn levels(text: &str) -> Result<Targets, ParseError> {
    format!("h2=info,hyper_util=info,{text}").parse()
}

impl LogArgs {
    /// Starts logging for the whole process. To be called once, before anything is logged; fails when called again.
    pub fn init(self) -> Result<(), TryInitError> {
        let json = self.log_format == LogFormat::Json;
        tracing_subscriber::registry()
            .with(self.log_level)
            .with(json.then(|| layer().json().with_span_list(false).with_writer(io::stderr)))
            .with((!json).then(|| layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr)))
            .try_init()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tracing::Level;

    use super::*;

    #[derive(Parser)]
    struct Service {
        #[command(flatten)]
        log: LogArgs,
    }

    #[test]
    fn levels_are_read_for_all_and_for_single_modules() {
        let service = Service::try_parse_from([
            "service",
            "--log-level",
            "warn,cinderblock::volume=debug",
            "--log-format",
            "json",
        ]);
        let log = service.map(|service| service.log).unwrap();
        assert!(log.log_level.would_enable("cinderblock::csi", &Level::WARN));
        assert!(!log.log_level.would_enable("cinderblock::csi", &Level::INFO));
        assert!(log.log_level.would_enable("cinderblock::volume", &Level::DEBUG));
        assert_eq!(log.log_format, LogFormat::Json);
    }

    #[test]
    fn frames_are_logged_only_when_they_are_asked_for() {
        let read =
            |text: &str| Service::try_parse_from(["service", "--log-level", text]).unwrap().log.log_level;
        assert!(read("debug").would_enable("cinderblock::csi", &Level::DEBUG));
        assert!(!read("debug").would_enable("h2::codec::framed_read", &Level::DEBUG));
        assert!(read("info,h2=debug").would_enable("h2::codec::framed_read", &Level::DEBUG));
    }

    #[test]
    fn a_level_that_does_not_exist_is_refused() {
        assert!(Service::try_parse_from(["service", "--log-level", "cinderblock=loud"]).is_err());
    }
}
