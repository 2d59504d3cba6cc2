//! The node service: what the orchestrator asks of the machine it runs pods on.
//!
//! A handler checks the whole request, turns it into the words of [`crate::node`] ([`request`]),
//! runs it as an [operation](super::operations) and turns the outcome into an answer. Operations
//! that change a volume exclude each other, so one of them is joined by the same request and
//! answers another with ABORTED. Measuring excludes only itself: a filesystem that does not answer
//! must not hold up its own unmounting.

mod request;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::ids::VolumeId;
use super::operations::{Class, Operation, Operations};
use super::proto::node_get_storage_health_response::StorageBackendHealth;
use super::proto::node_server::Node as NodeRpcs;
use super::proto::node_service_capability::{Rpc, Type, rpc};
use super::proto::volume_health::VolumeHealthEntry;
use super::proto::volume_usage::Unit;
#[allow(clippy::wildcard_imports, reason = "the service speaks every message there is")]
use super::proto::*;
use super::rpc_log::about;
use super::topology::Segments;
use super::{deadline, identity, validate};
use crate::node::{Error, Illness, Node, Usage};

/// How often the staged volumes are counted.
const MEASURED: Duration = Duration::from_secs(15);

/// What the node service can do, all of it implemented here.
const CAPABILITIES: &[rpc::Type] = &[
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::ExpandVolume,
    rpc::Type::SingleNodeMultiWriter,
];

/// What it can do with `--enable-alpha`.
const ALPHA_CAPABILITIES: &[rpc::Type] = &[rpc::Type::GetVolumeHealth, rpc::Type::GetStorageHealth];

/// Monitor addresses by cluster id, from the driver's configuration.
pub type Monitors = HashMap<String, Vec<String>>;

/// The node service of one driver.
#[derive(Debug, Clone)]
pub struct NodeService {
    node: Arc<Node>,
    node_id: String,
    max_volumes: i64,
    monitors: Arc<Monitors>,
    operations: Operations,
    topology: Option<Segments>,
    alpha: bool,
    timeout: Duration,
}

impl NodeService {
    /// The service of `node`, which the orchestrator knows as `node_id`. It may have `max_volumes`
    /// volumes at once, any number when 0. `monitors` are for volumes that come without a publish
    /// context; `timeout` is for requests that bring no deadline of their own.
    pub fn new(
        node: Arc<Node>,
        node_id: String,
        max_volumes: u32,
        monitors: Monitors,
        timeout: Duration,
    ) -> NodeService {
        NodeService {
            node,
            node_id,
            max_volumes: max_volumes.into(),
            monitors: Arc::new(monitors),
            operations: Operations::default(),
            topology: None,
            alpha: false,
            timeout,
        }
    }

    /// The same on a node that is there, when topology is used.
    #[must_use]
    pub fn with_topology(self, segments: Option<Segments>) -> NodeService {
        NodeService { topology: segments, ..self }
    }

    /// The same with the alpha capabilities that older orchestrators and csi-sanity do not know, if
    /// `enabled`.
    #[must_use]
    pub fn with_alpha(self, enabled: bool) -> NodeService {
        NodeService { alpha: enabled, ..self }
    }

    /// Has the metrics tell how many volumes are staged here, in the background of the current
    /// runtime, for as long as the service lives.
    pub fn measure(&self) {
        let node = Arc::downgrade(&self.node);
        tokio::spawn(async move {
            loop {
                let Some(node) = node.upgrade() else { return };
                // One that panics or is late leaves the last count.
                let _ = tokio::task::spawn_blocking(move || node.measure()).await;
                tokio::time::sleep(MEASURED).await;
            }
        });
    }

    /// Runs `work` as the operation `rpc`, known again by `request`, which prints no secret.
    async fn run<T, F>(
        &self,
        rpc: &'static str,
        subject: Subject,
        request: String,
        deadline: Duration,
        work: F,
    ) -> Result<Response<T>, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: FnOnce(&Node) -> Result<T, Error> + Send + 'static,
    {
        let node = self.node.clone();
        let Subject { key, cluster, pool } = subject;
        let operation =
            Operation { class: Class::Attach, rpc, cluster, pool, keys: vec![key], request };
        let work = move |activity: Arc<crate::volume::Activity>| {
            activity.begin("working on this node");
            work(&node).map_err(|error| status(&error))
        };
        self.operations.run(operation, deadline, work).await.map(Response::new)
    }

    fn deadline<T>(&self, request: &Request<T>) -> Duration {
        deadline::of(request.metadata(), self.timeout)
    }
}

