//! Secrets that are missing, of no user, or incomplete; and what answers say of them.

use cinderblock::csi::proto::*;
use tonic::{Code, Status};

use super::session::{Session, answer};
use super::target::{Controller, Map, Need};
use super::{Check, check};

pub fn checks() -> Vec<Check> {
    vec![
        check!(secrets_of_nobody_are_unauthenticated, Need::Secrets),
        check!(incomplete_secrets_are_unauthenticated, Need::Secrets),
        check!(no_answer_repeats_a_secret, Need::Secrets),
        check!(secrets_are_not_part_of_what_a_repeated_request_must_match, Need::Secrets),
    ]
}

/// What each RPC that takes secrets and needs them says to these.
async fn answers(
    session: &Session,
    secrets: &Map,
    volume: &Volume,
) -> Vec<(&'static str, Result<(), Status>)> {
    let has = |capability| session.target.has(Need::Controller(capability));
    let id = volume.volume_id.clone();
    let secrets = || secrets.clone();
    let mut controller = session.controller();
    let mut answers = Vec::new();
    macro_rules! ask {
        ($rpc:ident, $request:expr) => {
            answers.push((stringify!($rpc), answer(controller.$rpc($request).await).map(|_| ())));
        };
    }
    ask!(
        create_volume,
        CreateVolumeRequest { secrets: secrets(), ..session.new_volume("secrets") }
    );
    ask!(delete_volume, DeleteVolumeRequest { volume_id: id.clone(), secrets: secrets() });
    ask!(
        validate_volume_capabilities,
        ValidateVolumeCapabilitiesRequest { secrets: secrets(), ..session.validation(&id) }
    );
    if has(Controller::CreateDeleteSnapshot) {
        ask!(
            create_snapshot,
            CreateSnapshotRequest {
                secrets: secrets(),
                ..session.snapshot_named(&session.name("s"), &id)
            }
        );
    }
    if has(Controller::ExpandVolume) {
        ask!(
            controller_expand_volume,
            ControllerExpandVolumeRequest {
                secrets: secrets(),
                ..session.growth(&id, 2 * session.size(), 0)
            }
        );
    }
    if has(Controller::PublishUnpublishVolume) {
        ask!(
            controller_publish_volume,
            ControllerPublishVolumeRequest { secrets: secrets(), ..session.publication(&id) }
        );
        ask!(
            controller_unpublish_volume,
            ControllerUnpublishVolumeRequest {
                volume_id: id.clone(),
                node_id: String::new(),
                secrets: secrets()
            }
        );
    }
    answers
}

async fn refuses(session: &Session, what: &str, secrets: &Map) {
    let volume = session.volume("v").await;
    for (rpc, outcome) in answers(session, secrets, &volume).await {
        let status = outcome.expect_err(rpc);
        let refused = matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
        assert!(refused, "{rpc} with {what}: {status:?}");
        for secret in secrets.values().filter(|secret| secret.len() >= 8) {
            assert!(
                !status.message().contains(secret.as_str()),
                "{rpc} with {what} repeats a secret"
            );
        }
    }
    assert_eq!(session.volume("v").await, volume, "a refusal changed the volume");
}

async fn secrets_of_nobody_are_unauthenticated(session: &Session) {
    let wrong = session.target.description.wrong_secrets.clone().unwrap();
    refuses(session, "secrets of nobody", &wrong).await;
}

async fn incomplete_secrets_are_unauthenticated(session: &Session) {
    let right = session.secrets();
    for key in right.keys() {
        let mut without = right.clone();
        without.remove(key);
        if !without.is_empty() {
            refuses(session, &format!("no {key}"), &without).await;
        }
        let mut garbage = right.clone();
        garbage.insert(key.clone(), "\u{1f980} \n\0 no secret at all".to_string());
        refuses(session, &format!("garbage as {key}"), &garbage).await;
    }
}

async fn no_answer_repeats_a_secret(session: &Session) {
    let volume = session.volume("v").await;
    let mut request = session.new_volume("v");
    request.parameters.insert("no-such-parameter".to_string(), "x".to_string());
    let status = session.create(request).await.unwrap_err();
    let validated = session.validate(session.validation(&volume.volume_id)).await.unwrap();
    for (key, secret) in session.secrets().iter().filter(|(_, secret)| secret.len() >= 16) {
        for text in [status.message().to_string(), format!("{validated:?}")] {
            assert!(!text.contains(secret.as_str()), "{key} is in {text}");
        }
    }
}

async fn secrets_are_not_part_of_what_a_repeated_request_must_match(session: &Session) {
    let request = session.new_volume("v");
    let volume = session.create(request.clone()).await.unwrap();
    let mut other = request;
    other.secrets.insert("another.key-1".to_string(), "x".to_string());
    assert_eq!(session.create(other).await.unwrap(), volume);
}
