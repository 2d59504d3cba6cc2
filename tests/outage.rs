//! One cluster's outage stays its own: a node takes down the volumes of a cluster that does not
//! answer, and another cluster's volume comes and goes there meanwhile.
//!
//! Needs root, FUSE, loop devices, and the environment `lab/ceph env` prints.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::{
    ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, NodeGetVolumeStatsRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest,
};
use common::driver::{Class, Driver, MIB, cluster_config, filesystem, within};
use common::{Lab, Namespace, OwnLab, PATIENCE};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// More than a node has workers.
const VOLUMES: usize = 40;
/// How many of them come at a time.
const AT_A_TIME: usize = 4;
/// How often the other cluster's volume comes and goes meanwhile.
const LIVES: usize = 5;
/// What a kubelet gives an RPC, in seconds.
const DEADLINE: u64 = 120;

const NODE: &str = "node-1";

/// A volume, and its paths on the node.
#[derive(Clone)]
struct Volume {
    class: Class,
    id: String,
    context: BTreeMap<String, String>,
    folder: PathBuf,
    channel: Channel,
}

impl Volume {
    async fn create(driver: &Driver, class: &Class, name: &str) -> Volume {
        let channel = driver.channel().await;
        let request = class.create_volume(name, 32 * MIB);
        let made = driver.controller().await.create_volume(request).await.unwrap().into_inner();
        let made = made.volume.unwrap();
        let folder = driver.folder().join(name);
        fs::create_dir_all(folder.join("staging")).unwrap();
        Volume {
            class: class.clone(),
            id: made.volume_id,
            context: made.volume_context,
            folder,
            channel,
        }
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    fn text(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// From ControllerPublishVolume to a file that a pod wrote.
    async fn come(&self) -> Duration {
        let request = ControllerPublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: NODE.to_owned(),
            volume_capability: Some(filesystem()),
            volume_context: self.context.clone(),
            secrets: self.class.secrets.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        let began = Instant::now();
        let answer = self.controller().controller_publish_volume(request).await.unwrap();
        let publish_context = answer.into_inner().publish_context;
        let stage = NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: self.text("staging"),
            volume_capability: Some(filesystem()),
            secrets: self.class.secrets.clone(),
            volume_context: self.context.clone(),
        };
        self.node().node_stage_volume(within(DEADLINE, stage)).await.unwrap();
        let publish = NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            publish_context,
            staging_target_path: self.text("staging"),
            target_path: self.text("target"),
            volume_capability: Some(filesystem()),
            volume_context: self.context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        self.node().node_publish_volume(within(DEADLINE, publish)).await.unwrap();
        let mut file = File::create(self.folder.join("target/data")).unwrap();
        file.write_all(self.id.as_bytes()).unwrap();
        file.sync_all().unwrap();
        began.elapsed()
    }

    async fn stats(&self) -> Result<(), Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path: self.text("target"),
            staging_target_path: self.text("staging"),
        };
        self.node().node_get_volume_stats(within(DEADLINE, request)).await.map(drop)
    }

    async fn unpublish(&self) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: self.text("target"),
        };
        self.node().node_unpublish_volume(within(DEADLINE, request)).await.map(drop)
    }

    async fn unstage(&self) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.text("staging"),
        };
        self.node().node_unstage_volume(within(DEADLINE, request)).await.map(drop)
    }

    /// Takes it down on the node as a kubelet does, which asks until it is done.
    async fn go(&self) -> Duration {
        let began = Instant::now();
        for unstage in [false, true] {
            loop {
                let outcome = if unstage { self.unstage().await } else { self.unpublish().await };
                match outcome {
                    Ok(()) => break,
                    Err(status) => {
                        assert!(is_of_an_outage(&status), "{}: {status}", self.id);
                        assert!(began.elapsed() < 2 * PATIENCE, "{}: {status}", self.id);
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                }
            }
        }
        began.elapsed()
    }

    async fn delete(&self) {
        let mut controller = self.controller();
        let request = ControllerUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: NODE.to_owned(),
            secrets: self.class.secrets.clone(),
        };
        controller.controller_unpublish_volume(request).await.unwrap();
        controller.delete_volume(self.class.delete_volume(&self.id)).await.unwrap();
    }
}

/// Whether an answer tells the caller to ask again.
fn is_of_an_outage(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Aborted)
}

/// A daemon of a lab that does not answer, and goes on when this is dropped.
struct Stopped<'a>(&'a OwnLab);

impl<'a> Stopped<'a> {
    fn osd(lab: &'a OwnLab) -> Stopped<'a> {
        lab.daemon("stop", "osd");
        Stopped(lab)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.daemon("cont", "osd");
    }
}

/// The median time in which the volume comes, is used, looked at, and goes.
async fn lives(volume: &Volume) -> Duration {
    let mut times = Vec::new();
    for _ in 0..LIVES {
        let coming = volume.come().await;
        let began = Instant::now();
        volume.stats().await.unwrap();
        assert_eq!(fs::read(volume.folder.join("target/data")).unwrap(), volume.id.as_bytes());
        times.push(coming + began.elapsed() + volume.go().await);
    }
    times.sort();
    times[LIVES / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_volumes_of_a_dead_cluster_hold_up_no_others() {
    let (healthy, dead) = (Lab::from_environment(), OwnLab::up());
    let states = tempfile::tempdir().unwrap();
    let config = cluster_config("lab", &healthy) + &cluster_config("dead", &dead);
    let arguments =
        ["--node-id", NODE, "--state-dir", states.path().to_str().unwrap(), "--log-level", "warn"];
    let driver = Driver::start(&config, &arguments);
    let namespace = Namespace::new(&healthy);
    let class = Class::new(&healthy, &namespace.name).with("mounter", "fuse");
    let other = Class::new(&dead, &dead.namespace("dead")).with("clusterID", "dead");
    let other = other.with("mounter", "fuse");

    let mut volumes = Vec::new();
    for number in 0..VOLUMES {
        volumes.push(Volume::create(&driver, &other, &format!("dead-{number}")).await);
    }
    for some in volumes.chunks(AT_A_TIME) {
        let coming: JoinSet<_> =
            some.iter().cloned().map(|volume| async move { volume.come().await }).collect();
        coming.join_all().await;
    }
    let volume = Volume::create(&driver, &class, "healthy").await;
    let idle = lives(&volume).await;

    let stopped = Stopped::osd(&dead);
    let mut going = JoinSet::new();
    for volume in &volumes {
        // What the page cache has and the cluster has not.
        fs::write(volume.folder.join("target/more"), b"not yet there").unwrap();
        let (taken_down, looked_at) = (volume.clone(), volume.clone());
        going.spawn(async move { taken_down.go().await });
        tokio::spawn(async move { looked_at.stats().await });
    }
    let busy = lives(&volume).await;
    let ended = std::iter::from_fn(|| going.try_join_next()).count();
    drop(stopped);
    assert_eq!(ended, 0, "the cluster was dead, and volumes of it were taken down");
    let mut longest = Duration::ZERO;
    while let Some(took) = going.join_next().await {
        longest = longest.max(took.unwrap());
    }
    println!(
        "a volume's life of coming and going: {idle:?} on an idle node, {busy:?} beside {VOLUMES} \
         volumes of a dead cluster; those went within {longest:?}"
    );

    for volume in volumes.iter().chain([&volume]) {
        volume.delete().await;
    }
    driver.stop();
    namespace.assert_nothing_is_left();
}
