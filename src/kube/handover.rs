//! PersistentVolumes and VolumeSnapshotContents whose driver changes: whether the old ones allow
//! it, and the new ones.
//!
//! The old ones are what `kubectl get pv,volumesnapshotcontent,volumeattachment -o json` writes.
//! They are kept as JSON, so that fields this driver does not know stay as they are.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What `kubectl get` wrote.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    volumes: Vec<Value>,
    contents: Vec<Value>,
    attachments: Vec<Value>,
}

/// What a new object says in place of the old one's.
#[derive(Debug, Clone)]
pub struct NewVolume<'a> {
    /// The name of this driver.
    pub driver: &'a str,
    /// The volume id.
    pub handle: &'a str,
    /// What nodes get with it.
    pub attributes: &'a BTreeMap<String, String>,
    /// Namespace and name of the Secret, where no old object names one.
    pub secret: Option<(&'a str, &'a str)>,
}

/// Metadata that the API server writes, or that belongs to controllers of the old driver.
const METADATA_OF_OLD: [&str; 6] = [
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "managedFields",
    "finalizers",
    "deletionTimestamp",
];
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const DELETION_SECRET: &str = "volume.kubernetes.io/provisioner-deletion-secret";
const SNAPSHOT_SECRET: &str = "snapshot.storage.kubernetes.io/deletion-secret";
/// The secrets of a PersistentVolume, and which of the old ones serves where the old object names
/// none for it: the most powerful first.
const SECRETS: [(&str, [&str; 3]); 4] = [
    (
        "controllerPublishSecretRef",
        ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodeStageSecretRef"],
    ),
    (
        "controllerExpandSecretRef",
        ["controllerExpandSecretRef", "controllerPublishSecretRef", "nodeStageSecretRef"],
    ),
    ("nodeStageSecretRef", ["nodeStageSecretRef", "nodeExpandSecretRef", "nodePublishSecretRef"]),
    ("nodeExpandSecretRef", ["nodeExpandSecretRef", "nodeStageSecretRef", "nodePublishSecretRef"]),
];

impl Objects {
    /// Reads what `kubectl get -o json` wrote: a List, or one object.
    pub fn parse(text: &str) -> Result<Objects, String> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
        let items = match value["items"].as_array() {
            Some(items) => items.clone(),
            None => vec![value],
        };
        let mut objects = Objects::default();
        for item in items {
            if !item["metadata"].is_object() || !item["spec"].is_object() {
                return Err("an object in it has no metadata or no spec".to_owned());
            }
            match item["kind"].as_str() {
                Some("PersistentVolume") => objects.volumes.push(item),
                Some("VolumeSnapshotContent") => objects.contents.push(item),
                Some("VolumeAttachment") => objects.attachments.push(item),
                // Others were asked for at the same time.
                Some(_) => {}
                None => return Err("an object in it has no kind".to_owned()),
            }
        }
        Ok(objects)
    }

    /// The PersistentVolume whose handle `is_it`.
    pub fn volume(&self, is_it: impl Fn(&str) -> bool) -> Option<&Value> {
        self.volumes
            .iter()
            .find(|volume| volume["spec"]["csi"]["volumeHandle"].as_str().is_some_and(&is_it))
    }

    /// The VolumeSnapshotContent whose handle `is_it`.
    pub fn content(&self, is_it: impl Fn(&str) -> bool) -> Option<&Value> {
        self.contents.iter().find(|content| {
            [&content["status"]["snapshotHandle"], &content["spec"]["source"]["snapshotHandle"]]
                .iter()
                .any(|handle| handle.as_str().is_some_and(&is_it))
        })
    }

    /// Why the driver of a PersistentVolume may not change, if it may not.
    pub fn why_volume_stays(&self, volume: &Value) -> Option<String> {
        let name = name(volume);
        let attached = self.attachments.iter().find(|attachment| {
            attachment["spec"]["source"]["persistentVolumeName"].as_str() == Some(name)
        });
        if let Some(attachment) = attached {
            let node = attachment["spec"]["nodeName"].as_str().unwrap_or("a node");
            return Some(format!(
                "its PersistentVolume {name} is attached to {node}: stop the pods that use it, and wait until the VolumeAttachment is \
                 gone"
            ));
        }
        let policy = volume["spec"]["persistentVolumeReclaimPolicy"].as_str().unwrap_or("unknown");
        (policy != "Retain").then(|| {
            format!(
                "its PersistentVolume {name} has the reclaim policy {policy}, so the old driver is told to delete it: kubectl patch pv \
                 {name} -p '{{\"spec\":{{\"persistentVolumeReclaimPolicy\":\"Retain\"}}}}'"
            )
        })
    }

    /// Why the driver of a VolumeSnapshotContent may not change, if it may not.
    pub fn why_content_stays(content: &Value) -> Option<String> {
        let name = name(content);
        let policy = content["spec"]["deletionPolicy"].as_str().unwrap_or("unknown");
        (policy != "Retain").then(|| {
            format!(
                "its VolumeSnapshotContent {name} has the deletion policy {policy}, so the old driver is told to delete it: kubectl \
                 patch volumesnapshotcontent {name} --type merge -p '{{\"spec\":{{\"deletionPolicy\":\"Retain\"}}}}'"
            )
        })
    }
}

