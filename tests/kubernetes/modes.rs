//! Access modes: who may use a volume at the same time as whom.

use serde_json::json;

use super::api::{text, wait_until};
use super::field::Field;
use super::kubelet::pattern;
use super::space::{Space, from};

pub(crate) fn a_second_node_is_kept_from_a_volume_of_one(field: &Field) {
    let space = Space::new(field, "one-node");
    space.claim("data", "immediate", "1Gi", &json!({}));
    let volume = text(&space.bound("data"), "/metadata/name").to_owned();
    space.pod("first", Some("node-a"), &["data"]);
    space.attached("data", "node-a");
    space.pod("second", Some("node-b"), &["data"]);
    space.told("second", &["FailedAttachVolume", "already used by pod(s) first"]);

    // Kubernetes keeps to the mode by itself; the driver does not rely on it.
    let attachment = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttachment",
        "metadata": {"name": "by-hand"},
        "spec": {
            "attacher": super::field::DRIVER,
            "nodeName": "node-b",
            "source": {"persistentVolumeName": volume},
        },
    });
    space.api().apply(&attachment, "");
    let told = wait_until("the attachment by hand is refused", || {
        let attachment = space.api().get("VolumeAttachment", "", "by-hand");
        let told = text(&attachment, "/status/attachError/message").to_owned();
        if told.is_empty() { Err(attachment["status"].to_string()) } else { Ok(told) }
    });
    for words in ["published to node node-a", "one node at a time", "unpublish it there first"] {
        assert!(told.contains(words), "{told}");
    }
    space.told("data", &["VolumeInUse", "is published to node node-a"]);
    space.api().delete("VolumeAttachment", "", "by-hand");

    // When the first lets go the second gets it.
    space.delete("Pod", "first");
    space.attached("data", "node-b");
    space.delete("Pod", "second");
    space.detached("data");
    space.remove_claim("data");
    space.finish();
}

pub(crate) fn a_second_pod_is_kept_from_a_volume_of_one(field: &Field) {
    let space = Space::new(field, "one-pod");
    space.claim("data", "immediate", "1Gi", &json!({"accessModes": ["ReadWriteOncePod"]}));
    space.bound("data");
    space.pod("first", Some("node-a"), &["data"]);
    space.attached("data", "node-a");
    space.pod("second", Some("node-a"), &["data"]);
    space.told("second", &["FailedScheduling", "ReadWriteOncePod"]);

    for pod in ["first", "second"] {
        space.delete("Pod", pod);
    }
    space.detached("data");
    space.remove_claim("data");
    space.finish();
}

pub(crate) fn two_nodes_share_a_block_volume(field: &Field) {
    let space = Space::new(field, "shared-block");
    space.claim(
        "data",
        "immediate",
        "1Gi",
        &json!({"accessModes": ["ReadWriteMany"], "volumeMode": "Block"}),
    );
    space.bound("data");
    space.pod("left", Some("node-a"), &["data"]);
    space.pod("right", Some("node-b"), &["data"]);
    for node in ["node-a", "node-b"] {
        space.attached("data", node);
    }
    for pod in ["left", "right"] {
        space.delete("Pod", pod);
    }
    space.detached("data");
    space.remove_claim("data");
    space.finish();
}

pub(crate) fn two_nodes_do_not_share_a_filesystem(field: &Field) {
    let space = Space::new(field, "shared-files");
    space.claim("data", "immediate", "1Gi", &json!({"accessModes": ["ReadWriteMany"]}));
    space.told(
        "data",
        &["ProvisioningFailed", "needs a block volume", "ext4 and xfs are destroyed"],
    );
    space.delete("PersistentVolumeClaim", "data");
    space.gone("PersistentVolumeClaim", "data");
    space.finish();
}

pub(crate) fn two_nodes_read_a_filesystem(field: &Field) {
    let space = Space::new(field, "shared-reading");
    space.claim("source", "immediate", "1Gi", &json!({}));
    space.write("source", &pattern(5, 1000));
    space.snapshot("then", "snapshots", "source");
    space.ready("VolumeSnapshot", "then");
    let mut what = from("VolumeSnapshot", "then");
    what["accessModes"] = json!(["ReadOnlyMany"]);
    space.claim("data", "immediate", "1Gi", &what);
    space.bound("data");
    space.pod("left", Some("node-a"), &["data"]);
    space.pod("right", Some("node-b"), &["data"]);
    for node in ["node-a", "node-b"] {
        space.attached("data", node);
    }
    for pod in ["left", "right"] {
        space.delete("Pod", pod);
    }
    space.detached("data");
    space.delete("VolumeSnapshot", "then");
    space.gone("VolumeSnapshot", "then");
    for claim in ["data", "source"] {
        space.remove_claim(claim);
    }
    space.finish();
}
