//! One log line per RPC: what was called, how long it took, and how it ended.
//!
//! Everything logged while an RPC is handled carries its method, a number that is unique in the
//! process, and the volume or snapshot it is about. Bodies are never logged: requests carry
//! credentials. Calls that only ask are logged at `debug` when they succeed, because probes and
//! listings come every few seconds; calls that change something at `info`; failures at `warn` with
//! the message the client gets. Of a server stream the opening is logged.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

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

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let path = request.uri().path();
        let method = path.rsplit_once('/').map_or(path, |(_, method)| method).to_owned();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!("rpc", method, number, object = Empty, outcome = Empty);

        let mut call =
            Call { changes: !only_asks(&method), started: Instant::now(), answered: false };
        let future = span.in_scope(|| self.inner.call(request));
        Box::pin(
            async move {
                let response = future.await?;
                call.answered = true;
                call.log(Status::from_header_map(response.headers()));
                Ok(response)
            }
            .instrument(span),
        )
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
}

impl Call {
    /// Logs the end of the call. `status` is absent when the call succeeded: only failures are sent
    /// in the headers.
    fn log(&self, status: Option<Status>) {
        let milliseconds = self.milliseconds();
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
        assert_eq!(lines[0]["span"]["number"], lines[1]["span"]["number"]);
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
    fn a_client_that_goes_away_is_logged() {
        let lines = logged("CreateVolume", None);
        assert_eq!(lines[1]["fields"]["message"], "the client stopped waiting for the answer");
        assert_eq!(lines[1]["span"]["method"], "CreateVolume");
    }
}