/// The name of an object.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The attributes that an old PersistentVolume gives to nodes.
pub fn attributes(volume: &Value) -> BTreeMap<String, String> {
    let attributes = volume["spec"]["csi"]["volumeAttributes"].as_object();
    let pairs = attributes.into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// The PersistentVolume that takes the place of `old`: of the same name, for the same claim.
pub fn volume_in_place_of(old: &Value, new: &NewVolume<'_>) -> Value {
    let mut volume = old.clone();
    volume["apiVersion"] = json!("v1");
    volume["kind"] = json!("PersistentVolume");
    strip(&mut volume);
    let claim = volume.pointer_mut("/spec/claimRef").and_then(Value::as_object_mut);
    claim.map(|claim| claim.remove("resourceVersion"));
    volume["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
    let old = old["spec"]["csi"].clone();
    let csi = &mut volume["spec"]["csi"];
    csi["driver"] = json!(new.driver);
    csi["volumeHandle"] = json!(new.handle);
    csi["volumeAttributes"] = json!(new.attributes);
    for (key, choices) in SECRETS {
        let found = choices.iter().map(|choice| &old[*choice]).find(|found| found.is_object());
        if let Some(found) = found.cloned().or_else(|| secret(new)) {
            csi[key] = found;
        }
    }
    let found = csi["controllerExpandSecretRef"].clone();
    annotate(&mut volume, new.driver, DELETION_SECRET, &found);
    volume
}

/// A PersistentVolume for a volume that Kubernetes has not had yet. `filesystem` is what is on it;
/// without one it is a block volume.
pub fn new_volume(name: &str, size: u64, filesystem: Option<&str>, new: &NewVolume<'_>) -> Value {
    let mut csi = json!({
        "driver": new.driver,
        "volumeHandle": new.handle,
        "volumeAttributes": new.attributes,
    });
    if let Some(filesystem) = filesystem {
        csi["fsType"] = json!(filesystem);
    }
    let found = secret(new);
    if let Some(secret) = &found {
        for (key, _) in SECRETS {
            csi[key] = secret.clone();
        }
    }
    let mut volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": { "name": name },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": { "storage": size.to_string() },
            "csi": csi,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "volumeMode": if filesystem.is_some() { "Filesystem" } else { "Block" },
        },
    });
    annotate(&mut volume, new.driver, DELETION_SECRET, &found.unwrap_or(Value::Null));
    volume
}

/// The VolumeSnapshotContent that takes the place of `old`, and the VolumeSnapshot that is bound to
/// it, if the old one was.
pub fn content_in_place_of(old: &Value, driver: &str, handle: &str) -> Vec<Value> {
    let mut content = old.clone();
    content["apiVersion"] = json!("snapshot.storage.k8s.io/v1");
    content["kind"] = json!("VolumeSnapshotContent");
    strip(&mut content);
    let spec = &mut content["spec"];
    spec["driver"] = json!(driver);
    spec["deletionPolicy"] = json!("Retain");
    spec["source"] = json!({ "snapshotHandle": handle });
    let reference = spec["volumeSnapshotRef"].clone();
    if let Some(reference) = spec["volumeSnapshotRef"].as_object_mut() {
        reference.remove("uid");
        reference.remove("resourceVersion");
    }
    let name = name(&content).to_owned();
    let mut objects = vec![content];
    if let (Some(namespace), Some(snapshot)) =
        (reference["namespace"].as_str(), reference["name"].as_str())
    {
        let mut spec = json!({ "source": { "volumeSnapshotContentName": name } });
        if let Some(class) = old["spec"]["volumeSnapshotClassName"].as_str() {
            spec["volumeSnapshotClassName"] = json!(class);
        }
        objects.push(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshot",
            "metadata": { "name": snapshot, "namespace": namespace },
            "spec": spec,
        }));
    }
    objects
}

