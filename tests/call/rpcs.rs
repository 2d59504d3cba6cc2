//! Every RPC of CSI: the request its command sends, and the JSON it prints.

use std::collections::BTreeSet;

use cinderblock::csi::proto::FILE_DESCRIPTOR_SET;
use prost_reflect::DescriptorPool;
use serde_json::{Value, json};

use crate::fake_driver::{Behaviour, FakeDriver};
use crate::{answering, call, stderr, stdout};

/// Each RPC: the command, the name of the RPC, the request it must send, and a complete answer.
fn calls() -> Vec<(Vec<&'static str>, &'static str, Value, Value)> {
    let single_writer = json!({"mount": {}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}});
    let volume = json!({
        "capacity_bytes": 1_073_741_824, "volume_id": "v", "volume_context": {"pool": "rbd"},
        "content_source": {"snapshot": {"snapshot_id": "s"}}, "accessible_topology": [{"segments": {"zone": "a"}}],
    });
    let snapshot = json!({
        "size_bytes": 4096, "snapshot_id": "s", "source_volume_id": "v", "creation_time": "2026-01-02T03:04:05Z",
        "ready_to_use": true, "group_snapshot_id": "g", "accessible_topology": [],
    });
    let group = json!({"group_snapshot": {
        "group_snapshot_id": "g", "snapshots": [snapshot], "creation_time": "2026-01-02T03:04:05Z", "ready_to_use": false,
    }});
    let health = json!({
        "volume_id": "v",
        "health_statuses": [{"status": "DEGRADED", "reason": "Slow", "message": "a disk is slow"}],
    });
    let blocks = |kind| {
        json!({
            "block_metadata_type": kind, "volume_capacity_bytes": 8192,
            "block_metadata": [{"byte_offset": 0, "size_bytes": 4096}],
        })
    };
    vec![
        (
            vec!["info"],
            "GetPluginInfo",
            json!({}),
            json!({"name": "n.example.org", "vendor_version": "1", "manifest": {"commit": "c"}}),
        ),
        (
            vec!["capabilities"],
            "GetPluginCapabilities",
            json!({}),
            json!({"capabilities": [{"service": {"type": "CONTROLLER_SERVICE"}}, {"volume_expansion": {"type": "ONLINE"}}]}),
        ),
        (vec!["probe"], "Probe", json!({}), json!({"ready": true})),
        (
            vec!["controller-capabilities"],
            "ControllerGetCapabilities",
            json!({}),
            json!({"capabilities": [{"rpc": {"type": "CREATE_DELETE_VOLUME"}}]}),
        ),
        (
            vec![
                "create-volume",
                "--name",
                "n",
                "--size",
                "1GiB",
                "--limit",
                "2GiB",
                "--from-snapshot",
                "s",
                "--parameter",
                "pool=rbd",
                "--parameter",
                "clusterID=c",
                "--mutable-parameter",
                "qos=fast",
                "--fs-type",
                "ext4",
                "--mount-flag",
                "noatime",
                "--mount-flag",
                "ro",
                "--mount-group",
                "1000",
                "--access-mode",
                "multi-node-reader-only",
            ],
            "CreateVolume",
            json!({
                "name": "n",
                "capacity_range": {"required_bytes": 1_073_741_824_i64, "limit_bytes": 2_147_483_648_i64},
                "volume_capabilities": [{
                    "mount": {"fs_type": "ext4", "mount_flags": ["noatime", "ro"], "volume_mount_group": "1000"},
                    "access_mode": {"mode": "MULTI_NODE_READER_ONLY"},
                }],
                "parameters": {"pool": "rbd", "clusterID": "c"},
                "mutable_parameters": {"qos": "fast"},
                "volume_content_source": {"snapshot": {"snapshot_id": "s"}},
            }),
            json!({"volume": volume}),
        ),
        (
            vec!["create-volume", "--name", "n", "--from-volume", "v", "--block"],
            "CreateVolume",
            json!({
                "name": "n",
                "volume_capabilities": [{"block": {}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}}],
                "volume_content_source": {"volume": {"volume_id": "v"}},
            }),
            json!({"volume": volume}),
        ),
        (vec!["delete-volume", "v"], "DeleteVolume", json!({"volume_id": "v"}), json!({})),
        (
            vec![
                "controller-publish",
                "v",
                "--node",
                "n",
                "--readonly",
                "--volume-context",
                "a=b=c",
            ],
            "ControllerPublishVolume",
            json!({
                "volume_id": "v", "node_id": "n", "readonly": true, "volume_capability": single_writer,
                "volume_context": {"a": "b=c"},
            }),
            json!({"publish_context": {"image": "rbd/csi-v"}}),
        ),
        (
            vec!["controller-unpublish", "v", "--node", "n"],
            "ControllerUnpublishVolume",
            json!({"volume_id": "v", "node_id": "n"}),
            json!({}),
        ),
        (
            vec![
                "validate",
                "v",
                "--block",
                "--parameter",
                "pool=rbd",
                "--mutable-parameter",
                "q=1",
            ],
            "ValidateVolumeCapabilities",
            json!({
                "volume_id": "v", "parameters": {"pool": "rbd"}, "mutable_parameters": {"q": "1"},
                "volume_capabilities": [{"block": {}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}}],
            }),
            json!({
                "confirmed": {
                    "volume_context": {}, "parameters": {"pool": "rbd"}, "mutable_parameters": {},
                    "volume_capabilities": [{"block": {}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}}],
                },
                "message": "",
            }),
        ),
        (
            vec!["list-volumes", "--max-entries", "-1", "--starting-token", "t"],
            "ListVolumes",
            json!({"max_entries": -1, "starting_token": "t"}),
            json!({"entries": [{"volume": volume, "status": {"published_node_ids": ["n"]}}], "next_token": "u"}),
        ),
        (
            vec!["get-volume", "v"],
            "ControllerGetVolume",
            json!({"volume_id": "v"}),
            json!({"volume": volume, "status": {"published_node_ids": []}}),
        ),
        (
            vec!["list-volume-health"],
            "ControllerListVolumeHealth",
            json!({}),
            json!({"entries": [health], "next_token": ""}),
        ),
        (
            vec!["get-volume-health", "v"],
            "ControllerGetVolumeHealth",
            json!({"volume_id": "v"}),
            json!({"volume_health": health}),
        ),
        (
            vec!["get-capacity", "--parameter", "pool=rbd", "--access-mode", "single-node-writer"],
            "GetCapacity",
            json!({"parameters": {"pool": "rbd"}, "volume_capabilities": [single_writer]}),
            json!({"available_capacity": 9, "maximum_volume_size": 8, "minimum_volume_size": 1}),
        ),
        (
            vec!["expand", "v", "--size", "4096"],
            "ControllerExpandVolume",
            json!({"volume_id": "v", "capacity_range": {"required_bytes": 4096}}),
            json!({"capacity_bytes": 4096, "node_expansion_required": true}),
        ),
        (
            vec!["modify", "v", "--mutable-parameter", "q=1"],
            "ControllerModifyVolume",
            json!({"volume_id": "v", "mutable_parameters": {"q": "1"}}),
            json!({}),
        ),
        (
            vec!["create-snapshot", "v", "--name", "n", "--parameter", "a=b"],
            "CreateSnapshot",
            json!({"source_volume_id": "v", "name": "n", "parameters": {"a": "b"}}),
            json!({"snapshot": snapshot}),
        ),
        (vec!["delete-snapshot", "s"], "DeleteSnapshot", json!({"snapshot_id": "s"}), json!({})),
        (
            vec!["list-snapshots", "--volume", "v", "--snapshot", "s", "--max-entries", "5"],
            "ListSnapshots",
            json!({"source_volume_id": "v", "snapshot_id": "s", "max_entries": 5}),
            json!({"entries": [{"snapshot": snapshot}], "next_token": ""}),
        ),
        (
            vec!["get-snapshot", "s"],
            "GetSnapshot",
            json!({"snapshot_id": "s"}),
            json!({"snapshot": snapshot}),
        ),
        (
            vec!["group-capabilities"],
            "GroupControllerGetCapabilities",
            json!({}),
            json!({"capabilities": [{"rpc": {"type": "CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT"}}]}),
        ),
        (
            vec!["create-group-snapshot", "v", "w", "--name", "n", "--parameter", "a=b"],
            "CreateVolumeGroupSnapshot",
            json!({"source_volume_ids": ["v", "w"], "name": "n", "parameters": {"a": "b"}}),
            group.clone(),
        ),
        (
            vec!["delete-group-snapshot", "g", "--snapshot", "s", "--snapshot", "t"],
            "DeleteVolumeGroupSnapshot",
            json!({"group_snapshot_id": "g", "snapshot_ids": ["s", "t"]}),
            json!({}),
        ),
        (
            vec!["get-group-snapshot", "g", "--snapshot", "s"],
            "GetVolumeGroupSnapshot",
            json!({"group_snapshot_id": "g", "snapshot_ids": ["s"]}),
            group,
        ),
        (
            vec!["allocated-blocks", "s", "--starting-offset", "4096", "--max-results", "7"],
            "GetMetadataAllocated",
            json!({"snapshot_id": "s", "starting_offset": 4096, "max_results": 7}),
            blocks("FIXED_LENGTH"),
        ),
        (
            vec!["changed-blocks", "s", "t"],
            "GetMetadataDelta",
            json!({"base_snapshot_id": "s", "target_snapshot_id": "t"}),
            blocks("VARIABLE_LENGTH"),
        ),
        (
            vec!["node-info"],
            "NodeGetInfo",
            json!({}),
            json!({"node_id": "n", "max_volumes_per_node": 5, "accessible_topology": {"segments": {"zone": "a"}}}),
        ),
        (
            vec!["node-capabilities"],
            "NodeGetCapabilities",
            json!({}),
            json!({"capabilities": [{"rpc": {"type": "STAGE_UNSTAGE_VOLUME"}}]}),
        ),
        (
            vec![
                "stage",
                "v",
                "--staging",
                "/s",
                "--fs-type",
                "xfs",
                "--volume-context",
                "a=b",
                "--publish-context",
                "c=d",
            ],
            "NodeStageVolume",
            json!({
                "volume_id": "v", "staging_target_path": "/s", "volume_context": {"a": "b"}, "publish_context": {"c": "d"},
                "volume_capability": {"mount": {"fs_type": "xfs"}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}},
            }),
            json!({}),
        ),
        (
            vec!["unstage", "v", "--staging", "/s"],
            "NodeUnstageVolume",
            json!({"volume_id": "v", "staging_target_path": "/s"}),
            json!({}),
        ),
        (
            vec![
                "publish",
                "v",
                "--staging",
                "/s",
                "--target",
                "/t",
                "--readonly",
                "--publish-context",
                "c=d",
            ],
            "NodePublishVolume",
            json!({
                "volume_id": "v", "staging_target_path": "/s", "target_path": "/t", "readonly": true,
                "publish_context": {"c": "d"}, "volume_capability": single_writer,
            }),
            json!({}),
        ),
        (
            vec!["unpublish", "v", "--target", "/t"],
            "NodeUnpublishVolume",
            json!({"volume_id": "v", "target_path": "/t"}),
            json!({}),
        ),
        (
            vec!["stats", "v", "--path", "/t", "--staging", "/s"],
            "NodeGetVolumeStats",
            json!({"volume_id": "v", "volume_path": "/t", "staging_target_path": "/s"}),
            json!({"usage": [{"available": 1, "total": 3, "used": 2, "unit": "INODES"}]}),
        ),
        (
            vec!["node-expand", "v", "--path", "/t", "--size", "1KiB", "--block"],
            "NodeExpandVolume",
            json!({
                "volume_id": "v", "volume_path": "/t", "capacity_range": {"required_bytes": 1024},
                "volume_capability": {"block": {}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}},
            }),
            json!({"capacity_bytes": 1024}),
        ),
        (
            vec!["node-volume-health", "v", "--path", "/t"],
            "NodeGetVolumeHealth",
            json!({"volume_id": "v", "volume_publish_path": "/t"}),
            json!({"volume_health": health}),
        ),
        (
            vec!["node-storage-health"],
            "NodeGetStorageHealth",
            json!({}),
            json!({"backend_health": [{
                "status": "STORAGE_DEGRADED", "reason": "Full", "message": "m", "volume_capability": {
                    "mount": {"fs_type": "", "mount_flags": [], "volume_mount_group": ""},
                    "access_mode": {"mode": "SINGLE_NODE_WRITER"},
                },
            }]}),
        ),
    ]
}

