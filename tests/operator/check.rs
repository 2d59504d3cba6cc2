//! `check`: each of these faults is found, and its remedy mends it.

use std::path::Path;
use std::sync::Arc;

use cinderblock::volume::catalogue::{self, State};
use cinderblock::volume::{Activity, Process, Volumes};
use serde_json::Value;

use crate::common::driver::{MIB, OneVolume, cluster_config, lab_config, lab_config_with_own_user};
use crate::common::{Lab, Namespace, POOL};
use crate::{Tool, text};

/// The findings that are not well, and the exit code.
fn faults(tool: &Tool, arguments: &[&str]) -> (Vec<Value>, Option<i32>) {
    let output = tool.run(&[&["check", "--output", "json"], arguments].concat());
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let faulty = findings.into_iter().filter(|finding| finding["outcome"] != "well").collect();
    (faulty, output.status.code())
}

/// Asserts that this is the one fault, and that found and remedy have these words.
#[track_caller]
fn assert_fault(tool: &Tool, code: i32, check: &str, outcome: &str, found: &str, remedy: &str) {
    assert_fault_with(tool, &[], code, check, outcome, found, remedy);
}

#[track_caller]
fn assert_fault_with(
    tool: &Tool,
    arguments: &[&str],
    code: i32,
    check: &str,
    outcome: &str,
    found: &str,
    remedy: &str,
) {
    let (faults, ended) = faults(tool, arguments);
    let it = faults.iter().find(|fault| fault["check"] == check && fault["outcome"] == outcome);
    let it = it.unwrap_or_else(|| panic!("no {check}: {faults:?}"));
    assert!(it["found"].as_str().unwrap().contains(found), "{it}");
    assert!(it["remedy"].as_str().unwrap_or_default().contains(remedy), "{it}");
    assert_eq!(ended, Some(code), "{faults:?}");
}

#[test]
fn a_cluster_that_is_as_it_must_be_has_no_faults() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let tool = Tool::new(&lab_config_with_own_user(&lab, &namespace.name));
    let (faults, code) = faults(&tool, &[]);
    assert_eq!((faults, code), (vec![], Some(0)));
    let said = tool.says(&["check"]);
    for check in ["monitors", "key", "clock", "right to fence", "namespace", "room", "leftovers"] {
        assert!(said.contains(check), "{check}: {said}");
    }
    namespace.assert_nothing_is_left();
}

#[test]
fn faults_of_the_configuration_are_found() {
    let lab = Lab::from_environment();
    let good = lab_config_with_own_user(&lab, "none");
    let key_file = lab.key_file.display().to_string();
    let fault = |config: &str, code, check, found: &str, remedy: &str| {
        assert_fault(&Tool::new(config), code, check, "failed", found, remedy);
    };
    fault("- clusterID: [", 2, "configuration", "is wrong", "parameters.md");
    fault(&good.replace("pools:", "pool:"), 2, "configuration", "unknown field `pool`", "keys");
    fault(&lab_config(&lab), 1, "user", "no Ceph user", "userID and keyFile");
    fault(&good.replace(&key_file, "/no/such/key"), 1, "user", "/no/such/key", "key in a file");
    let garbage = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(garbage.path(), "canary-which-nobody-may-see").unwrap();
    let with_garbage = good.replace(&key_file, &garbage.path().display().to_string());
    fault(&with_garbage, 1, "key", "is no cephx key", "ceph auth get-key client.admin");
    let said = Tool::new(&with_garbage).run(&["check"]);
    assert!(!text(&said.stdout).contains("canary") && !text(&said.stderr).contains("canary"));

    let none = Tool::new(&good);
    std::fs::remove_file(none.config()).unwrap();
    assert_fault(&none, 2, "configuration", "failed", "cannot read", "CINDERBLOCK_CONFIG");
    assert_fault_with(
        &Tool::new(&good),
        &["--cluster", "b"],
        2,
        "configuration",
        "failed",
        "no such cluster",
        "lab",
    );
}

