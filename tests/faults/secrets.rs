//! A key and a token that can be told from all others go through every RPC, at trace level, in
//! success and in failure; then they are looked for in everything that others can read.
//!
//! The key is what the CSI specification calls a secret. The token stands for what it does not: the
//! service-account tokens that kubelet puts into a volume's context (CVE-2023-2878, CVE-2024-3744).
//! So a request that is logged as it is shows here, though its secrets are redacted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use cinderblock::csi::proto::group_controller_client::GroupControllerClient;
use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::snapshot_metadata_client::SnapshotMetadataClient;
use cinderblock::csi::proto::*;
use cinderblock::rbd::Key;
use prost_reflect::prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MethodDescriptor, Value,
};
use tonic::Request;

use crate::common::bytes::Bytes;
use crate::common::driver::{Class, Driver, MIB, filesystem, lab_config, secrets_of};
use crate::common::scrape::MONITORED;
use crate::common::{Lab, Namespace, POOL};

const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
const TOKEN: &str = "eyCanaryTokenOfAServiceAccount";

/// What must be seen nowhere.
#[derive(Clone)]
struct Marks(Vec<String>);

impl Marks {
    /// The token and the key, the latter without its first characters, which all keys have in
    /// common, and as base64.
    fn of(key: &Key) -> Marks {
        Marks(vec![
            TOKEN.to_string(),
            key.expose()[8..24].to_string(),
            base64(key.expose())[8..32].to_string(),
        ])
    }

    fn are_in(&self, bytes: &[u8]) -> bool {
        self.0.iter().any(|mark| bytes.windows(mark.len()).any(|window| window == mark.as_bytes()))
    }
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |bytes: &[u8]| {
        let bits = bytes.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[bits >> shift & 63]))
    };
    text.as_bytes().chunks_exact(3).flat_map(group).collect()
}

/// Reads the command line and the environment of every process, over and over, until told to stop.
/// And looks whether the daemon that has an image open could write its memory into a core dump.
struct Watch {
    stop: Arc<AtomicBool>,
    found: Arc<Mutex<BTreeSet<String>>>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn begin(marks: Marks) -> Watch {
        let (stop, found) =
            (Arc::<AtomicBool>::default(), Arc::<Mutex<BTreeSet<String>>>::default());
        let (stopped, seen) = (stop.clone(), found.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for process in std::fs::read_dir("/proc").unwrap().flatten() {
                    for file in ["cmdline", "environ"] {
                        let path = process.path().join(file);
                        // What is no process has no such file; one that has ended meanwhile
                        // neither.
                        if std::fs::read(&path).is_ok_and(|bytes| marks.are_in(&bytes)) {
                            seen.lock().unwrap().insert(path.display().to_string());
                        }
                    }
                    if may_dump_core(&process.path()) {
                        let what = format!("a core dump of {}", process.path().display());
                        seen.lock().unwrap().insert(what);
                    }
                }
                // Nothing a driver starts is gone sooner.
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Watch { stop, found, thread }
    }

    fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.found.lock().unwrap().clone()
    }
}

/// Whether this process is a daemon of the mounter `fuse` that the kernel lets dump core.
fn may_dump_core(process: &Path) -> bool {
    let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    let limits = std::fs::read_to_string(process.join("limits")).unwrap_or_default();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
    // The kernel keeps 15 bytes of a name.
    name.starts_with("qemu-storage-da")
        && core.is_some_and(|core| !core.split_whitespace().eq(["0", "0", "bytes"]))
}

fn methods() -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

/// A message with every field set: strings and paths to `text`, secrets to `secrets`, contexts to
/// hold the token.
fn filled(
    descriptor: &prost_reflect::MessageDescriptor,
    text: &str,
    secrets: &BTreeMap<String, String>,
) -> DynamicMessage {
    let map = |entries: &BTreeMap<String, String>| {
        let entry = |(key, value): (&String, &String)| {
            (MapKey::String(key.clone()), Value::String(value.clone()))
        };
        Value::Map(entries.iter().map(entry).collect::<HashMap<_, _>>())
    };
    let tokens = BTreeMap::from([(TOKENS.to_string(), TOKEN.to_string())]);
    let value = |field: &FieldDescriptor| match field.kind() {
        Kind::String => Some(Value::String(text.to_string())),
        Kind::Message(message) if field.containing_oneof().is_none() => {
            Some(Value::Message(filled(&message, text, secrets)))
        }
        _ => None,
    };
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        if field.is_map() {
            let of_secrets = field.name().contains("secret");
            message.set_field(&field, map(if of_secrets { secrets } else { &tokens }));
        } else if let Some(value) = value(&field) {
            message
                .set_field(&field, if field.is_list() { Value::List(vec![value]) } else { value });
        }
    }
    message
}

