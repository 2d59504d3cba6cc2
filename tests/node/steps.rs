//! A driver that is killed after each step of each RPC: the next one goes on, the RPC asked again
//! comes to its end, nothing is attached twice, what was written is there, and in the end nothing
//! is left.

use std::path::Path;

use cinderblock::csi::proto::{
    CapacityRange, NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest,
};
use cinderblock::node::Access;
use cinderblock::node::attach::Mounter;
use tonic::{Code, Status};

use crate::kills::{Driver, capability, secrets, stage, unstage};
use crate::lab::{MIB, SOON, Volume, ext4, mounter};

/// More steps than any RPC takes.
const ENOUGH: u32 = 200;

const KEPT: &[u8] = b"written before the driver died";

/// The RPC in which a driver dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rpc {
    Stage,
    Publish,
    Expand,
    Unpublish,
    Unstage,
}

pub(crate) async fn ask(rpc: Rpc, driver: &mut Driver, volume: &Volume) -> Result<(), Status> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let target = text(&volume.path("target"));
    let client = &mut driver.client;
    match rpc {
        Rpc::Stage => stage(client, volume).await,
        Rpc::Unstage => unstage(client, volume).await,
        Rpc::Publish => {
            let request = NodePublishVolumeRequest {
                volume_id: volume.id(),
                staging_target_path: text(&volume.staging()),
                target_path: target,
                volume_capability: Some(capability(volume)),
                readonly: true,
                ..NodePublishVolumeRequest::default()
            };
            client.node_publish_volume(request).await.map(drop)
        }
        Rpc::Unpublish => {
            let request =
                NodeUnpublishVolumeRequest { volume_id: volume.id(), target_path: target };
            client.node_unpublish_volume(request).await.map(drop)
        }
        Rpc::Expand => {
            let request = NodeExpandVolumeRequest {
                volume_id: volume.id(),
                volume_path: text(&volume.staging()),
                capacity_range: Some(CapacityRange { required_bytes: 128 << 20, limit_bytes: 0 }),
                secrets: secrets(),
                ..NodeExpandVolumeRequest::default()
            };
            client.node_expand_volume(request).await.map(drop)
        }
    }
}

/// Asks until it is done, which kubelet does too.
pub(crate) async fn insist(rpc: Rpc, driver: &mut Driver, volume: &Volume, what: &str) {
    let deadline = tokio::time::Instant::now() + SOON;
    while let Err(status) = ask(rpc, driver, volume).await {
        let again = matches!(
            status.code(),
            Code::Unavailable | Code::Aborted | Code::FailedPrecondition | Code::DeadlineExceeded
        );
        assert!(again && tokio::time::Instant::now() < deadline, "{what}: {rpc:?}: {status}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn check_kept(volume: &Volume, place: &str, what: &str) {
    if volume.capability.access != Access::Block {
        let kept = std::fs::read(volume.path(place).join("kept"));
        assert_eq!(kept.ok().as_deref(), Some(KEPT), "{what}");
    }
}

/// Has a driver die after step `number` of `rpc`. Whether it did.
async fn die(rpc: Rpc, access: &Access, number: u32) -> bool {
    let what = format!("{rpc:?} of {access:?}, step {number}");
    let volume = Volume::new(64, access.clone());
    let mut driver = Driver::start(&volume).await;
    let is_staged = rpc != Rpc::Stage;
    if is_staged {
        insist(Rpc::Stage, &mut driver, &volume, &what).await;
        if *access != Access::Block {
            // Not made durable: taking the volume down in order does that.
            std::fs::write(volume.path("staging/kept"), KEPT).unwrap();
        }
    }
    if rpc == Rpc::Unpublish {
        insist(Rpc::Publish, &mut driver, &volume, &what).await;
    }
    if rpc == Rpc::Expand {
        volume.grow_image(128);
    }
    driver.kill();

    let mut driver = Driver::start_to_die(&volume, number).await;
    let mut answer = ask(rpc, &mut driver, &volume).await;
    // On a busy machine it is at work still: it has not died yet.
    while answer.as_ref().is_err_and(|status| status.code() == Code::DeadlineExceeded) {
        answer = ask(rpc, &mut driver, &volume).await;
    }
    let died = answer.is_err();
    if died {
        driver.wait();
    }
    driver.kill();

    let mut driver = Driver::start(&volume).await;
    // An orchestrator may have changed its mind: then it takes down what it does not know to be
    // there.
    if rpc != Rpc::Stage || number.is_multiple_of(2) {
        insist(rpc, &mut driver, &volume, &what).await;
        match rpc {
            Rpc::Stage => {
                volume.assert_attached_once();
                volume.assert_noted();
            }
            Rpc::Publish => check_kept(&volume, "target", &what),
            Rpc::Expand => {
                assert!(
                    volume.expand("staging", 128).is_ok_and(|size| size == 128 * MIB),
                    "{what}"
                );
                check_kept(&volume, "staging", &what);
                volume.assert_noted();
            }
            Rpc::Unpublish => assert!(!volume.path("target").exists(), "{what}"),
            Rpc::Unstage => {
                volume.assert_nothing_on_the_node();
                insist(Rpc::Stage, &mut driver, &volume, &what).await;
                check_kept(&volume, "staging", &what);
            }
        }
    }
    insist(Rpc::Unpublish, &mut driver, &volume, &what).await;
    insist(Rpc::Unstage, &mut driver, &volume, &what).await;
    driver.kill();
    volume.finish_after_kills();
    died
}

/// Kills drivers after the steps of `rpc`. The mounter `fuse` takes `at_least` so many of them.
async fn sweep(rpc: Rpc, access: Access, at_least: u32) {
    sweep_from(0, rpc, access, at_least).await;
}

/// The same without the first steps of the mounter `fuse`.
async fn sweep_from(first_of_fuse: u32, rpc: Rpc, access: Access, at_least: u32) {
    let (first, at_least) = match mounter() {
        Mounter::Fuse => (first_of_fuse, at_least),
        // They take fewer, and krbd takes up an image's new size by itself.
        Mounter::Rbd | Mounter::RbdNbd => (0, u32::from(rpc != Rpc::Expand)),
    };
    let stride = stride(1);
    let (mut step, mut killed) = (first + 1, 0);
    while die(rpc, &access, step).await {
        step += stride;
        killed += 1;
        assert!(step < ENOUGH, "{rpc:?} of {access:?} does not come to its end");
    }
    println!(
        "{rpc:?} of {access:?}: drivers killed after {killed} steps, of {stride} one, from step {}",
        first + 1
    );
    assert!(
        step > at_least,
        "{rpc:?} of {access:?} has fewer than {step} steps: the driver does not die where it should"
    );
}

/// After which steps drivers die: NODE_KILL_STRIDE=5 leaves four of five out. Without it, it is
/// `otherwise`.
pub(crate) fn stride(otherwise: u32) -> u32 {
    std::env::var("NODE_KILL_STRIDE").map_or(otherwise, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn staging() {
    // Attaching is the same for a raw device.
    sweep_from(18, Rpc::Stage, ext4(), 28).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn staging_a_raw_device() {
    sweep(Rpc::Stage, Access::Block, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing() {
    sweep(Rpc::Publish, ext4(), 4).await;
    sweep(Rpc::Publish, Access::Block, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expanding() {
    sweep(Rpc::Expand, Access::Block, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unpublishing() {
    sweep(Rpc::Unpublish, ext4(), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unstaging() {
    sweep(Rpc::Unstage, ext4(), 6).await;
}