#[test]
fn faults_of_the_way_to_the_cluster_are_found() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let good = lab_config_with_own_user(&lab, &namespace.name);
    let with_monitors =
        |monitors: &str| Tool::new(&good.replace(&format!("[\"{}\"]", lab.monitors), monitors));
    let silent = with_monitors("['127.0.0.1:1']");
    assert_fault(&silent, 1, "monitors", "failed", "127.0.0.1:1", "3300 and 6789");
    let nameless = with_monitors("['no-such-host.invalid']");
    assert_fault(&nameless, 1, "monitors", "failed", "does not resolve", "name service");
    let half = with_monitors(&format!("['127.0.0.1:1', '{}']", lab.monitors));
    assert_fault(&half, 3, "monitors", "warning", "127.0.0.1:1", "ceph mon dump");

    // A user whose key the cluster does not know.
    let (gone, key) = lab.user("gone", &["mon", "profile rbd", "osd", "profile rbd"]);
    lab.remove_user(&gone);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), key.expose()).unwrap();
    let refused = with_user(&good, &lab, &gone, file.path());
    assert_fault(&refused, 1, "connection", "failed", "refuses", "ceph auth get-or-create");
    // The remedy makes a user; the file has another key than that one still.
    let (faults, _) = faults(&refused, &[]);
    lab.run_from_message(faults[0]["remedy"].as_str().unwrap(), "run: ").unwrap();
    std::fs::write(file.path(), lab.run("ceph", &["auth", "get-key", &format!("client.{gone}")]))
        .unwrap();
    assert_eq!(refused.run(&["check"]).status.code(), Some(0));
    lab.remove_user(&gone);
    namespace.assert_nothing_is_left();
}

fn with_user(config: &str, lab: &Lab, user: &str, key_file: &Path) -> Tool {
    let config = config.replace(&format!("userID: {}", lab.user), &format!("userID: {user}"));
    Tool::new(&config.replace(&lab.key_file.display().to_string(), &key_file.display().to_string()))
}

#[test]
fn lacking_rights_are_found_with_the_line_that_gives_them() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let good = lab_config_with_own_user(&lab, &namespace.name);
    for (capabilities, check, found) in [
        (["mon", "profile rbd", "osd", "profile rbd-read-only"], "right to the pool", "change"),
        (["mon", "profile rbd", "osd", "profile rbd pool=other"], "right to the pool", "read"),
        (["mon", "allow r", "osd", "profile rbd"], "right to fence", "blocklist"),
    ] {
        let (user, key) = lab.user("check", &capabilities);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), key.expose()).unwrap();
        let tool = with_user(&good, &lab, &user, file.path());
        let line = format!(
            "run: ceph auth caps client.{user} mon 'profile rbd' osd 'profile rbd pool={POOL} namespace={}'",
            namespace.name
        );
        assert_fault(&tool, 1, check, "failed", found, &line);
        let (faults, _) = faults(&tool, &[]);
        lab.run_from_message(faults[0]["remedy"].as_str().unwrap(), "run: ").unwrap();
        let after = tool.run(&["check"]);
        assert_eq!(after.status.code(), Some(0), "{}", text(&after.stdout));
        lab.remove_user(&user);
    }
    namespace.assert_nothing_is_left();
}

