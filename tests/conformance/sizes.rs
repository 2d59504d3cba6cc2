//! Sizes: negative, contradictory, missing, odd, enormous; and growth.

use cinderblock::csi::proto::volume_content_source::{SnapshotSource, Type};
use cinderblock::csi::proto::*;
use tonic::Code;

use super::session::{Session, refused};
use super::target::{Controller, Need};
use super::{Check, check};

const EXPAND: Need = Need::Controller(Controller::ExpandVolume);

pub fn checks() -> Vec<Check> {
    vec![
        check!(negative_sizes_are_refused),
        check!(a_limit_below_what_is_required_cannot_be_had),
        check!(no_size_gives_a_volume_of_some_size),
        check!(a_limit_alone_is_kept),
        check!(a_size_that_can_be_had_exactly_is_had_exactly),
        check!(odd_sizes_are_rounded_up_to_what_the_backend_needs_and_never_past_the_limit),
        check!(enormous_sizes_are_refused_and_leave_nothing),
        check!(growth_is_exact_and_repeats_are_fine, EXPAND),
        check!(growth_refuses_sizes_that_make_no_sense, EXPAND),
        check!(growth_never_shrinks, EXPAND),
        check!(a_grown_volume_is_still_the_one_its_request_asks_for, EXPAND),
        check!(
            a_restored_volume_is_at_least_as_large_as_the_snapshot,
            Need::Controller(Controller::CreateDeleteSnapshot)
        ),
    ]
}

fn sized(
    session: &Session,
    what: &str,
    required_bytes: i64,
    limit_bytes: i64,
) -> CreateVolumeRequest {
    let capacity_range = Some(CapacityRange { required_bytes, limit_bytes });
    CreateVolumeRequest { capacity_range, ..session.new_volume(what) }
}

async fn negative_sizes_are_refused(session: &Session) {
    for (required, limit) in [(-1, 0), (0, -1), (i64::MIN, 0), (-5, -1), (session.size(), i64::MIN)]
    {
        let request = sized(session, "negative", required, limit);
        // Less than required, too, where both are said.
        let codes: &[Code] = if required > 0 {
            &[Code::InvalidArgument, Code::OutOfRange]
        } else {
            &[Code::InvalidArgument]
        };
        refused(&format!("{required}..{limit}"), session.create(request).await, codes);
    }
}

async fn a_limit_below_what_is_required_cannot_be_had(session: &Session) {
    let size = session.size();
    for (required, limit) in [(size, size - 1), (2 * size, size), (i64::MAX, 1)] {
        let request = sized(session, "contradiction", required, limit);
        refused(
            &format!("{required}..{limit}"),
            session.create(request).await,
            &[Code::OutOfRange, Code::InvalidArgument],
        );
    }
}

async fn no_size_gives_a_volume_of_some_size(session: &Session) {
    for (what, capacity_range) in [("absent", None), ("zero", Some(CapacityRange::default()))] {
        let request = CreateVolumeRequest { capacity_range, ..session.new_volume(what) };
        let volume = session.create(request.clone()).await.unwrap();
        // 0 is "not known".
        assert!(volume.capacity_bytes >= 0, "{what}: {volume:?}");
        assert_eq!(session.create(request).await.unwrap(), volume);
    }
}

async fn a_limit_alone_is_kept(session: &Session) {
    let size = session.size();
    let request = sized(session, "limit", 0, size);
    let volume = session.create(request).await.unwrap();
    assert!((1..=size).contains(&volume.capacity_bytes), "{volume:?}");
    let granularity = session.target.description.granularity;
    if granularity > 1 {
        let request = sized(session, "odd-limit", 0, size + granularity - 1);
        let volume = session.create(request).await.unwrap();
        assert_eq!(volume.capacity_bytes % granularity, 0, "{volume:?}");
    }
}

async fn a_size_that_can_be_had_exactly_is_had_exactly(session: &Session) {
    let (size, granularity) = (session.size(), session.target.description.granularity);
    for (what, bytes) in [("even", size), ("one-more", size + granularity)] {
        let volume = session.create(sized(session, what, bytes, bytes)).await.unwrap();
        assert_eq!(volume.capacity_bytes, bytes, "{what}, with a limit");
        let volume =
            session.create(sized(session, &format!("{what}-open"), bytes, 0)).await.unwrap();
        assert_eq!(volume.capacity_bytes, bytes, "{what}, without a limit");
    }
}

