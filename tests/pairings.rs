//! What a user reads where a driver's librados and a cluster of Ceph 20 do not go together, and
//! that the commands in a message mend it. tests/pairings.sh makes the lab, whose keys are of the
//! type aes256k, and runs this on librados 16 and 20. Each test changes the cluster for all, so
//! they run one after the other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "the messages are for the reader of a run")]

#[path = "common/mod.rs"]
mod common;

use cinderblock::rbd::Key;
use cinderblock::rbd::ceph::libraries;
use tonic::{Code, Status};

use common::driver::{Class, Driver, MIB, from_snapshot, lab_config, within};
use common::{Lab, Namespace, POOL, wait_until};

const CAPABILITIES: [&str; 6] = ["mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd"];

/// Whether this librados knows keys of the type aes256k.
fn is_new() -> bool {
    libraries().release.0 >= 20
}

async fn create(driver: &Driver, class: &Class, name: &str) -> Result<String, Status> {
    let request = within(30, class.create_volume(name, MIB));
    let answer = driver.controller().await.create_volume(request).await?;
    Ok(answer.into_inner().volume.unwrap().volume_id)
}

async fn delete(driver: &Driver, class: &Class, id: &str) {
    driver.controller().await.delete_volume(within(30, class.delete_volume(id))).await.unwrap();
}

/// Lets users with keys of the types in `ciphers` in.
fn allow(lab: &Lab, ciphers: &str) {
    lab.run("ceph", &["mon", "set", "auth_allowed_ciphers", ciphers]);
}

/// A user with a key of the type `key_type`. A monitor that was just told to allow that type does
/// so a moment later.
fn user(lab: &Lab, name: &str, key_type: &str) -> (String, Key) {
    let name = format!("{name}-{}", std::process::id());
    let entity = format!("client.{name}");
    let words =
        [&["auth", "get-or-create-key", &entity][..], &CAPABILITIES, &["--key_type", key_type]]
            .concat();
    let key = wait_until("a user is made", || lab.try_run("ceph", &words));
    (name, Key::new(&key))
}

/// Runs the command at the end of a message as it is, as the lab's administrator.
fn run_what_it_says(lab: &Lab, message: &str, before: &str) {
    wait_until("the command in the message succeeds", || lab.run_from_message(message, before));
}

