//! `cinderblock call`: speaks CSI to the socket of any driver, one RPC per command.
//!
//! For operators who look into a driver, for scripts, and for tests. Credentials come from files,
//! never from arguments.

mod answer;
mod controller;
mod flags;
mod group;
mod identity;
mod metadata;
mod node;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cinderblock::csi::endpoint::Endpoint;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use answer::Answer;

/// The driver answered an error, or not in time.
const EXIT_REFUSED: u8 = 1;
/// The same as clap's for bad arguments.
const EXIT_USAGE: u8 = 2;
/// No driver answers on the socket.
const EXIT_UNREACHABLE: u8 = 3;

/// The call is done, and its answer is lost.
const EXIT_UNWRITTEN: u8 = 4;

const HELP: &str = "\
Exit codes:
  0  the call succeeded
  1  the driver answered an error, or not within the timeout; CODE: message is on stderr
  2  the arguments, or a file they name, are not usable; nothing was sent
  3  the driver cannot be reached, or went away before it answered
  4  the answer could not be written to stdout

Examples:
  export CSI_ENDPOINT=unix:///csi/csi.sock
  cinderblock call info
  cinderblock call create-volume --name pvc-1 --size 10GiB --fs-type ext4 \\
      --parameter clusterID=rook-ceph --parameter pool=replicapool \\
      --secret-file userID=/secrets/userID --secret-file userKey=/secrets/userKey

From one volume to a mount, with the contexts handed on in files:
  cinderblock call create-volume --name pvc-1 --size 10GiB --output json > volume.json
  ID=$(jq -r .volume.volume_id volume.json)
  cinderblock call controller-publish \"$ID\" --node node-1 --fs-type ext4 \\
      --context-from volume.json --output json > publish.json
  cinderblock call stage \"$ID\" --staging /mnt/staging --fs-type ext4 --secrets-file node-secrets.yaml \\
      --context-from volume.json --context-from publish.json
  cinderblock call publish \"$ID\" --staging /mnt/staging --target /mnt/target --fs-type ext4 \\
      --context-from volume.json --context-from publish.json";

/// Speak CSI to the socket of a driver, this one or any other
#[derive(Debug, Args)]
#[command(after_long_help = HELP, subcommand_value_name = "RPC", subcommand_help_heading = "RPCs")]
pub(crate) struct CallArgs {
    /// The socket of the driver, as unix:///path/to/csi.sock
    #[arg(
        long,
        env = "CSI_ENDPOINT",
        hide_env_values = true,
        global = true,
        value_name = "ENDPOINT",
        help_heading = "Connection"
    )]
    endpoint: Option<Endpoint>,

    /// How the answer is written
    #[arg(
        long,
        value_enum,
        default_value = "text",
        global = true,
        value_name = "FORMAT",
        help_heading = "Connection"
    )]
    output: Output,

    /// How long to wait for the socket, the connection and the answer together; the driver is told
    #[arg(long, value_parser = duration, default_value = "60s", global = true, help_heading = "Connection")]
    timeout: Duration,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Names and values, and tables
    Text,
    /// One JSON object on one line, with the field names of CSI
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Identity(identity::IdentityCommand),
    #[command(flatten)]
    Controller(controller::ControllerCommand),
    #[command(flatten)]
    Group(group::GroupCommand),
    #[command(flatten)]
    Metadata(metadata::MetadataCommand),
    #[command(flatten)]
    Node(node::NodeCommand),
}

/// How long before a socket on which no driver answers is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection whose every request carries the deadline.
type Connection = InterceptedService<Channel, Deadline>;

#[derive(Debug, Clone)]
struct Deadline(Duration);

impl Interceptor for Deadline {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.set_timeout(self.0);
        Ok(request)
    }
}

/// Why there is no answer.
#[derive(Debug)]
enum Failure {
    /// The arguments, or a file they name, are not usable.
    Usage(String),
    /// No driver answers on the socket.
    Unreachable(String),
    /// The driver answered an error, or not in time.
    Refused(Status),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        // A status from the wire has no source. One made here has: the connection broke.
        match std::error::Error::source(&status) {
            Some(source) => {
                Failure::Unreachable(format!("the connection broke: {}", chain(source)))
            }
            None => Failure::Refused(status),
        }
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let refused = || "write it as 60s, 2m or 1m30s".to_owned();
    let signed: jiff::SignedDuration = text.parse().map_err(|_| refused())?;
    Duration::try_from(signed).ok().filter(|duration| !duration.is_zero()).ok_or_else(refused)
}

