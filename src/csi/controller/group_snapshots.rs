//! The group controller service: snapshots of several volumes at one moment.

use super::ControllerService;
use crate::csi::clusters::operation;
use crate::csi::ids::{GroupId, Location, MAX_BYTES, SnapshotId, VolumeId};
use crate::csi::operations::Class;
use crate::csi::parameters::{self, GroupParameters};
use crate::csi::proto::group_controller_server::GroupController;
use crate::csi::proto::group_controller_service_capability::{Rpc, Type, rpc};
#[allow(clippy::wildcard_imports, reason = "all messages of the service")]
use crate::csi::proto::*;
use crate::csi::rpc_log::about;
use crate::csi::validate;
use crate::volume::{CreateGroup, GroupSource, State, catalogue, names};
use std::collections::BTreeSet;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl GroupController for ControllerService {
    async fn group_controller_get_capabilities(
        &self,
        _request: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<GroupControllerGetCapabilitiesResponse>, Status> {
        let kind = rpc::Type::CreateDeleteGetVolumeGroupSnapshot;
        let capability = GroupControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        Ok(Response::new(GroupControllerGetCapabilitiesResponse { capabilities: vec![capability] }))
    }

    /// Idempotent by name within a pool and namespace, which all volumes must share.
    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<CreateVolumeGroupSnapshotResponse>, Status> {
        about(&request.get_ref().name);
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::name(&request.name)?;
        validate::map("parameters", &request.parameters)?;
        let class = GroupParameters::parse(&request.parameters, self.clusters.config())?;
        let ids = sources(&request.source_volume_ids)?;
        let location = common_location(&ids)?;
        let credentials = self.credentials(&location, &request.secrets)?;
        let group = names::rbd_name(&class.prefix, &request.name, GroupId::room(&location));
        let id = GroupId { location: location.clone(), group: group.clone() };
        let source = |volume: &VolumeId| {
            // No name in CSI holds a NUL, so no snapshot asked for by itself ever has a member's
            // name.
            let name = format!("{}\0{volume}", request.name);
            GroupSource {
                volume_id: volume.to_string(),
                image: volume.image.clone(),
                snapshot: names::rbd_name(
                    &class.snapshot_prefix,
                    &name,
                    SnapshotId::room(&location),
                ),
            }
        };
        let cluster = parameters::cluster(self.clusters.config(), &location.cluster)?;
        let create = CreateGroup {
            sources: ids.iter().map(source).collect(),
            max_snapshots: cluster.policy().max_snapshots,
            group,
            name: request.name,
        };
        check_room(&location, &id, &create)?;
        let mut keys = vec![format!("group snapshot {id}")];
        keys.extend(ids.iter().map(|id| format!("volume {id}")));
        let operation = operation(
            Class::Change,
            "CreateVolumeGroupSnapshot",
            &location,
            keys,
            create.name.clone(),
        );
        let record = self
            .run(operation, deadline, location, credentials, move |access, _| {
                access.answer(access.volumes.create_group(&create))
            })
            .await?;
        let group_snapshot = Some(wire_group(&id, &record));
        Ok(Response::new(CreateVolumeGroupSnapshotResponse { group_snapshot }))
    }

    /// Fine when the group snapshot is gone, or never could exist.
    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<DeleteVolumeGroupSnapshotResponse>, Status> {
        about(&request.get_ref().group_snapshot_id);
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("group_snapshot_id", &request.group_snapshot_id)?;
        let Some(id) = GroupId::parse(&request.group_snapshot_id) else {
            return Ok(Response::new(DeleteVolumeGroupSnapshotResponse {}));
        };
        let credentials = self.credentials(&id.location, &request.secrets)?;
        let keys = vec![format!("group snapshot {id}")];
        let members: BTreeSet<_> = request.snapshot_ids.into_iter().collect();
        let operation = operation(
            Class::Change,
            "DeleteVolumeGroupSnapshot",
            &id.location,
            keys,
            format!("{members:?}"),
        );
        self.run(operation, deadline, id.location.clone(), credentials, move |access, _| {
            if let Some(stored) = access.answer(access.volumes.catalogue().group(&id.group))? {
                check_members(&id, &stored.record, &members)?;
            }
            access.answer(access.volumes.delete_group(&id.group))
        })
        .await?;
        Ok(Response::new(DeleteVolumeGroupSnapshotResponse {}))
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<GetVolumeGroupSnapshotResponse>, Status> {
        about(&request.get_ref().group_snapshot_id);
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("group_snapshot_id", &request.group_snapshot_id)?;
        let gone = || {
            Status::not_found(format!(
                "the group snapshot {:?} does not exist",
                request.group_snapshot_id
            ))
        };
        let id = GroupId::parse(&request.group_snapshot_id).ok_or_else(gone)?;
        let credentials = self.credentials(&id.location, &request.secrets)?;
        let (location, key) = (id.location.clone(), id.group.clone());
        let operation = operation(
            Class::Attach,
            "reading a group snapshot",
            &location,
            Vec::new(),
            String::new(),
        );
        let record = self
            .run(operation, deadline, location, credentials, move |access, _| {
                let stored = access.answer(access.volumes.catalogue().group(&key))?;
                Ok(stored.map(|stored| stored.record))
            })
            .await?
            .filter(|record| record.state == State::Ready)
            .ok_or_else(gone)?;
        check_members(&id, &record, &request.snapshot_ids.into_iter().collect())?;
        Ok(Response::new(GetVolumeGroupSnapshotResponse {
            group_snapshot: Some(wire_group(&id, &record)),
        }))
    }
}

/// The volumes to cut, in one order whatever order they were named in.
fn sources(volume_ids: &[String]) -> Result<Vec<VolumeId>, Status> {
    if volume_ids.is_empty() {
        return Err(Status::invalid_argument("source_volume_ids is missing"));
    }
    let mut seen = BTreeSet::new();
    for id in volume_ids {
        validate::required("source_volume_ids", id)?;
        if !seen.insert(id) {
            return Err(Status::invalid_argument(format!("source_volume_ids names {id} twice")));
        }
    }
    let parse = |id: &String| {
        VolumeId::parse(id)
            .ok_or_else(|| Status::not_found(format!("the volume {id:?} does not exist")))
    };
    seen.into_iter().map(parse).collect()
}

/// The pool and namespace of all volumes.
fn common_location(ids: &[VolumeId]) -> Result<Location, Status> {
    let first = &ids[0];
    match ids.iter().find(|id| id.location != first.location) {
        None => Ok(first.location.clone()),
        Some(other) => Err(Status::failed_precondition(format!(
            "{first} and {other} are in different pools or namespaces, which cannot be cut at one moment: make a group snapshot of \
             each"
        ))),
    }
}

/// Refuses places whose names are so long that ids would be too.
fn check_room(location: &Location, id: &GroupId, create: &CreateGroup) -> Result<(), Status> {
    let longest = create.sources.iter().map(|source| source.snapshot.len()).max().unwrap_or(0);
    if id.to_string().len() <= MAX_BYTES && longest <= SnapshotId::room(location) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "clusterID, pool, radosNamespace and the name prefixes together are too long: an id has at most {MAX_BYTES} bytes"
    )))
}

