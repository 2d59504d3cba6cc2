//! The SnapshotMetadata service. Its streams are gathered into one answer.

use cinderblock::csi::proto::snapshot_metadata_client::SnapshotMetadataClient;
use cinderblock::csi::proto::{
    GetMetadataAllocatedRequest, GetMetadataAllocatedResponse, GetMetadataDeltaRequest,
    GetMetadataDeltaResponse,
};
use clap::Subcommand;
use tonic::Response;

use super::answer::Answer;
use super::flags::Secrets;
use super::{Connection, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum MetadataCommand {
    /// List the blocks of a snapshot that hold data
    #[command(alias = "get-metadata-allocated")]
    AllocatedBlocks {
        /// The snapshot's id
        snapshot_id: String,
        #[command(flatten)]
        window: Window,
        #[command(flatten)]
        secrets: Secrets,
    },
    /// List the blocks that differ between two snapshots of a volume
    #[command(alias = "get-metadata-delta")]
    ChangedBlocks {
        /// The older snapshot
        base_snapshot_id: String,
        /// The newer snapshot
        target_snapshot_id: String,
        #[command(flatten)]
        window: Window,
        #[command(flatten)]
        secrets: Secrets,
    },
}

/// Where to start and how much to send at a time.
#[derive(Debug, clap::Args)]
pub(super) struct Window {
    /// Leave out what ends at or before this offset, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0, allow_negative_numbers = true)]
    starting_offset: i64,

    /// At most this many blocks in one message of the stream; the driver decides when absent
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    max_results: i32,
}

impl MetadataCommand {
    pub(super) async fn call(self, connection: Connection) -> Result<Answer, Failure> {
        let mut client = SnapshotMetadataClient::new(connection);
        match self {
            MetadataCommand::AllocatedBlocks { snapshot_id, window, secrets } => {
                let request = GetMetadataAllocatedRequest {
                    snapshot_id,
                    starting_offset: window.starting_offset,
                    max_results: window.max_results,
                    secrets: secrets.read()?,
                };
                let mut stream = client.get_metadata_allocated(request).await?.into_inner();
                let mut whole = GetMetadataAllocatedResponse::default();
                while let Some(part) = stream.message().await? {
                    whole.block_metadata_type = part.block_metadata_type;
                    whole.volume_capacity_bytes = part.volume_capacity_bytes;
                    whole.block_metadata.extend(part.block_metadata);
                }
                Ok(Answer::of(Response::new(whole)))
            }
            MetadataCommand::ChangedBlocks {
                base_snapshot_id,
                target_snapshot_id,
                window,
                secrets,
            } => {
                let request = GetMetadataDeltaRequest {
                    base_snapshot_id,
                    target_snapshot_id,
                    starting_offset: window.starting_offset,
                    max_results: window.max_results,
                    secrets: secrets.read()?,
                };
                let mut stream = client.get_metadata_delta(request).await?.into_inner();
                let mut whole = GetMetadataDeltaResponse::default();
                while let Some(part) = stream.message().await? {
                    whole.block_metadata_type = part.block_metadata_type;
                    whole.volume_capacity_bytes = part.volume_capacity_bytes;
                    whole.block_metadata.extend(part.block_metadata);
                }
                Ok(Answer::of(Response::new(whole)))
            }
        }
    }
}
