//! The sizes of fields, from both sides: what the specification allows is taken, one byte more is
//! refused.

use cinderblock::csi::proto::volume_capability::AccessType;
use cinderblock::csi::proto::volume_capability::access_mode::Mode;
use cinderblock::csi::proto::*;
use tonic::Code;

use super::session::{Session, answer, refused};
use super::target::{Controller, Map, Need};
use super::{Check, check};

pub fn checks() -> Vec<Check> {
    const VOLUMES: Need = Need::Controller(Controller::CreateDeleteVolume);
    vec![
        check!(names_have_128_bytes_and_no_more, VOLUMES),
        check!(
            snapshot_names_have_128_bytes_and_no_more,
            Need::Controller(Controller::CreateDeleteSnapshot)
        ),
        check!(ids_beyond_128_bytes_exist_nowhere, VOLUMES),
        check!(parameters_have_4096_bytes_and_no_more, VOLUMES),
        check!(contexts_and_secrets_have_4096_bytes_and_no_more, VOLUMES),
        check!(mount_flags_have_4096_bytes_and_no_more, VOLUMES),
        check!(fs_types_have_128_bytes_and_no_more, VOLUMES),
        check!(
            node_ids_have_256_bytes_and_no_more,
            Need::Controller(Controller::PublishUnpublishVolume)
        ),
    ]
}

/// A map with `bytes` bytes more than `map`, under keys that sidecars add and drivers pass over.
fn filled(map: &Map, bytes: usize) -> Map {
    let mut map = map.clone();
    let used: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    let key = "csi.storage.k8s.io/pvc/name".to_string();
    let value = "x".repeat(bytes - used - key.len());
    map.insert(key, value);
    map
}

async fn names_have_128_bytes_and_no_more(session: &Session) {
    let pad = |unit: &str, bytes: usize| {
        let name = session.name("");
        let units = (bytes - name.len()) / unit.len();
        let name = format!("{name}{}", unit.repeat(units));
        format!("{name}{}", "x".repeat(bytes - name.len()))
    };
    for unit in ["n", "é", "🦀"] {
        let name = pad(unit, 128);
        assert_eq!(name.len(), 128);
        let volume = session.create(session.volume_named(&name)).await.unwrap();
        let again = session.create(session.volume_named(&name)).await.unwrap();
        assert_eq!(again.volume_id, volume.volume_id);
        let long = pad(unit, 129);
        refused(&long, session.create(session.volume_named(&long)).await, &[Code::InvalidArgument]);
    }
}

async fn snapshot_names_have_128_bytes_and_no_more(session: &Session) {
    let volume = session.volume("source").await;
    let name = session.name("");
    for (bytes, good) in [(128, true), (129, false)] {
        let name = format!("{name}{}", "s".repeat(bytes - name.len()));
        let outcome = session.cut(session.snapshot_named(&name, &volume.volume_id)).await;
        if good {
            outcome.unwrap();
        } else {
            refused(&name, outcome, &[Code::InvalidArgument]);
        }
    }
}

async fn ids_beyond_128_bytes_exist_nowhere(session: &Session) {
    for id in ["i".repeat(129), "i/".repeat(100), "é".repeat(2000)] {
        if let Err(status) = session.delete_volume(&id).await {
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        }
        let codes = [Code::InvalidArgument, Code::NotFound];
        refused(&id, session.validate(session.validation(&id)).await, &codes);
        if session.target.has(Need::Controller(Controller::ExpandVolume)) {
            refused(&id, session.grow(session.growth(&id, session.size(), 0)).await, &codes);
        }
    }
}

async fn parameters_have_4096_bytes_and_no_more(session: &Session) {
    let with = |what: &str, bytes| {
        let request = session.new_volume(what);
        CreateVolumeRequest { parameters: filled(&request.parameters, bytes), ..request }
    };
    session.create(with("full", 4096)).await.unwrap();
    refused("4097 bytes", session.create(with("over", 4097)).await, &[Code::InvalidArgument]);
    if session.target.has(Need::Controller(Controller::CreateDeleteSnapshot)) {
        let volume = session.volume("source").await;
        let with = |what: &str, bytes| {
            let request = session.snapshot_named(&session.name(what), &volume.volume_id);
            CreateSnapshotRequest { parameters: filled(&request.parameters, bytes), ..request }
        };
        session.cut(with("full", 4096)).await.unwrap();
        refused("4097 bytes", session.cut(with("over", 4097)).await, &[Code::InvalidArgument]);
    }
}

async fn contexts_and_secrets_have_4096_bytes_and_no_more(session: &Session) {
    let refuse = [Code::InvalidArgument];
    let request = session.new_volume("secrets");
    let with =
        |bytes| CreateVolumeRequest { secrets: filled(&request.secrets, bytes), ..request.clone() };
    refused("secrets of 4097 bytes", session.create(with(4097)).await, &refuse);
    let volume = session.create(with(4096)).await.unwrap();
    let validation = session.validation(&volume.volume_id);
    let with = |bytes| ValidateVolumeCapabilitiesRequest {
        volume_context: filled(&volume.volume_context, bytes),
        ..validation.clone()
    };
    refused("a volume context of 4097 bytes", session.validate(with(4097)).await, &refuse);
    session.validate(with(4096)).await.unwrap();
    let with = |bytes| DeleteVolumeRequest {
        volume_id: volume.volume_id.clone(),
        secrets: filled(&request.secrets, bytes),
    };
    let mut controller = session.controller();
    refused("secrets of 4097 bytes", answer(controller.delete_volume(with(4097)).await), &refuse);
    answer(controller.delete_volume(with(4096)).await).unwrap();
}

async fn mount_flags_have_4096_bytes_and_no_more(session: &Session) {
    let with = |what: &str, last: usize| {
        let mut capability = session.mounted(Mode::SingleNodeWriter);
        let Some(AccessType::Mount(mount)) = &mut capability.access_type else { unreachable!() };
        // Options no kernel looks at, 32 times 128 bytes.
        mount.mount_flags = (0..31).map(|n| format!("x-{n:0126}")).collect();
        mount.mount_flags.push(format!("x-{}", "f".repeat(last - 2)));
        CreateVolumeRequest { volume_capabilities: vec![capability], ..session.new_volume(what) }
    };
    session.create(with("full", 128)).await.unwrap();
    refused("4097 bytes", session.create(with("over", 129)).await, &[Code::InvalidArgument]);
}

async fn fs_types_have_128_bytes_and_no_more(session: &Session) {
    let mut request = session.new_volume("fs");
    let Some(AccessType::Mount(mount)) = &mut request.volume_capabilities[0].access_type else {
        unreachable!()
    };
    mount.fs_type = "f".repeat(129);
    refused("129 bytes", session.create(request).await, &[Code::InvalidArgument]);
}

async fn node_ids_have_256_bytes_and_no_more(session: &Session) {
    let volume = session.volume("v").await;
    let to = |bytes| ControllerPublishVolumeRequest {
        node_id: "n".repeat(bytes),
        ..session.publication(&volume.volume_id)
    };
    refused("257 bytes", session.publish(to(257)).await, &[Code::InvalidArgument, Code::NotFound]);
    // A driver that knows its nodes does not know this one.
    if let Err(status) = session.publish(to(256)).await {
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
    }
    // Nor need it undo anything there.
    if let Err(status) = session.unpublish(&volume.volume_id, &"n".repeat(256)).await {
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
    }
}