/// A VolumeSnapshotContent for a snapshot that Kubernetes has not had yet. A VolumeSnapshot of that
/// name in the namespace `default` can be bound to it.
pub fn new_content(name: &str, driver: &str, handle: &str, secret: Option<(&str, &str)>) -> Value {
    let mut content = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotContent",
        "metadata": { "name": name },
        "spec": {
            "deletionPolicy": "Retain",
            "driver": driver,
            "source": { "snapshotHandle": handle },
            "volumeSnapshotRef": { "name": name, "namespace": "default" },
        },
    });
    if let Some((namespace, secret)) = secret {
        content["metadata"]["annotations"] = json!({
            format!("{SNAPSHOT_SECRET}-name"): secret,
            format!("{SNAPSHOT_SECRET}-namespace"): namespace,
        });
    }
    content
}

/// Objects as `kubectl apply -f` takes them.
pub fn list(objects: &[Value]) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": objects })
}

fn secret(new: &NewVolume<'_>) -> Option<Value> {
    new.secret.map(|(namespace, name)| json!({ "name": name, "namespace": namespace }))
}

/// Takes off what belongs to the old object alone.
fn strip(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for key in METADATA_OF_OLD {
            metadata.remove(key);
        }
    }
    let annotations = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    annotations.map(|annotations| annotations.remove(LAST_APPLIED));
}

