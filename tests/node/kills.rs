//! A driver killed at any moment of staging or unstaging: the next one goes on, and in the end
//! nothing is left.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::volume_capability::access_mode::Mode;
use cinderblock::csi::proto::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume,
};
use cinderblock::csi::proto::{NodeStageVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability};
use cinderblock::node::Access;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::growth::under_io;
use crate::lab::{SOON, Volume, ext4, key, mounter_name, variable, wait_until, write};

/// How many moments of one RPC a driver is killed at; `steps` has all that can be named.
const KILLS: u32 = 4;

/// A driver of its own process, killed when dropped.
pub(crate) struct Driver {
    process: Child,
    socket: PathBuf,
    pub(crate) client: NodeClient<Channel>,
}

impl Driver {
    pub(crate) async fn start(volume: &Volume) -> Self {
        Self::start_with(volume, &[]).await
    }

    /// One that dies by its own hand after its `step`-th step.
    pub(crate) async fn start_to_die(volume: &Volume, step: u32) -> Self {
        Self::start_with(volume, &[("CINDERBLOCK_KILL_AT_STEP", step.to_string())]).await
    }

    async fn start_with(volume: &Volume, environment: &[(&str, String)]) -> Self {
        let config = volume.path("clusters.yaml");
        let text = format!("- clusterID: lab\n  monitors: [\"{}\"]\n", variable("LAB_MONITORS"));
        std::fs::write(&config, text).unwrap();
        let socket = volume.path("csi.sock");
        let process = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
            .args([
                "serve",
                "--role",
                "node",
                "--node-id",
                "node-1",
                "--log-level",
                "error",
                "--config",
            ])
            .arg(config)
            .arg("--state-dir")
            .arg(volume.path("state"))
            .arg(format!("--endpoint=unix://{}", socket.display()))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let client = connect(&socket).await;
        Self { process, socket, client }
    }

    /// Ends the driver by SIGKILL. A program it was just starting has its listener for a moment
    /// longer.
    pub(crate) fn kill(self) {
        let socket = self.socket.clone();
        drop(self);
        wait_until("the listener's end", || UnixStream::connect(&socket).is_err());
    }
}

