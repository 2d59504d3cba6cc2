//! The same request again, and one that only looks the same.

use cinderblock::csi::proto::volume_capability::access_mode::Mode;
use cinderblock::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use cinderblock::csi::proto::*;
use tonic::Code;

use super::session::{Session, answer, block, refused};
use super::target::{Controller, Need};
use super::{Check, check};

const SNAPSHOTS: Need = Need::Controller(Controller::CreateDeleteSnapshot);
const CLONES: Need = Need::Controller(Controller::CloneVolume);
const PUBLISH: Need = Need::Controller(Controller::PublishUnpublishVolume);

pub fn checks() -> Vec<Check> {
    vec![
        check!(a_repeated_volume_is_the_same_in_every_field),
        check!(a_volume_asked_for_with_other_sizes_exists_already),
        check!(a_volume_asked_for_with_other_parameters_exists_already, Need::OtherParameters),
        check!(
            a_volume_asked_for_with_other_mutable_parameters_exists_already,
            Need::MutableParameters
        ),
        check!(a_volume_asked_for_with_other_capabilities_exists_already),
        check!(a_volume_asked_for_from_another_source_exists_already, SNAPSHOTS, CLONES),
        check!(sidecar_keys_are_tolerated_and_never_compared),
        check!(parameters_nobody_knows_are_refused, Need::Parameters),
        check!(a_misspelt_parameter_hears_the_right_one, Need::Parameters),
        check!(a_repeated_snapshot_is_the_same_in_every_field, SNAPSHOTS),
        check!(a_snapshot_of_another_volume_exists_already, SNAPSHOTS),
        check!(deletions_repeat),
        check!(a_deleted_name_is_free_again),
        check!(publications_repeat_and_differ, PUBLISH),
        check!(unpublishing_repeats_and_needs_no_publication, PUBLISH),
        check!(a_refused_request_leaves_the_name_free),
    ]
}

fn from_volume(id: &str) -> VolumeContentSource {
    VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.to_string() })) }
}

fn from_snapshot(id: &str) -> VolumeContentSource {
    VolumeContentSource {
        r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.to_string() })),
    }
}

/// Creates a volume, asks for it in these other ways, and then as at first again.
async fn differs(
    session: &Session,
    request: CreateVolumeRequest,
    others: Vec<(&str, CreateVolumeRequest)>,
) {
    let volume = session.create(request.clone()).await.unwrap();
    for (what, other) in others {
        refused(what, session.create(other).await, &[Code::AlreadyExists]);
    }
    assert_eq!(session.create(request).await.unwrap(), volume, "a refusal changed the volume");
}

async fn a_repeated_volume_is_the_same_in_every_field(session: &Session) {
    let request = session.new_volume("v");
    let volume = session.create(request.clone()).await.unwrap();
    for _ in 0..4 {
        assert_eq!(session.create(request.clone()).await.unwrap(), volume);
    }
}

async fn a_volume_asked_for_with_other_sizes_exists_already(session: &Session) {
    let size = session.size();
    let request = session.new_volume("v");
    let with = |required_bytes, limit_bytes| CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
        ..request.clone()
    };
    let others = vec![
        ("larger", with(2 * size, 0)),
        ("limited", with(0, size / 2)),
        ("both", with(2 * size, 3 * size)),
    ];
    differs(session, request.clone(), others).await;
    let volume = session.create(request.clone()).await.unwrap();
    // What it has suits these, too.
    for (required, limit) in [(size, size), (1, size), (size, 2 * size), (0, 0)] {
        assert_eq!(
            session.create(with(required, limit)).await.unwrap().volume_id,
            volume.volume_id
        );
    }
}

async fn a_volume_asked_for_with_other_parameters_exists_already(session: &Session) {
    let request = session.new_volume("v");
    let parameters = session.target.description.other_parameters.clone().unwrap();
    let other = CreateVolumeRequest { parameters, ..request.clone() };
    differs(session, request, vec![("other parameters", other)]).await;
}

async fn a_volume_asked_for_with_other_mutable_parameters_exists_already(session: &Session) {
    let description = &session.target.description;
    let with =
        |mutable_parameters| CreateVolumeRequest { mutable_parameters, ..session.new_volume("v") };
    let others = vec![
        ("other mutable parameters", with(description.other_mutable_parameters.clone())),
        ("no mutable parameters", with([].into())),
    ];
    differs(session, with(description.mutable_parameters.clone()), others).await;
}

