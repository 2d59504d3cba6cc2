//! ControllerModifyVolume over the socket, on a real Ceph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;

use cinderblock::csi::proto::{ControllerModifyVolumeRequest, CreateVolumeRequest};
use common::driver::{Class, Driver, MIB};
use common::{Lab, Namespace, POOL};
use tonic::Code;

fn mutable(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
}

#[tokio::test]
async fn limits_are_applied_whole_or_not_at_all() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);
    let create = CreateVolumeRequest {
        mutable_parameters: mutable(&[("rbd_qos_iops_limit", "100")]),
        ..class.create_volume("v", MIB)
    };
    let volume = controller.create_volume(create).await.unwrap().into_inner().volume.unwrap();
    let spec = format!("{POOL}/{}/csi-v", namespace.name);
    let configured = |key: &str| {
        let list = lab.run("rbd", &["config", "image", "list", &spec]);
        let line = list
            .lines()
            .find(|line| line.split_whitespace().next() == Some(key))
            .unwrap()
            .to_string();
        let words: Vec<_> = line.split_whitespace().map(str::to_string).collect();
        (words[1].clone(), words[2].clone())
    };
    let image = |value: &str| (value.to_string(), "image".to_string());
    assert_eq!(configured("rbd_qos_iops_limit"), image("100"));

    let modify = |pairs: &[(&str, &str)]| ControllerModifyVolumeRequest {
        volume_id: volume.volume_id.clone(),
        secrets: class.secrets.clone(),
        mutable_parameters: mutable(pairs),
    };
    let wrong = modify(&[("rbd_qos_iops_limit", "200"), ("rbd_qos_no_such", "1")]);
    let refused = controller.controller_modify_volume(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(configured("rbd_qos_iops_limit"), image("100"));
    let right = modify(&[("rbd_qos_bps_limit", "1048576")]);
    controller.controller_modify_volume(right.clone()).await.unwrap();
    controller.controller_modify_volume(right).await.unwrap();
    assert_eq!(configured("rbd_qos_bps_limit"), image("1048576"));
    assert_eq!(configured("rbd_qos_iops_limit"), image("100"));
    let burst = modify(&[("rbd_qos_iops_burst", "150")]);
    controller.controller_modify_volume(burst).await.unwrap();
    let above = modify(&[("rbd_qos_iops_limit", "200")]);
    let refused = controller.controller_modify_volume(above).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("burst"), "{refused}");
    assert_eq!(configured("rbd_qos_iops_limit"), image("100"));

    // A clone has the limits that its own request names, and none of its source's.
    let source = Some(common::driver::from_volume(&volume.volume_id));
    let copy =
        CreateVolumeRequest { volume_content_source: source, ..class.create_volume("copy", MIB) };
    let copy = controller.create_volume(copy).await.unwrap().into_inner().volume.unwrap();
    let list = lab
        .run("rbd", &["config", "image", "list", &format!("{POOL}/{}/csi-copy", namespace.name)]);
    assert!(
        list.lines()
            .all(|line| !line.starts_with("rbd_qos_") || !line.trim_end().ends_with("image")),
        "{list}"
    );
    controller.delete_volume(class.delete_volume(&copy.volume_id)).await.unwrap();
    for id in ["no id at all", &format!("lab/{spec}-other")] {
        let missing = ControllerModifyVolumeRequest { volume_id: id.to_string(), ..modify(&[]) };
        assert_eq!(
            controller.controller_modify_volume(missing).await.unwrap_err().code(),
            Code::NotFound
        );
    }
    controller.delete_volume(class.delete_volume(&volume.volume_id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}