async fn odd_sizes_are_rounded_up_to_what_the_backend_needs_and_never_past_the_limit(
    session: &Session,
) {
    let (size, granularity) = (session.size(), session.target.description.granularity);
    let volume = session.create(sized(session, "odd", size + 1, 0)).await.unwrap();
    let least = (size + 1 + granularity - 1) / granularity * granularity;
    assert_eq!(volume.capacity_bytes, least, "for {}", size + 1);
    let volume = session.create(sized(session, "odd-limited", size + 1, least)).await.unwrap();
    assert_eq!(volume.capacity_bytes, least);
    if granularity > 2 {
        let request = sized(session, "impossible", size + 1, size + granularity - 1);
        refused("no whole number fits", session.create(request).await, &[Code::OutOfRange]);
    }
}

async fn enormous_sizes_are_refused_and_leave_nothing(session: &Session) {
    for bytes in [i64::MAX, i64::MAX - 511, 1 << 62] {
        let request = sized(session, "enormous", bytes, 0);
        refused(
            &bytes.to_string(),
            session.create(request).await,
            &[Code::OutOfRange, Code::ResourceExhausted],
        );
    }
    // The name is free: what was refused left nothing behind.
    let volume = session.create(sized(session, "enormous", session.size(), 0)).await.unwrap();
    assert_eq!(volume.capacity_bytes, session.size());
}

async fn growth_is_exact_and_repeats_are_fine(session: &Session) {
    let volume = session.volume("grows").await;
    let bytes = session.size() + session.target.description.granularity;
    for _ in 0..3 {
        let grown = session.grow(session.growth(&volume.volume_id, bytes, bytes)).await.unwrap();
        assert_eq!(grown.capacity_bytes, bytes);
    }
}

async fn growth_refuses_sizes_that_make_no_sense(session: &Session) {
    let volume = session.volume("v").await;
    let (id, size) = (&volume.volume_id, session.size());
    for (required, limit) in [(-1, 0), (0, -1), (i64::MIN, 0)] {
        let outcome = session.grow(session.growth(id, required, limit)).await;
        refused(&format!("{required}..{limit}"), outcome, &[Code::InvalidArgument]);
    }
    let outcome = session.grow(session.growth(id, 3 * size, 2 * size)).await;
    refused("limit < required", outcome, &[Code::OutOfRange, Code::InvalidArgument]);
    for bytes in [i64::MAX, 1 << 62] {
        let outcome = session.grow(session.growth(id, bytes, 0)).await;
        refused(&bytes.to_string(), outcome, &[Code::OutOfRange, Code::ResourceExhausted]);
    }
    let without =
        ControllerExpandVolumeRequest { capacity_range: None, ..session.growth(id, 0, 0) };
    refused("no range", session.grow(without).await, &[Code::InvalidArgument]);
    assert_eq!(session.volume("v").await.capacity_bytes, size, "a refusal changed the volume");
}

async fn growth_never_shrinks(session: &Session) {
    let volume = session.volume("v").await;
    let size = session.size();
    let grown = session.grow(session.growth(&volume.volume_id, 2 * size, 0)).await.unwrap();
    assert_eq!(grown.capacity_bytes, 2 * size);
    let smaller = session.grow(session.growth(&volume.volume_id, size, 0)).await.unwrap();
    assert_eq!(smaller.capacity_bytes, 2 * size, "it is that large already");
    let outcome = session.grow(session.growth(&volume.volume_id, size, size)).await;
    refused("a limit below its size", outcome, &[Code::OutOfRange]);
}

async fn a_grown_volume_is_still_the_one_its_request_asks_for(session: &Session) {
    let request = session.new_volume("v");
    let volume = session.create(request.clone()).await.unwrap();
    session.grow(session.growth(&volume.volume_id, 2 * session.size(), 0)).await.unwrap();
    let again = session.create(request).await.unwrap();
    assert_eq!(again.volume_id, volume.volume_id);
    let request = sized(session, "v", session.size(), session.size());
    refused("it is larger than the limit", session.create(request).await, &[Code::AlreadyExists]);
}

async fn a_restored_volume_is_at_least_as_large_as_the_snapshot(session: &Session) {
    let volume = session.volume("source").await;
    let snapshot = session.snapshot("snapshot", &volume.volume_id).await;
    let source = VolumeContentSource {
        r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: snapshot.snapshot_id.clone() })),
    };
    let from = |what: &str, required, limit| CreateVolumeRequest {
        volume_content_source: Some(source.clone()),
        ..sized(session, what, required, limit)
    };
    let size = session.size();
    let codes = [Code::OutOfRange, Code::InvalidArgument];
    refused("smaller", session.create(from("smaller", size / 2, 0)).await, &codes);
    refused("limited", session.create(from("limited", 0, size / 2)).await, &codes);
    assert_eq!(session.create(from("equal", size, size)).await.unwrap().capacity_bytes, size);
    assert_eq!(session.create(from("unsaid", 0, 0)).await.unwrap().capacity_bytes, size);
    assert_eq!(session.create(from("larger", 2 * size, 0)).await.unwrap().capacity_bytes, 2 * size);
}
