//! One client: draws a call, makes it, and notes what it learnt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::*;
use tonic::{Code, Request, Response, Status};

use super::common::driver::filesystem;
use super::common::random::Random;
use super::field::{Field, LARGE, NAMES, Origin, SMALL};
use super::history::{Event, Name, What, legal};

/// A deadline that no call of this test needs.
const AMPLE: Duration = Duration::from_mins(2);

/// Whether there is no driver that could answer.
pub fn is_gone(status: &Status) -> bool {
    let cause = std::error::Error::source(status);
    cause.is_some_and(<dyn std::error::Error>::is::<tonic::transport::Error>)
}

/// How long a client waits for an answer.
#[derive(Clone, Copy)]
enum Patience {
    /// As long as it takes.
    Ample,
    /// It tells the driver when it stops to wait.
    Deadline(Duration),
    /// It hangs up.
    HangsUp(Duration),
}

impl Patience {
    fn draw(random: &mut Random) -> Patience {
        match random.below(8) {
            0 => Patience::Deadline(Duration::from_millis(1 + random.below(200))),
            1 => Patience::HangsUp(Duration::from_millis(random.below(100))),
            _ => Patience::Ample,
        }
    }
}

/// How a call ended.
enum Outcome<T> {
    Answer(T),
    Refused(Status),
    /// The client does not know: given up, or ABORTED in the middle.
    Open,
}

/// Makes the call with that patience, and sees that its answer is a legal one.
async fn ask<M, T, F>(
    rpc: &str,
    patience: Patience,
    message: M,
    call: impl FnOnce(Request<M>) -> F,
) -> Outcome<T>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut request = Request::new(message);
    let answer = match patience {
        Patience::Ample => {
            request.set_timeout(AMPLE);
            call(request).await
        }
        Patience::Deadline(deadline) => {
            request.set_timeout(deadline);
            call(request).await
        }
        Patience::HangsUp(after) => match tokio::time::timeout(after, call(request)).await {
            Ok(answer) => answer,
            Err(_) => return Outcome::Open,
        },
    };
    match answer {
        Ok(answer) => Outcome::Answer(answer.into_inner()),
        // It ended in the middle; the next call may come before it is back.
        Err(status) if is_gone(&status) => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Outcome::Open
        }
        Err(status) => {
            legal(rpc, &status, matches!(patience, Patience::Deadline(_)));
            let held = status.code() == Code::Aborted && status.message().contains(" holds ");
            let open =
                matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled | Code::Aborted)
                    && !held;
            if open { Outcome::Open } else { Outcome::Refused(status) }
        }
    }
}

/// Works until `end`.
pub async fn work(field: Arc<Field>, mut random: Random, end: Instant) {
    while Instant::now() < end {
        let _may_work = field.floor.read().await;
        let begun = Instant::now();
        for (name, what) in one_call(&field, &mut random).await {
            field.events.lock().unwrap().push(Event { name, what, begun, ended: Instant::now() });
        }
    }
}

/// One call, and what it says of which name.
async fn one_call(field: &Field, random: &mut Random) -> Vec<(Name, What)> {
    let number = usize::try_from(random.below(NAMES as u64)).unwrap();
    match random.below(20) {
        0..=6 => create_volume(field, random, number).await,
        7..=10 => vec![(Name::Volume(number), delete_volume(field, random, number).await)],
        11..=14 => create_snapshot(field, random, number).await,
        15..=16 => delete_snapshot(field, random, number).await,
        17..=18 => vec![(Name::Volume(number), look_at_volume(field, number).await)],
        _ => look_at_snapshot(field, number).await,
    }
}

fn origin(field: &Field, random: &mut Random) -> (Origin, Option<Name>) {
    let other = usize::try_from(random.below(NAMES as u64)).unwrap();
    match random.below(10) {
        0..=3 => (Origin::Empty(SMALL), None),
        4 => (Origin::Empty(LARGE), None),
        5 => (Origin::Volume(field.golden.clone()), None),
        6 => (Origin::Snapshot(field.golden_snapshot.clone()), None),
        7 => (Origin::Volume(field.volume_id(other)), Some(Name::Volume(other))),
        _ => match field.snapshots.lock().unwrap().get(&other) {
            Some(id) => (Origin::Snapshot(id.clone()), Some(Name::Snapshot(other))),
            None => (Origin::Snapshot(field.golden_snapshot.clone()), None),
        },
    }
}

async fn create_volume(field: &Field, random: &mut Random, number: usize) -> Vec<(Name, What)> {
    let (origin, source) = origin(field, random);
    let message = field.create_volume(number, &origin);
    let wanted =
        (message.capacity_range.unwrap().required_bytes, message.volume_content_source.clone());
    let request = format!("{origin:?}");
    let mut controller = field.controller();
    let call = async |message| controller.create_volume(message).await;
    let name = Name::Volume(number);
    match ask("CreateVolume", Patience::draw(random), message, call).await {
        Outcome::Answer(answer) => {
            let volume = answer.volume.unwrap();
            assert_eq!(volume.volume_id, field.volume_id(number));
            assert_eq!(
                (volume.capacity_bytes, volume.content_source),
                wanted,
                "another volume than asked for"
            );
            vec![(name, What::Made { identity: request.clone(), request, id: volume.volume_id })]
        }
        Outcome::Open => vec![(name, What::MaybeMade { request })],
        Outcome::Refused(status) => match status.code() {
            Code::AlreadyExists => vec![(name, What::Taken { request })],
            Code::NotFound => {
                let source =
                    source.unwrap_or_else(|| panic!("the golden volume is gone: {status:?}"));
                let (Origin::Volume(id) | Origin::Snapshot(id)) = origin else {
                    panic!("{status:?}")
                };
                vec![(source, What::Absent { id })]
            }
            _ => vec![(name, What::Nothing)],
        },
    }
}

