//! `cinderblock tree` and `cinderblock gc`, as an operator runs them on a real Ceph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use cinderblock::csi::proto::CreateVolumeRequest;
use cinderblock::rbd::ceph::{Libraries, libraries};
use cinderblock::volume::catalogue::{self, State};
use cinderblock::volume::{Activity, Process, Volumes};
use common::driver::{Class, Driver, MIB, from_volume, lab_config};
use common::{Lab, Namespace, POOL};
use serde_json::Value;

#[test]
fn a_reader_that_goes_early_is_no_failure() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .arg("--version")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Before it has loaded Ceph's libraries.
    drop(process.stdout.take());
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// Runs a subcommand on the namespace.
fn tool(lab: &Lab, namespace: &Namespace<'_>, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    let key_file = std::env::var("LAB_KEY_FILE").unwrap();
    std::fs::write(&config, lab_config(lab)).unwrap();
    Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .args(arguments)
        .arg("--config")
        .arg(&config)
        .args([
            "--pool",
            POOL,
            "--namespace",
            &namespace.name,
            "--user",
            &lab.user,
            "--key-file",
            &key_file,
        ])
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn the_tree_shows_a_silent_parent_and_what_keeps_it() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);
    let a = controller
        .create_volume(class.create_volume("a", MIB))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    let clone = CreateVolumeRequest {
        volume_content_source: Some(from_volume(&a.volume_id)),
        ..class.create_volume("b", MIB)
    };
    let b = controller.create_volume(clone).await.unwrap().into_inner().volume.unwrap();
    controller.delete_volume(class.delete_volume(&a.volume_id)).await.unwrap();

    let text = tool(&lab, &namespace, &["tree"]);
    assert!(text.status.success());
    assert_eq!(
        stdout(&text),
        format!(
            "rbd/{}
└─ csi-a.deleted  1MiB, 0B used, silent parent, kept by @csi-b.clone_snap
   └─ @csi-b.clone_snap  for a clone
      └─ csi-b  1MiB, 0B used, volume, depth 1
",
            namespace.name
        )
    );
    let json: Value =
        serde_json::from_str(&stdout(&tool(&lab, &namespace, &["tree", "--output", "json"])))
            .unwrap();
    assert_eq!(json["images"][0]["kind"], "silent-parent");
    assert_eq!(json["images"][1]["parent"]["snapshot"], "csi-b.clone_snap");
    let dot = stdout(&tool(&lab, &namespace, &["tree", "--output", "dot"]));
    assert!(dot.starts_with("digraph") && dot.contains("@csi-b.clone_snap"), "{dot}");
    let nothing = tool(&lab, &namespace, &["gc"]);
    assert_eq!(nothing.status.code(), Some(0), "{}", stdout(&nothing));
    assert_eq!(stdout(&nothing), "nothing is left half-done\n");

    controller.delete_volume(class.delete_volume(&b.volume_id)).await.unwrap();
    common::wait_until("the silent parent's end", || {
        let tree = stdout(&tool(&lab, &namespace, &["tree"]));
        if tree.contains("(no images)") { Ok(()) } else { Err(tree) }
    });
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}

#[tokio::test]
async fn gc_shows_first_and_clears_only_what_is_the_drivers_own() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name);
    let a = controller
        .create_volume(class.create_volume("a", MIB))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    controller.create_volume(class.create_volume("half", MIB)).await.unwrap();
    let spec = |image: &str| format!("{POOL}/{}/{image}", namespace.name);
    // A snapshot whose clone is gone, a creation that no caller came back for, and an image that is
    // not ours.
    lab.run("rbd", &["snap", "create", "--no-progress", &spec("csi-a@csi-gone.clone_snap")]);
    lab.run("rbd", &["create", "--size", "1M", &spec("theirs.deleted")]);
    let cluster = lab.connect();
    let volumes = Volumes::new(
        namespace.pool(&*cluster),
        "default",
        Process::default(),
        Arc::new(Activity::default()),
    );
    let half = volumes.catalogue().volume("csi-half").unwrap().unwrap();
    let unfinished =
        catalogue::Volume { state: State::Creating, created: 0, ..half.record.clone() };
    volumes.catalogue().replace("csi-half", &half, unfinished).unwrap();

    let found = tool(&lab, &namespace, &["gc"]);
    assert_eq!(found.status.code(), Some(3), "{}", stdout(&found));
    let text = stdout(&found);
    assert!(text.contains("csi-a@csi-gone.clone_snap: its clone is gone"), "{text}");
    assert!(text.contains("csi-half: its creation was begun"), "{text}");
    assert!(text.contains("2 found; nothing was changed"), "{text}");
    assert!(!text.contains("theirs"), "{text}");
    let images = lab.run("rbd", &["ls", &spec("")[..spec("").len() - 1]]);
    assert!(images.contains("csi-half") && images.contains("theirs.deleted"), "{images}");

    let cleared = tool(&lab, &namespace, &["gc", "--apply", "--output", "json"]);
    assert_eq!(cleared.status.code(), Some(0), "{}", stdout(&cleared));
    let report: Value = serde_json::from_str(&stdout(&cleared)).unwrap();
    assert_eq!(report["cleared"].as_array().unwrap().len(), 2, "{report}");
    let images = lab.run("rbd", &["ls", &spec("")[..spec("").len() - 1]]);
    assert_eq!(images.split_whitespace().collect::<Vec<_>>(), ["csi-a", "theirs.deleted"]);
    assert_eq!(lab.run("rbd", &["snap", "ls", &spec("csi-a")]), "");

    lab.run("rbd", &["rm", "--no-progress", &spec("theirs.deleted")]);
    controller.delete_volume(class.delete_volume(&a.volume_id)).await.unwrap();
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}

