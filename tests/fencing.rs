//! Nodes that are lost without letting go of their volume, on a real Ceph: a controller, two nodes
//! on the `fuse` mounter. The first freezes in the middle of writing until its watch has ended, is
//! unpublished and fenced, and wakes up when the second has the volume. And nodes that are not
//! lost, and are not fenced.
//!
//! Needs root, FUSE, loop devices, and the environment `lab/ceph env` prints.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "counts are whole")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::volume_capability::access_mode::Mode;
use cinderblock::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, NodeExpandVolumeRequest, NodeGetVolumeHealthRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
};
use cinderblock::rbd::{ImageKey, OpenMode};
use common::driver::{Class, Driver, MIB, block, filesystem, from_volume, lab_config};
use common::scrape::MONITORED;
use common::{Lab, Namespace, wait_until};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// What is wrong, and where the port for monitoring is.
const QUIET: &str = "warn,cinderblock::monitoring=info";

/// A volume as a controller made it.
struct Volume {
    class: Class,
    capability: VolumeCapability,
    id: String,
    context: BTreeMap<String, String>,
    controller: ControllerClient<Channel>,
    /// The addresses of all clients that were seen to watch it.
    seen: Mutex<BTreeSet<String>>,
}

impl Volume {
    async fn publish(&mut self, node: &str) -> Result<BTreeMap<String, String>, Status> {
        let request = ControllerPublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: node.to_owned(),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.context.clone(),
            secrets: self.class.secrets.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        let answer = self.controller.controller_publish_volume(request).await?;
        Ok(answer.into_inner().publish_context)
    }

    async fn unpublish(&mut self, node: &str) {
        self.try_unpublish(node).await.unwrap();
    }

    async fn try_unpublish(&mut self, node: &str) -> Result<(), Status> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: node.to_owned(),
            secrets: self.class.secrets.clone(),
        };
        self.controller.controller_unpublish_volume(request).await.map(drop)
    }

    /// The addresses of those who watch the image, as `rbd status` tells.
    fn watchers(&self) -> Vec<String> {
        let spec = self.id.split_once('/').unwrap().1;
        let output = Command::new("rbd")
            .args(["--id", &std::env::var("LAB_USER").unwrap(), "status", spec])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let addresses = text.lines().filter_map(|line| line.trim().strip_prefix("watcher="));
        let found: Vec<_> =
            addresses.map(|rest| rest.split(' ').next().unwrap().to_owned()).collect();
        self.seen.lock().unwrap().extend(found.iter().cloned());
        found
    }

    /// A clone of it.
    async fn clone_as(&mut self, name: &str) -> Volume {
        let mut request = self.class.create_volume(name, 64 * MIB);
        request.volume_capabilities = vec![self.capability.clone()];
        request.volume_content_source = Some(from_volume(&self.id));
        let made =
            self.controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
        Volume {
            class: self.class.clone(),
            capability: self.capability.clone(),
            id: made.volume_id,
            context: made.volume_context,
            controller: self.controller.clone(),
            seen: Mutex::default(),
        }
    }

    async fn delete(mut self) {
        self.controller.delete_volume(self.class.delete_volume(&self.id)).await.unwrap();
    }
}

/// One node: a driver, and the paths its orchestrator would make.
struct Node {
    name: &'static str,
    state: PathBuf,
    driver: Driver,
    /// An earlier driver, in whose folder the paths are.
    folder: Option<Driver>,
    client: NodeClient<Channel>,
}

impl Node {
    async fn start(lab: &Lab, name: &'static str, folder: &Path) -> Node {
        let state = folder.join(name);
        fs::create_dir_all(&state).unwrap();
        let driver = Node::serve(lab, name, &state);
        fs::create_dir_all(driver.folder().join("staging")).unwrap();
        let client = NodeClient::new(driver.channel().await);
        Node { name, state, driver, folder: None, client }
    }