async fn a_volume_asked_for_with_other_capabilities_exists_already(session: &Session) {
    let with = |volume_capabilities| CreateVolumeRequest {
        volume_capabilities,
        ..session.new_volume("v")
    };
    let others = vec![
        ("a device", with(vec![block(Mode::SingleNodeWriter)])),
        ("another mode", with(vec![session.mounted(Mode::SingleNodeReaderOnly)])),
    ];
    differs(session, session.new_volume("v"), others).await;
}

async fn a_volume_asked_for_from_another_source_exists_already(session: &Session) {
    let (a, b) = (session.volume("a").await, session.volume("b").await);
    let snapshot = session.snapshot("s", &a.volume_id).await;
    let from = |what: &str, volume_content_source| CreateVolumeRequest {
        volume_content_source,
        ..session.new_volume(what)
    };
    let sources = [
        ("empty", None),
        ("from a", Some(from_volume(&a.volume_id))),
        ("from b", Some(from_volume(&b.volume_id))),
        ("from a's snapshot", Some(from_snapshot(&snapshot.snapshot_id))),
    ];
    for (what, source) in &sources {
        let others = sources.iter().filter(|(other, _)| other != what);
        let others = others.map(|(other, source)| (*other, from(what, source.clone()))).collect();
        differs(session, from(what, source.clone()), others).await;
    }
}

async fn sidecar_keys_are_tolerated_and_never_compared(session: &Session) {
    let keys = ["pvc/name", "pvc/namespace", "pv/name", "fstype", "some/later/key"];
    let keys = keys.map(|key| (format!("csi.storage.k8s.io/{key}"), "ext4".to_string()));
    let plain = session.new_volume("v");
    let mut with = plain.clone();
    with.parameters.extend(keys.clone());
    let volume = session.create(with.clone()).await.unwrap();
    assert_eq!(session.create(plain.clone()).await.unwrap().volume_id, volume.volume_id);
    with.parameters.insert("csi.storage.k8s.io/pvc/name".to_string(), "another".to_string());
    assert_eq!(session.create(with).await.unwrap().volume_id, volume.volume_id);
    if session.target.has(SNAPSHOTS) {
        let plain = session.snapshot_named(&session.name("s"), &volume.volume_id);
        let mut with = plain.clone();
        with.parameters.extend(
            ["volumesnapshot/name", "volumesnapshotcontent/name"]
                .map(|key| (format!("csi.storage.k8s.io/{key}"), "s".to_string())),
        );
        let snapshot = session.cut(with).await.unwrap();
        assert_eq!(session.cut(plain).await.unwrap().snapshot_id, snapshot.snapshot_id);
    }
}

async fn parameters_nobody_knows_are_refused(session: &Session) {
    for key in ["no-such-parameter", "", "storage.k8s.io/pvc/name", "🦀"] {
        let mut request = session.new_volume("v");
        request.parameters.insert(key.to_string(), "x".to_string());
        refused(key, session.create(request).await, &[Code::InvalidArgument]);
    }
}

async fn a_misspelt_parameter_hears_the_right_one(session: &Session) {
    for right in session.target.description.parameters.keys() {
        let (head, last) = right.split_at(right.len() - 1);
        let mut request = session.new_volume("v");
        request.parameters.insert(format!("{head}{last}{last}"), "x".to_string());
        let words = refused(right, session.create(request).await, &[Code::InvalidArgument]);
        assert!(words.contains(&format!("{right:?}")), "{words}");
    }
}

async fn a_repeated_snapshot_is_the_same_in_every_field(session: &Session) {
    let volume = session.volume("v").await;
    let snapshot = session.snapshot("s", &volume.volume_id).await;
    for _ in 0..3 {
        assert_eq!(session.snapshot("s", &volume.volume_id).await, snapshot);
    }
}

async fn a_snapshot_of_another_volume_exists_already(session: &Session) {
    let (a, b) = (session.volume("a").await, session.volume("b").await);
    let snapshot = session.snapshot("s", &a.volume_id).await;
    let request = session.snapshot_named(&session.name("s"), &b.volume_id);
    refused("of b", session.cut(request).await, &[Code::AlreadyExists]);
    assert_eq!(session.snapshot("s", &a.volume_id).await, snapshot);
}

async fn deletions_repeat(session: &Session) {
    let volume = session.volume("v").await;
    if session.target.has(SNAPSHOTS) {
        let snapshot = session.snapshot("s", &volume.volume_id).await;
        for _ in 0..3 {
            session.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
        }
        refused("no id", session.delete_snapshot("").await, &[Code::InvalidArgument]);
    }
    for _ in 0..3 {
        session.delete_volume(&volume.volume_id).await.unwrap();
    }
    refused("no id", session.delete_volume("").await, &[Code::InvalidArgument]);
}

