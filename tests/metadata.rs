//! Snapshot metadata over the socket: a chain of snapshots, backed up by what the streams say and
//! rebuilt elsewhere.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use cinderblock::csi::proto::snapshot_metadata_client::SnapshotMetadataClient;
use cinderblock::csi::proto::{
    BlockMetadata, BlockMetadataType, CapacityRange, ControllerExpandVolumeRequest,
    GetMetadataAllocatedRequest, GetMetadataDeltaRequest, Snapshot,
};
use cinderblock::rbd::{Image, ImageKey, OpenMode, SnapshotKind};
use common::driver::{Class, Driver, MIB};
use common::{Lab, Namespace};
use tonic::Code;
use tonic::transport::Channel;

/// A byte beyond whole objects and whole sectors of objects: the tail is not aligned to anything
/// but sectors.
const TAIL: u64 = 512 * 3;

async fn allocated(
    client: &mut SnapshotMetadataClient<Channel>,
    class: &Class,
    snapshot: &Snapshot,
    max_results: i32,
) -> Vec<BlockMetadata> {
    let mut blocks = Vec::new();
    let mut starting_offset = 0;
    // Every stream is broken off after one message and continued where it stopped.
    loop {
        let request = GetMetadataAllocatedRequest {
            snapshot_id: snapshot.snapshot_id.clone(),
            starting_offset,
            max_results,
            secrets: class.secrets.clone(),
        };
        let mut stream = client.get_metadata_allocated(request).await.unwrap().into_inner();
        let message = stream.message().await.unwrap().unwrap();
        assert_eq!(message.block_metadata_type(), BlockMetadataType::VariableLength);
        assert_eq!(message.volume_capacity_bytes, snapshot.size_bytes);
        let Some(last) = message.block_metadata.last() else { return blocks };
        assert!(message.block_metadata.len() <= usize::try_from(max_results).unwrap());
        starting_offset = last.byte_offset + last.size_bytes;
        blocks.extend(message.block_metadata);
        if starting_offset == snapshot.size_bytes {
            return blocks;
        }
    }
}

async fn delta(
    client: &mut SnapshotMetadataClient<Channel>,
    class: &Class,
    base: &Snapshot,
    target: &Snapshot,
) -> Vec<BlockMetadata> {
    let request = GetMetadataDeltaRequest {
        base_snapshot_id: base.snapshot_id.clone(),
        target_snapshot_id: target.snapshot_id.clone(),
        secrets: class.secrets.clone(),
        ..GetMetadataDeltaRequest::default()
    };
    let mut stream = client.get_metadata_delta(request).await.unwrap().into_inner();
    let mut blocks = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        assert_eq!(message.volume_capacity_bytes, target.size_bytes);
        blocks.extend(message.block_metadata);
    }
    blocks
}

