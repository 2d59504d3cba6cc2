use super::ControllerService;
use crate::csi::clusters::operation;
use crate::csi::ids::{Location, SnapshotId, VolumeId};
use crate::csi::operations::Class;
use crate::csi::parameters::{Parameters, VolumeParameters};
use crate::csi::proto::volume_capability::AccessType;
use crate::csi::proto::volume_content_source::{self, SnapshotSource};
use crate::csi::proto::{
    CreateVolumeRequest, CreateVolumeResponse, Volume, VolumeCapability, VolumeContentSource,
};
use crate::csi::{qos, repeats, rpc_log, topology, validate};
use crate::kube::Subject;
use crate::node::MapOptions;
use crate::rbd::CloneFormat;
use crate::volume::catalogue::{self, Source};
use crate::volume::{CreateVolume, DEFAULT_SIZE, SECTOR, Sizes, VolumeSource, names};
use tonic::{Request, Response, Status};

impl ControllerService {
    /// CreateVolume: idempotent by name within a pool and namespace.
    pub(super) async fn handle_create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        let (location, create) = self.volume_to_create(&request)?;
        let credentials = self.credentials(&location, &request.secrets)?;
        let operation = operation(
            Class::Change,
            "CreateVolume",
            &location,
            vec![format!("volume {}", create.id)],
            format!("{} {:?} {:?}", create.digest, create.sizes, create.source),
        );
        let cluster = location.cluster.clone();
        let subject = Subject::of_new_volume(&request.parameters, &create.id);
        let (recorder, looks, about) = (self.recorder.clone(), self.looks.clone(), subject.clone());
        let made = self
            .run_for(
                &subject,
                operation,
                deadline,
                location,
                credentials,
                move |access, clusters| {
                    clusters.check_namespace(access)?;
                    let made = access.volumes.create(&create);
                    let (location, pool) = (&access.scope.location, access.volumes.pool());
                    let data_pool = create.options.data_pool.as_deref();
                    looks.look_after(&made, &recorder, &about, location, pool, data_pool);
                    access.answer(made)
                },
            )
            .await?;
        rpc_log::made(made.is_new());
        let volume = volume(&made.into_record());
        Ok(Response::new(CreateVolumeResponse { volume: Some(self.placed(&cluster, volume)) }))
    }

    fn volume_to_create(
        &self,
        request: &CreateVolumeRequest,
    ) -> Result<(Location, CreateVolume), Status> {
        validate::name(&request.name)?;
        validate::capabilities(&request.volume_capabilities)?;
        validate::map("parameters", &request.parameters)?;
        validate::map("mutable_parameters", &request.mutable_parameters)?;
        let settings = qos::settings(&request.mutable_parameters)?;
        let sizes = whole_sectors(validate::sizes(request.capacity_range.as_ref())?)?;
        let class = VolumeParameters::parse(&request.parameters, self.clusters.config())?;
        refuse_shared_clients(&class, &request.volume_capabilities)?;
        let cluster = &class.location.cluster;
        topology::require(
            cluster,
            self.reached_from(cluster),
            request.accessibility_requirements.as_ref(),
        )?;
        let source = request
            .volume_content_source
            .as_ref()
            .map(|source| self::source(source, &class))
            .transpose()?
            // What the request names wins: disks of a class with a golden image are copied and
            // restored in the same class.
            .or(class.source_image.map(VolumeSource::Image));
        let sizes = match source {
            None => with_room_for_filesystem(sizes, &request.volume_capabilities)?,
            Some(_) => sizes,
        };
        let image = names::rbd_name(&class.prefix, &request.name, class.location.room());

        let mut context = class.context;
        context.insert("imageName".to_string(), image.clone());
        let content_source = match source {
            None => "none",
            Some(VolumeSource::Snapshot { .. }) => "snapshot",
            Some(VolumeSource::Volume { .. }) => "volume",
            Some(VolumeSource::Image(_)) => "image",
        };
        context.insert("contentSource".to_string(), content_source.to_string());
        validate::map("the volume context made of the parameters", &context)?;

        let compared = (&request.parameters, &request.volume_capabilities[..], &settings);
        let create = CreateVolume {
            id: VolumeId { location: class.location.clone(), image: image.clone() }.to_string(),
            name: request.name.clone(),
            image,
            sizes,
            source,
            digest: repeats::digest(compared.0, compared.1, compared.2),
            older_digest: repeats::older_digest(compared.0, compared.1, compared.2),
            policy: class.policy,
            options: class.options,
            delete_with_snapshots: class.delete_with_snapshots,
            context,
            settings,
            claim: claim(&request.parameters),
            trash_retention: class.trash_retention,
        };
        Ok((class.location, create))
    }
}

