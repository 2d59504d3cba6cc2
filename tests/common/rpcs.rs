//! One request of each RPC that reaches Ceph, ready to be sent at the same time as the others.

use std::pin::Pin;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::controller_client::ControllerClient;
#[allow(clippy::wildcard_imports, reason = "most messages of CSI")]
use cinderblock::csi::proto::*;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;

use super::driver::{Class, Driver, MIB, filesystem, within};

/// What one RPC ended with, and how long it took.
#[derive(Debug)]
pub struct Answer {
    pub rpc: &'static str,
    pub outcome: Result<(), Status>,
    pub took: Duration,
}

type Call = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

/// A volume for each RPC that works on one, since operations on one volume exclude each other, and
/// a snapshot.
pub struct Things {
    class: Class,
    volumes: Vec<String>,
    /// One to delete, and one to look at.
    snapshots: [String; 2],
}

/// The RPCs that need a volume of their own.
const ON_VOLUMES: [&str; 8] =
    ["delete", "snapshot", "expand", "publish", "unpublish", "validate", "modify", "get"];

impl Things {
    /// Makes them in the pool and namespace of `class`, names beginning with `prefix`.
    pub async fn make(driver: &Driver, class: &Class, prefix: &str) -> Things {
        let mut controller = driver.controller().await;
        let mut volumes = Vec::new();
        for rpc in ON_VOLUMES {
            let request = class.create_volume(&format!("{prefix}-{rpc}"), MIB);
            let answer = controller.create_volume(request).await.unwrap().into_inner();
            volumes.push(answer.volume.unwrap().volume_id);
        }
        let mut snapshots = [String::new(), String::new()];
        for (snapshot, name) in snapshots.iter_mut().zip(["delete", "get"]) {
            let request = class.create_snapshot(&format!("{prefix}-{name}"), &volumes[1]);
            let made =
                controller.create_snapshot(request).await.unwrap().into_inner().snapshot.unwrap();
            *snapshot = made.snapshot_id;
        }
        Things { class: class.clone(), volumes, snapshots }
    }

    /// Ids of things that need not exist, for requests that are to be refused before the driver
    /// looks.
    pub fn imagined(class: &Class) -> Things {
        let [cluster, pool, namespace] =
            ["clusterID", "pool", "radosNamespace"].map(|key| &class.parameters[key]);
        let place = format!("{cluster}/{pool}/{namespace}");
        let volumes = ON_VOLUMES.map(|rpc| format!("{place}/csi-{rpc}")).into();
        let snapshots = ["delete", "get"].map(|name| format!("{place}/10ab@csi-snap-{name}"));
        Things { class: class.clone(), volumes, snapshots }
    }

    /// The same things, asked for with other secrets.
    #[must_use]
    pub fn with_secrets(&self, class: &Class) -> Things {
        Things {
            class: class.clone(),
            volumes: self.volumes.clone(),
            snapshots: self.snapshots.clone(),
        }
    }

    /// The volume of one of [`ON_VOLUMES`].
    pub fn volume(&self, rpc: &str) -> &str {
        &self.volumes[ON_VOLUMES.iter().position(|name| *name == rpc).unwrap()]
    }

    /// Sends one request of each RPC at the same time, each with a deadline of `seconds`. `name` is
    /// what the volume and the snapshot are called that they ask for.
    pub async fn ask_all(&self, driver: &Driver, name: &str, seconds: u64) -> Vec<Answer> {
        let channel = driver.channel().await;
        let mut running = JoinSet::new();
        for (rpc, call) in self.calls(&channel, name, seconds) {
            running.spawn(async move {
                let started = Instant::now();
                let outcome = call.await;
                Answer { rpc, outcome, took: started.elapsed() }
            });
        }
        running.join_all().await
    }

    /// Publishes the volume of "publish", so that the driver knows the monitors.
    pub async fn publish(&self, driver: &Driver) {
        driver.controller().await.controller_publish_volume(self.publication()).await.unwrap();
    }

