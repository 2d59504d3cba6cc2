//! Topology over the socket, on a real Ceph: a cluster that is reached from one zone alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::plugin_capability::{Type, service};
#[allow(clippy::wildcard_imports, reason = "most messages there are")]
use cinderblock::csi::proto::*;
use common::driver::{Class, Driver, MIB, lab_config, lab_config_with_own_user};
use common::{Lab, Namespace};
use tempfile::TempDir;
use tonic::Code;

fn zone(name: &str) -> Topology {
    Topology {
        segments: [("zone".to_owned(), name.to_owned()), ("rack".to_owned(), "7".to_owned())]
            .into(),
    }
}

fn required(zones: &[&str]) -> TopologyRequirement {
    TopologyRequirement {
        requisite: zones.iter().map(|name| zone(name)).collect(),
        preferred: Vec::new(),
    }
}

async fn offers_topology(driver: &Driver) -> bool {
    let request = GetPluginCapabilitiesRequest {};
    let answer =
        driver.identity().await.get_plugin_capabilities(request).await.unwrap().into_inner();
    answer.capabilities.iter().any(|capability| {
        matches!(&capability.r#type,
            Some(Type::Service(one)) if one.r#type() == service::Type::VolumeAccessibilityConstraints)
    })
}

async fn node_info(driver: &Driver) -> NodeGetInfoResponse {
    let mut node = NodeClient::new(driver.channel().await);
    node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_a_cluster_are_made_and_counted_only_where_it_is_reached() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let config =
        format!("{}  topology: {{zone: a}}\n", lab_config_with_own_user(&lab, &namespace.name));
    let (_state, driver) = start(&config, &["--topology", "zone=a", "--topology", "rack=7"]);
    assert!(offers_topology(&driver).await);
    assert_eq!(node_info(&driver).await.accessible_topology, Some(zone("a")));

    let mut controller = driver.controller().await;
    let create = |zones: &[&str]| CreateVolumeRequest {
        accessibility_requirements: Some(required(zones)),
        ..class.create_volume("v", MIB)
    };
    let refused = controller.create_volume(create(&["b", "c"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("is reached from"), "{refused}");
    let volume =
        controller.create_volume(create(&["b", "a"])).await.unwrap().into_inner().volume.unwrap();
    let reached = [Topology { segments: [("zone".to_owned(), "a".to_owned())].into() }];
    assert_eq!(volume.accessible_topology, reached);
    let listed = controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.entries[0].volume.as_ref().unwrap().accessible_topology, reached);

    for (place, has_room) in [("a", true), ("b", false)] {
        let request = GetCapacityRequest {
            parameters: class.parameters.clone(),
            accessible_topology: Some(zone(place)),
            ..GetCapacityRequest::default()
        };
        let capacity =
            controller.get_capacity(request).await.unwrap().into_inner().available_capacity;
        assert_eq!(capacity > 0, has_room, "{place}: {capacity}");
    }
    controller.delete_volume(class.delete_volume(&volume.volume_id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cluster_that_has_one_no_topology_is_offered() {
    let lab = Lab::from_environment();
    let (_state, driver) = start(&lab_config(&lab), &["--topology", "zone=a"]);
    assert!(!offers_topology(&driver).await);
    assert_eq!(node_info(&driver).await.accessible_topology, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_which_clusters_it_does_not_reach() {
    let lab = Lab::from_environment();
    let config = format!("{}- clusterID: gone\n  monitors: [\"127.0.0.1:1\"]\n", lab_config(&lab));
    let (_state, driver) = start(&config, &["--enable-alpha"]);
    let mut node = NodeClient::new(driver.channel().await);
    let health = node
        .node_get_storage_health(NodeGetStorageHealthRequest::default())
        .await
        .unwrap()
        .into_inner();
    let [gone] = &health.backend_health[..] else { panic!("{health:?}") };
    assert_eq!(gone.status(), StorageHealthErrorType::StorageUnreachable);
    assert!(gone.message.contains("cluster gone"), "{}", gone.message);
}

/// A driver, and the folder of its state.
fn start(config: &str, arguments: &[&str]) -> (TempDir, Driver) {
    let state = tempfile::tempdir().unwrap();
    let all = ["--role", "all", "--node-id", "n", "--state-dir", state.path().to_str().unwrap()];
    let driver = Driver::start(config, &[&all[..], arguments].concat());
    (state, driver)
}