async fn delete_volume(field: &Field, random: &mut Random, number: usize) -> What {
    let id = field.volume_id(number);
    let message = field.class.delete_volume(&id);
    let mut controller = field.controller();
    let call = async |message| controller.delete_volume(message).await;
    match ask("DeleteVolume", Patience::draw(random), message, call).await {
        Outcome::Answer(_) => What::Deleted { id },
        Outcome::Open => What::MaybeDeleted { id },
        Outcome::Refused(_) => What::Nothing,
    }
}

async fn create_snapshot(field: &Field, random: &mut Random, number: usize) -> Vec<(Name, What)> {
    let source = usize::try_from(random.below(NAMES as u64)).unwrap();
    let id = field.volume_id(source);
    let message = field.class.create_snapshot(&format!("s{number}"), &id);
    let request = id.clone();
    let mut controller = field.controller();
    let call = async |message| controller.create_snapshot(message).await;
    let name = Name::Snapshot(number);
    match ask("CreateSnapshot", Patience::draw(random), message, call).await {
        Outcome::Answer(answer) => {
            let snapshot = answer.snapshot.unwrap();
            assert_eq!(snapshot.source_volume_id, id);
            field.snapshots.lock().unwrap().insert(number, snapshot.snapshot_id.clone());
            vec![(name, super::rest::made_snapshot(&snapshot))]
        }
        Outcome::Open => vec![(name, What::MaybeMade { request })],
        Outcome::Refused(status) => match status.code() {
            Code::AlreadyExists if is_of_an_earlier_volume(field, source, &id, &status) => {
                vec![(name, What::Nothing)]
            }
            Code::AlreadyExists => vec![(name, What::Taken { request })],
            Code::NotFound => vec![(Name::Volume(source), What::Absent { id })],
            _ => vec![(name, What::Nothing)],
        },
    }
}

async fn delete_snapshot(field: &Field, random: &mut Random, number: usize) -> Vec<(Name, What)> {
    let Some(id) = field.snapshots.lock().unwrap().get(&number).cloned() else { return Vec::new() };
    let message = field.class.delete_snapshot(&id);
    let mut controller = field.controller();
    let call = async |message| controller.delete_snapshot(message).await;
    let what = match ask("DeleteSnapshot", Patience::draw(random), message, call).await {
        Outcome::Answer(_) => What::Deleted { id },
        Outcome::Open => What::MaybeDeleted { id },
        Outcome::Refused(_) => What::Nothing,
    };
    vec![(Name::Snapshot(number), what)]
}

async fn look_at_volume(field: &Field, number: usize) -> What {
    let id = field.volume_id(number);
    let message = ValidateVolumeCapabilitiesRequest {
        volume_id: id.clone(),
        volume_capabilities: vec![filesystem()],
        secrets: field.class.secrets.clone(),
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    let mut controller = field.controller();
    let call = async |message| controller.validate_volume_capabilities(message).await;
    match ask("ValidateVolumeCapabilities", Patience::Ample, message, call).await {
        Outcome::Answer(_) => What::Present { id },
        Outcome::Refused(_) => What::Absent { id },
        Outcome::Open => What::Nothing,
    }
}

async fn look_at_snapshot(field: &Field, number: usize) -> Vec<(Name, What)> {
    let Some(id) = field.snapshots.lock().unwrap().get(&number).cloned() else { return Vec::new() };
    let message =
        GetSnapshotRequest { snapshot_id: id.clone(), secrets: field.class.secrets.clone() };
    let mut controller = field.controller();
    let call = async |message| controller.get_snapshot(message).await;
    let what = match ask("GetSnapshot", Patience::Ample, message, call).await {
        Outcome::Answer(_) => What::Present { id },
        Outcome::Refused(_) => What::Absent { id },
        Outcome::Open => What::Nothing,
    };
    vec![(Name::Snapshot(number), what)]
}

/// Whether a snapshot's name is said to be taken by one of an earlier volume: that has the id asked
/// for, and another image than the volume of today. Ids of images are never used twice.
fn is_of_an_earlier_volume(field: &Field, number: usize, id: &str, status: &Status) -> bool {
    let (_, rest) = status
        .message()
        .split_once(&format!("of the volume {id} with the image "))
        .unwrap_or_default();
    let image = rest.split(':').next().unwrap_or_default();
    let today = field.pool.image_id(&format!("csi-v{number}")).unwrap();
    !image.is_empty() && today.as_deref() != Some(image)
}