    fn publication(&self) -> ControllerPublishVolumeRequest {
        ControllerPublishVolumeRequest {
            volume_id: self.volume("publish").to_string(),
            node_id: "node-1".to_string(),
            volume_capability: Some(filesystem()),
            secrets: self.class.secrets.clone(),
            ..ControllerPublishVolumeRequest::default()
        }
    }

    fn calls(&self, channel: &Channel, name: &str, seconds: u64) -> Vec<(&'static str, Call)> {
        let secrets = || self.class.secrets.clone();
        let volume = |rpc: &str| self.volume(rpc).to_string();
        let mut calls: Vec<(&'static str, Call)> = Vec::new();
        macro_rules! call {
            ($rpc:ident, $request:expr) => {
                let request = within(seconds, $request);
                let mut client = ControllerClient::new(channel.clone());
                calls.push((
                    stringify!($rpc),
                    Box::pin(async move { client.$rpc(request).await.map(drop) }),
                ));
            };
        }
        call!(create_volume, self.class.create_volume(name, MIB));
        call!(delete_volume, self.class.delete_volume(self.volume("delete")));
        call!(create_snapshot, self.class.create_snapshot(name, self.volume("snapshot")));
        call!(delete_snapshot, self.class.delete_snapshot(&self.snapshots[0]));
        call!(
            controller_expand_volume,
            ControllerExpandVolumeRequest {
                volume_id: volume("expand"),
                capacity_range: Some(CapacityRange { required_bytes: 2 * MIB, limit_bytes: 0 }),
                secrets: secrets(),
                ..ControllerExpandVolumeRequest::default()
            }
        );
        call!(controller_publish_volume, self.publication());
        call!(
            controller_unpublish_volume,
            ControllerUnpublishVolumeRequest {
                volume_id: volume("unpublish"),
                node_id: "node-1".to_string(),
                secrets: secrets(),
            }
        );
        call!(
            validate_volume_capabilities,
            ValidateVolumeCapabilitiesRequest {
                volume_id: volume("validate"),
                volume_capabilities: vec![filesystem()],
                secrets: secrets(),
                ..ValidateVolumeCapabilitiesRequest::default()
            }
        );
        call!(
            controller_modify_volume,
            ControllerModifyVolumeRequest {
                volume_id: volume("modify"),
                secrets: secrets(),
                mutable_parameters: [("rbd_qos_iops_limit".to_string(), "100".to_string())].into(),
            }
        );
        call!(
            get_snapshot,
            GetSnapshotRequest { snapshot_id: self.snapshots[1].clone(), secrets: secrets() }
        );
        call!(
            list_snapshots,
            ListSnapshotsRequest {
                snapshot_id: self.snapshots[1].clone(),
                secrets: secrets(),
                ..ListSnapshotsRequest::default()
            }
        );
        calls
    }

    /// Removes everything, the volume and the snapshot called `name` by [`Things::ask_all`] too.
    pub async fn remove(&self, driver: &Driver, name: &str) {
        let mut controller = driver.controller().await;
        let unpublish = ControllerUnpublishVolumeRequest {
            volume_id: self.volume("publish").to_string(),
            node_id: String::new(),
            secrets: self.class.secrets.clone(),
        };
        controller.controller_unpublish_volume(unpublish).await.unwrap();
        let request = self.class.create_volume(name, MIB);
        let made =
            controller.create_volume(request).await.unwrap().into_inner().volume.unwrap().volume_id;
        let request = self.class.create_snapshot(name, self.volume("snapshot"));
        let cut = controller.create_snapshot(request).await.unwrap().into_inner().snapshot.unwrap();
        for snapshot in self.snapshots.iter().chain([&cut.snapshot_id]) {
            controller.delete_snapshot(self.class.delete_snapshot(snapshot)).await.unwrap();
        }
        for volume in self.volumes.iter().chain([&made]) {
            controller.delete_volume(self.class.delete_volume(volume)).await.unwrap();
        }
    }
}
