//! Lists, single look-ups and capacity over the socket, on a real Ceph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::wildcard_imports, reason = "most messages of CSI")]

mod common;

use std::collections::BTreeSet;

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::*;
use common::driver::{Class, Driver, MIB, lab_config_with_own_user};
use common::{Lab, Namespace, wait_until};
use tonic::Code;
use tonic::transport::Channel;

async fn page(
    controller: &mut ControllerClient<Channel>,
    max: i32,
    token: &str,
) -> (Vec<String>, String) {
    let request = ListVolumesRequest { max_entries: max, starting_token: token.to_string() };
    let answer = controller.list_volumes(request).await.unwrap().into_inner();
    let ids = answer.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
    (ids, answer.next_token)
}

#[tokio::test]
async fn pages_are_stable_while_volumes_come_and_go() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver =
        Driver::start(&lab_config_with_own_user(&lab, &namespace.name), &["--role", "controller"]);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);
    let mut ids = BTreeSet::new();
    for number in 0..9 {
        let request = class.create_volume(&format!("v{number}"), MIB);
        ids.insert(
            controller.create_volume(request).await.unwrap().into_inner().volume.unwrap().volume_id,
        );
    }
    let (all, token) = page(&mut controller, 0, "").await;
    assert_eq!((all.iter().cloned().collect::<BTreeSet<_>>(), token.as_str()), (ids.clone(), ""));

    // The last of the first page and the first of the second go between the two.
    let (first, token) = page(&mut controller, 3, "").await;
    assert_eq!(first, all[..3]);
    for gone in [&all[2], &all[3]] {
        controller.delete_volume(class.delete_volume(gone)).await.unwrap();
    }
    let (second, token) = page(&mut controller, 3, &token).await;
    assert_eq!(second, all[4..7]);
    let (third, token) = page(&mut controller, 3, &token).await;
    assert_eq!((third.as_slice(), token.as_str()), (&all[7..], ""));

    let garbage =
        ListVolumesRequest { max_entries: 0, starting_token: "invalid-token".to_string() };
    assert_eq!(controller.list_volumes(garbage).await.unwrap_err().code(), Code::Aborted);
    let negative = ListVolumesRequest { max_entries: -1, starting_token: String::new() };
    assert_eq!(controller.list_volumes(negative).await.unwrap_err().code(), Code::InvalidArgument);

    let publish = ControllerPublishVolumeRequest {
        volume_id: all[0].clone(),
        node_id: "node-1".to_string(),
        volume_capability: Some(common::driver::filesystem()),
        secrets: class.secrets.clone(),
        ..ControllerPublishVolumeRequest::default()
    };
    controller.controller_publish_volume(publish).await.unwrap();
    let listed = controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.entries[0].status.as_ref().unwrap().published_node_ids, ["node-1"]);
    let get = ControllerGetVolumeRequest { volume_id: all[0].clone() };
    let got = controller.controller_get_volume(get).await.unwrap().into_inner();
    assert_eq!(got.volume, listed.entries[0].volume);
    assert_eq!(got.status.unwrap().published_node_ids, ["node-1"]);
    let unpublish = ControllerUnpublishVolumeRequest {
        volume_id: all[0].clone(),
        node_id: String::new(),
        secrets: class.secrets.clone(),
    };
    controller.controller_unpublish_volume(unpublish).await.unwrap();
    for id in &all {
        controller.delete_volume(class.delete_volume(id)).await.unwrap();
    }
    for id in [&all[0], "no id at all"] {
        let get = ControllerGetVolumeRequest { volume_id: id.to_string() };
        assert_eq!(controller.controller_get_volume(get).await.unwrap_err().code(), Code::NotFound);
    }
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}

#[tokio::test]
async fn without_a_user_of_its_own_the_driver_says_what_it_cannot_list() {
    let lab = Lab::from_environment();
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let refusals = [
        controller.list_volumes(ListVolumesRequest::default()).await.map(drop),
        controller.list_snapshots(ListSnapshotsRequest::default()).await.map(drop),
        controller.get_capacity(GetCapacityRequest::default()).await.map(drop),
    ];
    for refusal in refusals.map(Result::unwrap_err) {
        assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal}");
        assert!(refusal.message().contains("lacks userID, keyFile, pools"), "{refusal}");
    }
}

