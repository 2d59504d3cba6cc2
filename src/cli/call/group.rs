//! The GroupController service.

use cinderblock::csi::proto::group_controller_client::GroupControllerClient;
use cinderblock::csi::proto::{
    CreateVolumeGroupSnapshotRequest, DeleteVolumeGroupSnapshotRequest,
    GetVolumeGroupSnapshotRequest, GroupControllerGetCapabilitiesRequest,
};
use clap::Subcommand;

use super::answer::Answer;
use super::flags::{Secrets, key_value};
use super::{Connection, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// What the group controller can do
    #[command(alias = "group-controller-get-capabilities")]
    GroupCapabilities,
    /// Cut consistent snapshots of several volumes
    #[command(alias = "create-volume-group-snapshot")]
    CreateGroupSnapshot {
        /// The volumes
        #[arg(value_name = "VOLUME_ID")]
        volume_ids: Vec<String>,
        /// The name; the same name again is the same group snapshot
        #[arg(long)]
        name: String,
        /// A parameter of the group snapshot class; may be repeated
        #[arg(long = "parameter", value_name = "KEY=VALUE", value_parser = key_value)]
        parameters: Vec<(String, String)>,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Delete a group snapshot with its members
    #[command(alias = "delete-volume-group-snapshot")]
    DeleteGroupSnapshot {
        #[command(flatten)]
        group: Group,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// Show a group snapshot and its members
    #[command(alias = "get-volume-group-snapshot")]
    GetGroupSnapshot {
        #[command(flatten)]
        group: Group,
        #[command(flatten)]
        secrets: Secrets,
    },
}

/// A group snapshot and its members.
#[derive(Debug, clap::Args)]
pub(super) struct Group {
    group_snapshot_id: String,

    /// A member; repeat it for all of them, because drivers refuse a list that does not match
    #[arg(long = "snapshot", value_name = "SNAPSHOT_ID")]
    snapshot_ids: Vec<String>,
}

impl GroupCommand {
    pub(super) async fn call(self, connection: Connection) -> Result<Answer, Failure> {
        let mut client = GroupControllerClient::new(connection);
        Ok(match self {
            GroupCommand::GroupCapabilities => {
                let request = GroupControllerGetCapabilitiesRequest {};
                Answer::of(client.group_controller_get_capabilities(request).await?)
            }
            GroupCommand::CreateGroupSnapshot { volume_ids, name, parameters, secrets } => {
                let request = CreateVolumeGroupSnapshotRequest {
                    name,
                    source_volume_ids: volume_ids,
                    secrets: secrets.read()?,
                    parameters: parameters.into_iter().collect(),
                };
                Answer::of(client.create_volume_group_snapshot(request).await?)
            }
            GroupCommand::DeleteGroupSnapshot { group, secrets } => {
                let Group { group_snapshot_id, snapshot_ids } = group;
                let secrets = secrets.read()?;
                let request =
                    DeleteVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, secrets };
                Answer::of(client.delete_volume_group_snapshot(request).await?)
            }
            GroupCommand::GetGroupSnapshot { group, secrets } => {
                let Group { group_snapshot_id, snapshot_ids } = group;
                let secrets = secrets.read()?;
                let request =
                    GetVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, secrets };
                Answer::of(client.get_volume_group_snapshot(request).await?)
            }
        })
    }
}