/// The claim that these parameters name, as `namespace/name`.
fn claim(parameters: &Parameters) -> Option<String> {
    match Subject::of_new_volume(parameters, "") {
        Subject::Claim { namespace, name } => Some(format!("{namespace}/{name}")),
        _ => None,
    }
}

/// Refuses a volume that several volumes' client is to write to: fencing one of them would cut off
/// all.
fn refuse_shared_clients(
    class: &VolumeParameters,
    capabilities: &[VolumeCapability],
) -> Result<(), Status> {
    let options = class.context.get("mapOptions").map(|options| MapOptions::parse(options));
    if options.and_then(Result::ok).is_some_and(|options| options.shares_clients())
        && !capabilities.iter().all(validate::is_read_only)
    {
        return Err(Status::invalid_argument(
            "mapOptions holds share, and the volume is writable: fencing a lost node would cut off every volume that shares its client. \
             Take share out of the class; read-only volumes may have it",
        ));
    }
    Ok(())
}

/// Rounds what is required up and the limit down to whole sectors.
pub(super) fn whole_sectors(sizes: Sizes) -> Result<Sizes, Status> {
    let required = sizes.required.next_multiple_of(SECTOR);
    let limit = sizes.limit - sizes.limit % SECTOR;
    if sizes.limit != 0 && (limit == 0 || required > limit) {
        return Err(Status::out_of_range(format!(
            "a volume has a whole number of {SECTOR}-byte sectors, and none has from {} to {} bytes",
            sizes.required, sizes.limit
        )));
    }
    if i64::try_from(required).is_err() {
        return Err(Status::out_of_range(format!(
            "{} bytes are more than a volume can have",
            sizes.required
        )));
    }
    Ok(Sizes { required, limit })
}

/// Bytes of the smallest volume that mkfs makes an ext4 on, without a journal.
const SMALLEST_EXT4: u64 = 256 << 10;
/// Bytes of the smallest volume that mkfs makes an xfs on, as of xfsprogs 5.19.
const SMALLEST_XFS: u64 = 300 << 20;

/// Rounds what is required of an empty volume up to what its filesystem takes. `OUT_OF_RANGE` when
/// the limit is below that: mkfs would refuse such a volume when it is staged.
fn with_room_for_filesystem(
    sizes: Sizes,
    capabilities: &[VolumeCapability],
) -> Result<Sizes, Status> {
    let smallest = |capability: &VolumeCapability| match &capability.access_type {
        Some(AccessType::Mount(mount)) if mount.fs_type == "xfs" => Some((SMALLEST_XFS, "xfs")),
        Some(AccessType::Mount(_)) => Some((SMALLEST_EXT4, "ext4")),
        _ => None,
    };
    let Some((smallest, filesystem)) = capabilities.iter().filter_map(smallest).max() else {
        return Ok(sizes);
    };
    if sizes.limit != 0 && sizes.limit < smallest {
        return Err(Status::out_of_range(format!(
            "a volume with {filesystem} has at least {smallest} bytes, and limit_bytes is {}: ask for more, or for a block volume",
            sizes.limit
        )));
    }
    let unsaid = sizes.required == 0 && smallest <= DEFAULT_SIZE;
    let required = if unsaid { 0 } else { sizes.required.max(smallest) };
    Ok(Sizes { required, ..sizes })
}

