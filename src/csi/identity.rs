//! The identity service: who the driver is, what it can do, and whether its clusters answer.
//!
//! Nothing here waits for Ceph: sidecars ask before anything else and give up quickly. Whether the
//! clusters answer is found out in the background, by connecting to a monitor's port, and Probe
//! says what was found last.

use super::config::Cluster;
use super::proto::identity_server::Identity;
use super::proto::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use super::proto::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};
use crate::metrics::metrics;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

/// How often the monitors are tried while one answers, and while none does.
const INTERVALS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(1)];
/// For how long none may answer before the driver is no longer ready. Restarting it would mend
/// nothing.
const GRACE: Duration = Duration::from_secs(30);
/// How long a monitor may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// The ports a monitor without one listens on, msgr2's first.
const MONITOR_PORTS: [u16; 2] = [3300, 6789];

/// The identity service of one driver.
#[derive(Debug, Clone)]
pub struct IdentityService {
    name: String,
    ready: Arc<AtomicBool>,
    topology: bool,
}

impl IdentityService {
    /// A service for the driver `name` that is always ready: a node plugin, which Ceph trouble must
    /// never restart.
    pub fn always_ready(name: &str) -> IdentityService {
        IdentityService {
            name: name.to_string(),
            ready: Arc::new(AtomicBool::new(true)),
            topology: false,
        }
    }

    /// A service for the driver `name` that is ready while monitors accept connections, those of
    /// any cluster: one that is away must not stop work on the others. Watches them on the current
    /// runtime for as long as the service lives.
    pub fn watching(name: &str, clusters: Vec<Cluster>) -> IdentityService {
        let ready = Arc::new(AtomicBool::new(false));
        let watched = Arc::downgrade(&ready);
        let clusters: Vec<_> = clusters.into_iter().map(Arc::new).collect();
        tokio::spawn(async move {
            let mut answered: Option<Instant> = None;
            let mut silent = BTreeSet::new();
            loop {
                let any = any_answers(&clusters, &mut silent).await;
                if any {
                    answered = Some(Instant::now());
                }
                let Some(ready) = watched.upgrade() else { return };
                ready.store(
                    answered.is_some_and(|answered| answered.elapsed() < GRACE),
                    Ordering::Relaxed,
                );
                drop(ready);
                tokio::time::sleep(INTERVALS[usize::from(!any)]).await;
            }
        });
        IdentityService { name: name.to_string(), ready, topology: false }
    }

    /// Whether it is ready, as Probe says.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// The same, saying that not every node reaches every volume, if so.
    #[must_use]
    pub fn with_topology(self, used: bool) -> IdentityService {
        IdentityService { topology: used, ..self }
    }
}

/// Tries all clusters at once and says whether any answers. A cluster that falls silent, or is
/// back, is logged.
async fn any_answers(clusters: &[Arc<Cluster>], silent: &mut BTreeSet<String>) -> bool {
    let mut tried = JoinSet::new();
    for cluster in clusters.iter().cloned() {
        tried.spawn(async move { (answers(&cluster.monitors).await, cluster) });
    }
    let mut any = false;
    for (answers, cluster) in tried.join_all().await {
        any |= answers;
        let cluster = &cluster.cluster_id;
        metrics().cluster_answers(cluster, answers);
        if answers && silent.remove(cluster) {
            tracing::info!(cluster, "a monitor accepts connections again");
        } else if !answers && silent.insert(cluster.clone()) {
            tracing::warn!(cluster, "no monitor accepts connections");
        }
    }
    any
}

/// Whether one of a cluster's monitors accepts a connection. A cluster known by its ceph.conf alone
/// counts as answering: its monitors are librados' business.
pub(super) async fn answers(monitors: &[String]) -> bool {
    let addresses: Vec<_> = monitors.iter().flat_map(|monitor| addresses(monitor)).collect();
    if addresses.is_empty() {
        return true;
    }
    for address in addresses {
        if let Ok(Ok(_)) =
            tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(&address)).await
        {
            return true;
        }
    }
    false
}

/// The `host:port`s of one `mon_host` entry: `host`, `host:port`, `[v2:host:port,v1:host:port]`,
/// IPv6 hosts in brackets.
pub(crate) fn addresses(monitor: &str) -> Vec<String> {
    let inner =
        monitor.strip_prefix("[v").and_then(|_| monitor.strip_prefix('[')?.strip_suffix(']'));
    let mut found = Vec::new();
    for part in inner.unwrap_or(monitor).split(',') {
        let address = part.strip_prefix("v2:").or_else(|| part.strip_prefix("v1:")).unwrap_or(part);
        // A nonce may follow.
        let address = address.split('/').next().unwrap_or(address);
        let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        });
        if has_port {
            found.push(address.to_string());
        } else {
            found.extend(MONITOR_PORTS.map(|port| format!("{address}:{port}")));
        }
    }
    found
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_string(),
            manifest: BTreeMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        // The same from every instance of one version, node plugins too: the specification demands
        // it.
        let service = |kind: service::Type| PluginCapability {
            r#type: Some(Type::Service(Service { r#type: kind.into() })),
        };
        let mut capabilities = vec![
            service(service::Type::ControllerService),
            service(service::Type::GroupControllerService),
            service(service::Type::SnapshotMetadataService),
            PluginCapability {
                r#type: Some(Type::VolumeExpansion(VolumeExpansion {
                    r#type: volume_expansion::Type::Online.into(),
                })),
            },
        ];
        if self.topology {
            capabilities.push(service(service::Type::VolumeAccessibilityConstraints));
        }
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(
        &self,
        _request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(self.is_ready()) }))
    }
}

#[cfg(test)]
mod tests {
    use super::addresses;

    #[test]
    fn every_form_of_a_monitor_is_understood() {
        for (monitor, expected) in [
            ("10.0.0.1", &["10.0.0.1:3300", "10.0.0.1:6789"][..]),
            ("10.0.0.1:6789", &["10.0.0.1:6789"]),
            ("mon.example:3300", &["mon.example:3300"]),
            ("[v2:10.0.0.1:3300,v1:10.0.0.1:6789]", &["10.0.0.1:3300", "10.0.0.1:6789"]),
            ("[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]", &["10.0.0.1:3300", "10.0.0.1:6789"]),
            ("[v2:[::1]:3300,v1:[::1]:6789]", &["[::1]:3300", "[::1]:6789"]),
            ("[::1]:6789", &["[::1]:6789"]),
            ("[::1]", &["[::1]:3300", "[::1]:6789"]),
        ] {
            assert_eq!(addresses(monitor), expected, "{monitor}");
        }
    }
}