/// The whole content of the snapshot `name`.
fn content(image: &dyn Image, name: &str) -> Vec<u8> {
    let snapshots = image.snapshots().unwrap();
    let snapshot =
        snapshots.iter().find(|s| s.kind == SnapshotKind::User && s.name == name).unwrap();
    let mut bytes = vec![0; usize::try_from(snapshot.size).unwrap()];
    assert_eq!(image.read_at(Some(snapshot.id), 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

/// Copies the blocks of `from` into `copy`, which gets the size of `from` first.
fn apply(copy: &mut Vec<u8>, from: &[u8], blocks: &[BlockMetadata]) {
    copy.resize(from.len(), 0);
    let mut end = 0;
    for block in blocks {
        let start = usize::try_from(block.byte_offset).unwrap();
        assert!(start >= end, "extents overlap or are out of order: {blocks:?}");
        end = start + usize::try_from(block.size_bytes).unwrap();
        copy[start..end].copy_from_slice(&from[start..end]);
    }
}

async fn a_chain_is_rebuilt(features: &str) {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name).with("imageFeatures", features);
    let size = 24 * MIB + i64::try_from(TAIL).unwrap();
    let volume = controller
        .create_volume(class.create_volume("v", size))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    let cluster = lab.connect();
    let pool = namespace.pool(&*cluster);
    let open = || pool.open_image(ImageKey::Name("csi-v"), OpenMode::ReadWrite).unwrap();
    let mut snapshots = Vec::new();
    let mut cut = async |name: &str| {
        let request = class.create_snapshot(name, &volume.volume_id);
        let answer = driver.controller().await.create_snapshot(request).await.unwrap();
        snapshots.push(answer.into_inner().snapshot.unwrap());
    };

    let image = open();
    image.write_at(0, &[1; 700]).unwrap();
    image.write_at(9 << 20, &vec![2; 5 << 20]).unwrap();
    image
        .write_at(u64::try_from(size).unwrap() - TAIL, &vec![3; usize::try_from(TAIL).unwrap()])
        .unwrap();
    drop(image);
    cut("s1").await;
    let image = open();
    image.discard(8 << 20, 4 << 20).unwrap();
    image.write_at(4096, &[4; 512]).unwrap();
    drop(image);
    cut("s2").await;
    let grow = ControllerExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        capacity_range: Some(CapacityRange { required_bytes: 40 * MIB + 512, limit_bytes: 0 }),
        secrets: class.secrets.clone(),
        ..ControllerExpandVolumeRequest::default()
    };
    controller.controller_expand_volume(grow).await.unwrap();
    let image = open();
    image.write_at(40 << 20, &[5; 512]).unwrap();
    drop(image);
    cut("s3").await;

    let client = &mut SnapshotMetadataClient::new(driver.channel().await);
    let image = pool.open_image(ImageKey::Name("csi-v"), OpenMode::ReadOnly).unwrap();
    let mut copy = Vec::new();
    apply(
        &mut copy,
        &content(&*image, "csi-snap-s1"),
        &allocated(client, &class, &snapshots[0], 1).await,
    );
    assert!(copy == content(&*image, "csi-snap-s1"), "the full backup differs");
    for (base, target, name) in [
        (&snapshots[0], &snapshots[1], "csi-snap-s2"),
        (&snapshots[1], &snapshots[2], "csi-snap-s3"),
    ] {
        let blocks = delta(client, &class, base, target).await;
        apply(&mut copy, &content(&*image, name), &blocks);
        assert!(copy == content(&*image, name), "the copy differs at {name}: {blocks:?}");
    }
    drop(image);

    let backwards = GetMetadataDeltaRequest {
        base_snapshot_id: snapshots[1].snapshot_id.clone(),
        target_snapshot_id: snapshots[0].snapshot_id.clone(),
        secrets: class.secrets.clone(),
        ..GetMetadataDeltaRequest::default()
    };
    assert_eq!(
        client.get_metadata_delta(backwards).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let beyond = GetMetadataAllocatedRequest {
        snapshot_id: snapshots[0].snapshot_id.clone(),
        starting_offset: snapshots[0].size_bytes + 1,
        secrets: class.secrets.clone(),
        ..GetMetadataAllocatedRequest::default()
    };
    assert_eq!(
        client.get_metadata_allocated(beyond.clone()).await.unwrap_err().code(),
        Code::OutOfRange
    );
    for snapshot in &snapshots {
        controller.delete_snapshot(class.delete_snapshot(&snapshot.snapshot_id)).await.unwrap();
    }
    assert_eq!(client.get_metadata_allocated(beyond).await.unwrap_err().code(), Code::NotFound);
    controller.delete_volume(class.delete_volume(&volume.volume_id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}

#[tokio::test]
async fn a_chain_with_fast_diff_is_rebuilt_byte_for_byte() {
    a_chain_is_rebuilt("layering,exclusive-lock,object-map,fast-diff,deep-flatten").await;
}

#[tokio::test]
async fn a_chain_without_fast_diff_is_rebuilt_byte_for_byte() {
    a_chain_is_rebuilt("layering").await;
}