async fn a_deleted_name_is_free_again(session: &Session) {
    for size in [session.size(), 2 * session.size()] {
        let capacity_range = Some(CapacityRange { required_bytes: size, limit_bytes: size });
        let request = CreateVolumeRequest { capacity_range, ..session.new_volume("v") };
        let volume = session.create(request).await.unwrap();
        assert_eq!(volume.capacity_bytes, size);
        session.delete_volume(&volume.volume_id).await.unwrap();
    }
    if session.target.has(SNAPSHOTS) {
        let (a, b) = (session.volume("a").await, session.volume("b").await);
        for volume in [&a, &b] {
            let snapshot = session.snapshot("s", &volume.volume_id).await;
            session.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
        }
    }
}

async fn publications_repeat_and_differ(session: &Session) {
    let volume = session.volume("v").await;
    let request = session.publication(&volume.volume_id);
    let published = session.publish(request.clone()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(session.publish(request.clone()).await.unwrap(), published);
    }
    if session.target.has(Need::Controller(Controller::PublishReadonly)) {
        let other = ControllerPublishVolumeRequest { readonly: true, ..request.clone() };
        refused("read-only", session.publish(other).await, &[Code::AlreadyExists]);
    }
    let capability = Some(session.mounted(Mode::SingleNodeReaderOnly));
    let other = ControllerPublishVolumeRequest { volume_capability: capability, ..request.clone() };
    refused("another capability", session.publish(other).await, &[Code::AlreadyExists]);
    for (what, other) in [
        (
            "no volume",
            ControllerPublishVolumeRequest { volume_id: String::new(), ..request.clone() },
        ),
        ("no node", ControllerPublishVolumeRequest { node_id: String::new(), ..request.clone() }),
        (
            "no capability",
            ControllerPublishVolumeRequest { volume_capability: None, ..request.clone() },
        ),
    ] {
        refused(what, session.publish(other).await, &[Code::InvalidArgument]);
    }
    let elsewhere =
        ControllerPublishVolumeRequest { node_id: "no-such-node".to_string(), ..request.clone() };
    let words = refused(
        "elsewhere",
        session.publish(elsewhere).await,
        &[Code::NotFound, Code::FailedPrecondition],
    );
    assert!(
        words.contains(&request.node_id) || words.contains("no-such-node"),
        "no node is named: {words}"
    );
    assert_eq!(session.publish(request.clone()).await.unwrap(), published);
    refused(
        "a published volume",
        session.delete_volume(&volume.volume_id).await,
        &[Code::FailedPrecondition],
    );
    session.unpublish(&volume.volume_id, &request.node_id).await.unwrap();
}

async fn unpublishing_repeats_and_needs_no_publication(session: &Session) {
    let volume = session.volume("v").await;
    let node = session.target.node_id.clone().unwrap_or_else(|| "node".to_string());
    session.unpublish(&volume.volume_id, &node).await.unwrap();
    session.publish(session.publication(&volume.volume_id)).await.unwrap();
    for _ in 0..3 {
        session.unpublish(&volume.volume_id, &node).await.unwrap();
    }
    session.publish(session.publication(&volume.volume_id)).await.unwrap();
    // No node is every node.
    for _ in 0..2 {
        session.unpublish(&volume.volume_id, "").await.unwrap();
    }
    refused("no volume", session.unpublish("", &node).await, &[Code::InvalidArgument]);
    session.delete_volume(&volume.volume_id).await.unwrap();
    session.unpublish(&volume.volume_id, &node).await.unwrap();
}

async fn a_refused_request_leaves_the_name_free(session: &Session) {
    let good = session.new_volume("v");
    let bad = CreateVolumeRequest {
        volume_content_source: Some(from_volume("no-such-volume")),
        ..good.clone()
    };
    let codes = [Code::NotFound, Code::InvalidArgument];
    refused("no such source", session.create(bad).await, &codes);
    let mut bad = good.clone();
    bad.parameters.insert("no-such-parameter".to_string(), "x".to_string());
    let _ = session.create(bad).await;
    let volume = session.create(good).await.unwrap();
    assert_eq!(volume.content_source, None);
    if session.target.has(SNAPSHOTS) {
        let mut controller = session.controller();
        let bad = session.snapshot_named(&session.name("s"), "no-such-volume");
        refused("no such source", answer(controller.create_snapshot(bad).await), &[Code::NotFound]);
        session.snapshot("s", &volume.volume_id).await;
    }
}