/// Sends to each method what [`filled`] makes, and gives all that came back.
async fn provoke(driver: &Driver, text: &str, secrets: &BTreeMap<String, String>) -> String {
    let mut answers = String::new();
    for method in methods() {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let mut grpc = tonic::client::Grpc::new(driver.channel().await);
        grpc.ready().await.unwrap();
        let request = Request::new(filled(&method.input(), text, secrets).encode_to_vec());
        let answer = grpc.server_streaming(request, path.parse().unwrap(), Bytes).await;
        let answer = match answer {
            Ok(response) => {
                let (metadata, mut stream, _) = response.into_parts();
                format!("{metadata:?} {:?}", stream.message().await)
            }
            Err(status) => format!("{status:?}"),
        };
        writeln!(answers, "{path} {answer}").unwrap();
    }
    answers
}

/// The life of a volume on both sides, with the token wherever a context is taken. Each RPC must
/// succeed; gives all answers.
async fn live(driver: &Driver, class: &Class) -> String {
    let mut answers = String::new();
    let mut controller = driver.controller().await;
    let channel = driver.channel().await;
    let (mut node, mut metadata) =
        (NodeClient::new(channel.clone()), SnapshotMetadataClient::new(channel.clone()));
    let mut groups = GroupControllerClient::new(channel.clone());
    macro_rules! ask {
        ($client:ident.$rpc:ident, $request:expr) => {{
            let answer = $client
                .$rpc($request)
                .await
                .unwrap_or_else(|status| panic!("{}: {status:?}", stringify!($rpc)));
            writeln!(answers, "{answer:?}").unwrap();
            answer.into_inner()
        }};
    }
    let secrets = || class.secrets.clone();
    let with_token = |context: &BTreeMap<String, String>| {
        let mut context = context.clone();
        context.insert(TOKENS.to_string(), TOKEN.to_string());
        context
    };
    let volume =
        ask!(controller.create_volume, class.create_volume("canary", 16 * MIB)).volume.unwrap();
    let id = || volume.volume_id.clone();
    let volume_context = with_token(&volume.volume_context);
    let publish = ControllerPublishVolumeRequest {
        volume_id: id(),
        node_id: "n1".into(),
        volume_capability: Some(filesystem()),
        secrets: secrets(),
        volume_context: volume_context.clone(),
        ..ControllerPublishVolumeRequest::default()
    };
    let publish_context = ask!(controller.controller_publish_volume, publish).publish_context;
    // Without the token: the specification wants the confirmed context repeated to the caller.
    let validate = ValidateVolumeCapabilitiesRequest {
        volume_id: id(),
        volume_context: volume.volume_context.clone(),
        volume_capabilities: vec![filesystem()],
        secrets: secrets(),
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    ask!(controller.validate_volume_capabilities, validate);
    let modify = ControllerModifyVolumeRequest {
        volume_id: id(),
        secrets: secrets(),
        mutable_parameters: [("rbd_qos_iops_limit".to_string(), "100000".to_string())].into(),
    };
    ask!(controller.controller_modify_volume, modify);

    let staging = driver.folder().join("staging");
    std::fs::create_dir(&staging).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_string();
    let (staging, target) = (path(&staging), path(&driver.folder().join("target")));
    let stage = NodeStageVolumeRequest {
        volume_id: id(),
        publish_context: publish_context.clone(),
        staging_target_path: staging.clone(),
        volume_capability: Some(filesystem()),
        secrets: secrets(),
        volume_context: volume_context.clone(),
    };
    ask!(node.node_stage_volume, stage);
    let publish = NodePublishVolumeRequest {
        volume_id: id(),
        publish_context,
        staging_target_path: staging.clone(),
        target_path: target.clone(),
        volume_capability: Some(filesystem()),
        secrets: secrets(),
        volume_context,
        ..NodePublishVolumeRequest::default()
    };
    ask!(node.node_publish_volume, publish);
    // Before the volume grows: growing a mounted ext4 takes a capability that not every machine
    // gives.
    let expand = NodeExpandVolumeRequest {
        volume_id: id(),
        volume_path: target.clone(),
        capacity_range: None,
        staging_target_path: staging.clone(),
        volume_capability: Some(filesystem()),
        secrets: secrets(),
    };
    ask!(node.node_expand_volume, expand);
    let expand = ControllerExpandVolumeRequest {
        volume_id: id(),
        capacity_range: Some(CapacityRange { required_bytes: 20 * MIB, limit_bytes: 0 }),
        secrets: secrets(),
        ..ControllerExpandVolumeRequest::default()
    };
    ask!(controller.controller_expand_volume, expand);
    let stats = NodeGetVolumeStatsRequest {
        volume_id: id(),
        volume_path: target.clone(),
        ..NodeGetVolumeStatsRequest::default()
    };
    ask!(node.node_get_volume_stats, stats);

    let mut snapshots = Vec::new();
    for name in ["older", "newer"] {
        let snapshot =
            ask!(controller.create_snapshot, class.create_snapshot(name, &volume.volume_id));
        snapshots.push(snapshot.snapshot.unwrap().snapshot_id);
    }
    let get = GetSnapshotRequest { snapshot_id: snapshots[0].clone(), secrets: secrets() };
    ask!(controller.get_snapshot, get);
    let list = ListSnapshotsRequest {
        source_volume_id: id(),
        secrets: secrets(),
        ..ListSnapshotsRequest::default()
    };
    assert_eq!(ask!(controller.list_snapshots, list).entries.len(), 2);
    ask!(controller.list_volumes, ListVolumesRequest::default());
    ask!(controller.get_capacity, GetCapacityRequest::default());
    ask!(controller.controller_get_volume, ControllerGetVolumeRequest { volume_id: id() });
    let allocated = GetMetadataAllocatedRequest {
        snapshot_id: snapshots[1].clone(),
        secrets: secrets(),
        ..GetMetadataAllocatedRequest::default()
    };
    let mut stream = ask!(metadata.get_metadata_allocated, allocated);
    writeln!(answers, "{:?}", stream.message().await.unwrap()).unwrap();
    let delta = GetMetadataDeltaRequest {
        base_snapshot_id: snapshots[0].clone(),
        target_snapshot_id: snapshots[1].clone(),
        secrets: secrets(),
        ..GetMetadataDeltaRequest::default()
    };
    let mut stream = ask!(metadata.get_metadata_delta, delta);
    writeln!(answers, "{:?}", stream.message().await.unwrap()).unwrap();

    let group = CreateVolumeGroupSnapshotRequest {
        name: "group".into(),
        source_volume_ids: vec![id()],
        secrets: secrets(),
        ..CreateVolumeGroupSnapshotRequest::default()
    };
    let group = ask!(groups.create_volume_group_snapshot, group).group_snapshot.unwrap();
    let group_snapshot_id = group.group_snapshot_id;
    let snapshot_ids: Vec<_> =
        group.snapshots.into_iter().map(|snapshot| snapshot.snapshot_id).collect();
    let get = GetVolumeGroupSnapshotRequest {
        group_snapshot_id: group_snapshot_id.clone(),
        snapshot_ids: snapshot_ids.clone(),
        secrets: secrets(),
    };
    ask!(groups.get_volume_group_snapshot, get);
    let delete =
        DeleteVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, secrets: secrets() };
    ask!(groups.delete_volume_group_snapshot, delete);

    let unpublish = NodeUnpublishVolumeRequest { volume_id: id(), target_path: target };
    ask!(node.node_unpublish_volume, unpublish);
    ask!(
        node.node_unstage_volume,
        NodeUnstageVolumeRequest { volume_id: id(), staging_target_path: staging }
    );
    let unpublish = ControllerUnpublishVolumeRequest {
        volume_id: id(),
        node_id: "n1".into(),
        secrets: secrets(),
    };
    ask!(controller.controller_unpublish_volume, unpublish);
    for snapshot in &snapshots {
        ask!(controller.delete_snapshot, class.delete_snapshot(snapshot));
    }
    ask!(controller.delete_volume, class.delete_volume(&volume.volume_id));
    answers
}

