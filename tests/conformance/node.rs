//! The node service, as far as nothing is attached: missing fields, capabilities no volume has, and
//! undoing what was never done.

use cinderblock::csi::proto::volume_capability::access_mode::Mode;
use cinderblock::csi::proto::*;
use tonic::Code;

use super::session::{Session, answer, refused};
use super::target::{Map, Need};
use super::{Check, check};

pub fn checks() -> Vec<Check> {
    vec![
        check!(missing_fields_are_refused, Need::Node),
        check!(what_was_never_staged_or_published_is_undone, Need::Node),
        check!(capabilities_no_volume_has_are_refused, Need::Node),
        check!(long_paths_are_paths, Need::Node),
        check!(contexts_have_4096_bytes_and_no_more, Need::Node),
        check!(nothing_is_published_that_was_not_staged, Need::Node),
        check!(sizes_that_make_no_sense_are_refused, Need::Node),
    ]
}

const BAD: &[Code] = &[Code::InvalidArgument];

fn stage(session: &Session, volume_id: &str) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: volume_id.to_string(),
        staging_target_path: path("staging"),
        volume_capability: Some(session.mounted(Mode::SingleNodeWriter)),
        secrets: session.secrets(),
        ..NodeStageVolumeRequest::default()
    }
}

fn publish(session: &Session, volume_id: &str) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: volume_id.to_string(),
        staging_target_path: path("staging"),
        target_path: path("target"),
        volume_capability: Some(session.mounted(Mode::SingleNodeWriter)),
        secrets: session.secrets(),
        ..NodePublishVolumeRequest::default()
    }
}

/// A path where nothing is.
fn path(what: &str) -> String {
    std::env::temp_dir().join(format!("no-such-directory/{what}")).display().to_string()
}

async fn missing_fields_are_refused(session: &Session) {
    let mut node = session.node();
    let volume = session.volume("v").await;
    let id = volume.volume_id.as_str();
    let stages = [
        NodeStageVolumeRequest { volume_id: String::new(), ..stage(session, id) },
        NodeStageVolumeRequest { staging_target_path: String::new(), ..stage(session, id) },
        NodeStageVolumeRequest { volume_capability: None, ..stage(session, id) },
        NodeStageVolumeRequest {
            volume_capability: Some(VolumeCapability::default()),
            ..stage(session, id)
        },
    ];
    for request in stages {
        refused(&format!("{request:?}"), answer(node.node_stage_volume(request).await), BAD);
    }
    let publications = [
        NodePublishVolumeRequest { volume_id: String::new(), ..publish(session, id) },
        NodePublishVolumeRequest { target_path: String::new(), ..publish(session, id) },
        NodePublishVolumeRequest { volume_capability: None, ..publish(session, id) },
        NodePublishVolumeRequest {
            volume_capability: Some(VolumeCapability::default()),
            ..publish(session, id)
        },
    ];
    for request in publications {
        refused(&format!("{request:?}"), answer(node.node_publish_volume(request).await), BAD);
    }
    for (id, path) in [("", "/x"), ("v", "")] {
        let (volume_id, path) = (id.to_string(), path.to_string());
        let request = NodeUnstageVolumeRequest {
            volume_id: volume_id.clone(),
            staging_target_path: path.clone(),
        };
        refused("unstage", answer(node.node_unstage_volume(request).await), BAD);
        let request =
            NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path: path.clone() };
        refused("unpublish", answer(node.node_unpublish_volume(request).await), BAD);
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume_id.clone(),
            volume_path: path.clone(),
            ..NodeGetVolumeStatsRequest::default()
        };
        refused("stats", answer(node.node_get_volume_stats(request).await), BAD);
        let request = NodeExpandVolumeRequest {
            volume_id,
            volume_path: path,
            ..NodeExpandVolumeRequest::default()
        };
        refused("expand", answer(node.node_expand_volume(request).await), BAD);
    }
}

async fn what_was_never_staged_or_published_is_undone(session: &Session) {
    let mut node = session.node();
    let volume = session.volume("v").await;
    for id in [volume.volume_id.as_str(), &session.name("no-such-volume"), &session.name("🦀")] {
        for _ in 0..2 {
            let request = NodeUnstageVolumeRequest {
                volume_id: id.to_string(),
                staging_target_path: path("staging"),
            };
            let unstaged = answer(node.node_unstage_volume(request).await).map(drop);
            let request = NodeUnpublishVolumeRequest {
                volume_id: id.to_string(),
                target_path: path("target"),
            };
            let unpublished = answer(node.node_unpublish_volume(request).await).map(drop);
            for outcome in [unstaged, unpublished] {
                // NOT_FOUND only for a volume that is nowhere.
                let fine = outcome.as_ref().map_or_else(
                    |s| s.code() == Code::NotFound && id != volume.volume_id,
                    |()| true,
                );
                assert!(fine, "{id:?}: {outcome:?}");
            }
        }
    }
}