    fn serve(lab: &Lab, name: &str, state: &Path) -> Driver {
        let arguments = [
            "--role",
            "node",
            "--node-id",
            name,
            "--state-dir",
            state.to_str().unwrap(),
            "--enable-alpha",
            "--log-level",
            QUIET,
            MONITORED[0],
            MONITORED[1],
        ];
        Driver::start(&lab_config(lab), &arguments)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.as_ref().unwrap_or(&self.driver).folder().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Starts the driver anew, as an upgrade does. The daemons go on, and the paths stay.
    async fn restart(&mut self, lab: &Lab) {
        self.driver.terminate();
        self.driver.wait();
        let next = Node::serve(lab, self.name, &self.state);
        self.client = NodeClient::new(next.channel().await);
        self.folder = Some(std::mem::replace(&mut self.driver, next));
    }

    async fn stage(
        &mut self,
        volume: &Volume,
        publish_context: &BTreeMap<String, String>,
    ) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: self.text("staging"),
            volume_capability: Some(volume.capability.clone()),
            secrets: volume.class.secrets.clone(),
            volume_context: volume.context.clone(),
        };
        self.client.node_stage_volume(request).await.map(drop)
    }

    /// Publishes, stages and publishes: the file system is at `target`.
    async fn attach(&mut self, volume: &mut Volume) {
        let publish_context = volume.publish(self.name).await.unwrap();
        self.stage(volume, &publish_context).await.unwrap();
        let request = NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context,
            staging_target_path: self.text("staging"),
            target_path: self.text("target"),
            volume_capability: Some(volume.capability.clone()),
            volume_context: volume.context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        self.client.node_publish_volume(request).await.unwrap();
        assert!(!volume.watchers().is_empty());
    }

    /// Takes it down here.
    async fn detach(&mut self, volume: &Volume) {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: self.text("target"),
        };
        self.client.node_unpublish_volume(request).await.unwrap();
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: self.text("staging"),
        };
        self.client.node_unstage_volume(request).await.unwrap();
    }

    /// The reasons of what is wrong with the volume here.
    async fn illnesses(&mut self, volume: &Volume) -> Vec<String> {
        let request = NodeGetVolumeHealthRequest {
            volume_id: volume.id.clone(),
            volume_publish_path: self.text("target"),
            staging_target_path: self.text("staging"),
        };
        let answer = self.client.node_get_volume_health(request).await.unwrap().into_inner();
        let statuses = answer.volume_health.unwrap().health_statuses;
        statuses.into_iter().map(|status| status.reason).collect()
    }
}

/// After a failed test: takes down by hand what the node has.
impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Some(daemon) = daemons(&self.state).next() {
            let _ = Command::new("kill").args(["-s", "KILL", &daemon.to_string()]).status();
        }
        for name in ["target", "staging"] {
            let _ = Command::new("umount").arg(self.path(name)).status();
        }
        for entry in fs::read_dir("/sys/block").unwrap().flatten() {
            let file =
                fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            if Path::new(&file).starts_with(&self.state) {
                let device = Path::new("/dev").join(entry.file_name());
                let _ = Command::new("losetup").arg("--detach").arg(device).status();
            }
        }
        for volume in fs::read_dir(&self.state).into_iter().flatten().flatten() {
            let _ = Command::new("umount").arg(volume.path().join("export")).status();
        }
    }
}

/// The storage daemon whose socket is below `folder`.
fn daemon(folder: &Path) -> u32 {
    daemons(folder).next().expect("no storage daemon runs")
}

fn daemons(folder: &Path) -> impl Iterator<Item = u32> {
    let below = folder.to_str().unwrap().to_owned();
    fs::read_dir("/proc").unwrap().flatten().filter_map(move |entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        (line.contains("qemu-storage-daemon") && line.contains(&below))
            .then(|| entry.file_name().to_str()?.parse().ok())?
    })
}

fn signal(process: u32, signal: &str) {
    assert!(
        Command::new("kill").args(["-s", signal, &process.to_string()]).status().unwrap().success()
    );
}

/// Wakes the process up also when a test fails.
struct Frozen(u32);

