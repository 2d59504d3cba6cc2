//! The controller, black-box: the built binary over its socket, on a real Ceph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::wildcard_imports, reason = "most messages of CSI")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::*;
use common::driver::{
    Class, Driver, MIB, filesystem, from_snapshot, from_volume, lab_config, within,
};
use common::{Lab, Namespace, POOL};
use tonic::{Code, Status};

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_lives_its_life_and_leaves_nothing() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);

    let request = class.create_volume("pvc-1", 16 * MIB);
    let volume =
        controller.create_volume(request.clone()).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(volume.volume_id, format!("lab/{POOL}/{}/csi-pvc-1", namespace.name));
    assert_eq!(volume.capacity_bytes, 16 * MIB);
    assert_eq!(volume.volume_context["imageName"], "csi-pvc-1");
    assert_eq!(volume.volume_context["contentSource"], "none");
    let again = controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(again, volume);
    let larger =
        controller.create_volume(class.create_volume("pvc-1", 17 * MIB)).await.unwrap_err();
    assert_eq!(larger.code(), Code::AlreadyExists);
    assert!(larger.message().contains("it has 16777216 bytes"), "{}", larger.message());
    assert!(larger.details().is_empty());

    let request = class.create_snapshot("snap-1", &volume.volume_id);
    let snapshot =
        controller.create_snapshot(request.clone()).await.unwrap().into_inner().snapshot.unwrap();
    assert!(
        snapshot.ready_to_use
            && snapshot.size_bytes == 16 * MIB
            && snapshot.creation_time.is_some()
    );
    let again = controller.create_snapshot(request).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(again, snapshot);

    let restore = CreateVolumeRequest {
        volume_content_source: Some(from_snapshot(&snapshot.snapshot_id)),
        ..class.create_volume("restored", 32 * MIB)
    };
    let restored = controller.create_volume(restore).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(restored.content_source, Some(from_snapshot(&snapshot.snapshot_id)));
    assert_eq!(restored.capacity_bytes, 32 * MIB);
    let clone = CreateVolumeRequest {
        volume_content_source: Some(from_volume(&volume.volume_id)),
        ..class.create_volume("cloned", 16 * MIB)
    };
    let cloned = controller.create_volume(clone).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(cloned.volume_context["contentSource"], "volume");

    let small = CreateVolumeRequest {
        volume_content_source: Some(from_snapshot(&snapshot.snapshot_id)),
        ..class.create_volume("too-small", 8 * MIB)
    };
    assert_eq!(controller.create_volume(small).await.unwrap_err().code(), Code::OutOfRange);

    let grow = ControllerExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        capacity_range: Some(CapacityRange { required_bytes: 24 * MIB, limit_bytes: 0 }),
        secrets: class.secrets.clone(),
        ..ControllerExpandVolumeRequest::default()
    };
    let grown = controller.controller_expand_volume(grow).await.unwrap().into_inner();
    assert_eq!(grown.capacity_bytes, 24 * MIB);

    publish_and_refuse_to_delete(&mut controller, &class, &lab, &volume.volume_id).await;

    for id in [&volume.volume_id, &cloned.volume_id, &restored.volume_id] {
        controller.delete_volume(class.delete_volume(id)).await.unwrap();
        controller.delete_volume(class.delete_volume(id)).await.unwrap();
    }
    controller.delete_snapshot(class.delete_snapshot(&snapshot.snapshot_id)).await.unwrap();
    controller.delete_snapshot(class.delete_snapshot(&snapshot.snapshot_id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
    assert!(!driver.log().contains(lab.key.expose()), "the key is in the log");
    driver.stop();
}

async fn publish_and_refuse_to_delete(
    controller: &mut controller_client::ControllerClient<tonic::transport::Channel>,
    class: &Class,
    lab: &Lab,
    volume_id: &str,
) {
    let publish = ControllerPublishVolumeRequest {
        volume_id: volume_id.to_string(),
        node_id: "node-1".to_string(),
        volume_capability: Some(filesystem()),
        secrets: class.secrets.clone(),
        ..ControllerPublishVolumeRequest::default()
    };
    let context = controller
        .controller_publish_volume(publish.clone())
        .await
        .unwrap()
        .into_inner()
        .publish_context;
    assert_eq!(context["auth_username"], lab.user);
    assert_eq!(context["image"], volume_id.strip_prefix("lab/").unwrap());
    assert_eq!(context["monitors"], lab.monitors);
    assert!(
        !context.values().any(|value| value.contains(lab.key.expose())),
        "a key was handed out"
    );
    let again = controller.controller_publish_volume(publish.clone()).await.unwrap().into_inner();
    assert_eq!(again.publish_context, context);
    let elsewhere =
        ControllerPublishVolumeRequest { node_id: "node-2".to_string(), ..publish.clone() };
    let refused = controller.controller_publish_volume(elsewhere).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("node-1"), "{}", refused.message());
    let readonly = ControllerPublishVolumeRequest { readonly: true, ..publish };
    assert_eq!(
        controller.controller_publish_volume(readonly).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    let delete = controller.delete_volume(class.delete_volume(volume_id)).await.unwrap_err();
    assert_eq!(delete.code(), Code::FailedPrecondition);
    assert!(delete.message().contains("node-1"), "{}", delete.message());
    let unpublish = ControllerUnpublishVolumeRequest {
        volume_id: volume_id.to_string(),
        node_id: String::new(),
        secrets: class.secrets.clone(),
    };
    controller.controller_unpublish_volume(unpublish.clone()).await.unwrap();
    controller.controller_unpublish_volume(unpublish).await.unwrap();
}

/// One request of each RPC that reaches the cluster, and what it answered.
async fn all_rpcs(driver: &Driver, class: &Class, namespace: &str) -> Vec<(&'static str, Status)> {
    let controller = &mut driver.controller().await;
    let volume_id = format!("lab/{}/{namespace}/csi-v", class.parameters["pool"]);
    let snapshot_id = format!("lab/{}/{namespace}/10ab@csi-snap-s", class.parameters["pool"]);
    let secrets = || class.secrets.clone();
    let validate = ValidateVolumeCapabilitiesRequest {
        volume_id: volume_id.clone(),
        volume_capabilities: vec![filesystem()],
        secrets: secrets(),
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    let publish = ControllerPublishVolumeRequest {
        volume_id: volume_id.clone(),
        node_id: "n".to_string(),
        volume_capability: Some(filesystem()),
        secrets: secrets(),
        ..ControllerPublishVolumeRequest::default()
    };
    let unpublish = ControllerUnpublishVolumeRequest {
        volume_id: volume_id.clone(),
        node_id: "n".to_string(),
        secrets: secrets(),
    };
    let expand = ControllerExpandVolumeRequest {
        volume_id: volume_id.clone(),
        capacity_range: Some(CapacityRange { required_bytes: MIB, limit_bytes: 0 }),
        secrets: secrets(),
        ..ControllerExpandVolumeRequest::default()
    };
    let mut answers = Vec::new();
    macro_rules! ask {
        ($rpc:ident, $request:expr) => {
            let started = Instant::now();
            let answer = controller.$rpc(within(5, $request)).await;
            let elapsed = started.elapsed();
            assert!(elapsed < Duration::from_mins(1), "{} took {elapsed:?}", stringify!($rpc));
            match answer {
                Ok(_) => answers.push((stringify!($rpc), Status::ok("done"))),
                Err(status) => answers.push((stringify!($rpc), status)),
            }
        };
    }
    ask!(create_volume, class.create_volume("v", MIB));
    ask!(delete_volume, class.delete_volume(&volume_id));
    ask!(create_snapshot, class.create_snapshot("s", &volume_id));
    ask!(delete_snapshot, class.delete_snapshot(&snapshot_id));
    ask!(controller_expand_volume, expand);
    ask!(controller_publish_volume, publish);
    ask!(controller_unpublish_volume, unpublish);
    ask!(validate_volume_capabilities, validate);
    answers
}

#[tokio::test]
async fn wrong_missing_and_partial_secrets_are_unauthenticated() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let right = Class::new(&lab, &namespace.name);
    let other_key = "AQCU0ARnAAAAABAAfK8wbqI8hcGyMdBbOSGrqg==";
    let cases = [
        (
            right
                .secrets
                .clone()
                .into_iter()
                .chain([("userKey".to_string(), other_key.to_string())])
                .collect(),
            "check userID and userKey",
        ),
        (
            BTreeMap::from([
                ("userID".to_string(), lab.user.clone()),
                ("userKey".to_string(), "not base64".to_string()),
            ]),
            "not a cephx key",
        ),
        (BTreeMap::from([("userID".to_string(), lab.user.clone())]), "lacks userKey"),
        (BTreeMap::from([("userKey".to_string(), other_key.to_string())]), "lacks userID"),
        (BTreeMap::new(), "no secrets"),
    ];
    for (secrets, words) in cases {
        let class = Class { secrets, ..right.clone() };
        for (rpc, status) in all_rpcs(&driver, &class, &namespace.name).await {
            assert_eq!(status.code(), Code::Unauthenticated, "{rpc} with {words:?}: {status:?}");
            assert!(status.message().contains(words), "{rpc}: {}", status.message());
            assert!(!status.message().contains(other_key));
        }
    }
    assert!(!driver.log().contains(other_key), "a key is in the log");
    namespace.assert_empty();
}

#[tokio::test]
async fn a_missing_pool_or_namespace_is_said_in_words() {
    let lab = Lab::from_environment();
    let driver = Driver::controller_for(&lab);
    let missing_pool = Class::new(&lab, "ns").with("pool", "no-such-pool");
    for (rpc, status) in all_rpcs(&driver, &missing_pool, "ns").await {
        assert_eq!(status.code(), Code::InvalidArgument, "{rpc}: {status:?}");
        assert!(
            status.message().contains("the pool no-such-pool does not exist"),
            "{}",
            status.message()
        );
    }
    let missing_namespace = Class::new(&lab, "no-such-namespace").create_volume("v", MIB);
    let status = driver.controller().await.create_volume(missing_namespace).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("rbd namespace create rbd/no-such-namespace"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn bad_requests_are_refused_in_words_before_anything_is_touched() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);
    let good = || class.create_volume("v", MIB);
    let range = |required_bytes, limit_bytes| Some(CapacityRange { required_bytes, limit_bytes });
    let cases = [
        (
            CreateVolumeRequest { name: String::new(), ..good() },
            Code::InvalidArgument,
            "name is missing",
        ),
        (
            CreateVolumeRequest { name: "n".repeat(129), ..good() },
            Code::InvalidArgument,
            "129 bytes",
        ),
        (CreateVolumeRequest { name: "a\u{7}".into(), ..good() }, Code::InvalidArgument, "U+0007"),
        (
            CreateVolumeRequest { volume_capabilities: vec![], ..good() },
            Code::InvalidArgument,
            "volume_capabilities",
        ),
        (
            CreateVolumeRequest { capacity_range: range(-1, 0), ..good() },
            Code::InvalidArgument,
            "negative",
        ),
        (
            CreateVolumeRequest { capacity_range: range(2 * MIB, MIB), ..good() },
            Code::OutOfRange,
            "less than",
        ),
        (
            CreateVolumeRequest { capacity_range: range(1, 100), ..good() },
            Code::OutOfRange,
            "512-byte sectors",
        ),
        (
            class.clone().with("poool", "x").create_volume("v", MIB),
            Code::InvalidArgument,
            "did you mean \"pool\"",
        ),
        (
            class.clone().with("clusterID", "prod").create_volume("v", MIB),
            Code::InvalidArgument,
            "knows lab",
        ),
        (
            CreateVolumeRequest { volume_content_source: Some(from_snapshot("garbage")), ..good() },
            Code::NotFound,
            "\"garbage\" does not exist",
        ),
        (
            CreateVolumeRequest {
                volume_content_source: Some(from_volume("other/rbd/v")),
                ..good()
            },
            Code::InvalidArgument,
            "cannot cross clusters",
        ),
        (
            CreateVolumeRequest {
                volume_content_source: Some(from_volume("lab/rbd/no-such-image")),
                ..good()
            },
            Code::NotFound,
            "lab/rbd/no-such-image does not exist",
        ),
    ];
    for (request, code, words) in cases {
        let status = controller.create_volume(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{words}: {status:?}");
        assert!(status.message().contains(words), "{words:?} is not in {:?}", status.message());
    }
    controller.delete_volume(class.delete_volume("no id at all")).await.unwrap();
    controller.delete_snapshot(class.delete_snapshot("no id at all")).await.unwrap();
    namespace.assert_empty();
}

#[tokio::test]
async fn a_foreign_image_is_never_adopted_or_deleted() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);
    let spec = format!("{POOL}/{}/csi-mine", namespace.name);
    lab.run("rbd", &["create", "--size", "8M", &spec]);
    let status = controller.create_volume(class.create_volume("mine", 8 * MIB)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    let id = format!("lab/{spec}");
    let status = controller.delete_volume(class.delete_volume(&id)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(lab.run("rbd", &["info", &spec]).contains("size 8 MiB"));
    lab.run("rbd", &["rm", "--no-progress", &spec]);
    namespace.assert_empty();
}

#[tokio::test]
async fn a_volume_that_is_open_somewhere_is_not_deleted() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);
    let volume = controller
        .create_volume(class.create_volume("open", MIB))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    let cluster = lab.connect();
    let pool = namespace.pool(&*cluster);
    let image = pool
        .open_image(
            cinderblock::rbd::ImageKey::Name("csi-open"),
            cinderblock::rbd::OpenMode::ReadWrite,
        )
        .unwrap();
    let status =
        controller.delete_volume(class.delete_volume(&volume.volume_id)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let address = cluster.address().unwrap();
    assert!(status.message().contains(&address), "{address} is not in {:?}", status.message());
    drop(image);
    controller.delete_volume(class.delete_volume(&volume.volume_id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}

#[tokio::test]
async fn a_volume_without_a_size_has_100_mebibytes() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);
    let request = CreateVolumeRequest { capacity_range: None, ..class.create_volume("any", MIB) };
    let volume = controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(volume.capacity_bytes, 100 * MIB);
    let info = lab.run("rbd", &["info", &format!("{POOL}/{}/csi-any", namespace.name)]);
    assert!(info.contains("size 100 MiB"), "{info}");
    controller.delete_volume(class.delete_volume(&volume.volume_id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}

/// What Cinder's connections have, for a hypervisor that attaches the image itself.
#[tokio::test]
async fn a_published_volume_tells_what_a_hypervisor_needs() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let uuid = "5f1c2f0a-7a0e-4d0b-9f7a-0a6f5d6f3b11";
    let config = format!("{}  secretUUID: {uuid}\n", lab_config(&lab));
    let driver = Driver::start(&config, &["--role", "controller"]);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);
    let made = controller.create_volume(class.create_volume("vm", MIB)).await.unwrap();
    let volume_id = made.into_inner().volume.unwrap().volume_id;
    let publish = ControllerPublishVolumeRequest {
        volume_id: volume_id.clone(),
        node_id: "node-1".to_string(),
        volume_capability: Some(filesystem()),
        secrets: class.secrets.clone(),
        ..ControllerPublishVolumeRequest::default()
    };
    let context =
        controller.controller_publish_volume(publish).await.unwrap().into_inner().publish_context;

    let dump = lab.run("ceph", &["mon", "dump", "--format", "json"]);
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let monitors = dump["mons"].as_array().unwrap();
    // "addr" is the address for clients of the old protocol, with a nonce behind it.
    let address = |monitor: &serde_json::Value| {
        let text = monitor["addr"].as_str().unwrap().split('/').next().unwrap();
        text.parse::<std::net::SocketAddr>().unwrap()
    };
    let addresses: Vec<_> = monitors.iter().map(address).collect();
    let hosts: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let ports: Vec<_> = addresses.iter().map(|address| address.port().to_string()).collect();
    for (key, value) in [
        ("image", format!("{POOL}/{}/csi-vm", namespace.name)),
        ("hosts", hosts.join(",")),
        ("ports", ports.join(",")),
        ("auth_enabled", "true".to_string()),
        ("auth_username", lab.user.clone()),
        ("secret_type", "ceph".to_string()),
        ("secret_uuid", uuid.to_string()),
    ] {
        assert_eq!(context.get(key), Some(&value), "{key}");
    }

    let unpublish = ControllerUnpublishVolumeRequest {
        volume_id: volume_id.clone(),
        node_id: "node-1".to_string(),
        secrets: class.secrets.clone(),
    };
    controller.controller_unpublish_volume(unpublish).await.unwrap();
    controller.delete_volume(class.delete_volume(&volume_id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}