/// The answer for a node operation that failed.
fn status(error: &Error) -> Status {
    let message = error.to_string();
    match error {
        Error::InvalidArgument(_) => Status::invalid_argument(message),
        Error::NotFound(_) => Status::not_found(message),
        Error::AlreadyExists(_) => Status::already_exists(message),
        Error::FailedPrecondition(_) => Status::failed_precondition(message),
        Error::OutOfRange(_) => Status::out_of_range(message),
        Error::Unauthenticated(_) => Status::unauthenticated(message),
        Error::Busy(_) => Status::aborted(message),
        Error::Unavailable(_) => Status::unavailable(message),
        Error::Internal(_) => Status::internal(message),
    }
}

/// What an operation is about.
#[derive(Debug, PartialEq, Eq)]
struct Subject {
    /// Operations with the same key exclude each other.
    key: String,
    /// The cluster and pool whose permits it takes: what hangs in one pool takes none of another.
    /// Volumes whose ids the driver did not make share one.
    cluster: String,
    pool: String,
}

impl Subject {
    fn new(volume_id: &str, key: String) -> Subject {
        let place = VolumeId::parse(volume_id).map(|id| (id.location.cluster, id.location.pool));
        let (cluster, pool) = place.unwrap_or_default();
        Subject { key, cluster, pool }
    }

    /// A volume, to change it.
    fn volume(volume_id: &str) -> Subject {
        Subject::new(volume_id, format!("volume {volume_id}"))
    }
}

#[tonic::async_trait]
impl NodeRpcs for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        about(&request.get_ref().volume_id);
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        let stage = request::stage(&request, &self.monitors)?;
        let same = format!("{request:?}");
        self.run(
            "NodeStageVolume",
            Subject::volume(&request.volume_id),
            same,
            deadline,
            move |node| node.stage(&stage).map(|()| NodeStageVolumeResponse {}),
        )
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        about(&request.get_ref().volume_id);
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("volume_id", &request.volume_id)?;
        request::path("staging_target_path", &request.staging_target_path)?;
        let same = format!("{request:?}");
        self.run(
            "NodeUnstageVolume",
            Subject::volume(&request.volume_id),
            same,
            deadline,
            move |node| {
                node.unstage(&request.volume_id, Path::new(&request.staging_target_path))
                    .map(|()| NodeUnstageVolumeResponse {})
            },
        )
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        about(&request.get_ref().volume_id);
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        let publish = request::publish(&request)?;
        let same = format!("{request:?}");
        self.run(
            "NodePublishVolume",
            Subject::volume(&request.volume_id),
            same,
            deadline,
            move |node| node.publish(&publish).map(|()| NodePublishVolumeResponse {}),
        )
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        about(&request.get_ref().volume_id);
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("volume_id", &request.volume_id)?;
        request::path("target_path", &request.target_path)?;
        let same = format!("{request:?}");
        self.run(
            "NodeUnpublishVolume",
            Subject::volume(&request.volume_id),
            same,
            deadline,
            move |node| {
                node.unpublish(&request.volume_id, Path::new(&request.target_path))
                    .map(|()| NodeUnpublishVolumeResponse {})
            },
        )
        .await
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        about(&request.get_ref().volume_id);
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        let expand = request::expand(&request, &self.monitors)?;
        let same = format!("{request:?}");
        self.run(
            "NodeExpandVolume",
            Subject::volume(&request.volume_id),
            same,
            deadline,
            move |node| {
                let size =
                    node.expand(&request.volume_id, Path::new(&request.volume_path), &expand)?;
                Ok(NodeExpandVolumeResponse { capacity_bytes: signed(size) })
            },
        )
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        about(&request.get_ref().volume_id);
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("volume_id", &request.volume_id)?;
        request::volume_path(&request.volume_path)?;
        let key = format!("statistics of {} at {}", request.volume_id, request.volume_path);
        let subject = Subject::new(&request.volume_id, key);
        let same = format!("{request:?}");
        self.run("NodeGetVolumeStats", subject, same, deadline, move |node| {
            let path = Path::new(&request.volume_path);
            let usage = node.stats(&request.volume_id, path);
            tell_illnesses(node, &request.volume_id, path);
            let usage = usage?;
            Ok(NodeGetVolumeStatsResponse { usage: volume_usage(&usage) })
        })
        .await
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |kind: &rpc::Type| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: (*kind).into() })),
        };
        let alpha: &[_] = if self.alpha { ALPHA_CAPABILITIES } else { &[] };
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: CAPABILITIES.iter().chain(alpha).map(capability).collect(),
        }))
    }

    async fn node_get_info(
        &self,
        _request: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: self.max_volumes,
            accessible_topology: self.topology.clone().map(|segments| Topology { segments }),
        }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        if !self.alpha {
            return Err(not_advertised("NodeGetVolumeHealth"));
        }
        about(&request.get_ref().volume_id);
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("volume_id", &request.volume_id)?;
        let path = match request.volume_publish_path.as_str() {
            "" => request.staging_target_path.clone(),
            path => path.to_owned(),
        };
        request::volume_path(&path)?;
        let key = format!("health of {} at {path}", request.volume_id);
        let subject = Subject::new(&request.volume_id, key);
        let same = format!("{request:?}");
        self.run("NodeGetVolumeHealth", subject, same, deadline, move |node| {
            let illnesses = node.illnesses(&request.volume_id, Path::new(&path))?;
            let health_statuses = illnesses.iter().map(health_entry).collect();
            let volume_health =
                Some(VolumeHealth { volume_id: request.volume_id, health_statuses });
            Ok(NodeGetVolumeHealthResponse { volume_health })
        })
        .await
    }

    async fn node_get_storage_health(
        &self,
        _request: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        if !self.alpha {
            return Err(not_advertised("NodeGetStorageHealth"));
        }
        let mut backend_health = Vec::new();
        for (cluster, monitors) in self.monitors.iter() {
            if !identity::answers(monitors).await {
                backend_health.push(StorageBackendHealth {
                    status: StorageHealthErrorType::StorageUnreachable.into(),
                    reason: "MonitorsUnreachable".to_owned(),
                    message: format!(
                        "this node reaches no monitor of the cluster {cluster}: {}",
                        monitors.join(", ")
                    ),
                    volume_capability: None,
                });
            }
        }
        Ok(Response::new(NodeGetStorageHealthResponse { backend_health }))
    }
}

