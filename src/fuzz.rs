//! Everything that reads what comes from outside, for `tests/fuzz` to throw bytes at. In debug
//! builds alone.
//!
//! A decoder must not panic, whatever it is given, and must not need more memory than its input
//! explains. What it understood, it must print in a form that it understands as the same.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::str::FromStr;

use prost::Message;

use crate::csi::config::Config;
use crate::csi::controller::list::Place;
use crate::csi::endpoint::Endpoint;
use crate::csi::ids::{GroupId, Location, SnapshotId, VolumeId, is_name};
use crate::csi::parameters::{
    GroupParameters, Parameters, SnapshotParameters, VolumeParameters, compared,
};
use crate::csi::proto::{
    ControllerPublishVolumeRequest, CreateVolumeRequest, NodeStageVolumeRequest,
};
use crate::csi::{clusters, deadline, identity, qos, validate};
use crate::node::{FsType, MapOptions, check_unmap_options, monitors, mount, options, qmp, record};
use crate::rbd::ceph::{monmap, pool};
use crate::volume::catalogue::{self, Cursor, Record};
use crate::volume::{journal, lease, names};

/// One decoder.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    /// What it reads.
    pub name: &'static str,
    /// Inputs it understands, or nearly, to begin with.
    pub seeds: &'static [&'static str],
    /// Gives it an input. Panics when it breaks a promise.
    pub run: fn(&[u8]),
}

