//! One log line per RPC: what was called, how long it took, and how it ended. The metrics of RPCs
//! are made here too.
//!
//! Everything logged while an RPC is handled carries its method, its [request id](RequestId), and
//! the volume or snapshot it is about; so does what the operation logs that it began. The message
//! of an error ends with the same id. Bodies are never logged: requests carry
//! credentials. Calls that only ask are logged at `debug` when they succeed, because probes and
//! listings come every few seconds; calls that change something at `info`; failures at `warn` with
//! the message the client gets. Of a server stream the opening is logged.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Request, Response};
use prost_reflect::DescriptorPool;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use super::proto::FILE_DESCRIPTOR_SET;
use crate::metrics::{Begun, metrics};

/// What one RPC is known by in log lines and in the error that its caller gets. It is among the
/// extensions of the request. No two RPCs of an installation have the same, but by chance.
#[derive(Debug, Clone)]
pub(super) struct RequestId(String);

impl RequestId {
    fn next() -> RequestId {
        static PROCESS: LazyLock<String> =
            LazyLock::new(|| uuid::Uuid::new_v4().simple().to_string()[..8].to_owned());
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        RequestId(format!("{}-{}", *PROCESS, NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    /// The status with this id before its message: a message may end in a command to be copied.
    pub(super) fn in_message_of(&self, status: &Status) -> Status {
        Status::new(status.code(), format!("[request {self}] {}", status.message()))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Wraps the services of a server in [`RpcLog`].
#[derive(Debug, Clone, Copy)]
pub(super) struct RpcLogLayer;

impl<S> Layer<S> for RpcLogLayer {
    type Service = RpcLog<S>;

    fn layer(&self, inner: S) -> RpcLog<S> {
        RpcLog { inner }
    }
}

/// A service that logs each call to `inner`.
#[derive(Debug, Clone)]
pub(super) struct RpcLog<S> {
    inner: S,
}

impl<S, RequestBody, ResponseBody> Service<Request<RequestBody>> for RpcLog<S>
where
    S: Service<Request<RequestBody>, Response = Response<ResponseBody>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<RequestBody>) -> Self::Future {
        let path = request.uri().path();
        let method = path.rsplit_once('/').map_or(path, |(_, method)| method).to_owned();
        let known = known_method(path);
        let id = RequestId::next();
        let span =
            tracing::info_span!("rpc", method, request = %id, object = Empty, outcome = Empty);
        request.extensions_mut().insert(id.clone());

        let mut call = Call {
            changes: !only_asks(&method),
            started: Instant::now(),
            answered: false,
            method: known,
            _in_flight: metrics().rpc_begins(known),
        };
        let future = span.in_scope(|| self.inner.call(request));
        Box::pin(
            async move {
                let mut response = future.await?;
                call.answered = true;
                let status = Status::from_header_map(response.headers());
                if let Some(status) = status.as_ref().filter(|status| status.code() != Code::Ok) {
                    // Its text is percent-encoded, so that it always is a header.
                    let _ = id.in_message_of(status).add_header(response.headers_mut());
                }
                call.log(status);
                Ok(response)
            }
            .instrument(span),
        )
    }
}

/// The RPC with this path, as metrics name it. A client may ask for anything; what is none of CSI's
/// is `other`.
fn known_method(path: &str) -> &'static str {
    static METHODS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
        let services: Vec<_> = pool.services().collect();
        let methods = services.iter().flat_map(|service| {
            service.methods().map(|method| format!("/{}/{}", service.full_name(), method.name()))
        });
        methods.collect()
    });
    METHODS.get(path).and_then(|path| path.rsplit_once('/')).map_or("other", |(_, method)| method)
}

/// gRPC's own name of a code.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Names what the RPC at hand is about, in its log lines from now on: the id of a volume or a
/// snapshot, or the name of one that is to be made.
pub(super) fn about(object: &str) {
    Span::current().record("object", object);
}

/// Says in the RPC's last log line whether what it asks for was made by it or was there.
pub(super) fn made(made: bool) {
    Span::current().record("outcome", if made { "made" } else { "found" });
}

/// Whether an RPC of this name leaves everything as it is. CSI names those calls so that it shows.
fn only_asks(method: &str) -> bool {
    ["Get", "List", "Probe", "Validate"].iter().any(|word| method.contains(word))
}

/// A call under way. Dropped without an answer, it logs that the client no longer waits.
struct Call {
    changes: bool,
    started: Instant,
    answered: bool,
    method: &'static str,
    _in_flight: Begun,
}