#[tokio::test]
async fn snapshots_of_deleted_volumes_stay_listed() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver =
        Driver::start(&lab_config_with_own_user(&lab, &namespace.name), &["--role", "controller"]);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);
    let mut snapshots = Vec::new();
    for name in ["a", "b"] {
        let volume = controller.create_volume(class.create_volume(name, MIB)).await.unwrap();
        let volume = volume.into_inner().volume.unwrap();
        let request = class.create_snapshot(&format!("s-{name}"), &volume.volume_id);
        snapshots.push(
            controller.create_snapshot(request).await.unwrap().into_inner().snapshot.unwrap(),
        );
        controller.delete_volume(class.delete_volume(&volume.volume_id)).await.unwrap();
    }
    let mut list = async |request: ListSnapshotsRequest| {
        let entries = controller.list_snapshots(request).await.unwrap().into_inner().entries;
        let mut found: Vec<_> = entries.into_iter().map(|entry| entry.snapshot.unwrap()).collect();
        found.sort_by(|a, b| a.snapshot_id.cmp(&b.snapshot_id));
        found
    };
    snapshots.sort_by(|a, b| a.snapshot_id.cmp(&b.snapshot_id));
    assert_eq!(list(ListSnapshotsRequest::default()).await, snapshots);
    let one = &snapshots[1];
    let by_id = ListSnapshotsRequest { snapshot_id: one.snapshot_id.clone(), ..Default::default() };
    assert_eq!(list(by_id).await, std::slice::from_ref(one));
    let by_source = ListSnapshotsRequest {
        source_volume_id: one.source_volume_id.clone(),
        ..Default::default()
    };
    assert_eq!(list(by_source).await, std::slice::from_ref(one));
    let source =
        ListSnapshotsRequest { source_volume_id: "no id at all".to_string(), ..Default::default() };
    assert_eq!(list(source).await, []);
    let id = ListSnapshotsRequest { snapshot_id: "no id at all".to_string(), ..Default::default() };
    assert_eq!(list(id).await, []);
    let get =
        GetSnapshotRequest { snapshot_id: one.snapshot_id.clone(), secrets: class.secrets.clone() };
    let got = controller.get_snapshot(get.clone()).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(got, *one);
    for snapshot in &snapshots {
        controller.delete_snapshot(class.delete_snapshot(&snapshot.snapshot_id)).await.unwrap();
    }
    assert_eq!(controller.get_snapshot(get).await.unwrap_err().code(), Code::NotFound);
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}

#[tokio::test]
async fn capacity_is_what_quota_and_disks_leave() {
    let lab = Lab::from_environment();
    let pool = format!("capacity-{}", std::process::id());
    lab.run("ceph", &["osd", "pool", "create", &pool, "1"]);
    lab.run("rbd", &["pool", "init", &pool]);
    let driver = Driver::start(&lab_config_with_own_user(&lab, "any"), &["--role", "controller"]);
    let mut controller = driver.controller().await;
    let parameters = Class::new(&lab, "").with("pool", &pool).parameters;
    let parameters: std::collections::BTreeMap<_, _> =
        parameters.into_iter().filter(|(key, _)| key != "radosNamespace").collect();
    let ask = GetCapacityRequest { parameters, ..GetCapacityRequest::default() };
    // A new pool has no statistics for a moment, and the driver says so instead of guessing.
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(5);
    let free = loop {
        match controller.get_capacity(ask.clone()).await {
            Ok(answer) => break answer.into_inner(),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(std::time::Instant::now() < deadline, "{status:?}");
            }
        }
    };
    assert!(free.available_capacity > 100 * MIB, "{free:?}");
    // What the scheduler goes by: never more than there is room for.
    assert_eq!(free.maximum_volume_size, Some(free.available_capacity));
    // Two pools on the same disks have no more room than one.
    let one_pool = lab_config_with_own_user(&lab, "any");
    let two_pools = one_pool.replace("/any]", &format!("/any, {pool}]"));
    assert_ne!(one_pool, two_pools);
    let of_two = Driver::start(&two_pools, &["--role", "controller"]);
    let all = of_two.controller().await.get_capacity(GetCapacityRequest::default()).await.unwrap();
    let all = all.into_inner().available_capacity;
    assert!(2 * all < 3 * free.available_capacity, "{all} of {free:?}");
    lab.run("ceph", &["osd", "pool", "set-quota", &pool, "max_bytes", "10485760"]);
    let bounded = controller.get_capacity(ask.clone()).await.unwrap().into_inner();
    // `rbd pool init` stores a few bytes.
    assert!((10 * MIB - 4096..=10 * MIB).contains(&bounded.available_capacity), "{bounded:?}");
    assert_eq!(bounded.maximum_volume_size, Some(bounded.available_capacity));
    let everywhere =
        controller.get_capacity(GetCapacityRequest::default()).await.unwrap().into_inner();
    assert!(everywhere.available_capacity > 100 * MIB, "{everywhere:?}");
    let missing = GetCapacityRequest {
        parameters: Class::new(&lab, "").with("pool", "no-such-pool").parameters,
        ..GetCapacityRequest::default()
    };
    assert_eq!(controller.get_capacity(missing).await.unwrap_err().code(), Code::InvalidArgument);
    lab.run("ceph", &["osd", "pool", "rm", &pool, &pool, "--yes-i-really-really-mean-it"]);
}

#[tokio::test]
async fn without_a_user_of_its_own_the_driver_does_not_promise_lists() {
    let lab = Lab::from_environment();
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let capabilities = controller
        .controller_get_capabilities(ControllerGetCapabilitiesRequest {})
        .await
        .unwrap()
        .into_inner()
        .capabilities;
    let text = format!("{capabilities:?}");
    assert!(!text.contains("ListVolumes") && text.contains("CreateDeleteVolume"), "{text}");
    // The identity service answers before the cluster was ever asked.
    wait_until("the driver is ready", || driver.is_ready());
}
