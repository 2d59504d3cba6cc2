//! `orphans`: what Ceph and Kubernetes know of each other.

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};

use crate::common::driver::{MIB, OneVolume, lab_config_with_own_user};
use crate::common::{Lab, Namespace, POOL};
use crate::{Tool, text};

/// The path of a kubeconfig for an API server that knows these PersistentVolumes, and whether it
/// says so.
async fn kubernetes(folder: &tempfile::TempDir, handles: &[&str], answers: bool) -> String {
    let volume = |handle: &&str| {
        json!({
            "metadata": {"name": format!("pv-{}", handle.rsplit('/').next().unwrap())},
            "spec": {"csi": {"driver": "rbd.csi.cinderblock.dev", "volumeHandle": handle},
                     "claimRef": {"namespace": "shop", "name": "data"}},
        })
    };
    let items: Vec<Value> = handles.iter().map(volume).collect();
    let list = move |items: Vec<Value>| {
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items});
        get(move || async move { axum::response::Response::new(list.to_string()) })
    };
    let mut router =
        Router::new().route("/apis/storage.k8s.io/v1/volumeattachments", list(Vec::new()));
    if answers {
        router = router.route("/api/v1/persistentvolumes", list(items));
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    let path = folder.path().join(format!("kubeconfig-{}-{answers}", handles.len()));
    std::fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_found_on_both_sides_and_parked_only_when_all_is_known() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let OneVolume { driver, mut controller, class, id, .. } =
        OneVolume::new(&lab, &namespace.name, MIB).await;
    let made = controller.create_volume(class.create_volume("lost", MIB)).await.unwrap();
    let lost = made.into_inner().volume.unwrap().volume_id;
    let tool = Tool::new(&lab_config_with_own_user(&lab, &namespace.name));
    let folder = tempfile::tempdir().unwrap();
    let missing = format!("lab/{POOL}/{}/csi-missing", namespace.name);
    let elsewhere = "other/rbd/csi-elsewhere";
    let whole = kubernetes(&folder, &[&id, &missing, elsewhere], true).await;
    let silent = kubernetes(&folder, &[&id], false).await;
    let other = kubernetes(&folder, &[elsewhere], true).await;
    let orphans = |kubeconfig: &str, arguments: &[&str]| {
        let mut command = tool.command(&[&["orphans"], arguments].concat());
        let output = command.env("KUBECONFIG", kubeconfig).output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };

    // What is young may be in the making.
    let (code, said, _) = orphans(&whole, &[]);
    assert!(code == 3 && !said.contains(&lost) && said.contains("pv-csi-missing"), "{said}");
    let old: &[&str] = &["--older-than", "1ms"];
    let (code, said, _) = orphans(&whole, old);
    assert_eq!(code, 3, "{said}");
    for words in [&lost, "no PersistentVolume", &missing, "shop/data", "Nothing was changed"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains(&id) && !said.contains(elsewhere), "{said}");
    let apply: &[&str] = &["--older-than", "1ms", "--apply"];
    let (code, said, errors) = orphans(&silent, apply);
    assert!(code == 1 && said.is_empty() && errors.contains("cannot be told"), "{errors}");
    let (code, _, errors) = orphans(&other, apply);
    assert!(code == 3 && errors.contains("knows none of the volumes"), "{errors}");
    assert_eq!(tool.says(&["trash", "ls"]), "the trash is empty\n");

    let (code, said, errors) = orphans(&whole, apply);
    assert!(code == 3 && said.contains("moved to the trash"), "{said}{errors}");
    assert_eq!(tool.tells(&["trash", "ls"])[0]["id"], *lost);
    assert_eq!(tool.tells(&["list"]).as_array().unwrap().len(), 1);
    tool.says(&["trash", "purge", "--apply"]);
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    driver.stop();
    namespace.assert_empty();
}
