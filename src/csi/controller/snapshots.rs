use super::ControllerService;
use crate::csi::clusters::operation;
use crate::csi::ids::{GroupId, Location, SnapshotId, VolumeId};
use crate::csi::operations::Class;
use crate::csi::parameters::SnapshotParameters;
use crate::csi::proto::{
    CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
    Snapshot,
};
use crate::csi::{rpc_log, validate};
use crate::kube::Subject;
use crate::volume::{CreateSnapshot, catalogue, names};
use tonic::{Request, Response, Status};

impl ControllerService {
    /// CreateSnapshot: idempotent by name within a pool and namespace.
    pub(super) async fn handle_create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("source_volume_id", &request.source_volume_id)?;
        validate::name(&request.name)?;
        validate::map("parameters", &request.parameters)?;
        let class = SnapshotParameters::parse(&request.parameters, self.clusters.config())?;
        let id = VolumeId::parse(&request.source_volume_id).ok_or_else(|| {
            Status::not_found(format!("the volume {:?} does not exist", request.source_volume_id))
        })?;
        let credentials = self.credentials(&id.location, &request.secrets)?;
        let snapshot =
            names::rbd_name(&class.prefix, &request.name, SnapshotId::room(&id.location));
        let cluster =
            crate::csi::parameters::cluster(self.clusters.config(), &id.location.cluster)?;
        let create = CreateSnapshot {
            name: request.name,
            volume_id: request.source_volume_id,
            image: id.image.clone(),
            max_snapshots: cluster.policy().max_snapshots,
            snapshot: snapshot.clone(),
        };
        let operation = operation(
            Class::Change,
            "CreateSnapshot",
            &id.location,
            vec![format!("volume {id}"), format!("snapshot {}/{snapshot}", id.location)],
            create.name.clone(),
        );
        let location = id.location.clone();
        let subject = Subject::of_new_snapshot(&request.parameters, &create.volume_id);
        let made = self
            .run_for(&subject, operation, deadline, id.location, credentials, move |access, _| {
                access.answer(access.volumes.create_snapshot(&create))
            })
            .await?;
        rpc_log::made(made.is_new());
        let snapshot = wire_snapshot(location, &snapshot, &made.into_record());
        Ok(Response::new(CreateSnapshotResponse { snapshot: Some(snapshot) }))
    }

    /// DeleteSnapshot: fine when the snapshot is gone, or never could exist.
    pub(super) async fn handle_delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("snapshot_id", &request.snapshot_id)?;
        let Some(id) = SnapshotId::parse(&request.snapshot_id) else {
            return Ok(Response::new(DeleteSnapshotResponse {}));
        };
        let credentials = self.credentials(&id.location, &request.secrets)?;
        let key = format!("snapshot {}/{}", id.location, id.snapshot);
        let operation =
            operation(Class::Change, "DeleteSnapshot", &id.location, vec![key], String::new());
        self.run(operation, deadline, id.location, credentials, move |access, _| {
            access.answer(access.volumes.delete_snapshot(&id.image_id, &id.snapshot))
        })
        .await?;
        Ok(Response::new(DeleteSnapshotResponse {}))
    }
}

/// A record as the wire has it.
pub(super) fn wire_snapshot(
    location: Location,
    name: &str,
    record: &catalogue::Snapshot,
) -> Snapshot {
    let group = record.group.clone().map(|group| GroupId { location: location.clone(), group });
    let id = SnapshotId { location, image_id: record.image_id.clone(), snapshot: name.to_string() };
    Snapshot {
        size_bytes: i64::try_from(record.size).unwrap_or(i64::MAX),
        snapshot_id: id.to_string(),
        source_volume_id: record.source_volume.clone(),
        creation_time: Some(prost_types::Timestamp { seconds: record.created, nanos: 0 }),
        ready_to_use: true,
        group_snapshot_id: group.map(|id| id.to_string()).unwrap_or_default(),
        accessible_topology: Vec::new(),
    }
}