/// Where the source is. An id that does not parse is a source that cannot exist.
fn source(source: &VolumeContentSource, class: &VolumeParameters) -> Result<VolumeSource, Status> {
    let gone = |id: &str| Status::not_found(format!("the source {id:?} does not exist"));
    let source = match &source.r#type {
        Some(volume_content_source::Type::Volume(volume)) => {
            validate::required("source volume_id", &volume.volume_id)?;
            let id = VolumeId::parse(&volume.volume_id).ok_or_else(|| gone(&volume.volume_id))?;
            let VolumeId { location: Location { cluster, pool, namespace }, image } = id;
            (cluster, VolumeSource::Volume { id: volume.volume_id.clone(), pool, namespace, image })
        }
        Some(volume_content_source::Type::Snapshot(snapshot)) => {
            validate::required("source snapshot_id", &snapshot.snapshot_id)?;
            let id = SnapshotId::parse(&snapshot.snapshot_id)
                .ok_or_else(|| gone(&snapshot.snapshot_id))?;
            let SnapshotId {
                location: Location { cluster, pool, namespace },
                image_id,
                snapshot: name,
            } = id;
            let id = snapshot.snapshot_id.clone();
            (cluster, VolumeSource::Snapshot { id, pool, namespace, image_id, snapshot: name })
        }
        None => {
            return Err(Status::invalid_argument(
                "volume_content_source has no type: volume or snapshot",
            ));
        }
    };
    if source.0 != class.location.cluster {
        return Err(Status::invalid_argument(format!(
            "the source is in the cluster {}, the volume is to be in {}: clones cannot cross clusters",
            source.0, class.location.cluster
        )));
    }
    let (_, namespace) = source.1.place();
    if class.options.clone_format == CloneFormat::V1 && namespace != class.location.namespace {
        return Err(Status::invalid_argument(format!(
            "the source is in the RADOS namespace {namespace:?}, the volume is to be in {:?}: clones of format 1 cannot cross \
             namespaces, use cloneFormat 2",
            class.location.namespace
        )));
    }
    Ok(source.1)
}

/// A record as the wire has it.
pub(super) fn volume(record: &catalogue::Volume) -> Volume {
    let content_source = match &record.source {
        Some(Source::Volume(id)) => {
            Some(volume_content_source::Type::Volume(volume_content_source::VolumeSource {
                volume_id: id.clone(),
            }))
        }
        Some(Source::Snapshot(id)) => {
            Some(volume_content_source::Type::Snapshot(SnapshotSource { snapshot_id: id.clone() }))
        }
        // The class names a golden image, and the request had no source.
        Some(Source::Image(_)) | None => None,
    };
    let content_source = content_source.map(|kind| VolumeContentSource { r#type: Some(kind) });
    Volume {
        // Sizes that do not fit were refused when the volume was asked for.
        capacity_bytes: i64::try_from(record.size).unwrap_or(i64::MAX),
        volume_id: record.id.clone(),
        volume_context: record.context.clone(),
        content_source,
        accessible_topology: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::proto::volume_capability::{BlockVolume, MountVolume};
    use tonic::Code;

    const MIB: u64 = 1 << 20;

    fn mount(fs_type: &str) -> VolumeCapability {
        let mount = MountVolume { fs_type: fs_type.to_string(), ..MountVolume::default() };
        VolumeCapability { access_type: Some(AccessType::Mount(mount)), access_mode: None }
    }

    #[test]
    fn an_empty_volume_has_room_for_its_filesystem() {
        let block = AccessType::Block(BlockVolume {});
        let block = VolumeCapability { access_type: Some(block), access_mode: None };
        let room = |required, limit, capabilities: &[VolumeCapability]| {
            with_room_for_filesystem(Sizes { required, limit }, capabilities)
                .map(|sizes| sizes.required)
                .map_err(|status| status.code())
        };
        let (ext4, xfs) = (mount("ext4"), mount("xfs"));
        for (required, limit, capability, outcome) in [
            (0, 0, &ext4, Ok(0)),
            (512, 0, &ext4, Ok(SMALLEST_EXT4)),
            (512, 0, &mount(""), Ok(SMALLEST_EXT4)),
            (512, 4096, &ext4, Err(Code::OutOfRange)),
            (MIB, 0, &ext4, Ok(MIB)),
            (0, 0, &xfs, Ok(300 * MIB)),
            (200 * MIB, 0, &xfs, Ok(300 * MIB)),
            (200 * MIB, 300 * MIB, &xfs, Ok(300 * MIB)),
            (200 * MIB, 299 * MIB, &xfs, Err(Code::OutOfRange)),
            (0, 299 * MIB, &xfs, Err(Code::OutOfRange)),
            (400 * MIB, 0, &xfs, Ok(400 * MIB)),
            (512, 512, &block, Ok(512)),
        ] {
            assert_eq!(
                room(required, limit, std::slice::from_ref(capability)),
                outcome,
                "{required} to {limit} bytes, {capability:?}"
            );
        }
        assert_eq!(room(MIB, 0, &[block, xfs]), Ok(300 * MIB));
    }
}
