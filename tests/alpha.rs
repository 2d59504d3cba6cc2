//! What the driver offers with `--enable-alpha` alone, over the socket, on a real Ceph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use cinderblock::csi::proto::controller_service_capability::{Type, rpc};
use cinderblock::csi::proto::{
    ControllerGetCapabilitiesRequest, ControllerGetVolumeHealthRequest,
    ControllerListVolumeHealthRequest, VolumeHealthErrorType,
};
use common::driver::{Class, Driver, MIB, lab_config_with_own_user};
use common::{Lab, Namespace, POOL};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn the_health_of_a_volume_is_told_with_alpha_enabled_and_not_offered_without() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let health = |volume_id: &str| ControllerGetVolumeHealthRequest {
        volume_id: volume_id.to_string(),
        secrets: class.secrets.clone(),
    };
    for alpha in [false, true] {
        let arguments: &[&str] = if alpha { &["--enable-alpha"] } else { &[] };
        let arguments = [&["--role", "controller"], arguments].concat();
        let driver = Driver::start(&lab_config_with_own_user(&lab, &namespace.name), &arguments);
        let mut controller = driver.controller().await;
        let request = ControllerGetCapabilitiesRequest {};
        let capabilities =
            controller.controller_get_capabilities(request).await.unwrap().into_inner();
        let offered = capabilities.capabilities.iter().any(|capability| {
            matches!(&capability.r#type, Some(Type::Rpc(rpc)) if rpc.r#type() == rpc::Type::GetVolumeHealth)
        });
        assert_eq!(offered, alpha);
        let volume =
            controller.create_volume(class.create_volume("v", MIB)).await.unwrap().into_inner();
        let id = volume.volume.unwrap().volume_id;
        let answer = controller.controller_get_volume_health(health(&id)).await;
        let list = ControllerListVolumeHealthRequest::default;
        let listed = controller.controller_list_volume_health(list()).await;
        if !alpha {
            assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
            assert_eq!(listed.unwrap_err().code(), Code::Unimplemented);
            controller.delete_volume(class.delete_volume(&id)).await.unwrap();
            continue;
        }
        let well = answer.unwrap().into_inner().volume_health.unwrap();
        assert_eq!((well.volume_id.as_str(), well.health_statuses.len()), (id.as_str(), 0));
        assert!(listed.unwrap().into_inner().entries.is_empty(), "all are well");
        controller.create_volume(class.create_volume("another", MIB)).await.unwrap();
        for missing in ["no id", &format!("{id}-other")] {
            let missing =
                controller.controller_get_volume_health(health(missing)).await.unwrap_err();
            assert_eq!(missing.code(), Code::NotFound);
        }
        lab.run("rbd", &["rm", "--no-progress", &format!("{POOL}/{}/csi-v", namespace.name)]);
        let ill = controller.controller_get_volume_health(health(&id)).await.unwrap().into_inner();
        let ill = ill.volume_health.unwrap().health_statuses;
        assert_eq!(
            (ill.len(), ill[0].status(), ill[0].reason.as_str()),
            (1, VolumeHealthErrorType::Inaccessible, "ImageMissing")
        );
        let listed = controller.controller_list_volume_health(list()).await.unwrap().into_inner();
        assert_eq!(listed.entries.len(), 1, "{listed:?}");
        assert_eq!((&listed.entries[0].volume_id, &listed.entries[0].health_statuses), (&id, &ill));
        assert_eq!(listed.next_token, "");
        let page = ControllerListVolumeHealthRequest { max_entries: 1, ..list() };
        let page = controller.controller_list_volume_health(page).await.unwrap().into_inner();
        assert!(!page.next_token.is_empty(), "one of two volumes was looked at");
        for name in ["v", "another"] {
            let id = id.replace("csi-v", &format!("csi-{name}"));
            controller.delete_volume(class.delete_volume(&id)).await.unwrap();
        }
    }
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}
