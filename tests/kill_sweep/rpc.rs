//! The RPCs that change something, as values: sent to any driver, repeated, and turned into their
//! opposites.

use std::time::Duration;

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::{
    ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest,
    DeleteSnapshotRequest, DeleteVolumeRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::driver::{Driver, within};

/// Seconds the driver is given for one answer.
const DEADLINE: u64 = 60;

/// One request that changes something.
#[derive(Debug, Clone)]
pub enum Rpc {
    CreateVolume(CreateVolumeRequest),
    DeleteVolume(DeleteVolumeRequest),
    CreateSnapshot(CreateSnapshotRequest),
    DeleteSnapshot(DeleteSnapshotRequest),
    Expand(ControllerExpandVolumeRequest),
    Publish(ControllerPublishVolumeRequest),
    Unpublish(ControllerUnpublishVolumeRequest),
}

/// What an RPC answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The volume's or snapshot's id, where it has one.
    pub id: String,
    /// All of it.
    pub text: String,
}

/// A driver and a client of it.
pub struct Controller {
    pub driver: Driver,
    runtime: tokio::runtime::Runtime,
    client: ControllerClient<Channel>,
}

impl Controller {
    /// Connects to the driver.
    pub fn of(driver: Driver) -> Controller {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(driver.controller());
        Controller { driver, runtime, client }
    }

    /// Asks once.
    pub fn ask(&mut self, rpc: &Rpc) -> Result<Answer, Status> {
        self.runtime.block_on(ask(&mut self.client, rpc))
    }

    /// Asks, and waits so long for an answer. The driver goes on when there is none.
    pub fn ask_for(&mut self, rpc: &Rpc, time: Duration) -> Option<Result<Answer, Status>> {
        self.runtime
            .block_on(async { tokio::time::timeout(time, ask(&mut self.client, rpc)).await.ok() })
    }
}

async fn ask(client: &mut ControllerClient<Channel>, rpc: &Rpc) -> Result<Answer, Status> {
    let mut id = String::new();
    let text = match rpc.clone() {
        Rpc::CreateVolume(request) => {
            let answer = client.create_volume(within(DEADLINE, request)).await?.into_inner();
            id.clone_from(&answer.volume.as_ref().unwrap().volume_id);
            format!("{answer:?}")
        }
        Rpc::DeleteVolume(request) => {
            format!("{:?}", client.delete_volume(within(DEADLINE, request)).await?.into_inner())
        }
        Rpc::CreateSnapshot(request) => {
            let answer = client.create_snapshot(within(DEADLINE, request)).await?.into_inner();
            id.clone_from(&answer.snapshot.as_ref().unwrap().snapshot_id);
            assert!(answer.snapshot.as_ref().unwrap().ready_to_use);
            format!("{answer:?}")
        }
        Rpc::DeleteSnapshot(request) => {
            format!("{:?}", client.delete_snapshot(within(DEADLINE, request)).await?.into_inner())
        }
        Rpc::Expand(request) => {
            format!(
                "{:?}",
                client.controller_expand_volume(within(DEADLINE, request)).await?.into_inner()
            )
        }
        Rpc::Publish(request) => {
            format!(
                "{:?}",
                client.controller_publish_volume(within(DEADLINE, request)).await?.into_inner()
            )
        }
        Rpc::Unpublish(request) => {
            format!(
                "{:?}",
                client.controller_unpublish_volume(within(DEADLINE, request)).await?.into_inner()
            )
        }
    };
    Ok(Answer { id, text })
}

/// Whether the orchestrator asks again after this answer without a person's help. A dead driver's
/// watch on an image is told as "in use" for as long as it lasts.
pub fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::Aborted | Code::Unavailable | Code::DeadlineExceeded => true,
        Code::FailedPrecondition => status.message().contains("a client that died lets go after"),
        _ => false,
    }
}