#[test]
fn faults_of_pools_are_found() {
    let lab = Lab::from_environment();
    let good = lab_config_with_own_user(&lab, "none");
    let with_pools = |pools: &str| {
        Tool::new(&good.replace(&format!("pools: [{POOL}/none]"), &format!("pools: [{pools}]")))
    };
    let missing = with_pools("no-such-pool");
    assert_fault(&missing, 1, "pool", "failed", "no pool", "ceph osd pool create no-such-pool");
    let unregistered = with_pools(&format!("{POOL}/nobody"));
    assert_fault(
        &unregistered,
        1,
        "namespace",
        "failed",
        "nobody",
        &format!("rbd namespace create {POOL}/nobody"),
    );
    assert_fault(&with_pools(""), 3, "pools", "warning", "names no pools", "pools: [");

    let pool = format!("check-{}", std::process::id());
    lab.run("ceph", &["osd", "pool", "create", &pool, "1"]);
    let tool = with_pools(&pool);
    // The manager's figures of a new pool come late, and are unknown until then.
    crate::common::wait_until("there are figures of the pool", || {
        let found = self::faults(&tool, &[]);
        if found.1 == Some(3) { Ok(()) } else { Err(found) }
    });
    assert_fault(&tool, 3, "pool", "warning", "not marked", &format!("run: rbd pool init {pool}"));
    lab.run("rbd", &["pool", "init", &pool]);
    let (faults, code) = crate::common::wait_until("the pool is well", || {
        let found = faults(&tool, &[]);
        if found.1 == Some(0) { Ok(found) } else { Err(found) }
    });
    assert_eq!((faults, code), (vec![], Some(0)));
    lab.run("rados", &["--pool", &pool, "put", "filler", "/bin/sh"]);
    lab.run("ceph", &["osd", "pool", "set-quota", &pool, "max_bytes", "4096"]);
    crate::common::wait_until("the quota shows", || {
        let (found, code) = self::faults(&tool, &[]);
        let quota = found.iter().any(|fault| {
            let remedy = fault["remedy"].as_str().unwrap_or_default();
            fault["check"] == "room" && remedy.contains("set-quota")
        });
        if quota && code == Some(1) { Ok(()) } else { Err(found) }
    });
    lab.run("ceph", &["osd", "pool", "rm", &pool, &pool, "--yes-i-really-really-mean-it"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_and_a_format_that_is_out_of_date_are_found() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let OneVolume { driver, mut controller, class, id, image } =
        OneVolume::new(&lab, &namespace.name, MIB).await;
    controller.create_volume(class.create_volume("half", MIB)).await.unwrap();
    driver.stop();
    let pool = namespace.pool(&*lab.connect());
    let volumes = Volumes::new(pool, "default", Process::default(), Arc::new(Activity::default()));
    let half = volumes.catalogue().volume("csi-half").unwrap().unwrap();
    let unfinished =
        catalogue::Volume { state: State::Creating, created: 0, ..half.record.clone() };
    drop(volumes.catalogue().replace("csi-half", &half, unfinished).unwrap());
    let good = lab_config_with_own_user(&lab, &namespace.name);
    let tool = Tool::new(&good);
    let remedy =
        format!("cinderblock gc --cluster lab --pool {POOL} --namespace {}", namespace.name);
    assert_fault(&tool, 3, "leftovers", "warning", "1 things", &remedy);
    let (_, command) = remedy.split_once(' ').unwrap();
    let gc: Vec<_> = command.split(' ').chain(["--apply"]).collect();
    tool.says(&gc);
    let (faults, code) = self::faults(&tool, &[]);
    assert_eq!((faults, code), (vec![], Some(0)));
    assert!(volumes.delete(&image).unwrap().is_none(), "{id}");
    volumes.settle_own();

    let level = lab.run("ceph", &["osd", "get-require-min-compat-client"]);
    lab.run("ceph", &["osd", "set-require-min-compat-client", "mimic"]);
    let format_1 = Tool::new(&format!("{good}  cloneFormat: 1\n"));
    assert_fault(&format_1, 3, "clone format", "warning", "mimic", "take cloneFormat out");
    lab.run("ceph", &["osd", "set-require-min-compat-client", level.trim()]);
    namespace.assert_nothing_is_left();
}

#[test]
fn a_machine_that_cannot_be_a_node_is_told() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let tool = Tool::new(&lab_config_with_own_user(&lab, &namespace.name));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let has_krbd = Path::new("/sys/bus/rbd").exists()
        || std::fs::read_to_string(format!("/lib/modules/{}/modules.dep", release.trim()))
            .is_ok_and(|list| list.contains("/rbd.ko"));
    if has_krbd {
        let (faults, _) = faults(&tool, &["--mounter", "rbd"]);
        assert!(faults.iter().all(|fault| fault["check"] != "mounter"), "{faults:?}");
    } else {
        let remedy = "install the kernel's package with the rbd module";
        let arguments = ["--mounter", "rbd"];
        assert_fault_with(&tool, &arguments, 1, "mounter", "failed", "no rbd module", remedy);
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let arguments = ["--mounter", "fuse", "--kubelet-dir", folder];
    let (check, remedy) = ("kubelet's folder", "node.kubeletDir");
    assert_fault_with(&tool, &arguments, 1, check, "failed", "neither pods nor plugins", remedy);
    namespace.assert_nothing_is_left();
}

#[test]
fn every_cluster_of_the_configuration_is_checked() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let other = cluster_config("other", &lab);
    let tool = Tool::new(&format!("{}{other}", lab_config_with_own_user(&lab, &namespace.name)));
    let (faults, _) = faults(&tool, &[]);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!((&faults[0]["place"], &faults[0]["check"]), (&"other".into(), &"user".into()));
    namespace.assert_nothing_is_left();
}
