//! While all stand still: what is there is settled, and read without the driver.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::*;
use cinderblock::rbd::{ImageKey, OpenMode, SnapshotKind};
use tonic::{Code, Response, Status};

use super::clients::is_gone;
use super::common::random::Random;
use super::field::{Field, NAMES, Origin, SMALL, pattern};
use super::history::{Event, Name, What, is_of_another_version};

/// What a volume or snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Zeros,
    Golden,
}

/// Settles every name, reads what is there, and gives it as the events the next round begins with.
///
/// A call that no client waits for may still be at work in either driver. It holds its name there:
/// so a final answer to another call about the same name, from each driver in turn, says that it is
/// over.
pub async fn settle(field: &Field, random: &mut Random) -> Vec<Event> {
    let mut events = Vec::new();
    let mut note = |name, what| {
        let now = Instant::now();
        events.push(Event { name, what, begun: now, ended: now });
    };
    for number in 0..NAMES {
        // Most stay, so that the next round finds something.
        if random.once_in(4) {
            delete_volume(field, &field.volume_id(number)).await;
            note(Name::Volume(number), What::Deleted { id: field.volume_id(number) });
            continue;
        }
        let request = field.create_volume(number, &Origin::Empty(SMALL));
        for driver in 0..field.count() {
            // Or another request has made it.
            let _ = finally(&format!("CreateVolume v{number}"), async || {
                field.controller_of(driver).create_volume(request.clone()).await
            })
            .await;
        }
    }
    for number in 0..NAMES {
        let request = field.class.create_snapshot(&format!("s{number}"), &field.golden);
        for driver in 0..field.count() {
            let _ = finally(&format!("CreateSnapshot s{number}"), async || {
                field.controller_of(driver).create_snapshot(request.clone()).await
            })
            .await;
        }
    }

    for volume in volumes(field).await {
        let Some(number) = (0..NAMES).find(|number| volume.volume_id == field.volume_id(*number))
        else {
            continue;
        };
        let origin = match volume.content_source.and_then(|source| source.r#type) {
            None => Origin::Empty(volume.capacity_bytes),
            Some(volume_content_source::Type::Volume(source)) => Origin::Volume(source.volume_id),
            Some(volume_content_source::Type::Snapshot(source)) => {
                Origin::Snapshot(source.snapshot_id)
            }
        };
        let content = content_of_volume(field, &volume.volume_id, volume.capacity_bytes);
        match &origin {
            Origin::Empty(_) => assert_eq!(content, Content::Zeros, "{}", volume.volume_id),
            Origin::Volume(id) if *id == field.golden => {
                assert_eq!(content, Content::Golden, "{}", volume.volume_id);
            }
            Origin::Snapshot(id) if *id == field.golden_snapshot => {
                assert_eq!(content, Content::Golden, "{}", volume.volume_id);
            }
            // Of whatever its source held then: all of it.
            _ => {}
        }
        let request = format!("{origin:?}");
        note(
            Name::Volume(number),
            What::Made { identity: request.clone(), request, id: volume.volume_id },
        );
    }
    let mut known = BTreeMap::new();
    let snapshots = snapshots(field).await;
    for snapshot in &snapshots {
        let Some(number) =
            (0..NAMES).find(|number| snapshot.snapshot_id.ends_with(&format!("snap-s{number}")))
        else {
            continue;
        };
        let other = known.insert(number, snapshot.snapshot_id.clone());
        assert_eq!(other, None, "two snapshots of one name are listed");
        note(Name::Snapshot(number), made_snapshot(snapshot));
    }
    *field.snapshots.lock().unwrap() = known;
    if let Some(snapshot) =
        snapshots.get(usize::try_from(random.below(snapshots.len() as u64)).unwrap())
    {
        restore_one(field, snapshot).await;
    }
    events
}

/// A volume restored from a snapshot holds what the snapshot does.
async fn restore_one(field: &Field, snapshot: &Snapshot) {
    let request = field.create_volume(NAMES, &Origin::Snapshot(snapshot.snapshot_id.clone()));
    let answer =
        finally("CreateVolume", async || field.controller().create_volume(request.clone()).await)
            .await
            .unwrap();
    let volume = answer.volume.unwrap();
    let restored = content_of_volume(field, &volume.volume_id, volume.capacity_bytes);
    assert_eq!(
        restored,
        content_of_snapshot(field, snapshot),
        "restored from {}",
        snapshot.snapshot_id
    );
    delete_volume(field, &volume.volume_id).await;
}