impl Call {
    /// Logs the end of the call. `status` is absent when the call succeeded: only failures are sent
    /// in the headers.
    fn log(&self, status: Option<Status>) {
        let milliseconds = self.milliseconds();
        let code = status.as_ref().map_or(Code::Ok, Status::code);
        metrics().rpc_ends(self.method, code_name(code), self.started.elapsed());
        match status {
            Some(status) if status.code() != Code::Ok => {
                tracing::warn!(milliseconds, code = ?status.code(), error = status.message(), "failed");
            }
            _ if self.changes => tracing::info!(milliseconds, "done"),
            _ => tracing::debug!(milliseconds, "done"),
        }
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered {
            metrics().rpc_ends(self.method, code_name(Code::Cancelled), self.started.elapsed());
            tracing::warn!(
                milliseconds = self.milliseconds(),
                "the client stopped waiting for the answer"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A service that answers each request with the outcome in its body; one without an outcome
    /// hangs.
    #[derive(Clone)]
    struct Stub;

    impl Service<Request<Option<Status>>> for Stub {
        type Response = Response<()>;
        type Error = std::convert::Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<()>, Self::Error>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Option<Status>>) -> Self::Future {
            Box::pin(async move {
                tracing::info!("at work");
                about("lab/rbd//csi-a");
                made(true);
                match request.into_body() {
                    None => std::future::pending().await,
                    Some(status) if status.code() == Code::Ok => Ok(Response::new(())),
                    Some(status) => Ok(status.into_http()),
                }
            })
        }
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The JSON log lines of one call to `method` that ends with `outcome`, or that the client
    /// gives up.
    fn logged(method: &str, outcome: Option<Status>) -> Vec<serde_json::Value> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let request = Request::builder()
                .uri(format!("http://localhost/csi.v1.Any/{method}"))
                .body(outcome)
                .unwrap();
            let mut future = RpcLogLayer.layer(Stub).call(request);
            // The stub never has to be waited for: it is done at the first poll, or never.
            _ = future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn what_changes_something_is_logged_at_info_with_method_and_duration() {
        let lines = logged("CreateVolume", Some(Status::ok("")));
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["span"]["method"], "CreateVolume", "{lines:?}");
        assert_eq!(lines[1]["level"], "INFO");
        assert_eq!(lines[1]["span"]["method"], "CreateVolume");
        assert!(lines[1]["fields"]["milliseconds"].is_u64());
        let id = lines[0]["span"]["request"].as_str().unwrap();
        assert!(id.contains('-') && lines[1]["span"]["request"] == id, "{lines:?}");
        assert_eq!(lines[1]["span"]["object"], "lab/rbd//csi-a");
        assert_eq!(lines[1]["span"]["outcome"], "made");
    }

    #[test]
    fn what_only_asks_is_logged_at_debug() {
        for method in [
            "Probe",
            "GetCapacity",
            "ListVolumes",
            "NodeGetVolumeStats",
            "ValidateVolumeCapabilities",
        ] {
            assert_eq!(logged(method, Some(Status::ok("")))[1]["level"], "DEBUG", "{method}");
        }
    }

    #[test]
    fn a_failure_is_logged_with_its_code_and_message() {
        let lines = logged("Probe", Some(Status::not_found("volume é is gone")));
        assert_eq!(lines[1]["level"], "WARN");
        assert_eq!(lines[1]["fields"]["code"], "NotFound");
        assert_eq!(lines[1]["fields"]["error"], "volume é is gone");
    }

    #[test]
    fn the_message_of_an_error_begins_with_the_id_of_its_log_lines() {
        let future = |outcome| {
            let request = Request::builder()
                .uri("http://localhost/csi.v1.Identity/Probe")
                .body(Some(outcome))
                .unwrap();
            let mut future = RpcLogLayer.layer(Stub).call(request);
            match future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
                Poll::Ready(Ok(response)) => response,
                _ => panic!("the stub answers at once"),
            }
        };
        let status = |response: Response<()>| Status::from_header_map(response.headers());
        let told = status(future(Status::not_found("volume é is gone"))).unwrap();
        let (id, message) = told.message().split_once("] ").unwrap();
        assert_eq!((told.code(), message), (Code::NotFound, "volume é is gone"));
        let other = status(future(Status::not_found("volume é is gone"))).unwrap();
        assert!(id.starts_with("[request ") && !other.message().starts_with(id), "{id}");
        assert!(status(future(Status::ok(""))).is_none());
    }

    #[test]
    fn metrics_know_the_methods_of_csi_and_no_others() {
        assert_eq!(known_method("/csi.v1.Controller/CreateVolume"), "CreateVolume");
        assert_eq!(known_method("/csi.v1.Node/CreateVolume"), "other");
        assert_eq!(known_method("/csi.v1.Controller/Anything"), "other");
        assert_eq!(known_method("*"), "other");
        let names: BTreeSet<_> = (0..17).map(|code| code_name(Code::from_i32(code))).collect();
        assert_eq!(names.len(), 17);
    }

    #[test]
    fn a_client_that_goes_away_is_logged() {
        let lines = logged("CreateVolume", None);
        assert_eq!(lines[1]["fields"]["message"], "the client stopped waiting for the answer");
        assert_eq!(lines[1]["span"]["method"], "CreateVolume");
    }
}