/// The RPCs that the log says succeeded.
fn succeeded(log: &str) -> BTreeSet<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines
        .filter(|line| line["fields"]["message"] == "done")
        .filter_map(|line| line["span"]["method"].as_str().map(str::to_owned))
        .collect()
}

/// The files under `folder`, that of the configuration's key left out.
fn files(folder: &Path, except: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&path, except)),
            Ok(kind) if kind.is_file() && path != except => found.push(path),
            _ => {}
        }
    }
    found
}

/// Ends the daemons of a test that failed and takes down its mounts, before its images go: a daemon
/// without its image hangs, and with it the process that unmounts.
struct Attached(PathBuf, PathBuf);

impl Drop for Attached {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let folders = [&self.0, &self.1].map(|folder| folder.display().to_string());
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            if command.contains("qemu-storage-daemon")
                && folders.iter().any(|folder| command.contains(folder))
            {
                let _ = Command::new("kill").arg("-9").arg(process.file_name()).status();
            }
        }
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if folders.iter().any(|folder| mount.starts_with(folder)) {
                let _ = Command::new("timeout").args(["10", "umount", mount]).status();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_and_no_token_is_seen_anywhere() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let capabilities =
        ["mon", "profile rbd", "osd", "profile rbd pool=rbd", "mgr", "profile rbd pool=rbd"];
    let (user, key) = lab.user("canary", &capabilities);
    let marks = Marks::of(&key);
    let watch = Watch::begin(marks.clone());

    let state = tempfile::tempdir().unwrap();
    let key_file = state.path().join("key");
    std::fs::write(&key_file, key.expose()).unwrap();
    let config = format!(
        "{}  userID: {user}\n  keyFile: {}\n  pools: [{POOL}/{}]\n",
        lab_config(&lab),
        key_file.display(),
        namespace.name
    );
    let state_dir = state.path().join("state");
    let arguments = [
        "--node-id",
        "n1",
        "--log-level",
        "trace",
        "--log-format",
        "json",
        "--state-dir",
        state_dir.to_str().unwrap(),
        MONITORED[0],
        MONITORED[1],
    ];
    let mut driver = Driver::start(&config, &arguments);
    let _attached = Attached(driver.folder().to_owned(), state.path().to_owned());
    let class = Class::new(&lab, &namespace.name).with("mounter", "fuse").of_user(&user, &key);

    let mut answers = live(&driver, &class).await;
    let place = format!("lab/{POOL}/{}", namespace.name);
    let malformed = Key::new(&format!("{}*", key.expose()));
    let without_user = BTreeMap::from([("userKey".to_string(), key.expose().to_string())]);
    for secrets in [
        secrets_of(&user, &key),
        secrets_of("nobody-of-this-name", &key),
        secrets_of(&user, &malformed),
        without_user,
    ] {
        for text in [
            String::new(),
            "/no/such/path".into(),
            format!("{place}/csi-x"),
            format!("{place}/1@csi-x"),
        ] {
            answers += &provoke(&driver, &text, &secrets).await;
        }
    }
    let succeeded = succeeded(&driver.log());
    for method in methods() {
        let name = method.name();
        let takes_secrets = method.input().fields().any(|field| field.name().contains("secret"));
        let is_served = !answers.lines().any(|line| {
            line.split(' ').next().is_some_and(|path| path.ends_with(name))
                && line.contains("Unimplemented")
        });
        assert!(
            !takes_secrets || !is_served || succeeded.contains(name),
            "{name} was not seen to succeed"
        );
    }
    assert!(answers.contains("Unauthenticated") && answers.contains("check userID and userKey"));

    let found = watch.end();
    assert!(found.is_empty(), "a process shows a secret: {found:?}");
    let shown =
        |text: &str| text.lines().find(|line| marks.are_in(line.as_bytes())).map(str::to_owned);
    assert_eq!(shown(&answers), None, "an answer holds a secret");
    let metrics = driver.scrape();
    assert!(metrics.sum("rpc_duration_seconds_count", &[]) > 100.0);
    assert_eq!(shown(&metrics.text), None, "a metric holds a secret");
    driver.terminate();
    assert_eq!(shown(&driver.log()), None, "the log holds a secret");
    let written: Vec<_> = [driver.folder(), state.path()]
        .into_iter()
        .flat_map(|folder| files(folder, &key_file))
        .filter(|file| std::fs::read(file).is_ok_and(|bytes| marks.are_in(&bytes)))
        .collect();
    assert!(written.is_empty(), "files hold a secret: {written:?}");
    lab.remove_user(&user);
    namespace.assert_nothing_is_left();
}

/// The check above can fail: it finds the marks where they are.
#[test]
fn marks_are_found_in_every_form() {
    let key = Key::new("AQCU0ARnAAAAABAAfK8wbqI8hcGyMdBbOSGrqg==");
    let marks = Marks::of(&key);
    for text in [key.expose().to_string(), base64(key.expose()), format!("x{TOKEN}y")] {
        assert!(marks.are_in(format!("before {text} after").as_bytes()), "{text}");
    }
    assert!(!marks.are_in(b"AQCU0ARnAAAAABAA and nothing else"));
    assert_eq!(base64("Manual"), "TWFudWFs");
}