/// A snapshot as a creation that found it.
pub fn made_snapshot(snapshot: &Snapshot) -> What {
    What::Made {
        request: snapshot.source_volume_id.clone(),
        identity: format!("{} {:?}", snapshot.snapshot_id, snapshot.creation_time),
        id: snapshot.snapshot_id.clone(),
    }
}

fn content_of_volume(field: &Field, volume_id: &str, size: i64) -> Content {
    let name = volume_id.rsplit('/').next().unwrap();
    let image = field.pool.open_image(ImageKey::Name(name), OpenMode::ReadOnly).unwrap();
    let mut bytes = vec![0xff; usize::try_from(size).unwrap()];
    assert_eq!(
        image.read_at(None, 0, &mut bytes).unwrap(),
        bytes.len(),
        "{volume_id} is shorter than it says"
    );
    content(volume_id, &bytes)
}

fn content_of_snapshot(field: &Field, snapshot: &Snapshot) -> Content {
    let (image, name) = snapshot.snapshot_id.rsplit('/').next().unwrap().split_once('@').unwrap();
    let image = field.pool.open_image(ImageKey::Id(image), OpenMode::ReadOnly).unwrap();
    let snapshots = image.snapshots().unwrap();
    let found = snapshots
        .iter()
        .find(|found| found.name == name && found.kind == SnapshotKind::User)
        .unwrap();
    let mut bytes = vec![0xff; usize::try_from(snapshot.size_bytes).unwrap()];
    assert_eq!(image.read_at(Some(found.id), 0, &mut bytes).unwrap(), bytes.len());
    content(&snapshot.snapshot_id, &bytes)
}

fn content(id: &str, bytes: &[u8]) -> Content {
    let (head, tail) = bytes.split_at(usize::try_from(SMALL).unwrap());
    assert!(tail.iter().all(|byte| *byte == 0), "{id} holds something behind what was written");
    if head.iter().all(|byte| *byte == 0) {
        return Content::Zeros;
    }
    assert!(head == pattern(), "{id} holds neither zeros nor all of the pattern");
    Content::Golden
}

async fn volumes(field: &Field) -> Vec<Volume> {
    let list = finally("ListVolumes", async || {
        field.controller().list_volumes(ListVolumesRequest::default()).await
    });
    let list = list.await.unwrap();
    assert_eq!(list.next_token, "");
    list.entries.into_iter().map(|entry| entry.volume.unwrap()).collect()
}

async fn snapshots(field: &Field) -> Vec<Snapshot> {
    let request = ListSnapshotsRequest {
        secrets: field.class.secrets.clone(),
        ..ListSnapshotsRequest::default()
    };
    let list =
        finally("ListSnapshots", async || field.controller().list_snapshots(request.clone()).await);
    let list = list.await.unwrap();
    assert_eq!(list.next_token, "");
    list.entries.into_iter().map(|entry| entry.snapshot.unwrap()).collect()
}

/// Deletes a volume through each driver in turn: after that none of them is at work on it, and it
/// is gone.
async fn delete_volume(field: &Field, id: &str) {
    let request = field.class.delete_volume(id);
    for driver in 0..field.count() {
        let delete = async || field.controller_of(driver).delete_volume(request.clone()).await;
        finally(&format!("DeleteVolume {id}"), delete).await.unwrap();
    }
}

/// Deletes all there is through the drivers, and sees that they list nothing.
pub async fn delete_everything(field: &Field) {
    settle(field, &mut Random::new(0)).await;
    for number in 0..NAMES {
        delete_volume(field, &field.volume_id(number)).await;
    }
    for snapshot in snapshots(field).await {
        let request = field.class.delete_snapshot(&snapshot.snapshot_id);
        for driver in 0..field.count() {
            let delete =
                async || field.controller_of(driver).delete_snapshot(request.clone()).await;
            finally("DeleteSnapshot", delete).await.unwrap();
        }
    }
    delete_volume(field, &field.golden).await;
    assert_eq!(volumes(field).await, []);
    assert_eq!(snapshots(field).await, []);
}

/// Asks until the answer is final. A driver that died lets go of an image after 30 seconds.
async fn finally<T>(
    what: &str,
    mut call: impl AsyncFnMut() -> Result<Response<T>, Status>,
) -> Result<T, Status> {
    let deadline = Instant::now() + Duration::from_mins(5);
    loop {
        let status = match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        let open = status.code() == Code::Aborted
            || is_gone(&status)
            || is_of_another_version(&status)
            || status.code() == Code::FailedPrecondition && status.message().contains("is open at");
        if !open {
            assert_eq!(status.code(), Code::AlreadyExists, "{what}: {status:?}");
            return Err(status);
        }
        assert!(Instant::now() < deadline, "{what} is never final: {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
