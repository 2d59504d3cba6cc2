//! `list` and `show`.

use cinderblock::csi::proto::{ControllerPublishVolumeRequest, CreateVolumeRequest};
use std::sync::Arc;

use cinderblock::rbd::{ImageKey, OpenMode};
use cinderblock::volume::{Activity, Process, Volumes};

use crate::common::driver::{
    Class, Driver, MIB, OneVolume, filesystem, from_volume, lab_config_with_own_user,
};
use crate::common::{Lab, Namespace, POOL};
use crate::{Tool, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_list_shows_whose_a_volume_is_and_where() {
    let lab = Lab::from_environment();
    let (namespace, other) = (Namespace::new(&lab), Namespace::new(&lab));
    let OneVolume { driver, mut controller, class, id, image } =
        OneVolume::new(&lab, &namespace.name, 8 * MIB).await;
    let claimed = class
        .clone()
        .with("csi.storage.k8s.io/pvc/namespace", "shop")
        .with("csi.storage.k8s.io/pvc/name", "data");
    let request = CreateVolumeRequest {
        volume_content_source: Some(from_volume(&id)),
        ..claimed.create_volume("pvc-1", 8 * MIB)
    };
    let copy = controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
    controller.create_snapshot(class.create_snapshot("s", &id)).await.unwrap();
    let publish = ControllerPublishVolumeRequest {
        volume_id: copy.volume_id.clone(),
        node_id: "worker-1".to_owned(),
        volume_capability: Some(filesystem()),
        secrets: class.secrets.clone(),
        ..ControllerPublishVolumeRequest::default()
    };
    controller.controller_publish_volume(publish).await.unwrap();
    let pool = namespace.pool(&*lab.connect());
    let opened = pool.open_image(ImageKey::Name(&image), OpenMode::ReadWrite).unwrap();
    opened.write_at(0, &[7; 4096]).unwrap();
    drop(opened);
    // One more pool of the configuration, with a volume of its own.
    let elsewhere = Class::new(&lab, &other.name);
    let far = controller.create_volume(elsewhere.create_volume("far", MIB)).await.unwrap();
    let far = far.into_inner().volume.unwrap().volume_id;

    let config = lab_config_with_own_user(&lab, &namespace.name)
        .replace("pools: [", &format!("pools: [{POOL}/{}, ", other.name));
    let tool = Tool::new(&config);
    let place = format!("lab/{POOL}/{}", namespace.name);
    let listed = tool.says(&["list"]);
    let lines: Vec<Vec<_>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    let copy_id = format!("{place}/csi-pvc-1");
    assert_eq!(
        lines,
        [
            vec!["VOLUME", "CLAIM", "SIZE", "USED", "NODE", "SNAPSHOTS", "DEPTH", "STATE"],
            vec![&far, "?", "1MiB", "0B", "-", "0", "0", "ready"],
            vec![&copy_id, "shop/data", "8MiB", "0B", "worker-1", "0", "1", "ready"],
            vec![&id, "?", "8MiB", "4MiB", "-", "1", "0", "ready"],
        ],
        "{listed}"
    );
    for (filter, found) in [
        (["--claim", "shop"], vec![&copy_id]),
        (["--claim", "shop/data"], vec![&copy_id]),
        (["--claim", "sho"], vec![]),
        (["--node", "worker-1"], vec![&copy_id]),
        (["--state", "creating"], vec![]),
        (["--pool", POOL], vec![]),
    ] {
        let listed = tool.tells(&[&["list"][..], &filter].concat());
        let ids: Vec<_> =
            listed.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
        assert_eq!(ids, found, "{filter:?}");
    }

    // Its image is gone behind the driver's back: the list says so, and so does `show`.
    lab.run("rbd", &["rm", "--no-progress", &format!("{POOL}/{}/csi-far", other.name)]);
    let gone = tool.tells(&["list", "--state", "image-missing"]);
    assert_eq!(gone[0]["id"], *far);
    assert!(tool.says(&["show", &far]).contains("csi-far (missing)"));

    for name in [&id, "vm", &image, &format!("{POOL}/{}/{image}", namespace.name)] {
        let shown = tool.says(&["show", name]);
        for words in [id.as_str(), "csi-snap-s, 8MiB", "csi-pvc-1", "4MiB"] {
            assert!(shown.contains(words), "{name}: {words}: {shown}");
        }
    }
    let shown = tool.tells(&["show", "shop/data"]);
    assert_eq!(shown[0]["nodes"][0], "worker-1");
    assert_eq!(shown[0]["source"], *id);
    assert_eq!(shown[0]["lineage"]["parent"]["snapshot"], "csi-pvc-1.clone_snap");
    let nothing = tool.run(&["show", "shop/dat"]);
    assert_eq!(nothing.status.code(), Some(3));
    assert!(text(&nothing.stderr).contains("no volume, claim or image \"shop/dat\""));

    // A pool that is not there keeps no other from being listed, and is told.
    let broken = Tool::new(&config.replace("pools: [", "pools: [no-such-pool, "));
    let partly = broken.run(&["list"]);
    assert_eq!(partly.status.code(), Some(1));
    assert!(text(&partly.stdout).contains(&copy_id));
    let said = text(&partly.stderr);
    assert!(said.contains("lab/no-such-pool: the pool no-such-pool does not exist"), "{said}");

    let unpublish = cinderblock::csi::proto::ControllerUnpublishVolumeRequest {
        volume_id: copy.volume_id.clone(),
        node_id: "worker-1".to_owned(),
        secrets: class.secrets.clone(),
    };
    controller.controller_unpublish_volume(unpublish).await.unwrap();
    let snapshots = tool.tells(&["show", &id]);
    let image_id = snapshots[0]["lineage"]["id"].as_str().unwrap();
    let snapshot = format!("{place}/{image_id}@csi-snap-s");
    controller.delete_snapshot(class.delete_snapshot(&snapshot)).await.unwrap();
    for volume in [&copy.volume_id, &id] {
        controller.delete_volume(class.delete_volume(volume)).await.unwrap();
    }
    controller.delete_volume(elsewhere.delete_volume(&far)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    other.assert_nothing_is_recorded();
    assert_eq!(tool.says(&["list"]), "no volumes\n");
    driver.stop();
    namespace.assert_empty();
    other.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_repeated_until_it_is_stopped() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let tool = Tool::new(&lab_config_with_own_user(&lab, &namespace.name));
    let log = tool.config().with_file_name("list");
    let file = std::fs::File::create(&log).unwrap();
    let mut process = tool.command(&["list", "--watch", "1"]).stdout(file).spawn().unwrap();
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);
    let seen = |what: &str| {
        crate::common::wait_until("it is listed", || {
            let listed = std::fs::read_to_string(&log).unwrap();
            if listed.lines().last().is_some_and(|line| line.contains(what)) {
                Ok(())
            } else {
                Err(listed)
            }
        });
    };
    seen("no volumes");
    let made = controller.create_volume(class.create_volume("late", MIB)).await.unwrap();
    seen("csi-late");
    process.kill().unwrap();
    process.wait().unwrap();
    let id = made.into_inner().volume.unwrap().volume_id;
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    namespace.assert_nothing_is_left();
}

#[test]
fn the_plugin_runs_the_tool_in_the_controllers_pod() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let kubectl = folder.path().join("kubectl");
    std::fs::write(&kubectl, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let plugin = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/kubectl-cinderblock");
    let output = std::process::Command::new(plugin)
        .args(["show", "shop/my data"])
        .env("PATH", path)
        .env("CINDERBLOCK_NAMESPACE", "storage")
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stdout).lines().collect::<Vec<_>>(),
        [
            "--namespace",
            "storage",
            "exec",
            "--stdin",
            "--tty=false",
            "deploy/cinderblock-controller",
            "--container",
            "driver",
            "--",
            "cinderblock",
            "show",
            "shop/my data",
        ],
        "{output:?}"
    );
}