impl Frozen {
    fn new(process: u32) -> Frozen {
        signal(process, "STOP");
        Frozen(process)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

fn write_durably(path: &Path, data: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(data)?;
    file.sync_all()
}

/// A controller, two nodes, and a volume.
struct Field {
    lab: &'static Lab,
    namespace: Namespace<'static>,
    _states: tempfile::TempDir,
    controller: Driver,
    first: Node,
    second: Node,
    volume: Volume,
}

impl Field {
    async fn new(
        parameters: &[(&str, &str)],
        capability: VolumeCapability,
        arguments: &[&str],
    ) -> Field {
        let lab: &Lab = Box::leak(Box::new(Lab::from_environment()));
        let namespace = Namespace::new(lab);
        let states = tempfile::tempdir().unwrap();
        let own = ["--role", "controller", "--log-level", QUIET];
        let arguments = [&own[..], &MONITORED, arguments].concat();
        let controller = Driver::start(&lab_config(lab), &arguments);
        let class = Class::new(lab, &namespace.name).with("mounter", "fuse");
        let class = parameters.iter().fold(class, |class, (key, value)| class.with(key, value));
        let mut client = controller.controller().await;
        let mut request = class.create_volume("v", 64 * MIB);
        request.volume_capabilities = vec![capability.clone()];
        let made = client.create_volume(request).await.unwrap().into_inner().volume.unwrap();
        let volume = Volume {
            class,
            capability,
            id: made.volume_id,
            context: made.volume_context,
            controller: client,
            seen: Mutex::default(),
        };
        let first = Node::start(lab, "first", states.path()).await;
        let second = Node::start(lab, "second", states.path()).await;
        Field { lab, namespace, _states: states, controller, first, second, volume }
    }

    /// Those of the volume's clients that are fenced.
    fn fenced(&self) -> Vec<String> {
        let seen = self.volume.seen.lock().unwrap();
        fenced(self.lab).into_iter().filter(|address| seen.contains(address)).collect()
    }

    async fn finish(self) {
        let fenced = self.fenced();
        self.volume.delete().await;
        for address in fenced {
            let command = serde_json::json!({"prefix": "osd blocklist", "blocklistop": "rm", "addr": address});
            self.lab.connect().monitor_command(&command.to_string()).unwrap();
        }
        self.namespace.assert_nothing_is_left();
    }
}

/// Freezes the first node until its watch has ended, gives the volume to the second one, and thaws
/// the first.
async fn lose_the_first_node(features: &[(&str, &str)], snapshot_while_idle: bool) {
    let mut field = Field::new(features, filesystem(), &[]).await;
    let Field { first, second, volume, controller, .. } = &mut field;
    first.attach(volume).await;
    write_durably(&first.path("target/kept"), b"written before").unwrap();
    wait_until("the node counts the volume", || {
        let staged = first.driver.scrape().sum("mapped_devices", &[("mounter", "fuse")]);
        if staged >= 1.0 { Ok(()) } else { Err(staged) }
    });
    let fenced = |controller: &Driver| {
        ["node", "controller"]
            .map(|of| controller.scrape().sum("clients_fenced_total", &[("of", of)]))
    };
    assert_eq!(fenced(controller), [0.0, 0.0]);
    assert!(first.illnesses(volume).await.is_empty());
    assert_eq!(volume.publish("second").await.unwrap_err().code(), Code::FailedPrecondition);
    let [address] = <[String; 1]>::try_from(volume.watchers()).unwrap();
    let snapshot = if snapshot_while_idle {
        // The controller takes the exclusive lock for it, and the idle node does not ask for it
        // back.
        let request = volume.class.create_snapshot("s", &volume.id);
        let made = volume.controller.create_snapshot(request).await.unwrap().into_inner();
        Some(made.snapshot.unwrap().snapshot_id)
    } else {
        None
    };

    let frozen = Frozen::new(daemon(&first.state));
    // This write is on its way all the while.
    let late = std::thread::spawn({
        let path = first.path("target/late");
        move || write_durably(&path, &vec![7; 1 << 20])
    });
    let froze = Instant::now();
    wait_until_async(Duration::from_mins(5), "the watch to end", async || {
        match volume.watchers() {
            watchers if watchers.is_empty() => Ok(()),
            watchers => Err(watchers),
        }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(45).saturating_sub(froze.elapsed())).await;
    volume.unpublish("first").await;
    assert_eq!(fenced(controller), [1.0, 0.0]);
    second.attach(volume).await;
    let made = |node: &Node| node.driver.scrape().sum("mkfs_total", &[("result", "done")]);
    assert_eq!((made(first), made(second)), (1.0, 0.0));
    assert_eq!(fs::read(second.path("target/kept")).unwrap(), b"written before");
    let data: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).take(8 << 20).collect();
    write_durably(&second.path("target/new"), &data).unwrap();

    drop(frozen);
    late.join().unwrap().expect_err("a fenced node wrote");
    write_durably(&first.path("target/later"), b"x").expect_err("a fenced node wrote");
    wait_until_async(SOON, "the first node to tell that its volume is ill", async || {
        let illnesses = first.illnesses(volume).await;
        if illnesses.is_empty() { Err(illnesses) } else { Ok(()) }
    })
    .await;
    assert!(second.illnesses(volume).await.is_empty());
    let ill = |node: &Node| node.driver.scrape().sum("volume_illnesses_seen_total", &[]);
    assert!(ill(first) >= 1.0 && ill(second) < 1.0, "{} {}", ill(first), ill(second));
    first.detach(volume).await;

    // Nothing of the first node's is in what the second one reads from the image itself.
    second.detach(volume).await;
    second.attach(volume).await;
    assert_eq!(fs::read(second.path("target/kept")).unwrap(), b"written before");
    assert!(fs::read(second.path("target/new")).unwrap() == data);
    assert!(!second.path("target/late").exists() && !second.path("target/later").exists());
    second.detach(volume).await;
    volume.unpublish("second").await;
    // The first comes back clean.
    first.attach(volume).await;
    assert!(fs::read(first.path("target/new")).unwrap() == data);
    write_durably(&first.path("target/again"), b"x").unwrap();
    first.detach(volume).await;
    volume.unpublish("first").await;
    if let Some(id) = snapshot {
        volume.controller.delete_snapshot(volume.class.delete_snapshot(&id)).await.unwrap();
    }
    assert_eq!(field.fenced(), [address]);
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_whose_image_has_no_lock_writes_not_a_byte() {
    lose_the_first_node(&[("imageFeatures", "layering")], false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_writes_not_a_byte() {
    lose_the_first_node(&[], false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_that_lost_its_lock_to_a_snapshot_writes_not_a_byte() {
    lose_the_first_node(&[], true).await;
}

/// What a write past the kernel's cache is made from.
#[repr(align(4096))]
struct Block([u8; 4096]);

/// The write is acknowledged, fails, and is flushed after that: with librbd's cache, the flush said
/// that all was well.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_before_its_flush_is_not_told_to_be_durable() {
    let mut field =
        Field::new(&[("imageFeatures", "layering")], block(Mode::SingleNodeWriter), &[]).await;
    let Field { first, volume, .. } = &mut field;
    first.attach(volume).await;
    // Past the kernel's cache, so that each write reaches librbd before the flush does.
    let mut options = OpenOptions::new();
    let device =
        options.write(true).custom_flags(nix::libc::O_DIRECT).open(first.path("target")).unwrap();
    let block = Box::new(Block([1; 4096]));
    // librbd's cache begins to work with the first flush.
    device.write_all_at(&block.0, 0).and_then(|()| device.sync_all()).unwrap();
    let frozen = Frozen::new(daemon(&first.state));
    wait_until_async(Duration::from_mins(5), "the watch to end", async || {
        match volume.watchers() {
            watchers if watchers.is_empty() => Ok(()),
            watchers => Err(watchers),
        }
    })
    .await;
    volume.unpublish("first").await;
    drop(frozen);
    for place in 1..8 {
        let written = device.write_all_at(&block.0, place * 4096);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let flushed = device.sync_all();
        assert!(written.is_err() || flushed.is_err(), "write {place} was told to be durable");
    }
    drop(device);
    first.detach(volume).await;
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_grew_is_fenced_by_its_new_client() {
    // A mounted ext4 grows with CAP_SYS_RESOURCE alone, a raw device always.
    let mut field =
        Field::new(&[("imageFeatures", "layering")], block(Mode::SingleNodeWriter), &[]).await;
    let Field { first, volume, .. } = &mut field;
    first.attach(volume).await;
    let before = volume.watchers();
    let size = 128 * MIB;
    let range = Some(CapacityRange { required_bytes: size, limit_bytes: 0 });
    let grow = ControllerExpandVolumeRequest {
        volume_id: volume.id.clone(),
        capacity_range: range,
        secrets: volume.class.secrets.clone(),
        ..ControllerExpandVolumeRequest::default()
    };
    volume.controller.controller_expand_volume(grow).await.unwrap();
    let grow = NodeExpandVolumeRequest {
        volume_id: volume.id.clone(),
        volume_path: first.text("target"),
        capacity_range: range,
        volume_capability: Some(volume.capability.clone()),
        ..NodeExpandVolumeRequest::default()
    };
    first.client.node_expand_volume(grow).await.unwrap();
    let after = volume.watchers();
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    volume.unpublish("first").await;
    assert_eq!(field.fenced(), after);
    let Field { first, volume, .. } = &mut field;
    assert!(write_durably(&first.path("target"), b"x").is_err());
    first.detach(volume).await;
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_good_order_is_not_fenced() {
    let mut field = Field::new(&[], filesystem(), &[]).await;
    let Field { first, second, volume, .. } = &mut field;
    for node in [first, second] {
        node.attach(volume).await;
        write_durably(&node.path("target/file"), b"x").unwrap();
        node.detach(volume).await;
        volume.unpublish(node.name).await;
    }
    assert!(field.fenced().is_empty(), "{:?}", field.fenced());
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_over_attaches_nothing() {
    let mut field = Field::new(&[], filesystem(), &[]).await;
    let Field { first, second, volume, .. } = &mut field;
    let context = volume.publish("first").await.unwrap();
    volume.unpublish("first").await;
    let refused = first.stage(volume, &context).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("unpublished from this node"), "{refused}");
    assert!(volume.watchers().is_empty() && daemons(&first.state).next().is_none());
    second.attach(volume).await;
    second.detach(volume).await;
    volume.unpublish("second").await;
    assert!(field.fenced().is_empty(), "{:?}", field.fenced());
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_driver_owes_its_note_and_the_volume_goes_elsewhere() {
    let mut field = Field::new(&[], filesystem(), &[]).await;
    field.first.attach(&mut field.volume).await;
    let watchers = field.volume.watchers();
    field.first.restart(field.lab).await;
    let Field { first, second, volume, .. } = &mut field;
    first.detach(volume).await;
    assert!(volume.watchers().is_empty());
    volume.unpublish("first").await;
    second.attach(volume).await;
    write_durably(&second.path("target/file"), b"x").unwrap();
    second.detach(volume).await;
    volume.unpublish("second").await;
    // The client that was gone, and no other.
    assert_eq!(field.fenced(), watchers);
    let Field { first, volume, .. } = &mut field;
    assert_eq!(fs::read_dir(first.state.join("owed")).unwrap().count(), 1);
    first.attach(volume).await;
    assert_eq!(fs::read_dir(first.state.join("owed")).unwrap().count(), 0);
    first.detach(volume).await;
    volume.unpublish("first").await;
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_is_fenced_before_the_next_one_is_started() {
    let mut field = Field::new(&[("imageFeatures", "layering")], filesystem(), &[]).await;
    let Field { first, volume, .. } = &mut field;
    first.attach(volume).await;
    let killed = volume.watchers();
    signal(daemon(&first.state), "KILL");
    wait_until_async(SOON, "the daemon's end", async || match daemons(&first.state).next() {
        None => Ok(()),
        some => Err(some),
    })
    .await;
    let request = NodeUnpublishVolumeRequest {
        volume_id: volume.id.clone(),
        target_path: first.text("target"),
    };
    first.client.node_unpublish_volume(request).await.unwrap();
    first.attach(volume).await;
    write_durably(&first.path("target/file"), b"x").unwrap();
    first.detach(volume).await;
    volume.unpublish("first").await;
    assert_eq!(field.fenced(), killed);
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_does_not_fence_names_the_command() {
    let mut field = Field::new(&[], filesystem(), &["--no-fence"]).await;
    let Field { first, volume, .. } = &mut field;
    first.attach(volume).await;
    let refused = volume.try_unpublish("first").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let command = format!("ceph osd blocklist add {} ", volume.watchers()[0]);
    assert!(refused.message().contains(&command), "{refused}");
    write_durably(&first.path("target/file"), b"x").unwrap();
    first.detach(volume).await;
    volume.unpublish("first").await;
    assert!(field.fenced().is_empty());
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_fence_the_volume_stays_until_the_command_gives_it() {
    let mut field = Field::new(&[], filesystem(), &[]).await;
    let (user, key) =
        field.lab.user("fences-nobody", &["mon", "allow r", "osd", "profile rbd pool=rbd"]);
    let Field { first, volume, lab, .. } = &mut field;
    first.attach(volume).await;
    let watchers = volume.watchers();
    let right = volume.class.clone();
    volume.class = right.clone().of_user(&user, &key);
    let refused = volume.try_unpublish("first").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    write_durably(&first.path("target/file"), b"x").unwrap();
    assert!(fenced(lab).iter().all(|address| !watchers.contains(address)));
    lab.run_from_message(refused.message(), "run: ").unwrap();
    volume.unpublish("first").await;
    write_durably(&first.path("target/file"), b"y").unwrap_err();
    first.detach(volume).await;
    volume.class = right;
    lab.remove_user(&user);
    assert_eq!(field.fenced(), watchers);
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_that_share_a_volume_the_lost_one_is_fenced() {
    let mut field = Field::new(&[], block(Mode::MultiNodeMultiWriter), &[]).await;
    let Field { first, second, volume, .. } = &mut field;
    first.attach(volume).await;
    let lost = volume.watchers();
    second.attach(volume).await;
    let frozen = Frozen::new(daemon(&first.state));
    volume.unpublish("first").await;
    write_block(&second.path("target"), 1).unwrap();
    drop(frozen);
    assert!(write_block(&first.path("target"), 2).is_err());
    write_block(&second.path("target"), 3).unwrap();
    assert!(second.illnesses(volume).await.is_empty());
    first.detach(volume).await;
    first.attach(volume).await;
    write_block(&first.path("target"), 4).unwrap();
    for node in [first, second] {
        node.detach(volume).await;
        volume.unpublish(node.name).await;
    }
    assert_eq!(field.fenced(), lost);
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_note_is_named_and_never_fenced() {
    let mut field = Field::new(&[], filesystem(), &[]).await;
    let Field { lab, namespace, first, volume, .. } = &mut field;
    let cluster = lab.connect();
    let image = volume.id.rsplit_once('/').unwrap().1.to_owned();
    let backup =
        namespace.pool(&*cluster).open_image(ImageKey::Name(&image), OpenMode::ReadWrite).unwrap();
    let address = volume.watchers().pop().unwrap();
    let refused = volume.publish("first").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains(&address), "{address} is not in {refused}");
    drop(backup);
    first.attach(volume).await;
    let noted = volume.watchers();
    let backup =
        namespace.pool(&*cluster).open_image(ImageKey::Name(&image), OpenMode::ReadWrite).unwrap();
    assert_eq!(volume.watchers().len(), 2);
    // The node does not let go, so its client is fenced; the other one goes on.
    volume.unpublish("first").await;
    backup.write_at(0, b"goes on").unwrap();
    drop(backup);
    assert!(write_durably(&first.path("target/file"), b"x").is_err());
    first.detach(volume).await;
    assert_eq!(field.fenced(), noted);
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_is_lost_leaves_its_mounted_source_writing() {
    let mut field = Field::new(&[], filesystem(), &[]).await;
    let Field { first, second, volume, .. } = &mut field;
    first.attach(volume).await;
    write_durably(&first.path("target/file"), b"of the source").unwrap();
    let mut clone = volume.clone_as("w").await;
    second.attach(&mut clone).await;
    let lost = clone.watchers();
    // Taken away from the node that has it, as from one that is lost.
    clone.unpublish("second").await;
    assert!(write_durably(&second.path("target/file"), b"x").is_err());
    second.detach(&clone).await;
    write_durably(&first.path("target/file"), b"goes on").unwrap();
    first.detach(volume).await;
    volume.unpublish("first").await;
    assert!(field.fenced().is_empty(), "{:?}", field.fenced());
    field.volume.seen.lock().unwrap().extend(lost.iter().cloned());
    assert_eq!(field.fenced(), lost);
    clone.delete().await;
    field.finish().await;
}

fn write_block(device: &Path, number: u8) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(device)?;
    file.write_all(&[number; 4096])?;
    file.sync_all()
}

/// Long enough for anything that should happen at once on a busy machine.
const SOON: Duration = Duration::from_mins(5);

/// Waits for what is asked of a driver.
async fn wait_until_async<E: std::fmt::Debug>(
    patience: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<(), E>,
) {
    let deadline = Instant::now() + patience;
    while let Err(not_yet) = condition().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}: {not_yet:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The clients on the lab's blocklist that are there for years: those of nodes and controllers that
/// were fenced.
fn fenced(lab: &Lab) -> Vec<String> {
    let cluster = lab.connect();
    let command = serde_json::json!({"prefix": "osd blocklist ls", "format": "json"});
    let listed = cluster.monitor_command(&command.to_string()).unwrap();
    // The ranges come after the clients, in a list of their own.
    let mut lists = serde_json::Deserializer::from_slice(&listed).into_iter();
    let entries: Vec<BTreeMap<String, String>> = lists.next().unwrap().unwrap();
    let year = |until: &str| until[..4].parse::<i16>().unwrap();
    let now = jiff::Zoned::now().year();
    let fenced = entries.into_iter().filter(|entry| year(&entry["until"]) > now + 3);
    fenced.map(|mut entry| entry.remove("addr").unwrap()).collect()
}