/// Says in the log what is wrong with a volume: statistics are asked for of every volume, its
/// health of few orchestrators, and they have no room for it.
fn tell_illnesses(node: &Node, volume_id: &str, path: &Path) {
    for illness in node.illnesses(volume_id, path).unwrap_or_default() {
        let VolumeHealthEntry { reason, message, .. } = health_entry(&illness);
        tracing::warn!(volume_id, reason, "the volume is ill: {message}");
    }
}

/// What is wrong with a volume, as the wire has it.
fn health_entry(illness: &Illness) -> VolumeHealthEntry {
    use VolumeHealthErrorType::{Degraded, Inaccessible};
    let (status, reason, message) = match illness {
        Illness::DeviceGone(why) => (Inaccessible, "DeviceGone", why),
        Illness::ReadOnly(why) => (Inaccessible, "ReadOnlyFilesystem", why),
        Illness::Failing(why) => (Inaccessible, "DeviceFailing", why),
        Illness::NotAnswering(why) => (Inaccessible, "DeviceNotAnswering", why),
        Illness::Blocklisted(why) => (Inaccessible, "ClientBlocklisted", why),
        Illness::WatchLost(why) => (Degraded, "WatchLost", why),
    };
    VolumeHealthEntry { status: status.into(), reason: reason.to_owned(), message: message.clone() }
}

/// A measurement as the wire has it.
fn volume_usage(usage: &Usage) -> Vec<VolumeUsage> {
    match *usage {
        Usage::Block { total } => {
            vec![VolumeUsage {
                total: signed(total),
                unit: Unit::Bytes.into(),
                ..VolumeUsage::default()
            }]
        }
        Usage::Filesystem { total, used, available, inodes } => {
            let row = |unit: Unit, total, used, available| VolumeUsage {
                unit: unit.into(),
                total: signed(total),
                used: signed(used),
                available: signed(available),
            };
            vec![
                row(Unit::Bytes, total, used, available),
                row(Unit::Inodes, inodes.total, inodes.used, inodes.available),
            ]
        }
    }
}

/// A size on the wire. No device is as large as what does not fit.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The answer for RPCs whose capability this driver does not advertise.
fn not_advertised(rpc: &str) -> Status {
    Status::unimplemented(format!(
        "{rpc} is not among this driver's capabilities, see NodeGetCapabilities"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_of_different_pools_take_different_permits() {
        let place = |id: &str| {
            let Subject { key, cluster, pool } = Subject::volume(id);
            assert_eq!(key, format!("volume {id}"));
            (cluster, pool)
        };
        assert_eq!(place("east/fast/csi-1"), ("east".to_owned(), "fast".to_owned()));
        assert_ne!(place("east/fast/csi-1"), place("east/slow/csi-1"));
        assert_ne!(place("east/fast/csi-1"), place("west/fast/csi-1"));
        assert_eq!(place("made by hand"), place("another"));
    }
}
