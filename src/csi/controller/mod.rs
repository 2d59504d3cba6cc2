//! The controller service: volumes and snapshots, asked for over the wire.
//!
//! Each RPC is in the file of its name. A handler checks the whole request before anything is
//! touched, turns it into the words of [`crate::volume`], runs it as an
//! [operation](super::operations) and turns the outcome into an answer.

mod create_volume;
mod delete_volume;
mod expand_volume;
mod get_capacity;
mod group_snapshots;
pub(crate) mod list;
mod modify_volume;
mod nearly_full;
mod publish_volume;
mod snapshots;
mod validate_capabilities;
mod volume_health;

use super::clusters::{Access, Clusters, Credentials};
use super::deadline;
use super::ids::{Location, SnapshotId};
use super::operations::{Class, Operation, Operations};
use super::proto::controller_server::Controller;
use super::proto::controller_service_capability::{Rpc, Type, rpc};
#[allow(clippy::wildcard_imports, reason = "the service speaks nearly every message there is")]
use super::proto::*;
use super::rpc_log::about;
use super::sweeper::Sweeper;
use super::topology::{self, Segments};
use crate::kube::{Event, Nodes, Recorder, Subject};
use crate::volume::Error;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Request, Response, Status};

/// What needs a user of the driver's own, because the requests carry no secrets or no pool.
const CAPABILITIES_WITH_OWN_USER: &[rpc::Type] = &[
    rpc::Type::ListVolumes,
    rpc::Type::ListVolumesPublishedNodes,
    rpc::Type::ListSnapshots,
    rpc::Type::GetCapacity,
    rpc::Type::GetVolume,
];

/// What the controller service can always do.
const CAPABILITIES: &[rpc::Type] = &[
    rpc::Type::CreateDeleteVolume,
    rpc::Type::PublishUnpublishVolume,
    rpc::Type::PublishReadonly,
    rpc::Type::CreateDeleteSnapshot,
    rpc::Type::CloneVolume,
    rpc::Type::ExpandVolume,
    rpc::Type::GetSnapshot,
    rpc::Type::ModifyVolume,
    rpc::Type::SingleNodeMultiWriter,
];

/// What it can do with `--enable-alpha`: csi-sanity takes a capability it does not know for a
/// mistake.
const ALPHA_CAPABILITIES: &[rpc::Type] = &[rpc::Type::GetVolumeHealth, rpc::Type::ListVolumeHealth];

/// The controller service of one driver.
#[derive(Debug, Clone)]
pub struct ControllerService {
    clusters: Arc<Clusters>,
    operations: Operations,
    nodes: Arc<BTreeSet<String>>,
    volumes_per_node: Option<u32>,
    fence: bool,
    alpha: bool,
    timeout: Duration,
    recorder: Recorder,
    /// The nodes as Kubernetes knows them, if it is asked.
    kubernetes_nodes: Option<Nodes>,
    looks: Arc<nearly_full::Looks>,
    sweeper: Sweeper,
}

impl ControllerService {
    /// A service over `clusters`. `nodes` are the ids volumes may be published to, any when empty;
    /// `timeout` is for requests that bring no deadline of their own.
    pub fn new(
        clusters: Arc<Clusters>,
        nodes: BTreeSet<String>,
        timeout: Duration,
    ) -> ControllerService {
        let operations = Operations::default();
        ControllerService {
            sweeper: Sweeper::new(clusters.clone(), operations.permits().clone()),
            clusters,
            operations,
            nodes: Arc::new(nodes),
            volumes_per_node: None,
            fence: true,
            alpha: false,
            timeout,
            recorder: Recorder::default(),
            kubernetes_nodes: None,
            looks: Arc::default(),
        }
    }

    /// The same with a limit to the volumes a node may have in each pool and namespace.
    #[must_use]
    pub fn with_volumes_per_node(self, limit: Option<u32>) -> ControllerService {
        ControllerService { volumes_per_node: limit, ..self }
    }

    /// The same, with nodes fenced that are unpublished while they may write to a volume, if
    /// `enabled`, as they are by default.
    #[must_use]
    pub fn with_fencing(self, enabled: bool) -> ControllerService {
        ControllerService { fence: enabled, ..self }
    }

    /// The same with `recorder` told what people should hear of, and with no node fenced that is
    /// healthy and uses the volume, as `nodes` says.
    #[must_use]
    pub fn with_kubernetes(self, recorder: Recorder, nodes: Nodes) -> ControllerService {
        ControllerService { recorder, kubernetes_nodes: Some(nodes), ..self }
    }

    /// What works in the background.
    pub fn sweeper(&self) -> &Sweeper {
        &self.sweeper
    }

    /// The operations in flight, for what bounds them.
    pub(super) fn operations(&self) -> &Operations {
        &self.operations
    }

    /// The time for requests that bring no deadline of their own.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The same with the alpha capabilities that older orchestrators and csi-sanity do not know, if
    /// `enabled`.
    #[must_use]
    pub fn with_alpha(self, enabled: bool) -> ControllerService {
        ControllerService { alpha: enabled, ..self }
    }

    fn deadline<T>(&self, request: &Request<T>) -> Duration {
        deadline::of(request.metadata(), self.timeout)
    }

    /// From where a cluster is reached.
    fn reached_from(&self, cluster: &str) -> &Segments {
        static EVERYWHERE: Segments = Segments::new();
        self.clusters
            .config()
            .clusters
            .get(cluster)
            .map_or(&EVERYWHERE, |cluster| &cluster.topology)
    }

