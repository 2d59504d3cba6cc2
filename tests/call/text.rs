//! What people read on a terminal.

use serde_json::{Value, json};

use crate::{answering, call, stdout};

/// The text printed for `answer` to the command `arguments`.
fn text_of(arguments: &[&str], answer: Value) -> String {
    let output = call(&answering(answer).endpoint(), arguments);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    stdout(&output)
}

#[test]
fn text_shows_one_thing_as_aligned_names_and_values() {
    let volume = json!({"volume": {
        "volume_id": "c/rbd/csi-v", "capacity_bytes": 20_i64 << 30, "volume_context": {"pool": "rbd", "clusterID": "c"},
        "content_source": {"snapshot": {"snapshot_id": "c/rbd/1@s"}},
        "accessible_topology": [{"segments": {"zone": "a"}}],
    }});
    let expected = "\
volume_id                   c/rbd/csi-v
capacity_bytes              20GiB
volume_context              clusterID=c
                            pool=rbd
content_source.snapshot_id  c/rbd/1@s
accessible_topology         segments=zone=a
";
    assert_eq!(text_of(&["create-volume", "--name", "n"], volume), expected);
}

#[test]
fn text_shows_a_list_as_a_table_with_the_columns_that_hold_something() {
    let volumes = json!({
        "entries": [
            {"volume": {"volume_id": "c/rbd/csi-a", "capacity_bytes": 1536}, "status": {"published_node_ids": ["n1"]}},
            {"volume": {"volume_id": "c/rbd/csi-bb", "capacity_bytes": 1_i64 << 40}, "status": {}},
        ],
        "next_token": "more",
    });
    let expected = "\
volume_id     capacity_bytes       published_node_ids
c/rbd/csi-a   1536 (about 1.5KiB)  n1
c/rbd/csi-bb  1TiB
next_token  more
";
    assert_eq!(text_of(&["list-volumes"], volumes), expected);
}

#[test]
fn text_says_what_is_not_there() {
    assert_eq!(text_of(&["delete-volume", "v"], json!({})), "ok\n");
    assert_eq!(text_of(&["list-volumes"], json!({})), "no entries\n");
    assert_eq!(text_of(&["probe"], json!({})), "ready  not set\n");
    let unconfirmed = json!({"message": "mount with multi-node-multi-writer would corrupt ext4"});
    let expected = "\
confirmed  not set
message    mount with multi-node-multi-writer would corrupt ext4
";
    assert_eq!(text_of(&["validate", "v"], unconfirmed), expected);
}

#[test]
fn text_shows_capabilities_sizes_and_times_as_people_read_them() {
    let capabilities = json!({"capabilities": [{"service": {"type": "CONTROLLER_SERVICE"}}, {"volume_expansion": {"type": "ONLINE"}}]});
    let expected = "service           CONTROLLER_SERVICE\nvolume_expansion  ONLINE\n";
    assert_eq!(text_of(&["capabilities"], capabilities), expected);

    let usage = json!({"usage": [
        {"available": 1024, "total": 4096, "used": 3072, "unit": "BYTES"},
        {"available": 1024, "total": 4096, "used": 3072, "unit": "INODES"},
    ]});
    let expected = "\
available  total  used  unit
1KiB       4KiB   3KiB  BYTES
1024       4096   3072  INODES
";
    assert_eq!(text_of(&["stats", "v", "--path", "/t"], usage), expected);

    let capacity = json!({"available_capacity": 1_i64 << 40, "maximum_volume_size": 1_i64 << 30});
    let expected = "\
available_capacity   1TiB
maximum_volume_size  1GiB
minimum_volume_size  not set
";
    assert_eq!(text_of(&["get-capacity"], capacity), expected);

    let snapshot = json!({"snapshot": {
        "snapshot_id": "s", "source_volume_id": "v", "size_bytes": 1024, "creation_time": "2026-01-02T03:04:05Z",
    }});
    let expected = "\
snapshot_id       s
source_volume_id  v
size_bytes        1KiB
creation_time     2026-01-02T03:04:05Z
ready_to_use      false
";
    assert_eq!(text_of(&["create-snapshot", "v", "--name", "n"], snapshot), expected);
}
