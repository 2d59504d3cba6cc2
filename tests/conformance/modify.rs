//! ControllerModifyVolume: all of it or nothing.

use cinderblock::csi::proto::*;
use tonic::{Code, Status};

use super::session::{Session, answer, refused};
use super::target::{Controller, Map, Need};
use super::{Check, check};

const MODIFY: Need = Need::Controller(Controller::ModifyVolume);

pub fn checks() -> Vec<Check> {
    vec![
        check!(modifications_repeat, MODIFY, Need::MutableParameters),
        check!(what_nobody_knows_is_refused_as_a_whole, MODIFY, Need::MutableParameters),
        check!(a_modification_of_nothing_is_refused, MODIFY),
        check!(
            a_modified_volume_is_still_the_one_its_request_asks_for,
            MODIFY,
            Need::MutableParameters
        ),
    ]
}

async fn modify(
    session: &Session,
    volume_id: &str,
    mutable_parameters: Map,
) -> Result<ControllerModifyVolumeResponse, Status> {
    let request = ControllerModifyVolumeRequest {
        volume_id: volume_id.to_string(),
        secrets: session.secrets(),
        mutable_parameters,
    };
    answer(session.controller().controller_modify_volume(request).await)
}

async fn modifications_repeat(session: &Session) {
    let volume = session.volume("v").await;
    let description = &session.target.description;
    for parameters in [&description.mutable_parameters, &description.other_mutable_parameters] {
        for _ in 0..3 {
            modify(session, &volume.volume_id, parameters.clone()).await.unwrap();
        }
    }
}

async fn what_nobody_knows_is_refused_as_a_whole(session: &Session) {
    let volume = session.volume("v").await;
    for (key, value) in [("XXX_FakeKey", "1"), ("", ""), ("a/b", "🦀")] {
        let mut parameters = session.target.description.mutable_parameters.clone();
        parameters.insert(key.to_string(), value.to_string());
        refused(
            key,
            modify(session, &volume.volume_id, parameters.clone()).await,
            &[Code::InvalidArgument],
        );
        let request =
            CreateVolumeRequest { mutable_parameters: parameters, ..session.new_volume("other") };
        refused(key, session.create(request).await, &[Code::InvalidArgument]);
    }
    for key in session.target.description.mutable_parameters.keys() {
        for value in ["", "no such value", "-1", "🦀"] {
            let parameters = [(key.clone(), value.to_string())].into();
            refused(
                value,
                modify(session, &volume.volume_id, parameters).await,
                &[Code::InvalidArgument],
            );
        }
    }
}

async fn a_modification_of_nothing_is_refused(session: &Session) {
    let volume = session.volume("v").await;
    refused(
        "nothing",
        modify(session, &volume.volume_id, Map::new()).await,
        &[Code::InvalidArgument],
    );
    let parameters = [("a".to_string(), "b".to_string())].into();
    refused("no id", modify(session, "", parameters).await, &[Code::InvalidArgument]);
}

async fn a_modified_volume_is_still_the_one_its_request_asks_for(session: &Session) {
    let request = session.new_volume("v");
    let volume = session.create(request.clone()).await.unwrap();
    modify(session, &volume.volume_id, session.target.description.mutable_parameters.clone())
        .await
        .unwrap();
    assert_eq!(session.create(request).await.unwrap().volume_id, volume.volume_id);
}
