//! The Node service.

use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::{
    NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
    NodeGetStorageHealthRequest, NodeGetVolumeHealthRequest, NodeGetVolumeStatsRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest,
};
use clap::Subcommand;

use super::answer::Answer;
use super::flags::{Capability, Contexts, Secrets, Size};
use super::{Connection, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// The id of the node and its limits
    #[command(alias = "node-get-info")]
    NodeInfo,
    /// What the node plugin can do
    #[command(alias = "node-get-capabilities")]
    NodeCapabilities,
    /// Attach a volume and mount it at the staging path
    #[command(alias = "node-stage-volume")]
    Stage {
        /// The volume's id
        volume_id: String,
        /// Where to stage it: an absolute path that exists
        #[arg(long, value_name = "PATH")]
        staging: String,
        #[command(flatten)]
        capability: Capability,
        #[command(flatten)]
        contexts: Contexts,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Undo stage
    #[command(alias = "node-unstage-volume")]
    Unstage {
        /// The volume's id
        volume_id: String,
        /// Where it is staged
        #[arg(long, value_name = "PATH")]
        staging: String,
    },
    /// Make a staged volume appear at the path a workload uses
    #[command(alias = "node-publish-volume")]
    Publish {
        /// The volume's id
        volume_id: String,
        /// Where it is staged
        #[arg(long, value_name = "PATH", default_value = "")]
        staging: String,
        /// Where to publish it: an absolute path whose parent exists
        #[arg(long, value_name = "PATH")]
        target: String,
        /// Publish for reading only
        #[arg(long)]
        readonly: bool,
        #[command(flatten)]
        capability: Capability,
        #[command(flatten)]
        contexts: Contexts,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Undo publish
    #[command(alias = "node-unpublish-volume")]
    Unpublish {
        /// The volume's id
        volume_id: String,
        /// Where it is published
        #[arg(long, value_name = "PATH")]
        target: String,
    },
    /// Say how full a volume is
    #[command(alias = "node-get-volume-stats")]
    Stats {
        #[command(flatten)]
        place: Place,
    },
    /// Grow what lies on a volume that has grown
    #[command(alias = "node-expand-volume")]
    NodeExpand {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        size: Size,
        #[command(flatten)]
        capability: Capability,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Show what the node knows to be wrong with a volume
    #[command(alias = "node-get-volume-health")]
    NodeVolumeHealth {
        #[command(flatten)]
        place: Place,
    },
    /// Show what is wrong with the storage as the node reaches it
    #[command(alias = "node-get-storage-health")]
    NodeStorageHealth {
        #[command(flatten)]
        secrets: Secrets,
    },
}

/// A volume on a node.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    volume_id: String,

    /// Where it is published, or staged
    #[arg(long, value_name = "PATH")]
    path: String,

    /// Where it is staged, when --path is where it is published
    #[arg(long, value_name = "PATH", default_value = "")]
    staging: String,
}

impl NodeCommand {
    pub(super) async fn call(self, connection: Connection) -> Result<Answer, Failure> {
        let mut client = NodeClient::new(connection);
        Ok(match self {
            NodeCommand::NodeInfo => Answer::of(client.node_get_info(NodeGetInfoRequest {}).await?),
            NodeCommand::NodeCapabilities => {
                Answer::of(client.node_get_capabilities(NodeGetCapabilitiesRequest {}).await?)
            }
            NodeCommand::Stage { volume_id, staging, capability, contexts, secrets } => {
                let (volume_context, publish_context) = contexts.read()?;
                let request = NodeStageVolumeRequest {
                    volume_id,
                    publish_context,
                    staging_target_path: staging,
                    volume_capability: Some(capability.required()),
                    secrets: secrets.read()?,
                    volume_context,
                };
                Answer::of(client.node_stage_volume(request).await?)
            }
            NodeCommand::Unstage { volume_id, staging } => {
                let request = NodeUnstageVolumeRequest { volume_id, staging_target_path: staging };
                Answer::of(client.node_unstage_volume(request).await?)
            }
            NodeCommand::Publish {
                volume_id,
                staging,
                target,
                readonly,
                capability,
                contexts,
                secrets,
            } => {
                let (volume_context, publish_context) = contexts.read()?;
                let request = NodePublishVolumeRequest {
                    volume_id,
                    publish_context,
                    staging_target_path: staging,
                    target_path: target,
                    volume_capability: Some(capability.required()),
                    readonly,
                    secrets: secrets.read()?,
                    volume_context,
                };
                Answer::of(client.node_publish_volume(request).await?)
            }
            NodeCommand::Unpublish { volume_id, target } => {
                let request = NodeUnpublishVolumeRequest { volume_id, target_path: target };
                Answer::of(client.node_unpublish_volume(request).await?)
            }
            NodeCommand::Stats { place } => {
                let request = NodeGetVolumeStatsRequest {
                    volume_id: place.volume_id,
                    volume_path: place.path,
                    staging_target_path: place.staging,
                };
                Answer::of(client.node_get_volume_stats(request).await?)
            }
            NodeCommand::NodeExpand { place, size, capability, secrets } => {
                let request = NodeExpandVolumeRequest {
                    volume_id: place.volume_id,
                    volume_path: place.path,
                    capacity_range: size.range(),
                    staging_target_path: place.staging,
                    volume_capability: capability.given(),
                    secrets: secrets.read()?,
                };
                Answer::of(client.node_expand_volume(request).await?)
            }
            NodeCommand::NodeVolumeHealth { place } => {
                let request = NodeGetVolumeHealthRequest {
                    volume_id: place.volume_id,
                    volume_publish_path: place.path,
                    staging_target_path: place.staging,
                };
                Answer::of(client.node_get_volume_health(request).await?)
            }
            NodeCommand::NodeStorageHealth { secrets } => {
                let request = NodeGetStorageHealthRequest { secrets: secrets.read()? };
                Answer::of(client.node_get_storage_health(request).await?)
            }
        })
    }
}
