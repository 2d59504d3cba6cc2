//! Many at once, callers that hang up, and deadlines that no driver can meet.

use std::collections::BTreeSet;
use std::time::Duration;

use cinderblock::csi::proto::*;
use tonic::{Code, Request, Status};

use super::session::{Session, again};
use super::target::{Controller, Need};
use super::{Check, check};

const SNAPSHOTS: Need = Need::Controller(Controller::CreateDeleteSnapshot);

pub fn checks() -> Vec<Check> {
    vec![
        check!(the_same_volume_asked_for_at_once_is_made_once),
        check!(different_volumes_of_one_name_asked_for_at_once_leave_one),
        check!(the_same_snapshot_asked_for_at_once_is_cut_once, SNAPSHOTS),
        check!(creations_and_deletions_at_once_end_in_order),
        check!(a_caller_that_hangs_up_finds_its_volume_when_it_comes_back),
        check!(a_deadline_nobody_can_meet_is_said_and_the_volume_is_there_later),
        check!(many_volumes_at_once_are_many_volumes),
        check!(a_deletion_and_a_snapshot_at_once_leave_one_of_both, SNAPSHOTS),
    ]
}

/// What a request may hear while another holds the same name.
fn pending(status: &Status) -> bool {
    matches!(status.code(), Code::Aborted | Code::Unavailable | Code::DeadlineExceeded)
}

/// Runs all at once and gives their outcomes in order.
async fn at_once<F: Future>(calls: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    futures_util::future::join_all(calls).await
}

async fn the_same_volume_asked_for_at_once_is_made_once(session: &Session) {
    for round in 0..3 {
        let request = session.new_volume(&format!("v{round}"));
        let outcomes = at_once((0..32).map(|_| session.create(request.clone()))).await;
        let last = again("CreateVolume", || session.create(request.clone())).await;
        for outcome in outcomes {
            match outcome {
                Ok(volume) => assert_eq!(volume, last),
                Err(status) => assert!(pending(&status), "{status:?}"),
            }
        }
    }
}

async fn different_volumes_of_one_name_asked_for_at_once_leave_one(session: &Session) {
    let request = |size: i64| CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: size }),
        ..session.new_volume("v")
    };
    let sizes = || (1..=8).map(|factor| factor * session.size());
    let outcomes = at_once(sizes().map(|size| session.create(request(size)))).await;
    let made: BTreeSet<_> = outcomes.iter().flatten().map(|volume| volume.capacity_bytes).collect();
    assert!(made.len() <= 1, "one name has volumes of {made:?} bytes");
    for status in outcomes.into_iter().filter_map(Result::err) {
        assert!(pending(&status) || status.code() == Code::AlreadyExists, "{status:?}");
    }
    // Each caller that comes back hears the same of it.
    let mut fits = 0;
    for size in sizes() {
        match session.create(request(size)).await {
            Ok(_) => fits += 1,
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status:?}"),
        }
    }
    assert_eq!(fits, 1);
}

async fn the_same_snapshot_asked_for_at_once_is_cut_once(session: &Session) {
    let volume = session.volume("v").await;
    let request = session.snapshot_named(&session.name("s"), &volume.volume_id);
    let outcomes = at_once((0..32).map(|_| session.cut(request.clone()))).await;
    let last = again("CreateSnapshot", || session.cut(request.clone())).await;
    for outcome in outcomes {
        match outcome {
            Ok(snapshot) => assert_eq!(
                (snapshot.snapshot_id, snapshot.creation_time),
                (last.snapshot_id.clone(), last.creation_time)
            ),
            Err(status) => assert!(pending(&status), "{status:?}"),
        }
    }
}

async fn creations_and_deletions_at_once_end_in_order(session: &Session) {
    let request = session.new_volume("v");
    let volume = session.create(request.clone()).await.unwrap();
    for _ in 0..5 {
        let create = at_once((0..4).map(|_| session.create(request.clone())));
        let delete = at_once((0..4).map(|_| session.delete_volume(&volume.volume_id)));
        let (created, deleted) = futures_util::future::join(create, delete).await;
        for status in created
            .into_iter()
            .filter_map(Result::err)
            .chain(deleted.into_iter().filter_map(Result::err))
        {
            assert!(pending(&status), "{status:?}");
        }
        let made = again("CreateVolume", || session.create(request.clone())).await;
        session.validate(session.validation(&made.volume_id)).await.unwrap();
        again("DeleteVolume", || session.delete_volume(&made.volume_id)).await;
        let gone = session.validate(session.validation(&made.volume_id)).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
    }
}

async fn a_caller_that_hangs_up_finds_its_volume_when_it_comes_back(session: &Session) {
    for round in 0..20 {
        let request = session.new_volume(&format!("v{round}"));
        let patience = Duration::from_millis(round * 2);
        // Dropping the future resets the stream, as a client that was killed would.
        let _ = tokio::time::timeout(patience, session.create(request.clone())).await;
        let volume = again("CreateVolume", || session.create(request.clone())).await;
        assert_eq!(volume.capacity_bytes, session.size());
        let _ = tokio::time::timeout(patience, session.delete_volume(&volume.volume_id)).await;
        again("DeleteVolume", || session.delete_volume(&volume.volume_id)).await;
    }
}

async fn a_deadline_nobody_can_meet_is_said_and_the_volume_is_there_later(session: &Session) {
    for round in 0..10 {
        let message = session.new_volume(&format!("v{round}"));
        let mut request = Request::new(message.clone());
        request.set_timeout(Duration::from_millis(round));
        if let Err(status) = session.create_within(request).await {
            // CANCELLED is how tonic's client names its own expiry.
            assert!(pending(&status) || status.code() == Code::Cancelled, "{status:?}");
        }
        again("CreateVolume", || session.create(message.clone())).await;
    }
}

async fn many_volumes_at_once_are_many_volumes(session: &Session) {
    let requests: Vec<_> =
        (0..64).map(|number| session.new_volume(&format!("v{number}"))).collect();
    let volumes = at_once(
        requests.iter().map(|request| again("CreateVolume", || session.create(request.clone()))),
    )
    .await;
    let ids: BTreeSet<_> = volumes.iter().map(|volume| volume.volume_id.as_str()).collect();
    assert_eq!(ids.len(), 64);
    at_once(ids.iter().map(|id| again("DeleteVolume", || session.delete_volume(id)))).await;
}

async fn a_deletion_and_a_snapshot_at_once_leave_one_of_both(session: &Session) {
    for round in 0..10 {
        let volume = session.volume(&format!("v{round}")).await;
        let request =
            session.snapshot_named(&session.name(&format!("s{round}")), &volume.volume_id);
        let (cut, deleted) = futures_util::future::join(
            session.cut(request),
            session.delete_volume(&volume.volume_id),
        )
        .await;
        if let Err(status) = &cut {
            assert!(pending(status) || status.code() == Code::NotFound, "{status:?}");
        }
        if let Err(status) = &deleted {
            assert!(pending(status) || status.code() == Code::FailedPrecondition, "{status:?}");
        }
        if let (Ok(snapshot), true) =
            (cut, session.target.has(Need::Controller(Controller::GetSnapshot)))
        {
            let request = GetSnapshotRequest {
                snapshot_id: snapshot.snapshot_id,
                secrets: session.secrets(),
            };
            session
                .controller()
                .get_snapshot(request)
                .await
                .expect("a snapshot that was handed out is there");
        }
    }
}