    /// A volume of that cluster, with the places it is reached from.
    fn placed(&self, cluster: &str, volume: Volume) -> Volume {
        Volume {
            accessible_topology: topology::accessible_from(self.reached_from(cluster)),
            ..volume
        }
    }

    /// The clusters it works on.
    pub(super) fn clusters(&self) -> &Arc<Clusters> {
        &self.clusters
    }

    /// The credentials for a request about something at `location`.
    pub(super) fn credentials(
        &self,
        location: &Location,
        secrets: &BTreeMap<String, String>,
    ) -> Result<Credentials, Status> {
        super::validate::map("secrets", secrets)?;
        self.clusters.credentials(
            super::parameters::cluster(self.clusters.config(), &location.cluster)?,
            secrets,
        )
    }

    /// Runs `work` on the volumes at `location` as an operation in flight.
    async fn run<T, F>(
        &self,
        operation: Operation,
        deadline: Duration,
        location: Location,
        credentials: Credentials,
        work: F,
    ) -> Result<T, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: FnOnce(&Access, &Clusters) -> Result<T, Status> + Send + 'static,
    {
        let (clusters, sweeper) = (self.clusters.clone(), self.sweeper.clone());
        let changes = operation.class == Class::Change;
        self.operations
            .run(operation, deadline, move |activity| {
                let access = clusters.access(&location, credentials.clone(), activity)?;
                let answer = work(&access, &clusters);
                let suspects = access.volumes.take_suspects();
                // A user who may change nothing here cannot sweep either.
                if changes && (answer.is_ok() || !suspects.is_empty()) {
                    sweeper.hand_over(&location, credentials, suspects);
                }
                answer
            })
            .await
    }

    /// [`ControllerService::run`]; and when that answers that the work goes on, because an image is
    /// flattened, `subject` is told.
    async fn run_for<T, F>(
        &self,
        subject: &Subject,
        operation: Operation,
        deadline: Duration,
        location: Location,
        credentials: Credentials,
        work: F,
    ) -> Result<T, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: FnOnce(&Access, &Clusters) -> Result<T, Status> + Send + 'static,
    {
        let keys = operation.keys.clone();
        let outcome = self.run(operation, deadline, location, credentials, work).await;
        if outcome
            .as_ref()
            .is_err_and(|status| matches!(status.code(), Code::DeadlineExceeded | Code::Aborted))
        {
            let flattening = |key: &String| self.operations.activity(key)?.flattening();
            if let Some(progress) = keys.iter().find_map(flattening) {
                self.recorder.tell(subject, Event::FlattenInProgress { progress });
            }
        }
        outcome
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        about(&request.get_ref().name);
        self.handle_create_volume(request).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        about(&request.get_ref().volume_id);
        self.handle_delete_volume(request).await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        about(&request.get_ref().volume_id);
        self.handle_publish_volume(request).await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        about(&request.get_ref().volume_id);
        self.handle_unpublish_volume(request).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        about(&request.get_ref().volume_id);
        self.handle_validate_capabilities(request).await
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        about(&request.get_ref().name);
        self.handle_create_snapshot(request).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        about(&request.get_ref().snapshot_id);
        self.handle_delete_snapshot(request).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        about(&request.get_ref().volume_id);
        self.handle_expand_volume(request).await
    }

    async fn controller_get_capabilities(
        &self,
        _request: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capability = |kind: &rpc::Type| ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: (*kind).into() })),
        };
        let with_own_user: &[_] =
            if self.clusters.listable().is_err() { &[] } else { CAPABILITIES_WITH_OWN_USER };
        let alpha: &[_] = if self.alpha { ALPHA_CAPABILITIES } else { &[] };
        let capabilities =
            CAPABILITIES.iter().chain(with_own_user).chain(alpha).map(capability).collect();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        self.handle_list_volumes(request).await
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<ControllerListVolumeHealthRequest>,
    ) -> Result<Response<ControllerListVolumeHealthResponse>, Status> {
        self.handle_list_volume_health(request).await
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<ControllerGetVolumeHealthResponse>, Status> {
        about(&request.get_ref().volume_id);
        self.handle_get_volume_health(request).await
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        self.handle_get_capacity(request).await
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        self.handle_list_snapshots(request).await
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        about(&request.get_ref().snapshot_id);
        self.handle_get_snapshot(request).await
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        about(&request.get_ref().volume_id);
        self.handle_get_volume(request).await
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        about(&request.get_ref().volume_id);
        self.handle_modify_volume(request).await
    }
}

/// Tells `subject` why it is refused something, where a user can do something about that.
fn tell_refusal(recorder: &Recorder, subject: &Subject, location: &Location, error: &Error) {
    match error {
        Error::InUse(why) => recorder.tell(subject, Event::VolumeInUse { why: why.clone() }),
        Error::HasSnapshots { volume, image_id, snapshots } => {
            let snapshots = snapshot_ids(location, image_id, snapshots);
            recorder.tell(
                subject,
                Event::DeletionWaitsForSnapshots { volume: volume.clone(), snapshots },
            );
        }
        _ => {}
    }
}

/// The ids of snapshots of one image.
fn snapshot_ids(location: &Location, image_id: &str, snapshots: &[String]) -> Vec<String> {
    let id = |snapshot: &String| SnapshotId {
        location: location.clone(),
        image_id: image_id.to_string(),
        snapshot: snapshot.clone(),
    };
    snapshots.iter().map(|snapshot| id(snapshot).to_string()).collect()
}

/// The answer for RPCs whose capability this driver does not advertise.
fn not_advertised(rpc: &str) -> Status {
    Status::unimplemented(format!(
        "{rpc} is not among this driver's capabilities, see ControllerGetCapabilities"
    ))
}