/// Runs one call and prints its outcome.
pub(crate) fn run(args: CallArgs) -> ExitCode {
    let output = args.output;
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Unreachable(format!("cannot start: {error}")))
        .and_then(|runtime| runtime.block_on(call(args)));
    let (printed, code) = match outcome {
        Ok(answer) => (print_answer(&answer, output), 0),
        Err(failure) => (print_failure(&failure, output), failure.exit_code()),
    };
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            // Nowhere is left to say so when stderr is gone as well.
            _ = writeln!(io::stderr(), "the answer could not be written: {error}");
            ExitCode::from(EXIT_UNWRITTEN)
        }
        // A reader that has seen enough is no failure.
        _ => ExitCode::from(code),
    }
}

async fn call(args: CallArgs) -> Result<Answer, Failure> {
    let CallArgs { endpoint, output: _, timeout, command } = args;
    let Some(endpoint) = endpoint else {
        return Err(Failure::Usage(
            "give the driver's socket with --endpoint or CSI_ENDPOINT".to_owned(),
        ));
    };
    let started = Instant::now();
    let channel = connect(&endpoint, started + timeout).await?;
    let left = timeout.saturating_sub(started.elapsed()).max(PAUSE);
    let outcome = tokio::time::timeout(left, async {
        let connection = Connection::new(channel, Deadline(left));
        match command {
            Command::Identity(command) => command.call(connection).await,
            Command::Controller(command) => command.call(connection).await,
            Command::Group(command) => command.call(connection).await,
            Command::Metadata(command) => command.call(connection).await,
            Command::Node(command) => command.call(connection).await,
        }
    })
    .await;
    match outcome {
        Ok(outcome) if outcome.is_ok() || started.elapsed() < timeout => outcome,
        // This side, the transport and the driver all watch the deadline; whichever notices first,
        // it is one error.
        _ => Err(Failure::Refused(Status::deadline_exceeded(format!(
            "no answer within {}s; the driver may still be at work, and the same call again will tell",
            timeout.as_secs_f64()
        )))),
    }
}

/// Connects, and waits until `deadline` for a driver that is just being started.
async fn connect(endpoint: &Endpoint, deadline: Instant) -> Result<Channel, Failure> {
    let unreachable = |error: &dyn std::error::Error| {
        Failure::Unreachable(format!("cannot connect to {endpoint}: {}", chain(error)))
    };
    let dialled = tonic::transport::Endpoint::try_from(endpoint.to_string())
        .map_err(|error| unreachable(&error))?;
    loop {
        match dialled.connect().await {
            Err(_) if Instant::now() + PAUSE < deadline => tokio::time::sleep(PAUSE).await,
            connected => return connected.map_err(|error| unreachable(&error)),
        }
    }
}

/// An error with its causes, which tonic's errors do not show by themselves.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Refused(_) => EXIT_REFUSED,
            Failure::Usage(_) => EXIT_USAGE,
            Failure::Unreachable(_) => EXIT_UNREACHABLE,
        }
    }
}

fn print_answer(answer: &Answer, output: Output) -> io::Result<()> {
    match output {
        Output::Text => writeln!(io::stdout(), "{}", answer.text()),
        Output::Json => writeln!(io::stdout(), "{}", answer.json()?),
    }
}

fn print_failure(failure: &Failure, output: Output) -> io::Result<()> {
    let (code, message) = match failure {
        // As clap does: nothing was called, so there is no outcome to put on stdout.
        Failure::Usage(message) => return writeln!(io::stderr(), "error: {message}"),
        Failure::Unreachable(message) => ("UNAVAILABLE".to_owned(), message.as_str()),
        Failure::Refused(status) => (code_name(status.code()), status.message()),
    };
    if output == Output::Json {
        writeln!(io::stdout(), "{}", json!({"error": {"code": code, "message": message}}))?;
    }
    writeln!(io::stderr(), "{code}: {message}")
}

/// The code as the gRPC documents write it: `NOT_FOUND`, where tonic has `NotFound`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