/// Whether the caller knows the same members: the specification has a mismatch reported.
fn check_members(
    id: &GroupId,
    record: &catalogue::Group,
    named: &BTreeSet<String>,
) -> Result<(), Status> {
    let members: BTreeSet<_> = record.members.iter().map(|member| member_id(id, member)).collect();
    if members == *named {
        return Ok(());
    }
    let list = |ids: &BTreeSet<String>| ids.iter().cloned().collect::<Vec<_>>().join(", ");
    Err(Status::invalid_argument(format!(
        "snapshot_ids must name the members of {id}, which are {}, not {}",
        list(&members),
        if named.is_empty() { "none".to_string() } else { list(named) }
    )))
}

fn member_id(id: &GroupId, member: &catalogue::Member) -> String {
    let (location, image_id) = (id.location.clone(), member.image_id.clone());
    SnapshotId { location, image_id, snapshot: member.snapshot.clone() }.to_string()
}

/// A record as the wire has it.
fn wire_group(id: &GroupId, record: &catalogue::Group) -> VolumeGroupSnapshot {
    let creation_time = Some(prost_types::Timestamp { seconds: record.created, nanos: 0 });
    let snapshot = |member: &catalogue::Member| Snapshot {
        size_bytes: i64::try_from(member.size).unwrap_or(i64::MAX),
        snapshot_id: member_id(id, member),
        source_volume_id: member.source_volume.clone(),
        creation_time,
        ready_to_use: true,
        group_snapshot_id: id.to_string(),
        accessible_topology: Vec::new(),
    };
    VolumeGroupSnapshot {
        group_snapshot_id: id.to_string(),
        snapshots: record.members.iter().map(snapshot).collect(),
        creation_time,
        ready_to_use: true,
    }
}
