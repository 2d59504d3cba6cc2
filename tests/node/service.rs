//! The node service as an orchestrator calls it: whole lives of volumes in CSI messages, codes of
//! refusals, callers that hang up.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cinderblock::csi::node::NodeService;
use cinderblock::csi::proto::node_server::Node as _;
use cinderblock::csi::proto::volume_capability::access_mode::Mode;
use cinderblock::csi::proto::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume,
};
use cinderblock::csi::proto::{
    CapacityRange, NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
    NodeGetVolumeHealthRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use cinderblock::node::{Access, Node};
use tonic::{Code, Request, Status};

use crate::kills::secrets;
use crate::lab::{Volume, ext4, mounter_name, variable, write};

/// A service on the state directory of `volume`, and the messages about it.
struct Caller {
    service: NodeService,
    id: String,
    staging: String,
    target: String,
    capability: VolumeCapability,
    context: BTreeMap<String, String>,
}

impl Caller {
    fn new(volume: &Volume, access_type: AccessType) -> Self {
        let node = Arc::new(Node::new(&volume.path("state")).unwrap());
        let monitors = HashMap::from([("lab".to_owned(), vec![variable("LAB_MONITORS")])]);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let access_mode = Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() });
        let context = [
            ("mounter", mounter_name()),
            ("contentSource", "none"),
            ("pool", "rbd"),
            ("unknown", "x"),
        ];
        Self {
            service: NodeService::new(node, "node-1".into(), 7, monitors, Duration::from_mins(1)),
            id: volume.id(),
            staging: text(&volume.staging()),
            target: text(&volume.path("target")),
            capability: VolumeCapability { access_mode, access_type: Some(access_type) },
            context: context.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        }
    }

    async fn stage(&self) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: BTreeMap::new(),
            staging_target_path: self.staging.clone(),
            volume_capability: Some(self.capability.clone()),
            secrets: secrets(),
            volume_context: self.context.clone(),
        };
        self.service.node_stage_volume(Request::new(request)).await.map(drop)
    }

    async fn publish(&self) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.staging.clone(),
            target_path: self.target.clone(),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        self.service.node_publish_volume(Request::new(request)).await.map(drop)
    }

    async fn unpublish(&self) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: self.target.clone(),
        };
        self.service.node_unpublish_volume(Request::new(request)).await.map(drop)
    }

    async fn unstage(&self) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.staging.clone(),
        };
        self.service.node_unstage_volume(Request::new(request)).await.map(drop)
    }

    /// (total, used, available) of each unit.
    async fn stats(&self, path: &str) -> Result<Vec<(i64, i64, i64)>, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path: path.to_owned(),
            staging_target_path: String::new(),
        };
        let answer = self.service.node_get_volume_stats(Request::new(request)).await?.into_inner();
        Ok(answer.usage.iter().map(|usage| (usage.total, usage.used, usage.available)).collect())
    }

    async fn expand(&self, path: &str, mib: i64) -> Result<i64, Status> {
        let request = NodeExpandVolumeRequest {
            volume_id: self.id.clone(),
            volume_path: path.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: mib << 20, limit_bytes: 0 }),
            secrets: secrets(),
            ..NodeExpandVolumeRequest::default()
        };
        let answer = self.service.node_expand_volume(Request::new(request)).await?;
        Ok(answer.into_inner().capacity_bytes)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filesystem_lives_its_life() {
    let volume = Volume::new(64, ext4());
    let caller = Caller::new(&volume, AccessType::Mount(MountVolume::default()));
    // Nothing of it is here yet, and taking it away is fine all the same.
    caller.unpublish().await.unwrap();
    caller.unstage().await.unwrap();
    assert_eq!(caller.publish().await.unwrap_err().code(), Code::FailedPrecondition);
    for path in ["some/path", caller.target.as_str()] {
        assert_eq!(caller.stats(path).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(caller.expand(path, 1).await.unwrap_err().code(), Code::NotFound);
    }

    caller.stage().await.unwrap();
    caller.publish().await.unwrap();
    write(&volume.path("target/data"), b"x");
    let usage = caller.stats(&caller.target).await.unwrap();
    // The root, lost+found and the file; mkfs of 1.47.1 and newer makes a hidden file beside them.
    assert!(
        usage.len() == 2 && usage[0].0 > 50 << 20 && (12..=13).contains(&usage[1].1),
        "{usage:?}"
    );
    assert_eq!(caller.expand(&caller.target, 64).await.unwrap(), 64 << 20);
    assert_eq!(caller.stats("some/path").await.unwrap_err().code(), Code::NotFound);
    caller.unpublish().await.unwrap();
    caller.unstage().await.unwrap();
    volume.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_volume_lives_its_life() {
    let volume = Volume::new(16, Access::Block);
    let caller = Caller::new(&volume, AccessType::Block(BlockVolume {}));
    caller.stage().await.unwrap();
    caller.publish().await.unwrap();
    assert_eq!(caller.stats(&caller.target).await.unwrap(), [(16 << 20, 0, 0)]);
    volume.grow_image(32);
    assert_eq!(caller.expand(&caller.target, 32).await.unwrap(), 32 << 20);
    caller.unpublish().await.unwrap();
    caller.unstage().await.unwrap();
    volume.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_when_its_caller_hangs_up_and_others_hear_of_it() {
    let volume = Volume::new(64, ext4());
    let caller = Caller::new(&volume, AccessType::Mount(MountVolume::default()));
    // Asked for, and given up at once.
    tokio::time::timeout(Duration::ZERO, caller.stage()).await.unwrap_err();
    let refusal = caller.unstage().await.unwrap_err();
    assert_eq!(refusal.code(), Code::Aborted);
    assert!(refusal.message().contains("NodeStageVolume holds volume"), "{}", refusal.message());
    // The same request joins what is still at work, and finds it done.
    caller.stage().await.unwrap();
    volume.assert_attached_once();
    assert!(volume.mounts().iter().any(|line| line.contains("/staging ")));
    caller.unstage().await.unwrap();
    volume.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_with_one_request_stage_it_once() {
    let volume = Volume::new(64, ext4());
    let caller = Arc::new(Caller::new(&volume, AccessType::Mount(MountVolume::default())));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let caller = caller.clone();
        callers.spawn(async move { caller.stage().await });
    }
    for outcome in callers.join_all().await {
        outcome.unwrap();
    }
    volume.assert_attached_once();
    caller.unstage().await.unwrap();
    volume.finish();
}

#[tokio::test]
async fn the_node_is_introduced() {
    let folder = tempfile::tempdir().unwrap();
    let node = Arc::new(Node::new(folder.path()).unwrap());
    let service =
        NodeService::new(node, "node-1".into(), 7, HashMap::new(), Duration::from_secs(1));
    let info =
        service.node_get_info(Request::new(NodeGetInfoRequest {})).await.unwrap().into_inner();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("node-1", 7));
    let capabilities =
        service.node_get_capabilities(Request::new(NodeGetCapabilitiesRequest {})).await.unwrap();
    assert_eq!(capabilities.into_inner().capabilities.len(), 4);
    let health = service
        .node_get_volume_health(Request::new(NodeGetVolumeHealthRequest::default()))
        .await
        .unwrap_err();
    assert_eq!(health.code(), Code::Unimplemented);
}