fn shown(what: &str, status: &Status) {
    println!("{what}, Ceph {}: {:?} {}", libraries().ceph, status.code(), status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_too_new_for_the_driver_is_told_with_the_commands_that_mend_it() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let (name, key) = user(&lab, "new", "aes256k");
    let class = Class::new(&lab, &namespace.name).of_user(&name, &key);
    let driver = Driver::controller_for(&lab);
    let outcome = create(&driver, &class, "v").await;
    if is_new() {
        delete(&driver, &class, &outcome.unwrap()).await;
    } else {
        let status = outcome.unwrap_err();
        shown("a key of the type aes256k", &status);
        assert_eq!(status.code(), Code::FailedPrecondition);
        let reason = format!("does not know keys of the type aes256k, as client.{name} has one");
        assert!(status.message().contains(&reason) && !status.message().contains(key.expose()));
        run_what_it_says(&lab, status.message(), "run: ");
        let key = Key::new(&lab.run("ceph", &["auth", "get-key", &format!("client.{name}-aes")]));
        let class = class.of_user(&format!("{name}-aes"), &key);
        let id = create(&driver, &class, "v").await.unwrap();
        delete(&driver, &class, &id).await;
        lab.remove_user(&format!("{name}-aes"));
        allow(&lab, "aes256k");
    }
    lab.remove_user(&name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_has_stopped_taking_keys_of_the_type_aes_is_named_as_a_reason() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    allow(&lab, "aes,aes256k");
    let (name, key) = user(&lab, "old", "aes");
    let class = Class::new(&lab, &namespace.name).of_user(&name, &key);
    let connected = Driver::controller_for(&lab);
    let id = create(&connected, &class, "v").await.unwrap();
    allow(&lab, "aes256k");
    // A connection that is open goes on for as long as its tickets live.
    assert_eq!(create(&connected, &class, "v").await.unwrap(), id);
    let driver = Driver::controller_for(&lab);
    let status = create(&driver, &class, "v").await.unwrap_err();
    shown("a key of the type aes", &status);
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains(&format!("the cluster refuses client.{name}")));
    run_what_it_says(&lab, status.message(), "again after: ");
    assert_eq!(create(&driver, &class, "v").await.unwrap(), id);
    delete(&driver, &class, &id).await;
    lab.remove_user(&name);
    allow(&lab, "aes256k");
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_of_format_2_are_made_whatever_the_oldest_client_may_be() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    allow(&lab, "aes,aes256k");
    let (name, key) = user(&lab, "old", "aes");
    let class = Class::new(&lab, &namespace.name).of_user(&name, &key);
    let driver = Driver::controller_for(&lab);
    for oldest in ["jewel", "luminous"] {
        lab.run("ceph", &["osd", "set-require-min-compat-client", oldest]);
        let id = create(&driver, &class, "source").await.unwrap();
        let mut controller = driver.controller().await;
        let snapshot =
            controller.create_snapshot(within(30, class.create_snapshot("s", &id))).await.unwrap();
        let snapshot = snapshot.into_inner().snapshot.unwrap().snapshot_id;
        let mut request = class.create_volume("restored", MIB);
        request.volume_content_source = Some(from_snapshot(&snapshot));
        let restored = controller.create_volume(within(30, request)).await.unwrap();
        let restored = restored.into_inner().volume.unwrap().volume_id;
        let spec = format!("{POOL}/{}/csi-restored", namespace.name);
        assert!(lab.run("rbd", &["info", &spec]).contains("op_features: clone-child"), "{oldest}");
        delete(&driver, &class, &restored).await;
        controller.delete_snapshot(within(30, class.delete_snapshot(&snapshot))).await.unwrap();
        delete(&driver, &class, &id).await;
    }
    lab.remove_user(&name);
    allow(&lab, "aes256k");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_insists_on_encryption_takes_all_but_a_driver_that_was_told_not_to_encrypt()
{
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    allow(&lab, "aes,aes256k");
    let (name, key) = user(&lab, "old", "aes");
    let class = Class::new(&lab, &namespace.name).of_user(&name, &key);
    let modes = ["cluster", "service", "client"]
        .map(|of| [format!("ms_{of}_mode"), format!("ms_mon_{of}_mode")]);
    for mode in modes.as_flattened() {
        lab.run("ceph", &["config", "set", "global", mode, "secure"]);
    }
    let driver = Driver::controller_for(&lab);
    let id = create(&driver, &class, "v").await.unwrap();

    // The first protocol is not encrypted, whatever these options say.
    let v1 = lab.monitors.split("v1:").nth(1).unwrap().trim_end_matches(']');
    let driver = Driver::start(
        &format!("- clusterID: lab\n  monitors: [\"v1:{v1}\"]\n"),
        &["--role", "controller"],
    );
    assert_eq!(create(&driver, &class, "v").await.unwrap(), id);

    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("ceph.conf");
    std::fs::write(&conf, "[global]\nms_client_mode = crc\nms_mon_client_mode = crc\n").unwrap();
    let config = format!("{}  cephConf: {}\n", lab_config(&lab), conf.display());
    let driver = Driver::start(&config, &["--role", "controller"]);
    let status = create(&driver, &class, "v").await.unwrap_err();
    shown("ms_client_mode = crc", &status);
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(
        status
            .message()
            .contains("has it ask for connections that the cluster does not take (ms_client_mode)")
    );

    for mode in modes.as_flattened() {
        lab.run("ceph", &["config", "rm", "global", mode]);
    }
    assert_eq!(create(&driver, &class, "v").await.unwrap(), id);
    delete(&driver, &class, &id).await;
    lab.remove_user(&name);
    allow(&lab, "aes256k");
}
