//! The Controller service.

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use cinderblock::csi::proto::{
    ControllerExpandVolumeRequest, ControllerGetCapabilitiesRequest,
    ControllerGetVolumeHealthRequest, ControllerGetVolumeRequest,
    ControllerListVolumeHealthRequest, ControllerModifyVolumeRequest,
    ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateSnapshotRequest,
    CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest, GetCapacityRequest,
    GetSnapshotRequest, ListSnapshotsRequest, ListVolumesRequest,
    ValidateVolumeCapabilitiesRequest, VolumeContentSource,
};
use clap::Subcommand;

use super::answer::Answer;
use super::flags::{Capability, Page, Secrets, Size, VolumeContext, key_value};
use super::{Connection, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum ControllerCommand {
    /// What the controller can do
    #[command(alias = "controller-get-capabilities")]
    ControllerCapabilities,
    /// Create a volume, empty or from a snapshot or another volume
    CreateVolume {
        /// The name; the same name again is the same volume
        #[arg(long)]
        name: String,
        #[command(flatten)]
        size: Size,
        /// Start with the content of this snapshot
        #[arg(long, value_name = "SNAPSHOT_ID", conflicts_with = "from_volume")]
        from_snapshot: Option<String>,
        /// Start with the present content of this volume
        #[arg(long, value_name = "VOLUME_ID")]
        from_volume: Option<String>,
        #[command(flatten)]
        parameters: Parameters,
        #[command(flatten)]
        capability: Capability,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Delete a volume
    DeleteVolume {
        /// The volume's id
        volume_id: String,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Make a volume available to a node; the answer is the publish context
    #[command(alias = "controller-publish-volume")]
    ControllerPublish {
        /// The volume's id
        volume_id: String,
        /// The id of the node, as node-info tells it
        #[arg(long, value_name = "NODE_ID")]
        node: String,
        /// Publish for reading only
        #[arg(long)]
        readonly: bool,
        #[command(flatten)]
        capability: Capability,
        #[command(flatten)]
        context: VolumeContext,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Take a volume away from a node
    #[command(alias = "controller-unpublish-volume")]
    ControllerUnpublish {
        /// The volume's id
        volume_id: String,
        /// The id of the node; every node when absent
        #[arg(long, value_name = "NODE_ID", default_value = "")]
        node: String,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Say whether a volume can be used in a certain way
    #[command(alias = "validate-volume-capabilities")]
    Validate {
        /// The volume's id
        volume_id: String,
        #[command(flatten)]
        parameters: Parameters,
        #[command(flatten)]
        capability: Capability,
        #[command(flatten)]
        context: VolumeContext,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// List volumes and where they are published
    ListVolumes {
        #[command(flatten)]
        page: Page,
    },
    /// Show a volume and where it is published
    #[command(alias = "controller-get-volume")]
    GetVolume {
        /// The volume's id
        volume_id: String,
    },
    /// List the volumes that are not well
    #[command(alias = "controller-list-volume-health")]
    ListVolumeHealth {
        #[command(flatten)]
        page: Page,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Show what the controller knows to be wrong with a volume
    #[command(alias = "controller-get-volume-health")]
    GetVolumeHealth {
        /// The volume's id
        volume_id: String,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Say how much can still be provisioned
    GetCapacity {
        /// A parameter of the storage class, such as pool=rbd; may be repeated
        #[arg(long = "parameter", value_name = "KEY=VALUE", value_parser = key_value)]
        parameters: Vec<(String, String)>,
        #[command(flatten)]
        capability: Capability,
    },
    /// Grow a volume
    #[command(alias = "controller-expand-volume")]
    Expand {
        /// The volume's id
        volume_id: String,
        #[command(flatten)]
        size: Size,
        #[command(flatten)]
        capability: Capability,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Change the mutable parameters of a volume
    #[command(alias = "controller-modify-volume")]
    Modify {
        /// The volume's id
        volume_id: String,
        /// A parameter to change; may be repeated
        #[arg(long = "mutable-parameter", value_name = "KEY=VALUE", value_parser = key_value)]
        mutable_parameters: Vec<(String, String)>,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Cut a snapshot of a volume
    CreateSnapshot {
        /// The volume's id
        volume_id: String,
        /// The name; the same name again is the same snapshot
        #[arg(long)]
        name: String,
        /// A parameter of the snapshot class; may be repeated
        #[arg(long = "parameter", value_name = "KEY=VALUE", value_parser = key_value)]
        parameters: Vec<(String, String)>,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Delete a snapshot
    DeleteSnapshot {
        /// The snapshot's id
        snapshot_id: String,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// List snapshots
    ListSnapshots {
        #[command(flatten)]
        page: Page,
        /// Only snapshots of this volume
        #[arg(long, value_name = "VOLUME_ID", default_value = "")]
        volume: String,
        /// Only this snapshot
        #[arg(long, value_name = "SNAPSHOT_ID", default_value = "")]
        snapshot: String,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Show a snapshot
    GetSnapshot {
        /// The snapshot's id
        snapshot_id: String,
        #[command(flatten)]
        secrets: Secrets,
    },
}

/// The parameters of a class.
#[derive(Debug, clap::Args)]
pub(super) struct Parameters {
    /// A parameter of the storage class, such as pool=rbd; may be repeated
    #[arg(long = "parameter", value_name = "KEY=VALUE", value_parser = key_value)]
    parameters: Vec<(String, String)>,

    /// A parameter that can be changed later; may be repeated
    #[arg(long = "mutable-parameter", value_name = "KEY=VALUE", value_parser = key_value)]
    mutable_parameters: Vec<(String, String)>,
}

impl ControllerCommand {
    pub(super) async fn call(self, connection: Connection) -> Result<Answer, Failure> {
        let mut client = ControllerClient::new(connection);
        Ok(match self {
            ControllerCommand::ControllerCapabilities => Answer::of(
                client.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await?,
            ),
            ControllerCommand::CreateVolume {
                name,
                size,
                from_snapshot,
                from_volume,
                parameters,
                capability,
                secrets,
            } => {
                let snapshot =
                    from_snapshot.map(|snapshot_id| Type::Snapshot(SnapshotSource { snapshot_id }));
                let volume = from_volume.map(|volume_id| Type::Volume(VolumeSource { volume_id }));
                let request = CreateVolumeRequest {
                    name,
                    capacity_range: size.range(),
                    volume_capabilities: vec![capability.required()],
                    parameters: parameters.parameters.into_iter().collect(),
                    secrets: secrets.read()?,
                    volume_content_source: snapshot
                        .or(volume)
                        .map(|source| VolumeContentSource { r#type: Some(source) }),
                    accessibility_requirements: None,
                    mutable_parameters: parameters.mutable_parameters.into_iter().collect(),
                };
                Answer::of(client.create_volume(request).await?)
            }
            ControllerCommand::DeleteVolume { volume_id, secrets } => {
                let request = DeleteVolumeRequest { volume_id, secrets: secrets.read()? };
                Answer::of(client.delete_volume(request).await?)
            }
            ControllerCommand::ControllerPublish {
                volume_id,
                node,
                readonly,
                capability,
                context,
                secrets,
            } => {
                let request = ControllerPublishVolumeRequest {
                    volume_id,
                    node_id: node,
                    volume_capability: Some(capability.required()),
                    readonly,
                    secrets: secrets.read()?,
                    volume_context: context.read()?,
                };
                Answer::of(client.controller_publish_volume(request).await?)
            }
            ControllerCommand::ControllerUnpublish { volume_id, node, secrets } => {
                let request = ControllerUnpublishVolumeRequest {
                    volume_id,
                    node_id: node,
                    secrets: secrets.read()?,
                };
                Answer::of(client.controller_unpublish_volume(request).await?)
            }
            ControllerCommand::Validate { volume_id, parameters, capability, context, secrets } => {
                let request = ValidateVolumeCapabilitiesRequest {
                    volume_id,
                    volume_context: context.read()?,
                    volume_capabilities: vec![capability.required()],
                    parameters: parameters.parameters.into_iter().collect(),
                    secrets: secrets.read()?,
                    mutable_parameters: parameters.mutable_parameters.into_iter().collect(),
                };
                Answer::of(client.validate_volume_capabilities(request).await?)
            }
            ControllerCommand::ListVolumes { page } => {
                let Page { max_entries, starting_token } = page;
                Answer::of(
                    client.list_volumes(ListVolumesRequest { max_entries, starting_token }).await?,
                )
            }
            ControllerCommand::GetVolume { volume_id } => Answer::of(
                client.controller_get_volume(ControllerGetVolumeRequest { volume_id }).await?,
            ),
            ControllerCommand::ListVolumeHealth { page, secrets } => {
                let Page { max_entries, starting_token } = page;
                let secrets = secrets.read()?;
                let request =
                    ControllerListVolumeHealthRequest { max_entries, starting_token, secrets };
                Answer::of(client.controller_list_volume_health(request).await?)
            }
            ControllerCommand::GetVolumeHealth { volume_id, secrets } => {
                let request =
                    ControllerGetVolumeHealthRequest { volume_id, secrets: secrets.read()? };
                Answer::of(client.controller_get_volume_health(request).await?)
            }
            ControllerCommand::GetCapacity { parameters, capability } => {
                let request = GetCapacityRequest {
                    volume_capabilities: capability.given().into_iter().collect(),
                    parameters: parameters.into_iter().collect(),
                    accessible_topology: None,
                };
                Answer::of(client.get_capacity(request).await?)
            }
            ControllerCommand::Expand { volume_id, size, capability, secrets } => {
                let request = ControllerExpandVolumeRequest {
                    volume_id,
                    capacity_range: size.range(),
                    secrets: secrets.read()?,
                    volume_capability: capability.given(),
                };
                Answer::of(client.controller_expand_volume(request).await?)
            }
            ControllerCommand::Modify { volume_id, mutable_parameters, secrets } => {
                let request = ControllerModifyVolumeRequest {
                    volume_id,
                    secrets: secrets.read()?,
                    mutable_parameters: mutable_parameters.into_iter().collect(),
                };
                Answer::of(client.controller_modify_volume(request).await?)
            }
            ControllerCommand::CreateSnapshot { volume_id, name, parameters, secrets } => {
                let request = CreateSnapshotRequest {
                    source_volume_id: volume_id,
                    name,
                    secrets: secrets.read()?,
                    parameters: parameters.into_iter().collect(),
                    accessibility_requirements: None,
                };
                Answer::of(client.create_snapshot(request).await?)
            }
            ControllerCommand::DeleteSnapshot { snapshot_id, secrets } => {
                let request = DeleteSnapshotRequest { snapshot_id, secrets: secrets.read()? };
                Answer::of(client.delete_snapshot(request).await?)
            }
            ControllerCommand::ListSnapshots { page, volume, snapshot, secrets } => {
                let request = ListSnapshotsRequest {
                    max_entries: page.max_entries,
                    starting_token: page.starting_token,
                    source_volume_id: volume,
                    snapshot_id: snapshot,
                    secrets: secrets.read()?,
                };
                Answer::of(client.list_snapshots(request).await?)
            }
            ControllerCommand::GetSnapshot { snapshot_id, secrets } => {
                let request = GetSnapshotRequest { snapshot_id, secrets: secrets.read()? };
                Answer::of(client.get_snapshot(request).await?)
            }
        })
    }
}