#[test]
fn gc_clears_the_chains_cinder_leaves_only_when_asked_to() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let spec = |image: &str| format!("{POOL}/{}/{image}", namespace.name);
    let [a, b, kept] = [
        "0c0a24a2-5a16-4a30-9bb3-0a7f0b1f51aa",
        "1c0a24a2-5a16-4a30-9bb3-0a7f0b1f51bb",
        "2c0a24a2-5a16-4a30-9bb3-0a7f0b1f51cc",
    ];
    // A→B→C with C gone, as a delete of today's Cinder leaves it; and a chain whose end is alive.
    for (parent, child, alive) in
        [(a, b, format!("volume-{b}.deleted")), (kept, b, "volume-alive".to_string())]
    {
        let snapshot = spec(&format!("volume-{parent}.deleted@volume-{child}.clone_snap"));
        lab.run("rbd", &["create", "--size", "1M", &spec(&format!("volume-{parent}.deleted"))]);
        lab.run("rbd", &["snap", "create", "--no-progress", &snapshot]);
        lab.run("rbd", &["snap", "protect", &snapshot]);
        lab.run("rbd", &["clone", &snapshot, &spec(&alive)]);
    }
    let snapshot = spec(&format!("volume-{b}.deleted@volume-gone.clone_snap"));
    lab.run("rbd", &["snap", "create", "--no-progress", &snapshot]);

    assert_eq!(tool(&lab, &namespace, &["gc"]).status.code(), Some(0));
    let found = tool(&lab, &namespace, &["gc", "--foreign"]);
    assert_eq!(found.status.code(), Some(3));
    assert!(
        stdout(&found).contains(&format!("volume-{b}.deleted: marked deleted by Cinder")),
        "{}",
        stdout(&found)
    );
    let cleared = tool(&lab, &namespace, &["gc", "--foreign", "--apply"]);
    assert_eq!(cleared.status.code(), Some(0), "{}", stdout(&cleared));
    let images = lab.run("rbd", &["ls", &spec("")[..spec("").len() - 1]]);
    assert_eq!(
        images.split_whitespace().collect::<Vec<_>>(),
        [format!("volume-{kept}.deleted"), "volume-alive".to_string()]
    );

    lab.run("rbd", &["rm", "--no-progress", &spec("volume-alive")]);
    assert_eq!(tool(&lab, &namespace, &["gc", "--foreign", "--apply"]).status.code(), Some(0));
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}

#[test]
fn a_tool_that_cannot_reach_its_pool_says_why() {
    let lab = Lab::from_environment();
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_cinderblock")).args(arguments).output().unwrap()
    };
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    std::fs::write(&config, lab_config(&lab)).unwrap();
    let config = config.to_str().unwrap();
    let key_file = std::env::var("LAB_KEY_FILE").unwrap();
    let access = ["--user", lab.user.as_str(), "--key-file", key_file.as_str()];
    for (arguments, code, words) in [
        (
            vec!["tree", "--config", "/no/such/file", "--pool", "rbd"],
            2,
            "cannot read the configuration /no/such/file",
        ),
        (vec!["tree", "--config", config, "--pool", "rbd"], 2, "no Ceph user"),
        (vec!["tree", "--config", config, "--pool", "rbd", "--user", "a"], 2, "--key-file"),
        (
            [vec!["tree", "--config", config, "--pool", "no-such-pool"], access.to_vec()].concat(),
            1,
            "the pool no-such-pool does not exist in the cluster lab",
        ),
        (
            [vec!["gc", "--config", config, "--pool", "rbd", "--cluster", "b"], access.to_vec()]
                .concat(),
            2,
            "knows lab",
        ),
        ([vec!["gc", "--config", config], access.to_vec()].concat(), 2, "names no pools"),
    ] {
        let output = run(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error:?} lacks {words:?}");
    }
}

#[test]
fn the_program_and_a_driver_that_starts_say_which_librbd_they_run_on() {
    let libraries = libraries();
    let output = Command::new(env!("CARGO_BIN_EXE_cinderblock")).arg("--version").output().unwrap();
    assert!(output.status.success());
    let version = env!("CARGO_PKG_VERSION");
    let mut expected = vec![format!("cinderblock {version} (librbd of Ceph {})", libraries.ceph)];
    expected.extend(libraries.lacks.iter().map(|lacks| format!("lacks {lacks}")));
    assert_eq!(stdout(&output).lines().collect::<Vec<_>>(), expected);

    let driver =
        Driver::start("- {clusterID: lab, monitors: ['127.0.0.1:1']}", &["--role", "controller"]);
    let Libraries { ceph, librbd, librados, .. } = libraries;
    let said = format!(
        "cinderblock {version} starts with librbd {librbd} and librados {librados} of Ceph {ceph}"
    );
    let log = driver.log();
    for said in [said.as_str(), "role=Controller", "clusters=\"lab\""] {
        assert!(log.contains(said), "{said}: {log}");
    }
}