#[test]
fn shells_and_man_know_every_command() {
    let tool = Tool::new("");
    for shell in ["bash", "zsh", "fish"] {
        let script = tool.says(&["completions", shell]);
        for words in ["trash", "restore", "kubelet-dir"] {
            assert!(script.contains(words), "{shell}: {words}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    tool.says(&["man", folder.path().to_str().unwrap()]);
    let page = std::fs::read_to_string(folder.path().join("cinderblock-trash-restore.1")).unwrap();
    assert!(page.contains("PersistentVolume"), "{page}");
    assert_eq!(tool.run(&["man", "/no/such/folder"]).status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flattened_volume_holds_what_it_shared() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let OneVolume { driver, mut controller, class, id, image } =
        OneVolume::new(&lab, &namespace.name, 8 * MIB).await;
    let pool = namespace.pool(&*lab.connect());
    let source = pool.open_image(ImageKey::Name(&image), OpenMode::ReadWrite).unwrap();
    source.write_at(0, &[7; 4096]).unwrap();
    drop(source);
    let request = CreateVolumeRequest {
        volume_content_source: Some(from_volume(&id)),
        ..class.create_volume("copy", 8 * MIB)
    };
    let copy = controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    let tool = Tool::new(&lab_config_with_own_user(&lab, &namespace.name));
    assert!(tool.says(&["tree"]).contains("silent parent"));
    assert_eq!(tool.says(&["flatten", "copy"]), "copy is no clone any more\n");
    assert_eq!(
        tool.says(&["flatten", &copy.volume_id]),
        format!("{} was no clone\n", copy.volume_id)
    );
    assert_eq!(tool.run(&["flatten", "cop"]).status.code(), Some(3));
    crate::common::wait_until("the silent parent has gone", || {
        let tree = tool.says(&["tree"]);
        if tree.contains("silent parent") { Err(tree) } else { Ok(()) }
    });
    let opened = pool.open_image(ImageKey::Name("csi-copy"), OpenMode::ReadOnly).unwrap();
    let mut bytes = [0; 4096];
    opened.read_at(None, 0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);
    drop(opened);
    controller.delete_volume(class.delete_volume(&copy.volume_id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    driver.stop();
    namespace.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_a_volumes_way_is_told() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let OneVolume { driver, mut controller, class, id, image } =
        OneVolume::new(&lab, &namespace.name, MIB).await;
    let tool = Tool::new(&lab_config_with_own_user(&lab, &namespace.name));
    assert_eq!(tool.says(&["why", &id]), format!("{id}: nothing stands in its way\n"));
    assert_eq!(tool.run(&["why", "nothing"]).status.code(), Some(3));

    let pool = namespace.pool(&*lab.connect());
    let volumes =
        Volumes::new(pool.clone(), "default", Process::default(), Arc::new(Activity::default()));
    let backup = volumes.hold_for_backup(&image).unwrap();
    let opened = pool.open_image(ImageKey::Name(&image), OpenMode::ReadWrite).unwrap();
    let spec = format!("{POOL}/{}/{image}", namespace.name);
    lab.run("rbd", &["lock", "add", &spec, "mine"]);
    let told = tool.says(&["why", &image]);
    let process = format!("process {}", std::process::id());
    for words in ["a backup keeps it", &process, "has its image open", "rbd lock remove"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    // The command in it mends it.
    let reasons = tool.tells(&["why", &image]);
    let hold = reasons[0]["reasons"].as_array().unwrap().iter().find(|it| it["kind"] == "hold");
    lab.run_from_message(hold.unwrap()["what"].as_str().unwrap(), "or run: ").unwrap();
    drop((backup, opened));
    crate::common::wait_until("nothing stands in its way", || {
        let told = tool.says(&["why", &id]);
        if told.contains("nothing stands") { Ok(()) } else { Err(told) }
    });
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    driver.stop();
    namespace.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_support_bundle_tells_all_but_the_key() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let OneVolume { driver, mut controller, class, id, .. } =
        OneVolume::new(&lab, &namespace.name, MIB).await;
    let config =
        format!("# canary-in-a-comment\n{}", lab_config_with_own_user(&lab, &namespace.name));
    let tool = Tool::new(&config);
    let output = tool.run(&["support-bundle"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(!told.contains(lab.key.expose()) && !told.contains("canary"), "{told}");
    let bundle: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(bundle["pools"][0]["volumes"][0]["id"], *id);
    assert_eq!(bundle["clusters"][0]["user"], *lab.user);
    assert!(bundle["check"].as_array().unwrap().len() > 8, "{bundle}");

    // A pool that cannot be read takes nothing of the rest away.
    let broken = Tool::new(&config.replace("pools: [", "pools: [no-such-pool, "));
    let partly = broken.run(&["support-bundle"]);
    assert_eq!(partly.status.code(), Some(1), "{partly:?}");
    let bundle: serde_json::Value = serde_json::from_slice(&partly.stdout).unwrap();
    assert_eq!(bundle["pools"][0]["volumes"][0]["id"], *id);
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    driver.stop();
    namespace.assert_empty();
}
