//! Below the RPCs: unknown methods and fields, bytes that are no message, messages at gRPC's size
//! limit.

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::group_controller_client::GroupControllerClient;
use cinderblock::csi::proto::identity_client::IdentityClient;
use cinderblock::csi::proto::*;
use prost::Message;
use tonic::{Code, Request, Status};

use super::common::bytes::Bytes;
use super::session::{Session, answer, refused};
use super::target::{Controller, Service};
use super::{Check, check};

pub fn checks() -> Vec<Check> {
    vec![
        check!(what_is_not_advertised_answers_unimplemented),
        check!(methods_nobody_knows_answer_unimplemented),
        check!(fields_nobody_knows_are_passed_over),
        check!(bytes_that_are_no_message_are_refused_and_harm_nobody),
        check!(a_request_of_nearly_four_mebibytes_is_answered),
        check!(a_request_above_the_limit_is_refused_and_harms_nobody),
        check!(a_plugin_says_the_same_of_itself_each_time),
    ]
}

async fn send(session: &Session, method: &'static str, bytes: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut grpc = tonic::client::Grpc::new(session.target.channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(method);
    grpc.unary(Request::new(bytes), path, Bytes).await.map(tonic::Response::into_inner)
}

async fn probe(session: &Session) {
    IdentityClient::new(session.target.channel.clone()).probe(ProbeRequest {}).await.unwrap();
}

async fn what_is_not_advertised_answers_unimplemented(session: &Session) {
    let mut controller = session.controller();
    let unimplemented = [Code::Unimplemented];
    macro_rules! ask {
        ($capability:ident, $rpc:ident, $request:expr) => {
            if !session.target.controller.contains(&i32::from(Controller::$capability)) {
                refused(stringify!($rpc), answer(controller.$rpc($request).await), &unimplemented);
            }
        };
    }
    let volume_id = || "v".to_string();
    ask!(CreateDeleteVolume, create_volume, session.new_volume("v"));
    ask!(PublishUnpublishVolume, controller_publish_volume, session.publication("v"));
    ask!(ListVolumes, list_volumes, ListVolumesRequest::default());
    ask!(GetCapacity, get_capacity, GetCapacityRequest::default());
    ask!(CreateDeleteSnapshot, create_snapshot, session.snapshot_named("s", "v"));
    ask!(ListSnapshots, list_snapshots, ListSnapshotsRequest::default());
    ask!(ExpandVolume, controller_expand_volume, session.growth("v", 1 << 30, 0));
    ask!(GetVolume, controller_get_volume, ControllerGetVolumeRequest { volume_id: volume_id() });
    ask!(
        ModifyVolume,
        controller_modify_volume,
        ControllerModifyVolumeRequest {
            volume_id: volume_id(),
            mutable_parameters: [("a".to_string(), "b".to_string())].into(),
            secrets: session.secrets(),
        }
    );
    ask!(
        GetSnapshot,
        get_snapshot,
        GetSnapshotRequest { snapshot_id: "s".to_string(), ..GetSnapshotRequest::default() }
    );
    ask!(
        GetVolumeHealth,
        controller_get_volume_health,
        ControllerGetVolumeHealthRequest {
            volume_id: volume_id(),
            ..ControllerGetVolumeHealthRequest::default()
        }
    );
    ask!(
        ListVolumeHealth,
        controller_list_volume_health,
        ControllerListVolumeHealthRequest::default()
    );
    if !session.target.services.contains(&i32::from(Service::GroupControllerService)) {
        let mut group = GroupControllerClient::new(session.target.channel.clone());
        let request = CreateVolumeGroupSnapshotRequest {
            name: session.name("g"),
            source_volume_ids: vec![volume_id()],
            ..CreateVolumeGroupSnapshotRequest::default()
        };
        refused(
            "CreateVolumeGroupSnapshot",
            answer(group.create_volume_group_snapshot(request).await),
            &unimplemented,
        );
    }
}

async fn methods_nobody_knows_answer_unimplemented(session: &Session) {
    for method in ["/csi.v1.Controller/NoSuchRpc", "/csi.v9.Controller/CreateVolume", "/x/y"] {
        let outcome = send(session, method, Vec::new()).await;
        let status = outcome.expect_err(method);
        assert_eq!(status.code(), Code::Unimplemented, "{method}: {status:?}");
    }
}

async fn fields_nobody_knows_are_passed_over(session: &Session) {
    let request = session.new_volume("unknown-fields");
    let volume = session.create(request.clone()).await.unwrap();
    let mut bytes = request.encode_to_vec();
    // Field 4000, a string; field 4001, a number.
    prost::encoding::string::encode(4000, &"from a later specification".to_string(), &mut bytes);
    prost::encoding::uint64::encode(4001, &u64::MAX, &mut bytes);
    let answer = send(session, "/csi.v1.Controller/CreateVolume", bytes).await.unwrap();
    let again = CreateVolumeResponse::decode(&answer[..]).unwrap().volume.unwrap();
    assert_eq!(again, volume);
}

async fn bytes_that_are_no_message_are_refused_and_harm_nobody(session: &Session) {
    let request = session.new_volume("no-message").encode_to_vec();
    let not_utf8 = [0x0a, 2, 0xff, 0xfe].to_vec();
    // A field said to be longer than the message, a group never closed, a wire type that does not
    // exist.
    for bytes in [
        request[..request.len() - 1].to_vec(),
        not_utf8,
        vec![0x0a, 0xff, 0xff, 0x03],
        vec![0x0b],
        vec![0x0f],
    ] {
        let outcome = send(session, "/csi.v1.Controller/CreateVolume", bytes.clone()).await;
        let status = outcome.expect_err("bytes that are no message");
        // gRPC has the server answer INTERNAL here, before the RPC is reached.
        assert!(
            matches!(status.code(), Code::Internal | Code::InvalidArgument),
            "{bytes:?}: {status:?}"
        );
        probe(session).await;
    }
}

async fn a_request_of_nearly_four_mebibytes_is_answered(session: &Session) {
    let request = session.volume_named(&"n".repeat((4 << 20) - 10_000));
    refused("a name of 4 MiB", session.create(request).await, &[Code::InvalidArgument]);
    let id = "i".repeat((4 << 20) - 10_000);
    refused(
        "an id of 4 MiB",
        session.validate(session.validation(&id)).await,
        &[Code::InvalidArgument, Code::NotFound],
    );
}

async fn a_request_above_the_limit_is_refused_and_harms_nobody(session: &Session) {
    let mut controller = ControllerClient::new(session.target.channel.clone());
    let request = session.volume_named(&"n".repeat(9 << 20));
    let status = controller.create_volume(request).await.expect_err("9 MiB");
    assert!(!matches!(status.code(), Code::Ok | Code::DeadlineExceeded), "{status:?}");
    probe(session).await;
}

async fn a_plugin_says_the_same_of_itself_each_time(session: &Session) {
    let mut identity = IdentityClient::new(session.target.channel.clone());
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    assert!((1..=63).contains(&info.name.len()) && info.name.chars().all(allowed), "{info:?}");
    assert!(!info.vendor_version.is_empty() && info.vendor_version.len() <= 128, "{info:?}");
    let first = identity
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await
        .unwrap()
        .into_inner();
    for _ in 0..5 {
        let again = identity
            .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(again, first);
    }
    match answer(identity.probe(ProbeRequest {}).await) {
        Ok(_) => {}
        Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}"),
    }
}
