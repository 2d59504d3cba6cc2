//! What becomes of a claim: a volume, an attachment, a larger volume, another class.

use serde_json::{Value, json};

use super::api::text;
use super::field::Field;
use super::kubelet::pattern;
use super::space::{Space, conditions, is};

pub(crate) const GIB: i64 = 1 << 30;

pub(crate) fn a_claim_is_bound_attached_used_and_deleted(field: &Field) {
    let space = Space::new(field, "bound");
    space.claim("data", "immediate", "1Gi", &json!({}));
    let volume = space.bound("data");
    assert_eq!(text(&volume, "/spec/capacity/storage"), "1Gi");
    let image = field.image(&volume);
    assert_eq!(image_info(field, &image)["size"], GIB, "{image}");

    space.pod("user", Some("node-a"), &["data"]);
    let attachment = space.attached("data", "node-a");
    assert_eq!(text(&attachment, "/status/attachmentMetadata/image"), image);
    let written = pattern(1, 100_000);
    let mounted = field.kubelet.mount(&volume, &attachment);
    mounted.write(&written);
    assert_eq!(mounted.read(written.len()), written);
    mounted.unmount();

    space.delete("Pod", "user");
    space.detached("data");
    space.remove_claim("data");
    space.finish();
}

pub(crate) fn a_claim_waits_for_its_first_pod(field: &Field) {
    let space = Space::new(field, "first-consumer");
    space.claim("data", "first-consumer", "1Gi", &json!({}));
    space.told("data", &["waiting for first consumer"]);
    is(&space.get("PersistentVolumeClaim", "data"), "/status/phase", "Pending").unwrap();

    space.pod("first", None, &["data"]);
    space.bound("data");
    let pod = space.wait("Pod", "first", "scheduled", |pod| {
        if conditions(pod).contains(&"PodScheduled") {
            Ok(())
        } else {
            Err(pod["status"].to_string())
        }
    });
    space.attached("data", text(&pod, "/spec/nodeName"));
    let claim = space.get("PersistentVolumeClaim", "data");
    assert_eq!(
        claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"],
        pod["spec"]["nodeName"]
    );

    space.delete("Pod", "first");
    space.detached("data");
    space.remove_claim("data");
    space.finish();
}

pub(crate) fn a_volume_grows_while_it_is_in_use(field: &Field) {
    let space = Space::new(field, "grows");
    space.claim("data", "immediate", "1Gi", &json!({}));
    let volume = space.bound("data");
    space.pod("user", Some("node-a"), &["data"]);
    let mounted = field.kubelet.mount(&volume, &space.attached("data", "node-a"));
    let written = pattern(2, 100_000);
    mounted.write(&written);

    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    space.api().patch("PersistentVolumeClaim", &space.name, "data", &larger);
    space.wait("PersistentVolumeClaim", "data", "waiting for the node", |claim| {
        let waits = conditions(claim).contains(&"FileSystemResizePending");
        if waits { Ok(()) } else { Err(claim["status"].to_string()) }
    });
    let image = field.image(&volume);
    assert_eq!(image_info(field, &image)["size"], 2 * GIB);
    let there = mounted.expand(2 * GIB);
    assert!(there > 1_900_000_000, "the filesystem has {there} bytes");
    assert_eq!(mounted.read(written.len()), written);
    space.note_expansion("data");
    space.bound("data");
    let claim = space.get("PersistentVolumeClaim", "data");
    assert_eq!(text(&claim, "/status/capacity/storage"), "2Gi");

    mounted.unmount();
    space.delete("Pod", "user");
    space.detached("data");
    space.remove_claim("data");
    space.finish();
}

pub(crate) fn a_claim_names_another_volume_attributes_class(field: &Field) {
    let space = Space::new(field, "attributes");
    space.claim("data", "immediate", "1Gi", &json!({"volumeAttributesClassName": "gentle"}));
    let image = field.image(&space.bound("data"));
    let limit = |key: &str| {
        let output = field
            .lab
            .try_run("rbd", &["image-meta", "get", &image, &format!("conf_rbd_qos_{key}")]);
        output.map(|value| value.trim().to_owned()).ok()
    };
    assert_eq!(limit("iops_limit").as_deref(), Some("500"));
    assert_eq!(limit("bps_limit"), None);

    let brisk = json!({"spec": {"volumeAttributesClassName": "brisk"}});
    space.api().patch("PersistentVolumeClaim", &space.name, "data", &brisk);
    space.wait("PersistentVolumeClaim", "data", "brisk", |claim| {
        is(claim, "/status/currentVolumeAttributesClassName", "brisk")
    });
    assert_eq!(limit("iops_limit").as_deref(), Some("5000"));
    assert_eq!(limit("bps_limit").as_deref(), Some("104857600"));

    space.remove_claim("data");
    space.finish();
}

fn image_info(field: &Field, image: &str) -> Value {
    serde_json::from_str(&field.lab.run("rbd", &["info", "--format", "json", image])).unwrap()
}