async fn capabilities_no_volume_has_are_refused(session: &Session) {
    let mut node = session.node();
    let volume = session.volume("v").await;
    let id = volume.volume_id.as_str();
    let codes = [Code::FailedPrecondition, Code::InvalidArgument];
    for mode in [Mode::MultiNodeMultiWriter, Mode::MultiNodeSingleWriter, Mode::Unknown] {
        let volume_capability = Some(session.mounted(mode));
        let request = NodeStageVolumeRequest {
            volume_capability: volume_capability.clone(),
            ..stage(session, id)
        };
        refused(mode.as_str_name(), answer(node.node_stage_volume(request).await), &codes);
        let request = NodePublishVolumeRequest { volume_capability, ..publish(session, id) };
        refused(mode.as_str_name(), answer(node.node_publish_volume(request).await), &codes);
    }
}

async fn long_paths_are_paths(session: &Session) {
    let mut node = session.node();
    for bytes in [128, 129, 1000, 4000] {
        let deep = format!("/no-such-directory{}", "/d".repeat((bytes - 18) / 2));
        let request = NodeGetVolumeStatsRequest {
            volume_id: session.name("no-such-volume"),
            volume_path: deep.clone(),
            ..NodeGetVolumeStatsRequest::default()
        };
        refused(&deep, answer(node.node_get_volume_stats(request).await), &[Code::NotFound]);
        let request = NodeUnpublishVolumeRequest {
            volume_id: session.name("no-such-volume"),
            target_path: deep.clone(),
        };
        if let Err(status) = answer(node.node_unpublish_volume(request).await) {
            assert_eq!(status.code(), Code::NotFound, "{deep}: {status:?}");
        }
    }
    let request = NodeUnpublishVolumeRequest {
        volume_id: session.name("v"),
        target_path: format!("/{}", "a\0b/".repeat(3)),
    };
    refused(
        "NUL",
        answer(node.node_unpublish_volume(request).await),
        &[Code::InvalidArgument, Code::NotFound],
    );
}

async fn contexts_have_4096_bytes_and_no_more(session: &Session) {
    let mut node = session.node();
    let volume = session.volume("v").await;
    let id = volume.volume_id.as_str();
    let over: Map = [("storage.kubernetes.io/filler".to_string(), "x".repeat(4096))].into();
    let stages = [
        NodeStageVolumeRequest { publish_context: over.clone(), ..stage(session, id) },
        NodeStageVolumeRequest { volume_context: over.clone(), ..stage(session, id) },
        NodeStageVolumeRequest { secrets: over.clone(), ..stage(session, id) },
    ];
    for request in stages {
        refused("stage", answer(node.node_stage_volume(request).await), BAD);
    }
    let publications = [
        NodePublishVolumeRequest { publish_context: over.clone(), ..publish(session, id) },
        NodePublishVolumeRequest { volume_context: over, ..publish(session, id) },
    ];
    for request in publications {
        refused("publish", answer(node.node_publish_volume(request).await), BAD);
    }
}

async fn nothing_is_published_that_was_not_staged(session: &Session) {
    let mut node = session.node();
    let volume = session.volume("v").await;
    let id = volume.volume_id.as_str();
    let codes = [Code::FailedPrecondition, Code::NotFound, Code::InvalidArgument];
    for staging_target_path in [String::new(), path("staging")] {
        let request = NodePublishVolumeRequest {
            volume_context: volume.volume_context.clone(),
            staging_target_path,
            ..publish(session, id)
        };
        refused("not staged", answer(node.node_publish_volume(request).await), &codes);
    }
}

async fn sizes_that_make_no_sense_are_refused(session: &Session) {
    let mut node = session.node();
    let volume = session.volume("v").await;
    let id = volume.volume_id.as_str();
    for (required_bytes, limit_bytes) in [(-1, 0), (0, -1), (2, 1)] {
        let request = NodeExpandVolumeRequest {
            volume_id: id.to_string(),
            volume_path: path("target"),
            capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
            ..NodeExpandVolumeRequest::default()
        };
        let codes = [Code::InvalidArgument, Code::OutOfRange];
        refused(
            &format!("{required_bytes}..{limit_bytes}"),
            answer(node.node_expand_volume(request).await),
            &codes,
        );
    }
}