#[test]
fn every_rpc_of_csi_has_a_command() {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let rpcs: BTreeSet<String> = pool
        .services()
        .flat_map(|service| service.methods().map(|m| m.name().to_owned()).collect::<Vec<_>>())
        .collect();
    let called: BTreeSet<String> = calls().into_iter().map(|(_, rpc, ..)| rpc.to_owned()).collect();
    assert_eq!(called, rpcs);
}

#[test]
fn every_command_sends_what_its_flags_say_and_prints_the_whole_answer_as_json() {
    for (arguments, rpc, request, answer) in calls() {
        let driver = answering(answer.clone());
        let output = call(&driver.endpoint(), &[&arguments[..], &["--output", "json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        let calls = driver.calls();
        assert_eq!(calls.len(), 1, "{arguments:?}");
        assert_eq!(calls[0].method, rpc, "{arguments:?}");
        assert_eq!(calls[0].request, request, "{arguments:?}");
        let printed: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(printed, answer, "{arguments:?}");
        assert_eq!(stderr(&output), "", "{arguments:?}");
    }
}

#[test]
fn a_stream_is_gathered_into_one_answer() {
    let part = |offset: i64| {
        json!({
            "block_metadata_type": "FIXED_LENGTH", "volume_capacity_bytes": 8192,
            "block_metadata": [{"byte_offset": offset, "size_bytes": 4096}],
        })
    };
    for arguments in [&["allocated-blocks", "s"][..], &["changed-blocks", "s", "t"]] {
        let driver = FakeDriver::start(&Behaviour::Answer(vec![part(0), part(4096)]));
        let output = call(&driver.endpoint(), &[arguments, &["--output", "json"]].concat());
        let whole: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let offsets: Vec<&Value> = whole["block_metadata"]
            .as_array()
            .unwrap()
            .iter()
            .map(|block| &block["byte_offset"])
            .collect();
        assert_eq!(offsets, [0, 4096]);
        assert_eq!(whole["volume_capacity_bytes"], 8192);
        assert_eq!(whole["block_metadata_type"], "FIXED_LENGTH");
    }
}

#[test]
fn json_names_every_field_even_when_it_is_empty() {
    let driver = answering(json!({"volume": {"volume_id": "v"}}));
    let output = call(&driver.endpoint(), &["create-volume", "--name", "n", "--output", "json"]);
    let expected = json!({"volume": {
        "volume_id": "v", "capacity_bytes": 0, "volume_context": {}, "accessible_topology": [],
    }});
    assert_eq!(serde_json::from_str::<Value>(&stdout(&output)).unwrap(), expected);
}
