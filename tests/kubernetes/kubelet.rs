//! What kubelet does on node-a with the volumes of a pod, played: it asks the node plugin to stage
//! and publish them with what is in PersistentVolume, VolumeAttachment and Secret.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use base64::Engine;
use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode,
};
use cinderblock::csi::proto::{
    CapacityRange, NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

use super::api::{Api, text};
use super::common::random::Random;

/// The kubelet of node-a.
pub(crate) struct Kubelet {
    api: Arc<Api>,
    /// The folder of the pod's volumes, among them `plugin` with the socket, and `kubelet`.
    pod: PathBuf,
}

/// A volume that is mounted, or is a block device in a pod's folder. [`Mounted::unmount`] ends it.
pub(crate) struct Mounted<'a> {
    kubelet: &'a Kubelet,
    volume_id: String,
    staging: PathBuf,
    /// Where the pod finds it.
    target: PathBuf,
    is_block: bool,
}

impl Kubelet {
    pub(crate) fn of(api: &Arc<Api>, pod: &Path) -> Kubelet {
        Kubelet { api: api.clone(), pod: pod.to_path_buf() }
    }

    /// Stages and publishes a volume that is attached to node-a.
    pub(crate) fn mount(&self, volume: &Value, attachment: &Value) -> Mounted<'_> {
        let source = &volume["spec"]["csi"];
        let is_block = text(volume, "/spec/volumeMode") == "Block";
        let place = self.pod.join("kubelet").join(text(volume, "/metadata/name"));
        let (staging, target) = (place.join("globalmount"), place.join("pod"));
        std::fs::create_dir_all(&staging).unwrap();
        let access_type = if is_block {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume {
                fs_type: text(source, "/fsType").to_owned(),
                ..MountVolume::default()
            })
        };
        let capability = VolumeCapability {
            access_type: Some(access_type),
            access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
        };
        let stage = NodeStageVolumeRequest {
            volume_id: text(source, "/volumeHandle").to_owned(),
            publish_context: strings(&attachment["status"]["attachmentMetadata"]),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(capability.clone()),
            secrets: self.secret(&source["nodeStageSecretRef"]),
            volume_context: strings(&source["volumeAttributes"]),
        };
        let publish = NodePublishVolumeRequest {
            volume_id: stage.volume_id.clone(),
            publish_context: stage.publish_context.clone(),
            staging_target_path: stage.staging_target_path.clone(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability),
            volume_context: stage.volume_context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        let volume_id = stage.volume_id.clone();
        self.api.run(async {
            let mut node = self.node().await;
            node.node_stage_volume(stage).await.unwrap();
            node.node_publish_volume(publish).await.unwrap();
        });
        Mounted { kubelet: self, volume_id, staging, target, is_block }
    }

    async fn node(&self) -> NodeClient<Channel> {
        let endpoint =
            Endpoint::try_from(format!("unix://{}/plugin/csi.sock", self.pod.display())).unwrap();
        NodeClient::new(endpoint.connect().await.unwrap())
    }

    fn secret(&self, reference: &Value) -> BTreeMap<String, String> {
        let secret =
            self.api.get("Secret", text(reference, "/namespace"), text(reference, "/name"));
        let engine = base64::engine::general_purpose::STANDARD;
        let decoded = strings(&secret["data"]).into_iter().map(|(key, value)| {
            let value = engine.decode(value).unwrap();
            (key, String::from_utf8(value).unwrap())
        });
        decoded.collect()
    }
}

impl Mounted<'_> {
    /// Writes bytes to the volume's file, or to the beginning of its device, and makes them
    /// durable.
    pub(crate) fn write(&self, bytes: &[u8]) {
        self.write_at(0, bytes);
    }

    /// The same from an offset on.
    pub(crate) fn write_at(&self, offset: usize, bytes: &[u8]) {
        let file = File::options()
            .write(true)
            .create(!self.is_block)
            .truncate(false)
            .open(self.data())
            .unwrap();
        file.write_all_at(bytes, offset.try_into().unwrap()).unwrap();
        file.sync_all().unwrap();
    }

    /// Gives bytes of a device back, which are zeros from then on.
    pub(crate) fn discard(&self, offset: usize, length: usize) {
        let output = Command::new("blkdiscard")
            .args(["--offset", &offset.to_string(), "--length", &length.to_string()])
            .arg(&self.target)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// What [`Mounted::write`] wrote, `length` bytes of it.
    pub(crate) fn read(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        File::open(self.data()).unwrap().read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Grows what the node has of it to `bytes`; the bytes its filesystem or device has then.
    pub(crate) fn expand(&self, bytes: i64) -> u64 {
        let request = NodeExpandVolumeRequest {
            volume_id: self.volume_id.clone(),
            volume_path: self.target.display().to_string(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            staging_target_path: self.staging.display().to_string(),
            ..NodeExpandVolumeRequest::default()
        };
        self.kubelet
            .api
            .run(async { self.kubelet.node().await.node_expand_volume(request).await.unwrap() });
        let usage = nix::sys::statvfs::statvfs(&self.target).unwrap();
        usage.blocks() * usage.fragment_size()
    }

    /// Takes it away from the pod, and then from the node.
    pub(crate) fn unmount(self) {
        let unpublish = NodeUnpublishVolumeRequest {
            volume_id: self.volume_id.clone(),
            target_path: self.target.display().to_string(),
        };
        let unstage = NodeUnstageVolumeRequest {
            volume_id: self.volume_id.clone(),
            staging_target_path: self.staging.display().to_string(),
        };
        self.kubelet.api.run(async {
            let mut node = self.kubelet.node().await;
            node.node_unpublish_volume(unpublish).await.unwrap();
            node.node_unstage_volume(unstage).await.unwrap();
        });
        std::fs::remove_dir(&self.staging).unwrap();
        std::fs::remove_dir(self.staging.parent().unwrap()).unwrap();
    }

    fn data(&self) -> PathBuf {
        if self.is_block { self.target.clone() } else { self.target.join("data") }
    }
}

fn strings(object: &Value) -> BTreeMap<String, String> {
    let fields = object.as_object().into_iter().flatten();
    fields.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
}

/// `length` bytes that differ with `seed` and from block to block.
pub(crate) fn pattern(seed: usize, length: usize) -> Vec<u8> {
    let mut random = Random::new(u64::try_from(seed).unwrap());
    std::iter::repeat_with(|| u8::try_from(random.below(256)).unwrap()).take(length).collect()
}
