//! Ids that name nothing: garbage, hostile ones, and those of what is gone.

use cinderblock::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use cinderblock::csi::proto::*;
use tonic::Code;

use super::session::{Session, answer, refused};
use super::target::{Controller, Need};
use super::{Check, check};

const VOLUMES: Need = Need::Controller(Controller::CreateDeleteVolume);
const SNAPSHOTS: Need = Need::Controller(Controller::CreateDeleteSnapshot);

pub fn checks() -> Vec<Check> {
    vec![
        check!(garbage_volume_ids_name_nothing, VOLUMES),
        check!(garbage_snapshot_ids_name_nothing, SNAPSHOTS),
        check!(ids_of_deleted_volumes_name_nothing, VOLUMES),
        check!(ids_of_deleted_snapshots_name_nothing, SNAPSHOTS),
        check!(ids_next_to_a_real_one_name_nothing, VOLUMES),
        check!(a_source_without_a_type_is_refused, VOLUMES),
    ]
}

const GARBAGE: &[&str] = &[
    "x",
    "fake-vol-id",
    "../../../etc/passwd",
    "/",
    "//",
    "///",
    "-rf",
    "--help",
    "%s%n",
    "$(id)",
    "`id`",
    "'; drop",
    "a b c",
    "🦀",
    "\u{0}",
    "a\nb",
    "\u{202e}",
    "0",
    "null",
    "{}",
    "[]",
    "@",
    "a@b",
    "a/b",
    "..",
    ".",
    "00000000-0000-0000-0000-000000000000",
    "0001-0009-rook-ceph-0000000000000002-b0285c97-a0ce-11eb-8c66-0242ac110002",
];

/// Every RPC about one volume answers that there is none; what undoes is done.
async fn names_no_volume(session: &Session, id: &str) {
    let has = |capability| session.target.has(Need::Controller(capability));
    let gone = [Code::NotFound];
    session
        .delete_volume(id)
        .await
        .unwrap_or_else(|status| panic!("DeleteVolume {id:?}: {status:?}"));
    refused(id, session.validate(session.validation(id)).await, &gone);
    if has(Controller::ExpandVolume) {
        refused(id, session.grow(session.growth(id, 2 * session.size(), 0)).await, &gone);
    }
    if has(Controller::PublishUnpublishVolume) {
        refused(id, session.publish(session.publication(id)).await, &gone);
        session
            .unpublish(id, "")
            .await
            .unwrap_or_else(|status| panic!("Unpublish {id:?}: {status:?}"));
    }
    if has(Controller::CreateDeleteSnapshot) {
        refused(id, session.cut(session.snapshot_named(&session.name("s"), id)).await, &gone);
    }
    if has(Controller::CloneVolume) {
        let source = Type::Volume(VolumeSource { volume_id: id.to_string() });
        let volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
        let request = CreateVolumeRequest { volume_content_source, ..session.new_volume("clone") };
        refused(id, session.create(request).await, &gone);
    }
    let mut controller = session.controller();
    if has(Controller::GetVolume) {
        let request = ControllerGetVolumeRequest { volume_id: id.to_string() };
        refused(id, answer(controller.controller_get_volume(request).await), &gone);
    }
    if has(Controller::ModifyVolume) && session.target.has(Need::MutableParameters) {
        let request = ControllerModifyVolumeRequest {
            volume_id: id.to_string(),
            secrets: session.secrets(),
            mutable_parameters: session.target.description.mutable_parameters.clone(),
        };
        refused(id, answer(controller.controller_modify_volume(request).await), &gone);
    }
    if has(Controller::ListSnapshots) {
        let request = ListSnapshotsRequest {
            source_volume_id: id.to_string(),
            secrets: session.secrets(),
            ..ListSnapshotsRequest::default()
        };
        let list = answer(controller.list_snapshots(request).await);
        assert_eq!(
            list.unwrap_or_else(|status| panic!("ListSnapshots of {id:?}: {status:?}")).entries,
            []
        );
    }
}

async fn names_no_snapshot(session: &Session, id: &str) {
    session
        .delete_snapshot(id)
        .await
        .unwrap_or_else(|status| panic!("DeleteSnapshot {id:?}: {status:?}"));
    let source = Type::Snapshot(SnapshotSource { snapshot_id: id.to_string() });
    let volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
    let request = CreateVolumeRequest { volume_content_source, ..session.new_volume("restored") };
    refused(id, session.create(request).await, &[Code::NotFound]);
    let mut controller = session.controller();
    if session.target.has(Need::Controller(Controller::ListSnapshots)) {
        let request = ListSnapshotsRequest {
            snapshot_id: id.to_string(),
            secrets: session.secrets(),
            ..ListSnapshotsRequest::default()
        };
        let list = answer(controller.list_snapshots(request).await);
        assert_eq!(
            list.unwrap_or_else(|status| panic!("ListSnapshots {id:?}: {status:?}")).entries,
            []
        );
    }
    if session.target.has(Need::Controller(Controller::GetSnapshot)) {
        let request =
            GetSnapshotRequest { snapshot_id: id.to_string(), secrets: session.secrets() };
        refused(id, answer(controller.get_snapshot(request).await), &[Code::NotFound]);
    }
}

async fn garbage_volume_ids_name_nothing(session: &Session) {
    for id in GARBAGE {
        names_no_volume(session, id).await;
    }
}

async fn garbage_snapshot_ids_name_nothing(session: &Session) {
    for id in GARBAGE {
        names_no_snapshot(session, id).await;
    }
}

async fn ids_of_deleted_volumes_name_nothing(session: &Session) {
    let volume = session.volume("v").await;
    session.delete_volume(&volume.volume_id).await.unwrap();
    names_no_volume(session, &volume.volume_id).await;
}

async fn ids_of_deleted_snapshots_name_nothing(session: &Session) {
    let volume = session.volume("v").await;
    let snapshot = session.snapshot("s", &volume.volume_id).await;
    session.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
    names_no_snapshot(session, &snapshot.snapshot_id).await;
}

async fn ids_next_to_a_real_one_name_nothing(session: &Session) {
    let volume = session.volume("v").await;
    let id = &volume.volume_id;
    for near in [
        format!("{id}x"),
        format!("{id}/"),
        format!("{id}/.."),
        format!("{id}\n"),
        format!(" {id}"),
    ] {
        names_no_volume(session, &near).await;
    }
    assert_eq!(session.volume("v").await, volume, "it was hit all the same");
    if session.target.has(SNAPSHOTS) {
        let snapshot = session.snapshot("s", id).await;
        let near = &snapshot.snapshot_id;
        for near in [format!("{near}x"), format!("{near}@"), format!("{near}\0"), id.clone()] {
            names_no_snapshot(session, &near).await;
        }
        names_no_volume(session, near).await;
        assert_eq!(session.snapshot("s", id).await, snapshot, "it was hit all the same");
    }
}

async fn a_source_without_a_type_is_refused(session: &Session) {
    let request = CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: None }),
        ..session.new_volume("v")
    };
    refused("no type", session.create(request).await, &[Code::InvalidArgument]);
    for source in [
        Type::Volume(VolumeSource { volume_id: String::new() }),
        Type::Snapshot(SnapshotSource { snapshot_id: String::new() }),
    ] {
        let volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
        let request = CreateVolumeRequest { volume_content_source, ..session.new_volume("v") };
        refused("no id", session.create(request).await, &[Code::InvalidArgument]);
    }
}