impl Driver {
    /// Waits for it to end by its own hand.
    pub(crate) fn wait(&mut self) {
        wait_until("the driver's end", || self.process.try_wait().unwrap().is_some());
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Connects as soon as the driver serves.
async fn connect(socket: &Path) -> NodeClient<Channel> {
    let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
    let deadline = Instant::now() + SOON;
    loop {
        match endpoint.connect().await {
            Ok(channel) => return NodeClient::new(channel),
            Err(error) => assert!(Instant::now() < deadline, "the driver does not serve: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn stage(client: &mut NodeClient<Channel>, volume: &Volume) -> Result<(), Status> {
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let context = [("mounter", mounter_name()), ("contentSource", "none")];
    let request = NodeStageVolumeRequest {
        volume_id: volume.id(),
        publish_context: volume.publish_context(),
        staging_target_path: text(volume.staging()),
        volume_capability: Some(capability(volume)),
        secrets: secrets(),
        volume_context: context.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    };
    client.node_stage_volume(request).await.map(drop)
}

pub(crate) fn secrets() -> BTreeMap<String, String> {
    [("userID", variable("LAB_USER")), ("userKey", key())]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

pub(crate) async fn unstage(
    client: &mut NodeClient<Channel>,
    volume: &Volume,
) -> Result<(), Status> {
    let request = NodeUnstageVolumeRequest {
        volume_id: volume.id(),
        staging_target_path: volume.staging().to_str().unwrap().to_owned(),
    };
    client.node_unstage_volume(request).await.map(drop)
}

/// For one pod, or for readers, as what the volume is used as.
pub(crate) fn capability(volume: &Volume) -> VolumeCapability {
    let mode = match volume.capability.mode {
        cinderblock::node::AccessMode::MultiNodeReaderOnly => Mode::MultiNodeReaderOnly,
        _ => Mode::SingleNodeWriter,
    };
    let access_type = match volume.capability.access {
        Access::Block => AccessType::Block(BlockVolume {}),
        Access::Mount { .. } => AccessType::Mount(MountVolume::default()),
    };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(access_type),
    }
}

/// Asks again while the answer is one a caller asks again for.
macro_rules! until_done {
    ($call:expr, $again:pat) => {{
        let deadline = Instant::now() + SOON;
        loop {
            match $call {
                Ok(()) => break,
                Err(status) => {
                    assert!(matches!(status.code(), $again), "{status}");
                    assert!(Instant::now() < deadline, "no end of {status}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_killed_while_staging_leaves_nothing_that_cannot_be_taken_up() {
    let volume = Volume::new(64, ext4());
    let mut driver = Driver::start(&volume).await;
    let began = Instant::now();
    stage(&mut driver.client, &volume).await.unwrap();
    let whole = began.elapsed();
    unstage(&mut driver.client, &volume).await.unwrap();
    driver.kill();
    volume.finish_after_kills();

    let mut interrupted = 0;
    for number in 0..KILLS {
        let volume = Volume::new(64, ext4());
        let mut driver = Driver::start(&volume).await;
        let asked =
            tokio::time::timeout(whole * number / KILLS, stage(&mut driver.client, &volume)).await;
        interrupted += u32::from(asked.is_err());
        driver.kill();

        let mut driver = Driver::start(&volume).await;
        // Programs the dead driver had started may still be at work on the device.
        if number % 2 == 0 {
            until_done!(
                stage(&mut driver.client, &volume).await,
                Code::Unavailable | Code::Aborted
            );
            volume.assert_attached_once();
            write(&volume.path("staging/data"), b"x");
        }
        until_done!(
            unstage(&mut driver.client, &volume).await,
            Code::Unavailable | Code::Aborted | Code::FailedPrecondition
        );
        driver.kill();
        volume.finish_after_kills();
    }
    assert!(interrupted > 0, "no kill came before the end of staging");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_killed_while_unstaging_loses_nothing() {
    let volume = Volume::new(64, ext4());
    let mut driver = Driver::start(&volume).await;
    stage(&mut driver.client, &volume).await.unwrap();
    let began = Instant::now();
    unstage(&mut driver.client, &volume).await.unwrap();
    let whole = began.elapsed();
    for number in 0..KILLS {
        until_done!(stage(&mut driver.client, &volume).await, Code::Unavailable | Code::Aborted);
        let name = format!("staging/{number}");
        // Not made durable: an unmount does that.
        std::fs::write(volume.path(&name), b"kept").unwrap();
        drop(
            tokio::time::timeout(whole * number / KILLS, unstage(&mut driver.client, &volume))
                .await,
        );
        driver.kill();
        driver = Driver::start(&volume).await;
        if number % 2 == 0 {
            until_done!(
                unstage(&mut driver.client, &volume).await,
                Code::Unavailable | Code::Aborted | Code::FailedPrecondition
            );
            volume.assert_nothing_on_the_node();
        }
    }
    until_done!(stage(&mut driver.client, &volume).await, Code::Unavailable | Code::Aborted);
    for number in 0..KILLS {
        let name = format!("staging/{number}");
        assert_eq!(std::fs::read(volume.path(&name)).unwrap(), b"kept", "{name}");
    }
    unstage(&mut driver.client, &volume).await.unwrap();
    driver.kill();
    volume.finish_after_kills();
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_write_on_while_their_driver_dies_and_comes_back() {
    for access in [ext4(), Access::Block] {
        let volume = Volume::new(64, access.clone());
        let mut driver = Some(Driver::start(&volume).await);
        stage(&mut driver.as_mut().unwrap().client, &volume).await.unwrap();
        let file = if access == Access::Block {
            PathBuf::from("/dev").join(volume.device())
        } else {
            volume.path("staging/data")
        };
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| {
            under_io(&file, || {
                for _ in 0..3 {
                    driver.take().unwrap().kill();
                    driver = Some(runtime.block_on(async {
                        let mut driver = Driver::start(&volume).await;
                        stage(&mut driver.client, &volume).await.unwrap();
                        driver
                    }));
                }
            });
        });
        volume.assert_attached_once();
        let mut driver = driver.unwrap();
        unstage(&mut driver.client, &volume).await.unwrap();
        driver.kill();
        volume.finish_after_kills();
    }
}
