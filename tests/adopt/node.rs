//! A node that stages adopted volumes through FUSE, and the filesystem they hold.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cinderblock::csi::node::NodeService;
use cinderblock::csi::proto::node_server::Node as _;
use cinderblock::csi::proto::{
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest,
};
use cinderblock::node::Node;
use tempfile::TempDir;
use tonic::{Request, Status};

use crate::common::Lab;
use crate::common::driver::{filesystem, secrets};

/// Bytes of the filesystem at the beginning of every volume.
const FILESYSTEM: u64 = 12 << 20;

/// The bytes of an ext4 with one file, `data`, that holds `content`.
pub fn ext4(content: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (files, image) = (folder.path().join("files"), folder.path().join("image"));
    std::fs::create_dir(&files).unwrap();
    std::fs::write(files.join("data"), content).unwrap();
    std::fs::File::create(&image).unwrap().set_len(FILESYSTEM).unwrap();
    let output =
        Command::new("mkfs.ext4").arg("-q").arg("-d").arg(&files).arg(&image).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    std::fs::read(&image).unwrap()
}

/// A node of the lab.
pub struct OneNode {
    folder: TempDir,
    service: NodeService,
    secrets: BTreeMap<String, String>,
}

impl OneNode {
    pub fn new(lab: &Lab) -> OneNode {
        let folder = tempfile::Builder::new().prefix("adopt-test-").tempdir().unwrap();
        let node = Arc::new(Node::new(&folder.path().join("state")).unwrap());
        let monitors = HashMap::from([("lab".to_owned(), vec![lab.monitors.clone()])]);
        let service = NodeService::new(node, "node-1".into(), 7, monitors, Duration::from_mins(1));
        for name in ["staging", "target"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        OneNode { folder, service, secrets: secrets(lab) }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// What the file `data` of the volume holds, as a pod of this node sees it.
    pub async fn read(
        &self,
        id: &str,
        attributes: &BTreeMap<String, String>,
        publish_context: &BTreeMap<String, String>,
    ) -> Result<String, Status> {
        // The lab's kernel has no krbd.
        let mut volume_context = attributes.clone();
        volume_context.insert("mounter".to_owned(), "fuse".to_owned());
        let stage = NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            publish_context: publish_context.clone(),
            staging_target_path: self.path("staging"),
            volume_capability: Some(filesystem()),
            secrets: self.secrets.clone(),
            volume_context: volume_context.clone(),
        };
        self.service.node_stage_volume(Request::new(stage)).await?;
        let publish = NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            publish_context: publish_context.clone(),
            staging_target_path: self.path("staging"),
            target_path: self.path("target"),
            volume_capability: Some(filesystem()),
            volume_context,
            ..NodePublishVolumeRequest::default()
        };
        let published = self.service.node_publish_volume(Request::new(publish)).await;
        let content = std::fs::read_to_string(Path::new(&self.path("target")).join("data"));
        let (volume_id, target_path) = (id.to_owned(), self.path("target"));
        let unpublish = NodeUnpublishVolumeRequest { volume_id, target_path };
        self.service.node_unpublish_volume(Request::new(unpublish)).await?;
        let (volume_id, staging_target_path) = (id.to_owned(), self.path("staging"));
        let unstage = NodeUnstageVolumeRequest { volume_id, staging_target_path };
        self.service.node_unstage_volume(Request::new(unstage)).await?;
        published?;
        Ok(content.unwrap())
    }
}
