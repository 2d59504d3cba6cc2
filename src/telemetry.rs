//! Logging.
//!
//! Log lines go to stderr, as text for people or as one JSON object per line for collectors. What
//! must not be logged is kept out at the source: the CSI messages' `Debug` hides credentials
//! (`csi::proto`).

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tracing::field::Field;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::Context;
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
    /// The least severe level to log: error, warn, info, debug or trace; or filters per module, as
    /// in info,cinderblock::volume=debug.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "LEVEL", value_parser = levels)]
    pub log_level: Targets,

    /// How log lines are written to stderr.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Reads a filter. Libraries that log each frame of each connection do so only when they are named
/// in it.
fn levels(text: &str) -> Result<Targets, ParseError> {
    format!("h2=info,hyper_util=info,{text}").parse()
}

impl LogArgs {
    /// Starts logging for the whole process. To be called once, before anything is logged; fails
    /// when called again.
    pub fn init(self) -> Result<(), TryInitError> {
        let json = self.log_format == LogFormat::Json;
        let for_programs =
            json.then(|| layer().json().with_span_list(false).with_writer(io::stderr));
        let for_people =
            (!json).then(|| layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr));
        tracing_subscriber::registry()
            .with(for_programs.with_filter(self.log_level.clone()))
            .with(for_people.with_filter(self.log_level))
            .with(RefusedClients::default().with_filter(RefusedClients::events()))
            .try_init()
    }
}

/// Tells, once, that a client's requests are refused by the HTTP/2 library before any code of ours
/// sees them, for what they name as `:authority`. Clients built on gRPC's C core send the path of a
/// Unix socket there, which is no authority. h2 takes no setting for it and tells of it at debug
/// alone.
#[derive(Default)]
struct RefusedClients {
    told: AtomicBool,
}

impl RefusedClients {
    /// The events it looks at.
    fn events() -> Targets {
        Targets::new().with_target("h2::server", Level::DEBUG)
    }
}

impl<S: Subscriber> Layer<S> for RefusedClients {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = String::new();
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
            if field.name() == "message" {
                text = format!("{value:?}");
            }
        });
        if !text.contains("malformed authority") || self.told.swap(true, Ordering::Relaxed) {
            return;
        }
        // Subscribers take no event while they handle one.
        thread::spawn(move || {
            tracing::warn!(
                "requests of a client are refused, because the :authority they name is none ({text}); gRPC's C core, as in Python, \
                 sends the socket's path there: have the client set the channel option grpc.default_authority=localhost"
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

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
        let read = |text: &str| {
            Service::try_parse_from(["service", "--log-level", text]).unwrap().log.log_level
        };
        assert!(read("debug").would_enable("cinderblock::csi", &Level::DEBUG));
        assert!(!read("debug").would_enable("h2::codec::framed_read", &Level::DEBUG));
        assert!(read("info,h2=debug").would_enable("h2::codec::framed_read", &Level::DEBUG));
    }

    #[test]
    fn a_level_that_does_not_exist_is_refused() {
        assert!(Service::try_parse_from(["service", "--log-level", "cinderblock=loud"]).is_err());
    }
}