/// Says whose the volume is. The provisioner deletes no volume without that, and deletes it with
/// the Secret of the other two.
fn annotate(volume: &mut Value, driver: &str, key: &str, secret: &Value) {
    let metadata = &mut volume["metadata"];
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = Value::Object(Map::new());
    }
    let annotations = &mut metadata["annotations"];
    annotations[PROVISIONED_BY] = json!(driver);
    for part in ["name", "namespace"] {
        let key = format!("{key}-{part}");
        if annotations[&key].is_null() {
            match secret[part].as_str() {
                Some(value) => annotations[&key] = json!(value),
                None => {
                    annotations.as_object_mut().map(|annotations| annotations.remove(&key));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old_volume() -> Value {
        json!({
            "kind": "PersistentVolume",
            "metadata": {
                "name": "pvc-1",
                "uid": "u", "resourceVersion": "7", "finalizers": ["kubernetes.io/pv-protection"],
                "labels": { "team": "shop" },
                "annotations": {
                    "pv.kubernetes.io/provisioned-by": "rbd.csi.ceph.com",
                    "volume.kubernetes.io/provisioner-deletion-secret-name": "csi-rbd-secret",
                    "volume.kubernetes.io/provisioner-deletion-secret-namespace": "ceph",
                },
            },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": { "storage": "64Mi" },
                "claimRef": { "name": "data", "namespace": "shop", "uid": "c", "resourceVersion": "9" },
                "csi": {
                    "driver": "rbd.csi.ceph.com",
                    "fsType": "ext4",
                    "volumeHandle": "0001-old",
                    "volumeAttributes": { "clusterID": "ceph", "pool": "rbd" },
                    "nodeStageSecretRef": { "name": "node", "namespace": "ceph" },
                    "controllerExpandSecretRef": { "name": "provisioner", "namespace": "ceph" },
                },
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "fast",
                "volumeMode": "Filesystem",
            },
            "status": { "phase": "Bound" },
        })
    }

    fn listed(objects: &[Value]) -> Objects {
        Objects::parse(&list(objects).to_string()).unwrap()
    }

    #[test]
    fn a_volume_keeps_its_name_and_claim() {
        let attributes = BTreeMap::from([("pool".to_owned(), "rbd".to_owned())]);
        let new = NewVolume {
            driver: "ours",
            handle: "prod/rbd/csi-vol-1",
            attributes: &attributes,
            secret: None,
        };
        let volume = volume_in_place_of(&old_volume(), &new);
        assert_eq!(
            volume,
            json!({
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {
                    "name": "pvc-1",
                    "labels": { "team": "shop" },
                    "annotations": {
                        "pv.kubernetes.io/provisioned-by": "ours",
                        "volume.kubernetes.io/provisioner-deletion-secret-name": "csi-rbd-secret",
                        "volume.kubernetes.io/provisioner-deletion-secret-namespace": "ceph",
                    },
                },
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "capacity": { "storage": "64Mi" },
                    "claimRef": { "name": "data", "namespace": "shop", "uid": "c" },
                    "csi": {
                        "driver": "ours",
                        "fsType": "ext4",
                        "volumeHandle": "prod/rbd/csi-vol-1",
                        "volumeAttributes": { "pool": "rbd" },
                        "nodeStageSecretRef": { "name": "node", "namespace": "ceph" },
                        "nodeExpandSecretRef": { "name": "node", "namespace": "ceph" },
                        "controllerExpandSecretRef": { "name": "provisioner", "namespace": "ceph" },
                        "controllerPublishSecretRef": { "name": "provisioner", "namespace": "ceph" },
                    },
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": "fast",
                    "volumeMode": "Filesystem",
                },
            })
        );
    }

    #[test]
    fn a_new_volume_names_its_secret_and_what_is_on_it() {
        let attributes = BTreeMap::new();
        let new = NewVolume {
            driver: "ours",
            handle: "h",
            attributes: &attributes,
            secret: Some(("ceph", "key")),
        };
        let disk = new_volume("cinder-1", 5, None, &new);
        assert_eq!(disk["spec"]["volumeMode"], "Block");
        assert_eq!(disk["spec"]["csi"]["fsType"], Value::Null);
        assert_eq!(disk["spec"]["csi"]["nodeStageSecretRef"]["name"], "key");
        let annotations = &disk["metadata"]["annotations"];
        assert_eq!(
            annotations["volume.kubernetes.io/provisioner-deletion-secret-namespace"],
            "ceph"
        );
        let mounted = new_volume("cinder-2", 5, Some("xfs"), &NewVolume { secret: None, ..new });
        assert_eq!(mounted["spec"]["volumeMode"], "Filesystem");
        assert_eq!(mounted["spec"]["csi"]["fsType"], "xfs");
        assert_eq!(mounted["metadata"]["annotations"].as_object().unwrap().len(), 1);
    }

    #[test]
    fn a_volume_that_may_be_deleted_or_is_attached_stays() {
        let mut volume = old_volume();
        assert_eq!(listed(&[]).why_volume_stays(&volume), None);
        volume["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
        let why = listed(&[]).why_volume_stays(&volume).unwrap();
        assert!(why.contains("reclaim policy Delete") && why.contains("kubectl patch pv pvc-1"));
        let attachment = json!({
            "kind": "VolumeAttachment",
            "metadata": { "name": "csi-1" },
            "spec": { "nodeName": "node-7", "source": { "persistentVolumeName": "pvc-1" } },
        });
        let why = listed(&[attachment]).why_volume_stays(&old_volume()).unwrap();
        assert!(why.contains("attached to node-7"), "{why}");
    }

    #[test]
    fn a_snapshot_is_bound_anew() {
        let old = json!({
            "kind": "VolumeSnapshotContent",
            "metadata": { "name": "snapcontent-1", "uid": "u", "finalizers": ["f"] },
            "spec": {
                "deletionPolicy": "Retain",
                "driver": "rbd.csi.ceph.com",
                "source": { "volumeHandle": "0001-v" },
                "sourceVolumeMode": "Filesystem",
                "volumeSnapshotClassName": "snaps",
                "volumeSnapshotRef": { "name": "before", "namespace": "shop", "uid": "x" },
            },
            "status": { "snapshotHandle": "0001-s" },
        });
        let objects = listed(std::slice::from_ref(&old));
        assert!(objects.content(|handle| handle == "0001-s").is_some());
        assert!(objects.content(|handle| handle == "0001-v").is_none());
        assert_eq!(Objects::why_content_stays(&old), None);
        let new = content_in_place_of(&old, "ours", "prod/rbd/10ab@csi-snap-1");
        assert_eq!(
            new[0]["spec"]["source"],
            json!({ "snapshotHandle": "prod/rbd/10ab@csi-snap-1" })
        );
        assert_eq!(
            new[0]["spec"]["volumeSnapshotRef"],
            json!({ "name": "before", "namespace": "shop" })
        );
        assert_eq!(new[0]["spec"]["sourceVolumeMode"], "Filesystem");
        assert_eq!(new[0]["status"], Value::Null);
        assert_eq!(
            new[1]["spec"],
            json!({
                "source": { "volumeSnapshotContentName": "snapcontent-1" },
                "volumeSnapshotClassName": "snaps",
            })
        );
        let mut deleted = old;
        deleted["spec"]["deletionPolicy"] = json!("Delete");
        assert!(Objects::why_content_stays(&deleted).unwrap().contains("deletion policy Delete"));
    }

    #[test]
    fn what_kubectl_did_not_write_is_refused() {
        assert!(Objects::parse("not JSON").unwrap_err().contains("no JSON"));
        for text in ["{}", r#"{"items":[7]}"#, r#"{"kind":"PersistentVolume","metadata":"x"}"#] {
            assert!(Objects::parse(text).unwrap_err().contains("no metadata"), "{text}");
        }
        let nameless = json!({ "metadata": {}, "spec": {} }).to_string();
        assert!(Objects::parse(&nameless).unwrap_err().contains("no kind"));
    }
}
