//! `trash`: a deleted volume is brought back with every byte, or purged for good.

use std::sync::Arc;
use std::time::Duration;

use cinderblock::csi::proto::CreateVolumeRequest;
use cinderblock::rbd::{ImageKey, OpenMode};
use cinderblock::volume::{Activity, Process, Volumes};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::common::driver::{MIB, OneVolume, from_snapshot, from_volume, lab_config_with_own_user};
use crate::common::{Lab, Namespace, POOL};
use crate::{Tool, text};

fn volumes(lab: &Lab, namespace: &Namespace<'_>) -> Volumes {
    let pool = namespace.pool(&*lab.connect());
    Volumes::new(pool, "default", Process::default(), Arc::new(Activity::default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_volume_comes_back_with_every_byte() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let OneVolume { driver, mut controller, class, id: parent, image } =
        OneVolume::new(&lab, &namespace.name, 8 * MIB).await;
    let tool = Tool::new(&lab_config_with_own_user(&lab, &namespace.name));
    let pool = namespace.pool(&*lab.connect());
    let write = |image: &str, offset: u64, byte: u8| {
        let opened = pool.open_image(ImageKey::Name(image), OpenMode::ReadWrite).unwrap();
        opened.write_at(offset, &[byte; 4096]).unwrap();
    };
    write(&image, 0, 1);
    let claimed = class
        .clone()
        .with("trashRetention", "7d")
        .with("csi.storage.k8s.io/pvc/namespace", "shop")
        .with("csi.storage.k8s.io/pvc/name", "data");
    let request = CreateVolumeRequest {
        volume_content_source: Some(from_volume(&parent)),
        ..claimed.create_volume("pvc-1", 8 * MIB)
    };
    let volume = controller.create_volume(request.clone()).await.unwrap().into_inner();
    let id = volume.volume.unwrap().volume_id;
    write("csi-pvc-1", MIB as u64, 2);
    let cut = controller.create_snapshot(class.create_snapshot("s", &id)).await.unwrap();
    let snapshot = cut.into_inner().snapshot.unwrap().snapshot_id;
    write("csi-pvc-1", 2 * MIB as u64, 3);
    pool.open_image(ImageKey::Name("csi-pvc-1"), OpenMode::ReadWrite)
        .unwrap()
        .metadata_set("cinderblock.content", "xfs,0c0a24a2-5a16-4a30-9bb3-0a7f0b1f51aa")
        .unwrap();

    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    // A retry is answered as the first.
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    let listed = tool.tells(&["trash", "ls"]);
    assert_eq!((&listed[0]["id"], &listed[0]["claim"]), (&id.clone().into(), &"shop/data".into()));
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert!(tool.says(&["trash", "ls"]).contains("shop/data"));
    assert!(tool.says(&["tree"]).contains("csi-pvc-1.deleted  8MiB, 4MiB used, in the trash"));
    assert!(!tool.says(&["list"]).contains("pvc-1"));
    assert_eq!(tool.run(&["gc"]).status.code(), Some(0));
    // Its name is free, its snapshot can be restored, and its parent goes silent for it.
    let second = claimed.clone().without("csi.storage.k8s.io/pvc/name");
    let again = controller.create_volume(second.create_volume("pvc-1", MIB)).await.unwrap();
    assert_eq!(again.into_inner().volume.unwrap().volume_id, id);
    let request = CreateVolumeRequest {
        volume_content_source: Some(from_snapshot(&snapshot)),
        ..class.create_volume("restored", 8 * MIB)
    };
    let restored = controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
    controller.delete_volume(class.delete_volume(&parent)).await.unwrap();

    let taken = tool.run(&["trash", "restore", "shop/data"]);
    assert_eq!(taken.status.code(), Some(1), "{taken:?}");
    assert!(text(&taken.stderr).contains("is the name of another volume by now"), "{taken:?}");
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    let ambiguous = tool.run(&["trash", "restore", &id]);
    assert_eq!(ambiguous.status.code(), Some(3), "{ambiguous:?}");
    assert!(text(&ambiguous.stderr).contains("IMAGE ID"), "{ambiguous:?}");

    let arguments = [
        "trash",
        "restore",
        "shop/data",
        "--secret",
        "cinderblock/ceph",
        "--storage-class",
        "fast",
    ];
    let manifests = tool.says(&arguments);
    let (volume, claim) = manifests.split_once("---\n").unwrap();
    let volume: PersistentVolume = serde_saphyr::from_str(volume).unwrap();
    let claim: PersistentVolumeClaim = serde_saphyr::from_str(claim).unwrap();
    assert_eq!(claim.spec.unwrap().volume_name.as_deref(), Some("pvc-1"));
    let spec = volume.spec.unwrap();
    assert_eq!(spec.capacity.unwrap()["storage"].0, (8 * MIB).to_string());
    assert_eq!(spec.claim_ref.unwrap().name.as_deref(), Some("data"));
    let csi = spec.csi.unwrap();
    assert_eq!((csi.volume_handle, csi.fs_type.as_deref()), (id.clone(), Some("xfs")));
    assert_eq!(csi.node_stage_secret_ref.unwrap().name.as_deref(), Some("ceph"));
    assert_eq!(csi.volume_attributes.unwrap()["imageName"], "csi-pvc-1");

    let opened = pool.open_image(ImageKey::Name("csi-pvc-1"), OpenMode::ReadOnly).unwrap();
    let mut expected = vec![0; 8 << 20];
    for (place, byte) in [(0, 1), (1 << 20, 2), (2 << 20, 3)] {
        expected[place..place + 4096].fill(byte);
    }
    let mut bytes = vec![9; 8 << 20];
    assert_eq!(opened.read_at(None, 0, &mut bytes).unwrap(), bytes.len());
    assert!(bytes == expected, "not every byte is as it was");
    drop(opened);
    assert!(tool.says(&["list", "--claim", "shop"]).contains("ready"));
    assert_eq!(tool.run(&["trash", "restore", "shop/data"]).status.code(), Some(3));

    // The other one of that name is still there, and purged only when told to.
    let shown = tool.run(&["trash", "purge"]);
    assert_eq!(shown.status.code(), Some(3), "{shown:?}");
    assert!(text(&shown.stdout).contains("Nothing was changed"), "{shown:?}");
    assert_eq!(tool.tells(&["trash", "ls"]).as_array().unwrap().len(), 1);
    assert!(tool.says(&["trash", "purge", "--apply"]).contains("purged"));
    assert_eq!(tool.says(&["trash", "ls"]), "the trash is empty\n");

    controller.delete_volume(class.delete_volume(&restored.volume_id)).await.unwrap();
    controller.delete_snapshot(class.delete_snapshot(&snapshot)).await.unwrap();
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    tool.says(&["trash", "purge", "shop/data", "--apply"]);
    namespace.assert_nothing_is_recorded();
    driver.stop();
    namespace.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_is_purged_by_the_sweeper() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let OneVolume { driver, mut controller, class, id, .. } =
        OneVolume::new(&lab, &namespace.name, MIB).await;
    let parked = class.clone().with("trashRetention", "1m");
    let made = controller.create_volume(parked.create_volume("old", MIB)).await.unwrap();
    let old = made.into_inner().volume.unwrap().volume_id;
    for volume in [&old, &id] {
        controller.delete_volume(class.delete_volume(volume)).await.unwrap();
    }
    driver.stop();
    let volumes = volumes(&lab, &namespace);
    volumes.settle(volumes.sweep(Duration::from_hours(1)).unwrap());
    let there = volumes.trash().unwrap();
    assert_eq!(there.len(), 1, "it is not over yet: {there:?}");
    let stored = volumes.catalogue().silent("csi-old", &there[0].image_id).unwrap().unwrap();
    let mut over = stored.record.clone();
    over.trash.as_mut().unwrap().until -= 61;
    volumes.catalogue().replace("csi-old", &stored, over).unwrap();
    volumes.settle(volumes.sweep(Duration::from_hours(1)).unwrap());
    assert_eq!(lab.run("rbd", &["ls", "--pool", POOL, "--namespace", &namespace.name]), "");
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_that_is_none_is_refused() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let OneVolume { driver, mut controller, class, id, .. } =
        OneVolume::new(&lab, &namespace.name, MIB).await;
    for retention in ["", "7", "0d", "7w", "366d", "-1h", "1.5h", "99999999999999999999d"] {
        let request = class.clone().with("trashRetention", retention).create_volume("x", MIB);
        let refused = controller.create_volume(request).await.unwrap_err();
        assert!(refused.message().contains("trashRetention"), "{retention}: {refused}");
    }
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    driver.stop();
    namespace.assert_nothing_is_left();
}
