//! Snapshots and clones, as far as the socket shows them.

use cinderblock::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use cinderblock::csi::proto::*;
use tonic::Code;

use super::session::{Session, answer, refused};
use super::target::{Controller, Need};
use super::{Check, check};

const SNAPSHOTS: Need = Need::Controller(Controller::CreateDeleteSnapshot);
const CLONES: Need = Need::Controller(Controller::CloneVolume);

pub fn checks() -> Vec<Check> {
    vec![
        check!(a_snapshot_outlives_its_volume_or_keeps_it, SNAPSHOTS),
        check!(a_restored_volume_outlives_its_snapshot, SNAPSHOTS),
        check!(a_clone_outlives_its_source, CLONES),
        check!(
            snapshots_are_found_by_id_and_by_source,
            SNAPSHOTS,
            Need::Controller(Controller::ListSnapshots)
        ),
        check!(
            a_snapshot_is_got_as_it_was_cut,
            SNAPSHOTS,
            Need::Controller(Controller::GetSnapshot)
        ),
        check!(
            a_snapshot_keeps_the_size_its_volume_had,
            SNAPSHOTS,
            Need::Controller(Controller::ExpandVolume)
        ),
        check!(chains_of_clones_go_in_any_order, CLONES),
    ]
}

fn restored(session: &Session, what: &str, snapshot: &Snapshot) -> CreateVolumeRequest {
    let source = Type::Snapshot(SnapshotSource { snapshot_id: snapshot.snapshot_id.clone() });
    let volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
    CreateVolumeRequest { volume_content_source, ..session.new_volume(what) }
}

fn cloned(session: &Session, what: &str, volume: &Volume) -> CreateVolumeRequest {
    let source = Type::Volume(VolumeSource { volume_id: volume.volume_id.clone() });
    let volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
    CreateVolumeRequest { volume_content_source, ..session.new_volume(what) }
}

async fn a_snapshot_outlives_its_volume_or_keeps_it(session: &Session) {
    let volume = session.volume("v").await;
    let snapshot = session.snapshot("s", &volume.volume_id).await;
    match session.delete_volume(&volume.volume_id).await {
        // Independent of its volume: restorable, listed, and found again by name.
        Ok(_) => {
            let clone = session.create(restored(session, "restored", &snapshot)).await.unwrap();
            assert_eq!(clone.capacity_bytes, session.size());
            if session.target.has(Need::Controller(Controller::ListSnapshots)) {
                assert_eq!(
                    by_id(session, &snapshot.snapshot_id).await,
                    std::slice::from_ref(&snapshot)
                );
            }
        }
        outcome => {
            refused("a volume with a snapshot", outcome, &[Code::FailedPrecondition]);
            assert_eq!(session.volume("v").await, volume, "a refusal changed the volume");
        }
    }
    session.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
    session.delete_volume(&volume.volume_id).await.unwrap();
}

async fn a_restored_volume_outlives_its_snapshot(session: &Session) {
    let volume = session.volume("v").await;
    let snapshot = session.snapshot("s", &volume.volume_id).await;
    let request = restored(session, "restored", &snapshot);
    let clone = session.create(request.clone()).await.unwrap();
    match session.delete_snapshot(&snapshot.snapshot_id).await {
        // The same request finds what it made, although its source is gone.
        Ok(_) => assert_eq!(session.create(request).await.unwrap(), clone),
        outcome => _ = refused("a snapshot in use", outcome, &[Code::FailedPrecondition]),
    }
    session.validate(session.validation(&clone.volume_id)).await.unwrap();
    session.delete_volume(&clone.volume_id).await.unwrap();
    session.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
}

