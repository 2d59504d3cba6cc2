//! The port for monitoring: `/metrics`, `/healthz` and `/readyz` over HTTP.
//!
//! Each is answered out of memory, whatever becomes of a cluster: [`metrics`] are gathered while
//! the driver works, and readiness is what Probe says.
//!
//! - `/healthz` is 200 while the process answers.
//! - `/readyz` is 200 while the driver is ready, else 503.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::metrics;

/// OpenMetrics, which Prometheus reads since version 2.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    text: String,
    /// The first of these that the host has.
    candidates: Vec<SocketAddr>,
}

impl FromStr for Address {
    type Err = String;

    /// Reads `:PORT`, which is every address of the host, or `ADDRESS:PORT`.
    fn from_str(text: &str) -> Result<Address, String> {
        let expected = || {
            "expected :PORT or ADDRESS:PORT, as in :9809, 10.0.0.1:9809 or [fd00::1]:9809"
                .to_owned()
        };
        let candidates = match text.strip_prefix(':') {
            Some(port) => {
                let port: u16 = port.parse().map_err(|_| expected())?;
                // The first takes IPv4 too, but not every host has IPv6.
                vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
            }
            None => vec![text.parse().map_err(|_| expected())?],
        };
        Ok(Address { text: text.to_owned(), candidates })
    }
}

/// Why the port cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for monitoring: {error}; choose another --metrics-address")]
pub struct BindError {
    address: String,
    error: io::Error,
}

/// The port, listening.
#[derive(Debug)]
pub struct Port(TcpListener);

impl Port {
    /// Listens at `address`.
    pub async fn bind(address: &Address) -> Result<Port, BindError> {
        match TcpListener::bind(&address.candidates[..]).await {
            Ok(listener) => Ok(Port(listener)),
            Err(error) => Err(BindError { address: address.text.clone(), error }),
        }
    }

    /// Serves until the runtime ends. `is_ready` says whether the driver is, at once.
    pub async fn serve(self, is_ready: impl Fn() -> bool + Send + Sync + 'static) {
        if let Ok(address) = self.0.local_addr() {
            tracing::info!(%address, "serving /metrics, /healthz and /readyz");
        }
        if let Err(error) = axum::serve(self.0, routes(Arc::new(is_ready))).await {
            tracing::error!(%error, "the port for monitoring is not served any more");
        }
    }
}

fn routes(is_ready: Arc<impl Fn() -> bool + Send + Sync + 'static>) -> Router {
    Router::new()
        .route("/metrics", get(async || ([(CONTENT_TYPE, FORMAT)], metrics().text())))
        .route("/healthz", get(async || "ok\n"))
        .route(
            "/readyz",
            get(async move || {
                if is_ready() {
                    (StatusCode::OK, "ready\n")
                } else {
                    let why = "not ready: no monitor of any cluster accepts connections\n";
                    (StatusCode::SERVICE_UNAVAILABLE, why)
                }
            }),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_port_or_an_address_with_a_port() {
        let read = |text: &str| text.parse::<Address>().map(|address| address.candidates);
        let at = |address: &str| address.parse::<SocketAddr>().unwrap();
        assert_eq!(read(":9809"), Ok(vec![at("[::]:9809"), at("0.0.0.0:9809")]));
        assert_eq!(read("127.0.0.1:0"), Ok(vec![at("127.0.0.1:0")]));
        assert_eq!(read("[::1]:9809"), Ok(vec![at("[::1]:9809")]));
        for wrong in ["", ":", "9809", ":x", ":65536", "localhost:9809", "::1:9809x", "http://a:1"]
        {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(":PORT"), "{wrong}: {error}");
        }
    }
}
