//! A node that is lost without letting go of its volume, on a real Ceph: a controller, two nodes on the `fuse` mounter. The first
//! freezes in the middle of writing, is unpublished and fenced, and wakes up when the second has the volume.
//!
//! Needs root, FUSE, loop devices, and the environment `lab/ceph env` prints.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::{
    ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, NodeGetVolumeHealthRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
};
use common::driver::{Class, Driver, MIB, filesystem, lab_config};
use common::{Lab, Namespace};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A volume as a controller made it.
struct Volume<'a> {
    lab: &'a Lab,
    class: Class,
    id: String,
    context: BTreeMap<String, String>,
    controller: ControllerClient<Channel>,
}

impl Volume<'_> {
    async fn publish(&mut self, node: &str) -> Result<BTreeMap<String, String>, Status> {
        let request = ControllerPublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: node.to_owned(),
            volume_capability: Some(filesystem()),
            volume_context: self.context.clone(),
            secrets: self.class.secrets.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        let answer = self.controller.controller_publish_volume(request).await?;
        Ok(answer.into_inner().publish_context)
    }

    async fn unpublish(&mut self, node: &str) {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: node.to_owned(),
            secrets: self.class.secrets.clone(),
        };
        self.controller.controller_unpublish_volume(request).await.unwrap();
    }
}

/// One node: a driver, and the paths its orchestrator would make.
struct Node {
    name: &'static str,
    state: PathBuf,
    driver: Driver,
    client: NodeClient<Channel>,
}

impl Node {
    async fn start(lab: &Lab, name: &'static str, folder: &Path) -> Node {
        let state = folder.join(name);
        fs::create_dir_all(&state).unwrap();
        let arguments = [
            "--role",
            "node",
            "--node-id",
            name,
            "--state-dir",
            state.to_str().unwrap(),
            "--enable-alpha",
            "--log-level",
            "warn",
        ];
        let driver = Driver::start(&lab_config(lab), &arguments);
        fs::create_dir_all(driver.folder().join("staging")).unwrap();
        let client = NodeClient::new(driver.channel().await);
        Node { name, state, driver, client }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.driver.folder().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Publishes, stages and publishes: the file system is at `target`.
    async fn attach(&mut self, volume: &mut Volume<'_>) {
        let publish_context = volume.publish(self.name).await.unwrap();
        let request = NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: self.text("staging"),
            volume_capability: Some(filesystem()),
            secrets: volume.class.secrets.clone(),
            volume_context: volume.context.clone(),
        };
        self.client.node_stage_volume(request).await.unwrap();
        let request = NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context,
            staging_target_path: self.text("staging"),
            target_path: self.text("target"),
            volume_capability: Some(filesystem()),
            volume_context: volume.context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        self.client.node_publish_volume(request).await.unwrap();
    }

    /// Takes it down here.
    async fn detach(&mut self, volume: &Volume<'_>) {
        let request =
            NodeUnpublishVolumeRequest { volume_id: volume.id.clone(), target_path: self.text("target") };
        self.client.node_unpublish_volume(request).await.unwrap();
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: self.text("staging"),
        };
        self.client.node_unstage_volume(request).await.unwrap();
    }

    /// The reasons of what is wrong with the volume here.
    async fn illnesses(&mut self, volume: &Volume<'_>) -> Vec<String> {
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
            let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
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
    assert!(Command::new("kill").args(["-s", signal, &process.to_string()]).status().unwrap().success());
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

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_is_fenced_before_another_gets_its_volume() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let states = tempfile::tempdir().unwrap();
    let controller =
        Driver::start(&lab_config(&lab), &["--role", "controller", "--fence", "--log-level", "warn"]);
    let class = Class::new(&lab, &namespace.name).with("mounter", "fuse");
    let mut client = controller.controller().await;
    let made = client.create_volume(class.create_volume("v", 64 * MIB)).await.unwrap();
    let made = made.into_inner().volume.unwrap();
    let mut volume = Volume {
        lab: &lab,
        class: class.clone(),
        id: made.volume_id.clone(),
        context: made.volume_context,
        controller: client.clone(),
    };
    let mut first = Node::start(&lab, "first", states.path()).await;
    let mut second = Node::start(&lab, "second", states.path()).await;

    first.attach(&mut volume).await;
    write_durably(&first.path("target/kept"), b"written before").unwrap();
    assert!(first.illnesses(&volume).await.is_empty());
    assert_eq!(volume.publish("second").await.unwrap_err().code(), Code::FailedPrecondition);

    let frozen = Frozen::new(daemon(&states.path().join("first")));
    // This write is on its way all the while.
    let late = std::thread::spawn({
        let path = first.path("target/late");
        move || write_durably(&path, &vec![7; 1 << 20])
    });
    let began = Instant::now();
    volume.unpublish("first").await;
    second.attach(&mut volume).await;
    let taken = began.elapsed();
    assert_eq!(fs::read(second.path("target/kept")).unwrap(), b"written before");
    let data: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).take(8 << 20).collect();
    write_durably(&second.path("target/new"), &data).unwrap();

    drop(frozen);
    late.join().unwrap().expect_err("a fenced node wrote");
    assert!(write_durably(&first.path("target/later"), b"x").is_err());
    wait_until_async("the first node to tell that its volume is ill", async || {
        let illnesses = first.illnesses(&volume).await;
        if illnesses.is_empty() { Err(illnesses) } else { Ok(()) }
    })
    .await;
    assert!(second.illnesses(&volume).await.is_empty());
    first.detach(&volume).await;

    // Nothing of the first node's is in what the second one reads from the image itself.
    second.detach(&volume).await;
    second.attach(&mut volume).await;
    assert_eq!(fs::read(second.path("target/kept")).unwrap(), b"written before");
    assert!(fs::read(second.path("target/new")).unwrap() == data);
    assert!(!second.path("target/late").exists());
    second.detach(&volume).await;
    volume.unpublish("second").await;
    println!("from losing the first node to writing on the second: {taken:?}");

    client.delete_volume(class.delete_volume(&volume.id)).await.unwrap();
    forget_fenced(volume.lab);
    namespace.assert_nothing_is_left();
}

/// Waits for what is asked of a driver.
async fn wait_until_async<E: std::fmt::Debug>(what: &str, mut condition: impl AsyncFnMut() -> Result<(), E>) {
    let deadline = Instant::now() + Duration::from_mins(5);
    while let Err(not_yet) = condition().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}: {not_yet:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Takes the entries of five years off the lab's blocklist. There must be one; nobody else makes such.
fn forget_fenced(lab: &Lab) {
    let cluster = lab.connect();
    let command = |command: serde_json::Value| cluster.monitor_command(&command.to_string()).unwrap();
    let listed = command(serde_json::json!({"prefix": "osd blocklist ls", "format": "json"}));
    // The ranges come after the clients, in a list of their own.
    let mut lists = serde_json::Deserializer::from_slice(&listed).into_iter();
    let entries: Vec<BTreeMap<String, String>> = lists.next().unwrap().unwrap();
    let year = |until: &str| until[..4].parse::<i16>().unwrap();
    let now = jiff::Zoned::now().year();
    let fenced: Vec<_> = entries.iter().filter(|entry| year(&entry["until"]) > now + 3).collect();
    assert!(!fenced.is_empty(), "{entries:?}");
    for entry in fenced {
        command(serde_json::json!({"prefix": "osd blocklist", "blocklistop": "rm", "addr": entry["addr"]}));
    }
}
