//! What a cluster refuses: keys, capabilities, blocklisted clients, full pools, images in use (F8
//! to F11, F14).

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use cinderblock::csi::proto::*;
use cinderblock::rbd::{ImageKey, Key, OpenMode};
use tonic::{Code, Status};

use crate::common::driver::{Class, Driver, MIB, lab_config, within};
use crate::common::{Lab, Namespace, PATIENCE, POOL, wait_until};
use crate::lab::{Broken, Fault, is_back};

const READS: [&str; 4] = ["mon", "profile rbd", "osd", "allow r pool=rbd"];
const ALL: [&str; 4] = ["mon", "profile rbd", "osd", "profile rbd pool=rbd"];

async fn create(driver: &Driver, class: &Class, name: &str) -> Result<String, Status> {
    let request = within(30, class.create_volume(name, MIB));
    let answer = driver.controller().await.create_volume(request).await?;
    Ok(answer.into_inner().volume.unwrap().volume_id)
}

async fn delete(driver: &Driver, class: &Class, id: &str) -> Result<(), Status> {
    driver.controller().await.delete_volume(within(30, class.delete_volume(id))).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_capabilities_are_mended_by_the_command_in_the_message() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    for (number, capabilities) in
        [&READS[..], &["mon", "allow r", "osd", "allow r"]].into_iter().enumerate()
    {
        let (user, key) = lab.user(&format!("weak-{number}"), capabilities);
        let class = Class::new(&lab, &namespace.name).of_user(&user, &key);
        let status = create(&driver, &class, "v").await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        assert!(!status.message().contains(key.expose()));
        lab.run_from_message(status.message(), "run: ").unwrap();
        // Without a restart, and at once: a connection keeps the capabilities it got when it was
        // made.
        let id = create(&driver, &class, "v").await.unwrap();
        let snapshot = driver
            .controller()
            .await
            .create_snapshot(class.create_snapshot("s", &id))
            .await
            .unwrap();
        let snapshot = snapshot.into_inner().snapshot.unwrap().snapshot_id;
        driver.controller().await.delete_snapshot(class.delete_snapshot(&snapshot)).await.unwrap();
        delete(&driver, &class, &id).await.unwrap();
        lab.remove_user(&user);
    }
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_any_capabilities_is_told_so() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let (user, key) = lab.user("none", &[]);
    let class = Class::new(&lab, &namespace.name).of_user(&user, &key);
    let status = create(&driver, &class, "v").await.unwrap_err();
    // The monitors refuse such a user in the same words as one with a wrong key.
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(
        status.message().contains(&format!("ceph auth get client.{user}")),
        "{}",
        status.message()
    );
    lab.remove_user(&user);
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_not_as_ceph_prints_it_is_told_how_it_is_wrong() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let key = lab.key.expose();
    let twice = BASE64.encode(key);
    for (user, key, words) in [
        (format!("client.{}", lab.user), key, r#"to be without "client.""#),
        (lab.user.clone(), &*twice, "is not a cephx key"),
    ] {
        let class = Class::new(&lab, &namespace.name).of_user(&user, &Key::new(key));
        let status = create(&driver, &class, "v").await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert!(status.message().contains(words), "{status:?}");
        assert!(!status.message().contains(key), "a key is told");
    }
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_changed_while_running_needs_no_restart() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let (user, old) = lab.user("rotated", &ALL);
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    std::fs::write(&key_file, old.expose()).unwrap();
    let config = format!(
        "{}  userID: {user}\n  keyFile: {}\n  pools: [{POOL}/{}]\n",
        lab_config(&lab),
        key_file.display(),
        namespace.name
    );
    let driver = Driver::start(&config, &["--role", "controller"]);
    let class = Class::new(&lab, &namespace.name).of_user(&user, &old);
    let id = create(&driver, &class, "v").await.unwrap();
    let list = || async {
        driver
            .controller()
            .await
            .list_volumes(ListVolumesRequest::default())
            .await
            .map(tonic::Response::into_inner)
    };
    assert_eq!(list().await.unwrap().entries.len(), 1);

    lab.remove_user(&user);
    let (_, new) = lab.user("rotated", &ALL);
    assert_ne!(old.expose(), new.expose());
    std::fs::write(&key_file, new.expose()).unwrap();
    assert_eq!(list().await.unwrap().entries.len(), 1);
    let rotated = class.clone().of_user(&user, &new);
    assert_eq!(create(&driver, &rotated, "v").await.unwrap(), id);
    // The old key is refused wherever it is used anew.
    let fresh = Driver::controller_for(&lab);
    let status = create(&fresh, &class, "v").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert_eq!(create(&fresh, &rotated, "v").await.unwrap(), id);
    delete(&driver, &rotated, &id).await.unwrap();
    lab.remove_user(&user);
    namespace.assert_nothing_is_left();
}

/// The addresses of the connections of `user`, as the monitor knows them.
fn addresses(lab: &Lab, user: &str) -> BTreeSet<String> {
    let sessions = lab.run("ceph", &["tell", "mon.a", "sessions"]);
    let sessions: serde_json::Value = serde_json::from_str(&sessions).unwrap();
    let of_user = sessions.as_array().unwrap().iter().filter(|session| {
        session["entity_name"] == format!("client.{user}")
            || session["name"].to_string().contains(user)
    });
    of_user
        .map(|session| {
            let first = &session["addrs"]["addrvec"][0];
            format!("{}/{}", first["addr"].as_str().unwrap(), first["nonce"])
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocklisted_driver_connects_anew_and_leaves_the_entry() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let (user, key) = lab.user("blocklisted", &ALL);
    let driver = Driver::controller_for(&lab);
    let class = Class::new(&lab, &namespace.name).of_user(&user, &key);
    let id = create(&driver, &class, "v").await.unwrap();
    let before = addresses(&lab, &user);
    assert_eq!(before.len(), 1, "{before:?}");
    let address = before.first().unwrap();
    lab.run("ceph", &["osd", "blocklist", "add", address]);
    let mut refused = 0;
    // It takes the OSD a moment to hear of it.
    while addresses(&lab, &user) == before {
        match create(&driver, &class, "v").await {
            Ok(same) => assert_eq!(same, id),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(status.message().contains("blocklisted"), "{}", status.message());
                refused += 1;
            }
        }
    }
    assert!(refused <= 1, "{refused} requests were refused");
    is_back(&driver, &class, "blocklisted").await;
    assert!(
        lab.run("ceph", &["osd", "blocklist", "ls"])
            .contains(address.split(':').next_back().unwrap())
    );
    delete(&driver, &class, &id).await.unwrap();
    drop(driver);
    lab.run("ceph", &["osd", "blocklist", "rm", address]);
    lab.remove_user(&user);
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_at_its_quota_refuses_leaves_nothing_and_lets_users_delete() {
    let lab = Broken::lab().await;
    let ceph = |arguments: &[&str]| drop(lab.run("ceph", arguments));
    ceph(&["osd", "pool", "create", "small", "1"]);
    lab.run("rbd", &["pool", "init", "small"]);
    let class = Class::new(&lab, "").with("pool", "small").without("radosNamespace");
    let driver = Driver::controller_for(&lab);
    let kept = create(&driver, &class, "kept").await.unwrap();
    ceph(&["osd", "pool", "set-quota", "small", "max_objects", "1"]);
    let is_full =
        |lab: &Lab| lab.run("ceph", &["osd", "pool", "ls", "detail"]).contains("full_quota");
    wait_until("the quota is noticed", || if is_full(&lab) { Ok(()) } else { Err(()) });
    let pool = || lab.connect().pool("small", "").unwrap();
    // Of the driver's records an empty object may stay.
    let is_data = |object: &&str| !object.starts_with("cinderblock.");
    let objects = || lab.run("rados", &["--pool", "small", "ls"]).lines().filter(is_data).count();
    let before = objects();
    let status = loop {
        // Until its OSD map says so too.
        match create(&driver, &class, "refused").await {
            Ok(id) => delete(&driver, &class, &id).await.unwrap(),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("nothing was left behind"), "{}", status.message());
    assert_eq!(pool().image_id("csi-refused").unwrap(), None);
    assert_eq!(objects(), before);
    delete(&driver, &class, "lab/small/csi-refused").await.unwrap();
    let expand = ControllerExpandVolumeRequest {
        volume_id: kept.clone(),
        capacity_range: Some(CapacityRange { required_bytes: 64 * MIB, limit_bytes: 0 }),
        secrets: class.secrets.clone(),
        ..ControllerExpandVolumeRequest::default()
    };
    // Growing may take no new object, and then it is done.
    if let Err(status) =
        driver.controller().await.controller_expand_volume(within(30, expand)).await
    {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    }
    delete(&driver, &class, &kept).await.unwrap();
    ceph(&["osd", "pool", "set-quota", "small", "max_objects", "0"]);
    wait_until("the quota is lifted", || if is_full(&lab) { Err(()) } else { Ok(()) });
    is_back(&driver, &class, "quota").await;

    // The pool goes while the driver has a connection that knows it.
    ceph(&["osd", "pool", "rm", "small", "small", "--yes-i-really-really-mean-it"]);
    let status = create(&driver, &class, "gone").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let status = delete(&driver, &class, &kept).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cluster_refuses_leaves_nothing_and_lets_users_delete() {
    let lab = Broken::lab().await;
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver = Driver::controller_for(&lab);
    let kept = create(&driver, &class, "kept").await.unwrap();
    let inject =
        |lab: &Lab, what: &str| drop(lab.run("ceph", &["tell", "osd.0", "injectfull", what]));
    let end = |lab: &crate::common::OwnLab| inject(lab, "none");
    let fault = Fault::new(&lab, &|lab| inject(lab, "full"), &end);
    let is_full = |lab: &Lab| {
        lab.run("ceph", &["osd", "dump"])
            .lines()
            .any(|line| line.contains("full") && line.starts_with("osd.0"))
    };
    wait_until("the OSD is full", || if is_full(&lab) { Ok(()) } else { Err(()) });
    let status = loop {
        match create(&driver, &class, "refused").await {
            Ok(id) => delete(&driver, &class, &id).await.unwrap(),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    delete(&driver, &class, &kept).await.unwrap();
    fault.over();
    is_back(&driver, &class, "full cluster").await;
    namespace.assert_nothing_is_left();
}

/// A client of another process that watches an image until it is killed.
struct Watcher(Child);

impl Watcher {
    fn of(lab: &Lab, spec: &str) -> Watcher {
        let command = Command::new("rbd")
            .arg("--conf")
            .arg(&lab.ceph_conf)
            .args(["--id", &lab.user, "watch", spec])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        let watcher = Watcher(command.unwrap());
        let status = || lab.run("rbd", &["status", spec]);
        wait_until("the image is watched", || {
            Some(status()).filter(|text| text.contains("watcher=")).ok_or(())
        });
        watcher
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watch_of_a_dead_client_delays_a_deletion_but_not_for_ever() {
    let lab = Broken::lab().await;
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver = Driver::controller_for(&lab);
    let id = create(&driver, &class, "watched").await.unwrap();
    lab.run("ceph", &["config", "set", "osd", "osd_client_watch_timeout", "5"]);
    let watcher = Watcher::of(&lab, id.strip_prefix("lab/").unwrap());
    let status = delete(&driver, &class, &id).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("127.0.0.1:0/"), "{}", status.message());
    drop(watcher);
    let killed = std::time::Instant::now();
    loop {
        match delete(&driver, &class, &id).await {
            Ok(()) => break,
            Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}"),
        }
        assert!(killed.elapsed() < PATIENCE, "still watched");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    println!(
        "watch of a dead client: deleted {:.1} s after its death",
        killed.elapsed().as_secs_f64()
    );
    lab.run("ceph", &["config", "rm", "osd", "osd_client_watch_timeout"]);
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_lock_another_client_holds_is_expanded_and_snapshotted() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver = Driver::controller_for(&lab);
    let id = create(&driver, &class, "locked").await.unwrap();
    let image = namespace
        .pool(&*lab.connect())
        .open_image(ImageKey::Name("csi-locked"), OpenMode::ReadWrite)
        .unwrap();
    image.write_at(0, b"before").unwrap();
    let mut controller = driver.controller().await;
    let expand = ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range: Some(CapacityRange { required_bytes: 2 * MIB, limit_bytes: 0 }),
        secrets: class.secrets.clone(),
        ..ControllerExpandVolumeRequest::default()
    };
    controller.controller_expand_volume(within(30, expand)).await.unwrap();
    image.write_at(MIB.unsigned_abs(), b"beyond").unwrap();
    let snapshot =
        controller.create_snapshot(within(30, class.create_snapshot("s", &id))).await.unwrap();
    let snapshot = snapshot.into_inner().snapshot.unwrap();
    assert_eq!(snapshot.size_bytes, 2 * MIB);
    image.write_at(0, b"after.").unwrap();
    controller
        .delete_snapshot(within(30, class.delete_snapshot(&snapshot.snapshot_id)))
        .await
        .unwrap();
    assert_eq!(delete(&driver, &class, &id).await.unwrap_err().code(), Code::FailedPrecondition);
    drop(image);
    delete(&driver, &class, &id).await.unwrap();
    namespace.assert_nothing_is_left();
}

/// A key of a form that librados would read, and of a type it does not know.
#[tokio::test]
async fn a_key_of_an_unknown_type_is_said_to_be_one() {
    let lab = Lab::from_environment();
    let driver = Driver::controller_for(&lab);
    // Type 7 instead of 1, 16 bytes long.
    let class = Class::new(&lab, "ns")
        .of_user(&lab.user, &Key::new("BwCU0ARnAAAAABAAfK8wbqI8hcGyMdBbOSGrqg=="));
    let status = create(&driver, &class, "v").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("does not know the type of the key"), "{}", status.message());
}
