//! What goes wrong, and what the user of the claim, the snapshot or the pod is told.

use serde_json::{Value, json};

use super::api::text;
use super::field::{DRIVER, Field, secret};
use super::space::{Space, from};

/// Wrong keys of a StorageClass, and words of what is said on a claim of that class.
const WRONG_CLASSES: &[(&str, &str, &str, &[&str])] = &[
    (
        "misspelt",
        "imageFeature",
        "layering",
        &["unknown parameter", "\"imageFeature\"", "did you mean \"imageFeatures\""],
    ),
    (
        "no-pool",
        "pool",
        "nowhere",
        &["pool nowhere does not exist", "create it, or correct the parameter pool"],
    ),
    ("no-cluster", "clusterID", "elsewhere", &["clusterID \"elsewhere\"", "which knows prod"]),
    (
        "no-namespace",
        "radosNamespace",
        "nowhere",
        &["RADOS namespace nowhere does not exist", "rbd namespace create rbd/nowhere"],
    ),
    ("no-data-pool", "dataPool", "nowhere", &["data pool nowhere does not exist"]),
    ("no-mounter", "mounter", "iscsi", &["mounter is rbd, rbd-nbd, fuse, not \"iscsi\""]),
    ("ntfs", "csi.storage.k8s.io/fstype", "ntfs", &["fs_type is ext4 or xfs, not \"ntfs\""]),
    ("no-secret", "csi.storage.k8s.io/provisioner-secret-name", "nobody", &["nobody"]),
    (
        "wrong-secret",
        "csi.storage.k8s.io/provisioner-secret-name",
        "wrong",
        &["the cluster refuses client.admin", "check userID and userKey in the secret"],
    ),
];

pub(crate) fn a_wrong_class_is_explained_on_the_claim(field: &Field) {
    let space = Space::new(field, "wrong-classes");
    let good = space.api().get("StorageClass", "", "immediate");
    space
        .api()
        .apply(&secret("wrong", &field.lab.user, "AQCU0ARnAAAAABAAfK8wbqI8hcGyMdBbOSGrqg=="), "");
    for (name, key, value, _) in WRONG_CLASSES {
        let mut parameters = good["parameters"].clone();
        parameters[key] = (*value).into();
        space.api().apply(&class(name, &parameters), "");
        space.claim(name, name, "1Gi", &json!({}));
    }
    for (name, _, _, words) in WRONG_CLASSES {
        space.told(name, &[&["ProvisioningFailed"], *words].concat());
    }
    for (name, ..) in WRONG_CLASSES {
        space.delete("PersistentVolumeClaim", name);
        space.gone("PersistentVolumeClaim", name);
        space.api().delete("StorageClass", "", name);
    }
    space.api().delete("Secret", super::chart::NAMESPACE, "wrong");
    space.finish();
}

fn class(name: &str, parameters: &Value) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": DRIVER,
        "allowVolumeExpansion": true,
        "parameters": parameters,
    })
}

pub(crate) fn a_source_that_cannot_be_is_explained(field: &Field) {
    let space = Space::new(field, "wrong-sources");
    space.claim("source", "immediate", "2Gi", &json!({}));
    space.bound("source");
    space.snapshot("then", "snapshots", "source");
    space.ready("VolumeSnapshot", "then");

    space.snapshot("of-nothing", "snapshots", "nobody");
    space.told("of-nothing", &["SnapshotContentCreationFailed", "cannot get claim"]);
    space.claim("smaller-clone", "immediate", "1Gi", &from("PersistentVolumeClaim", "source"));
    space.told("smaller-clone", &["ProvisioningFailed", "must be greater than or equal in size"]);
    space.claim("smaller-restore", "immediate", "1Gi", &from("VolumeSnapshot", "then"));
    space.told("smaller-restore", &["ProvisioningFailed", "less than the size", "source snapshot"]);
    space.claim("of-no-snapshot", "immediate", "1Gi", &from("VolumeSnapshot", "nobody"));
    space.told("of-no-snapshot", &["ProvisioningFailed", "\"nobody\" not found"]);

    for claim in ["smaller-clone", "smaller-restore", "of-no-snapshot"] {
        space.remove_claim(claim);
    }
    for snapshot in ["of-nothing", "then"] {
        space.delete("VolumeSnapshot", snapshot);
        space.gone("VolumeSnapshot", snapshot);
    }
    space.remove_claim("source");
    space.finish();
}

pub(crate) fn a_wrong_snapshot_class_is_explained_on_the_snapshot(field: &Field) {
    let space = Space::new(field, "wrong-snapshots");
    space.claim("source", "immediate", "1Gi", &json!({}));
    space.bound("source");
    let mut class = space.api().get("VolumeSnapshotClass", "", "snapshots");
    class["metadata"] = json!({"name": "misspelt"});
    class["parameters"]["snapshotNamePrefx"] = "s-".into();
    space.api().apply(&class, "");
    space.snapshot("then", "misspelt", "source");
    space.wait("VolumeSnapshot", "then", "refused with words", |snapshot| {
        let told = text(snapshot, "/status/error/message");
        let said = told.contains("unknown parameter") && told.contains("snapshotNamePrefix");
        if said { Ok(()) } else { Err(snapshot["status"].to_string()) }
    });

    space.delete("VolumeSnapshot", "then");
    space.gone("VolumeSnapshot", "then");
    space.api().delete("VolumeSnapshotClass", "", "misspelt");
    space.remove_claim("source");
    space.finish();
}

pub(crate) fn wrong_attributes_are_explained_on_the_claim(field: &Field) {
    let space = Space::new(field, "wrong-attributes");
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttributesClass",
        "metadata": {"name": "misspelt"},
        "driverName": DRIVER,
        "parameters": {"rbd_qos_iops_limits": "500"},
    });
    space.api().apply(&class, "");
    space.claim("data", "immediate", "1Gi", &json!({}));
    space.bound("data");
    let change = json!({"spec": {"volumeAttributesClassName": "misspelt"}});
    space.api().patch("PersistentVolumeClaim", &space.name, "data", &change);
    space.told(
        "data",
        &["VolumeModifyFailed", "\"rbd_qos_iops_limits\"", "did you mean \"rbd_qos_iops_limit\""],
    );

    // A user can go back.
    let change = json!({"spec": {"volumeAttributesClassName": "gentle"}});
    space.api().patch("PersistentVolumeClaim", &space.name, "data", &change);
    space.wait("PersistentVolumeClaim", "data", "gentle", |claim| {
        super::space::is(claim, "/status/currentVolumeAttributesClassName", "gentle")
    });
    space.remove_claim("data");
    space.api().delete("VolumeAttributesClass", "", "misspelt");
    space.finish();
}

pub(crate) fn a_volume_of_another_size_than_any_can_have_is_explained(field: &Field) {
    let space = Space::new(field, "wrong-sizes");
    // More than an object map describes.
    space.claim("vast", "immediate", "8Ei", &json!({}));
    space.told("vast", &["ProvisioningFailed", "bytes are more than a volume can have"]);
    space.delete("PersistentVolumeClaim", "vast");
    space.gone("PersistentVolumeClaim", "vast");
    space.finish();
}
