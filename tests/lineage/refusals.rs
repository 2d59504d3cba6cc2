//! A refused deletion leaves everything as it was, byte for byte.

use cinderblock::csi::proto::{ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest};
use cinderblock::rbd::OpenMode;
use tonic::Code;

use crate::common::driver::filesystem;
use crate::family::{Family, in_both_formats, refusal};

/// Asks for a deletion that must be refused with these words.
async fn refused(family: &mut Family<'_>, words: &str) {
    let before = family.everything();
    for _ in 0..2 {
        let (code, message) = refusal(family.try_delete("A").await);
        assert_eq!(code, Code::FailedPrecondition, "{message}");
        assert!(message.contains(words), "{words:?} is not in {message:?}");
        family.assert_unchanged(&before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_deletion_changes_nothing() {
    in_both_formats(async |family| {
        family.set("deleteWithSnapshots", "refuse");
        family.create("A").await;
        family.clone_volume("A", "B").await;
        family.snapshot("A", "s1").await;
        family.open("A", OpenMode::ReadWrite).metadata_set("a key", "of somebody's").unwrap();
        refused(family, "csi-snap-s1").await;

        {
            let _open = family.open("A", OpenMode::ReadWrite);
            refused(family, "is open at").await;
        }

        let publish = ControllerPublishVolumeRequest {
            volume_id: family.volume_id("A"),
            node_id: "node-1".to_owned(),
            volume_capability: Some(filesystem()),
            secrets: family.class.secrets.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        family.controller.controller_publish_volume(publish).await.unwrap();
        refused(family, "node-1").await;
        let unpublish = ControllerUnpublishVolumeRequest {
            volume_id: family.volume_id("A"),
            node_id: "node-1".to_owned(),
            secrets: family.class.secrets.clone(),
        };
        family.controller.controller_unpublish_volume(unpublish).await.unwrap();

        family.assert("A [B.clone_snap*, snap-s1*] ; B <- A@B.clone_snap");
        family.delete_snapshot("s1").await;
        family.delete("A").await;
        family.delete("B").await;
    })
    .await;
}