/// All of them.
pub const DECODERS: &[Decoder] = &[
    Decoder {
        name: "volume-id",
        seeds: &["lab/rbd/csi-pvc-1", "lab/rbd/tenant/csi-pvc-1", "a/../b", "a/b@c"],
        run: |input| {
            let text = text(input);
            if let Some(id) = VolumeId::parse(&text) {
                assert_eq!(id.to_string(), text);
                assert!(text.len() <= 128 && is_name(&id.image));
            }
        },
    },
    Decoder {
        name: "snapshot-id",
        seeds: &["lab/rbd/10ab@csi-snap-1", "lab/rbd/tenant/10ab@csi-snap-1", "a/b/@", "a/b/c@d@e"],
        run: |input| {
            let text = text(input);
            if let Some(id) = SnapshotId::parse(&text) {
                assert_eq!(id.to_string(), text);
                assert!(text.len() <= 128 && is_name(&id.snapshot) && is_name(&id.image_id));
            }
        },
    },
    Decoder {
        name: "group-id",
        seeds: &["lab/rbd/group@csi-group-1", "lab/rbd/tenant/group@g"],
        run: |input| {
            let text = text(input);
            if let Some(id) = GroupId::parse(&text) {
                assert_eq!(id.to_string(), text);
            }
        },
    },
    Decoder {
        name: "map-options",
        seeds: &[
            "krbd:queue_depth=128,alloc_size=65536;nbd:try-netlink",
            "read_from_replica=localize",
            "nbd:timeout=0",
        ],
        run: |input| {
            let text = text(input);
            if MapOptions::parse(&text).is_ok() || check_unmap_options(&text).is_ok() {
                assert!(!text.contains(['/', '\0', '\n', '`', '$']), "{text:?}");
            }
        },
    },
    Decoder {
        name: "monitors",
        seeds: &[
            "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]",
            "10.0.0.1,[::1]:6789,ceph.example",
            "v2:[fe80::1]:3300",
        ],
        run: |input| {
            for monitor in monitors::parse(&text(input)).unwrap_or_default() {
                assert!(monitor.v1.is_some() || monitor.v2.is_some());
            }
        },
    },
    Decoder {
        name: "page-token",
        seeds: &["7.csi-pvc-1", "15.x", "1a2b3c4d.7.csi-pvc-1", "99.x", "-1.x"],
        run: |input| {
            let text = text(input);
            if let Some(cursor) = Cursor::parse(&text) {
                assert_eq!(Cursor::parse(&cursor.token()), Some(cursor));
            }
            let locations = [location("a"), location("b")];
            if let Some(place) = Place::parse(&text, &locations) {
                assert_eq!(Place::parse(&place.token(), &locations), Some(place));
            }
        },
    },
    Decoder {
        name: "volume-parameters",
        seeds: &[
            "clusterID|lab|pool|rbd|imageFeatures|layering,exclusive-lock|objectSize|8388608",
            "clusterID|lab|pool|rbd|maxCloneDepth|3|flattenTarget|clone|mounter|rbd-nbd",
            "clusterID|lab|pool|rbd|stripeUnit|65536|stripeCount|16|csi.storage.k8s.io/pvc/name|x",
        ],
        run: |input| {
            let parameters = map(input);
            if let Ok(class) = VolumeParameters::parse(&parameters, &config()) {
                assert!(is_name(&class.location.pool) && is_name(&class.prefix));
                let image = names::rbd_name(&class.prefix, "a name", class.location.room());
                let id = VolumeId { location: class.location, image };
                assert_eq!(VolumeId::parse(&id.to_string()), Some(id));
            }
        },
    },
    Decoder {
        name: "snapshot-parameters",
        seeds: &["clusterID|lab|pool|rbd|snapshotNamePrefix|snap-", "volumeGroupNamePrefix|g-"],
        run: |input| {
            if let Ok(class) = GroupParameters::parse(&map(input), &config()) {
                assert!(is_name(&class.prefix) && is_name(&class.snapshot_prefix));
            }
            if let Ok(class) = SnapshotParameters::parse(&map(input), &config()) {
                assert!(is_name(&class.prefix));
            }
        },
    },
    Decoder {
        name: "mutable-parameters",
        seeds: &["rbd_qos_iops_limit|500|rbd_qos_iops_burst|1000", "rbd_qos_bps_burst_seconds|0"],
        run: |input| {
            let parameters = map(input);
            if let Ok(settings) = qos::settings(&parameters) {
                assert_eq!(settings.len(), compared(&parameters).len());
                assert!(settings.values().all(|value| value.parse::<u64>().is_ok()));
            }
        },
    },
    Decoder {
        name: "configuration",
        seeds: &[
            "- clusterID: lab\n  monitors: [\"10.0.0.1\", \"[v2:10.0.0.2:3300,v1:10.0.0.2:6789]\"]\n",
            "clusters:\n- {clusterID: a, cephConf: /etc/ceph/ceph.conf, maxCloneDepth: 3, cloneFormat: 1}\nnodes: [n1]\n",
            r#"[{"clusterID": "a", "monitors": ["m"], "rbd": {"radosNamespace": "t"}, "cephFS": {}, "nfs": {}}]"#,
            "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
        ],
        run: |input| {
            if let Ok(config) = Config::parse(&text(input)) {
                assert!(config.clusters.keys().all(|id| is_name(id)));
            }
        },
    },
    Decoder {
        name: "monitor-address",
        seeds: &[
            "10.0.0.1",
            "10.0.0.1:6789",
            "[v2:10.0.0.2:3300,v1:10.0.0.2:6789/0]",
            "[::1]:3300",
            "mon.example",
        ],
        run: |input| drop(identity::addresses(&text(input))),
    },
    Decoder {
        name: "monmap",
        seeds: &[
            r#"{"mons":[{"rank":0,"name":"a","public_addrs":{"addrvec":[{"type":"v2","addr":"10.0.0.1:3300","nonce":0}]}}]}"#,
            r#"{"mons":[{"rank":1,"name":"b","addr":"[::1]:6789/0"},{"rank":-1,"name":"c"}]}"#,
        ],
        run: |input| drop(monmap::parse(input)),
    },
    Decoder {
        name: "pool-statistics",
        seeds: &[
            r#"{"pools":[{"name":"rbd","stats":{"stored":1,"max_avail":2,"quota_bytes":0}}]}"#,
        ],
        run: |input| drop(pool::stats(input, "rbd")),
    },
    Decoder {
        name: "mountinfo",
        seeds: &[
            "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n",
            "1 0 0:5 / /a\\040b rw shared:7 - tmpfs tmp\\012fs rw\n2 1 7:0 / /d ro - ext4 /dev/loop0 rw\n",
        ],
        run: |input| drop(mount::MountTable::parse(input)),
    },
    Decoder {
        name: "node-record",
        seeds: &[concat!(
            r#"{"version":1,"volume_id":"lab/rbd/v","image":{"pool":"rbd","namespace":"","name":"v","monitors":"m","#,
            r#""user":"u"},"mounter":"fuse","capability":{"access":"Block","mode":"SingleNodeWriter"},"#,
            r#""staging_path":"/s","targets":{}}"#
        )],
        run: |input| again::<record::Record>(input),
    },
    Decoder {
        name: "catalogue-volume",
        seeds: &[concat!(
            r#"{"version":1,"state":"ready","id":"lab/rbd/v","name":"v","size":1024,"created":1,"image_id":"10ab","#,
            r#""source":{"volume":"lab/rbd/s"},"link":{"pool":"rbd","namespace":"","image_id":"1","snapshot":"s"},"#,
            r#""digest":"d","attempt":"a","delete_with_snapshots":"retain","clone_format":2,"context":{"a":"b"},"#,
            r#""published":[{"node":"n","readonly":false,"shared":false,"capability":"c"}]}"#
        )],
        run: stored::<catalogue::Volume>,
    },
    Decoder {
        name: "catalogue-snapshot",
        seeds: &[concat!(
            r#"{"version":1,"state":"deleting","name":"s","source_volume":"lab/rbd/v","image_id":"10ab","snapshot_id":4,"#,
            r#""size":1024,"created":-1,"clone_format":1,"attempt":"a"}"#
        )],
        run: stored::<catalogue::Snapshot>,
    },
    Decoder {
        name: "catalogue-group",
        seeds: &[
            r#"{"version":1,"state":"ready","name":"g","digest":"d","created":1,"members":[],"attempt":"a"}"#,
        ],
        run: stored::<catalogue::Group>,
    },
    Decoder {
        name: "catalogue-silent-parent",
        seeds: &[r#"{"version":1,"volume":"lab/rbd/v","deleted":17}"#, r#"{"version":3}"#],
        run: stored::<catalogue::Silent>,
    },
    Decoder {
        name: "lease",
        seeds: &[
            concat!(
                r#"{"version":1,"id":"a","holder":{"host":"h","boot":"b","namespace":1,"pid":2,"started":3,"id":"c"},"#,
                r#""since":4,"renewed":5}"#
            ),
            concat!(
                r#"{"version":2,"id":"a","holder":{"host":"h","boot":"b","namespace":1,"pid":2,"started":3,"id":"c"},"#,
                r#""since":4,"clients":["10.0.0.1:0/5"],"renewals":5}"#
            ),
        ],
        run: |input| {
            if let Ok(stored) = lease::parse(input) {
                assert_eq!(lease::parse(&stored.bytes()).ok(), Some(stored));
            }
        },
    },
    Decoder {
        name: "journal",
        seeds: &[concat!(
            r#"{"version":1,"written":"w","pool":"rbd","namespace":"","image_id":"10ab","image":"v","snapshot":4,"#,
            r#""child":{"pool":"rbd","namespace":"","image_id":"11","flattened":true}}"#
        )],
        run: |input| {
            if let Ok(suspect) = journal::parse(input) {
                assert_eq!(journal::parse(&journal::written(&suspect)).ok(), Some(suspect));
            }
        },
    },
    Decoder {
        name: "qmp",
        seeds: &[
            r#"{"return": {}}"#,
            r#"{"error": {"class": "GenericError", "desc": "no"}}"#,
            r#"{"event": "STOP"}"#,
        ],
        run: |input| {
            if let Ok(line) = serde_json::from_slice(input) {
                drop(qmp::outcome(line));
            }
        },
    },
    Decoder {
        name: "secrets",
        seeds: &["AQCU0ARnAAAAABAAfK8wbqI8hcGyMdBbOSGrqg==", "csi", "client.admin"],
        run: |input| {
            let text = text(input);
            if clusters::looks_like_a_user(&text) {
                assert!(!text.contains(['\0', '\n', ' ']));
            }
            if clusters::looks_like_a_key(&text) {
                assert!(text.is_ascii());
            }
        },
    },
    Decoder {
        name: "mount-option",
        seeds: &[
            "noatime",
            "context=\"system_u:object_r:a_t:s0:c1,c2\"",
            "data=ordered",
            "loop=/etc",
        ],
        run: |input| {
            let text = text(input);
            if options::check_mount_option(&text).is_ok() {
                assert!(!text.contains(['/', '\0', '\n', ' ']));
            }
        },
    },
    Decoder {
        name: "mkfs-options",
        seeds: &["-m 1 -O ^has_journal", "-K -m reflink=1", "-E lazy_itable_init=0 -b 4096"],
        run: |input| {
            for fs_type in ["ext4", "xfs"].map(FsType::from_str).into_iter().flatten() {
                if let Ok(arguments) = options::mkfs_arguments(fs_type, &text(input)) {
                    assert!(arguments.iter().all(|argument| !argument.contains(['\0', '\n'])));
                }
            }
        },
    },
    Decoder {
        name: "endpoint",
        seeds: &["unix:///csi/csi.sock", "unix:/a.sock", "tcp://1.2.3.4:5"],
        run: |input| {
            if let Ok(endpoint) = text(input).parse::<Endpoint>() {
                assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
            }
        },
    },
    Decoder {
        name: "grpc-timeout",
        seeds: &["10S", "99999999H", "250m", "1n"],
        run: |input| _ = deadline::parse(&text(input)),
    },
    Decoder {
        name: "names",
        seeds: &["pvc-1", "x.deleted", "名前/a@b", "0123456789abcdef0123456789abcdef"],
        run: |input| {
            let text = text(input);
            let name = names::rbd_name("csi-", &text, 60);
            assert!(is_name(&name) && name.len() <= 60, "{name}");
            drop(validate::name(&text));
        },
    },
    Decoder {
        name: "messages",
        seeds: &[
            "\n\u{4}name\u{12}\u{2}\u{8}\u{5}\u{1a}\u{2}\u{a}\u{0}\"\u{6}\n\u{1}a\u{12}\u{1}b",
        ],
        run: |input| {
            if let Ok(request) = CreateVolumeRequest::decode(input) {
                drop(validate::name(&request.name));
                drop(validate::capabilities(&request.volume_capabilities));
                drop(validate::sizes(request.capacity_range.as_ref()));
                drop(validate::map("parameters", &request.parameters));
                assert_eq!(
                    CreateVolumeRequest::decode(&request.encode_to_vec()[..]).ok(),
                    Some(request)
                );
            }
            drop(ControllerPublishVolumeRequest::decode(input));
            drop(NodeStageVolumeRequest::decode(input));
        },
    },
];

fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

/// Keys and values, with a bar after each; no more of them than a request may have.
fn map(input: &[u8]) -> Parameters {
    let text = text(&input[..input.len().min(4096)]);
    let mut parts = text.split('|');
    let mut map = BTreeMap::new();
    while let Some(key) = parts.next() {
        map.insert(key.to_owned(), parts.next().unwrap_or_default().to_owned());
    }
    map
}

fn location(pool: &str) -> Location {
    Location { cluster: "lab".into(), pool: pool.into(), namespace: String::new() }
}

thread_local! {
    static CONFIG: Config = Config::parse("- {clusterID: lab, monitors: [m]}").unwrap_or_default();
}

fn config() -> Config {
    CONFIG.with(Config::clone)
}

/// What was read is read as the same when it is written.
fn again<T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + Debug>(input: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(input) {
        let written = serde_json::to_vec(&value).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<T>(&written).ok(), Some(value));
    }
}

fn stored<R: Record + Debug>(input: &[u8]) {
    if let Ok(stored) = catalogue::parse::<R>("object", "key".into(), input.to_vec()) {
        let written = catalogue::stored("key".into(), stored.record.clone());
        let again = catalogue::parse::<R>("object", "key".into(), written.bytes)
            .map(|stored| stored.record);
        assert_eq!(again.ok(), Some(stored.record));
    }
}