async fn a_clone_outlives_its_source(session: &Session) {
    let volume = session.volume("v").await;
    let request = cloned(session, "clone", &volume);
    let clone = session.create(request.clone()).await.unwrap();
    assert_eq!(session.create(request.clone()).await.unwrap(), clone);
    session.delete_volume(&volume.volume_id).await.unwrap();
    assert_eq!(session.create(request).await.unwrap(), clone);
    // The source's name is free, and what comes under it has nothing to do with the clone.
    let next = session.volume("v").await;
    assert_eq!(next.content_source, None);
    session.delete_volume(&next.volume_id).await.unwrap();
    session.validate(session.validation(&clone.volume_id)).await.unwrap();
}

async fn by_id(session: &Session, id: &str) -> Vec<Snapshot> {
    let request = ListSnapshotsRequest {
        snapshot_id: id.to_string(),
        secrets: session.secrets(),
        ..ListSnapshotsRequest::default()
    };
    list(session, request).await
}

async fn list(session: &Session, request: ListSnapshotsRequest) -> Vec<Snapshot> {
    let answer = answer(session.controller().list_snapshots(request).await).unwrap();
    answer.entries.into_iter().map(|entry| entry.snapshot.unwrap()).collect()
}

async fn snapshots_are_found_by_id_and_by_source(session: &Session) {
    let (a, b) = (session.volume("a").await, session.volume("b").await);
    let of_a = session.snapshot("s-a", &a.volume_id).await;
    let of_b = [
        session.snapshot("s-b1", &b.volume_id).await,
        session.snapshot("s-b2", &b.volume_id).await,
    ];
    assert_eq!(by_id(session, &of_a.snapshot_id).await, std::slice::from_ref(&of_a));
    let by_source = |id: &str| ListSnapshotsRequest {
        source_volume_id: id.to_string(),
        secrets: session.secrets(),
        ..ListSnapshotsRequest::default()
    };
    assert_eq!(list(session, by_source(&a.volume_id)).await, std::slice::from_ref(&of_a));
    let found = list(session, by_source(&b.volume_id)).await;
    assert!(found.len() == 2 && of_b.iter().all(|snapshot| found.contains(snapshot)), "{found:?}");
    // Both filters hold.
    let both = |snapshot_id: &str| ListSnapshotsRequest {
        snapshot_id: snapshot_id.to_string(),
        ..by_source(&a.volume_id)
    };
    assert_eq!(list(session, both(&of_a.snapshot_id)).await, [of_a]);
    assert_eq!(list(session, both(&of_b[0].snapshot_id)).await, []);
}

async fn a_snapshot_is_got_as_it_was_cut(session: &Session) {
    let volume = session.volume("v").await;
    let snapshot = session.snapshot("s", &volume.volume_id).await;
    let request =
        |id: &str| GetSnapshotRequest { snapshot_id: id.to_string(), secrets: session.secrets() };
    let mut controller = session.controller();
    let got = answer(controller.get_snapshot(request(&snapshot.snapshot_id)).await).unwrap();
    assert_eq!(got.snapshot, Some(snapshot));
    refused("no id", answer(controller.get_snapshot(request("")).await), &[Code::InvalidArgument]);
}

async fn a_snapshot_keeps_the_size_its_volume_had(session: &Session) {
    let volume = session.volume("v").await;
    let snapshot = session.snapshot("before", &volume.volume_id).await;
    let (id, size) = (&volume.volume_id, session.size());
    session.grow(session.growth(id, 2 * size, 0)).await.unwrap();
    assert_eq!(session.snapshot("before", id).await, snapshot);
    let after = session.snapshot("after", id).await;
    assert!(after.size_bytes == 0 || after.size_bytes == 2 * size, "{after:?}");
    let clone = session.create(restored(session, "restored", &snapshot)).await.unwrap();
    assert_eq!(clone.capacity_bytes, size);
}

async fn chains_of_clones_go_in_any_order(session: &Session) {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        let mut volumes = vec![session.volume("v0").await];
        for number in 1..4 {
            let request = cloned(session, &format!("v{number}"), &volumes[number - 1]);
            volumes.push(session.create(request).await.unwrap());
        }
        for number in order {
            session.delete_volume(&volumes[number].volume_id).await.unwrap();
        }
    }
}
