//! Real connections: made, refused, shared, lost.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use std::{env, fs};

use cinderblock::rbd::ceph::{ConnectOptions, Connections, Timeouts, connect};
use cinderblock::rbd::{Cluster, Errno, Key};
use serde_json::{Value, json};

use crate::common::{Lab, Namespace, OwnLab, POOL, wait_until};
use crate::tools::{MIB, created, errno, image_names, layout};

pub(crate) fn command(cluster: &dyn Cluster, command: &Value) -> Vec<u8> {
    cluster.monitor_command(&command.to_string()).unwrap()
}

/// A user made for one test, and the key it got.
struct User<'a> {
    cluster: &'a dyn Cluster,
    name: String,
    key: Key,
}

impl<'a> User<'a> {
    fn new(cluster: &'a dyn Cluster, name: &str) -> User<'a> {
        let name = format!("{name}-{}", std::process::id());
        let output = command(
            cluster,
            &json!({
                "prefix": "auth get-or-create", "entity": format!("client.{name}"), "format": "json",
                "caps": ["mon", "profile rbd", "osd", "profile rbd"],
            }),
        );
        let output: Value = serde_json::from_slice(&output).unwrap();
        let key = Key::new(output[0]["key"].as_str().unwrap());
        User { cluster, name, key }
    }

    fn options(&self, lab: &Lab) -> ConnectOptions {
        ConnectOptions { user: self.name.clone(), key: Some(self.key.clone()), ..lab.options() }
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        let remove = json!({"prefix": "auth rm", "entity": format!("client.{}", self.name)});
        let removed = self.cluster.monitor_command(&remove.to_string());
        assert!(removed.is_ok() || thread::panicking(), "{removed:?}");
    }
}

fn address(cluster: &Arc<dyn Cluster>) -> String {
    cluster.address().unwrap()
}

#[test]
fn a_connection_knows_its_cluster_and_itself() {
    let lab = Lab::from_environment();
    let cluster = lab.connect();
    assert_eq!(cluster.fsid().unwrap(), lab.fsid);
    let monitors = cluster.monitors().unwrap();
    assert!(!monitors.is_empty());
    for monitor in &monitors {
        let v2 = monitor.v2.expect("the lab speaks msgr2").to_string();
        assert!(lab.monitors.contains(&v2), "{v2} is not in {}", lab.monitors);
    }
    let own = address(&cluster);
    let (socket, nonce) = own.split_once('/').unwrap();
    socket.parse::<SocketAddr>().unwrap();
    nonce.parse::<u64>().unwrap();
    assert_ne!(address(&lab.connect()), own);
}

#[test]
fn commands_reach_monitors() {
    let cluster = Lab::from_environment().connect();
    let health: Value =
        serde_json::from_slice(&command(&*cluster, &json!({"prefix": "health", "format": "json"})))
            .unwrap();
    assert!(health["status"].is_string(), "{health}");
    // A refused command is named, its arguments are not.
    let secret = r#"{"prefix":"no such command","key":"AQsecret=="}"#;
    let error = cluster.monitor_command(secret).unwrap_err();
    assert_eq!(error.errno, Errno::EINVAL);
    assert!(error.to_string().contains("no such command"), "{error}");
    assert!(!error.to_string().contains("AQsecret"), "{error}");
}

/// The lab's `ceph.conf` in `folder`, with all that would make librados write to files there and to
/// standard error.
fn talkative(lab: &Lab, folder: &Path) -> PathBuf {
    let conf = fs::read_to_string(&lab.ceph_conf).unwrap();
    let said = "log to stderr = true\nerr to stderr = true\nlog to file = true\ndebug auth = 20";
    let (log, socket) = (folder.join("log"), folder.join("socket"));
    let files = format!("log file = {}\nadmin socket = {}", log.display(), socket.display());
    let path = folder.join("ceph.conf");
    fs::write(&path, format!("{conf}\n[client]\n{said}\n{files}\n")).unwrap();
    path
}

#[test]
fn a_ceph_conf_will_do() {
    let lab = Lab::from_environment();
    let folder = tempfile::tempdir().unwrap();
    let ceph_conf = Some(talkative(&lab, folder.path()));
    let options = ConnectOptions { monitors: vec![], ceph_conf, ..lab.options() };
    let cluster = connect(&options).unwrap();
    assert_eq!(cluster.fsid().unwrap(), lab.fsid);
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "no log and no socket beside the ceph.conf"
    );
    // Its keyring is used when no key is given.
    let keyring = ConnectOptions { key: None, ..options };
    assert_eq!(connect(&keyring).unwrap().fsid().unwrap(), lab.fsid);
}

#[test]
fn a_connection_without_a_target_is_refused() {
    let lab = Lab::from_environment();
    let nowhere = ConnectOptions { monitors: vec![], ..lab.options() };
    assert_eq!(errno(connect(&nowhere)), Errno::ENOENT);
    let missing = ConnectOptions { ceph_conf: Some("/no/such/ceph.conf".into()), ..lab.options() };
    let error = connect(&missing).unwrap_err();
    assert_eq!(error.errno, Errno::ENOENT);
    assert!(error.to_string().contains("/no/such/ceph.conf"), "{error}");
}

#[test]
fn wrong_credentials_are_refused_at_once() {
    let lab = Lab::from_environment();
    let cluster = lab.connect();
    let user = User::new(&*cluster, "wrong-key");
    let wrong_key = ConnectOptions { key: Some(lab.key.clone()), ..user.options(&lab) };
    let unknown_user = ConnectOptions { user: "nobody-of-this-name".to_owned(), ..lab.options() };
    for options in [wrong_key, unknown_user] {
        let start = Instant::now();
        let error = connect(&options).unwrap_err();
        assert_eq!(error.errno, Errno::EACCES);
        assert!(error.object.contains(&options.user), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}

#[test]
fn missing_capabilities_are_told() {
    let lab = Lab::from_environment();
    let cluster = lab.connect();
    let user = User::new(&*cluster, "no-rights");
    let entity = format!("client.{}", user.name);
    command(
        &*cluster,
        &json!({"prefix": "auth caps", "entity": entity, "caps": ["mon", "profile rbd"]}),
    );
    let pool = connect(&user.options(&lab)).unwrap().pool(POOL, "").unwrap();
    let refusal = lab.without_rights_on_osds();
    assert_eq!(errno(pool.create_image("image", MIB, &layout())), refusal);
    assert_eq!(errno(pool.omap_get("object", &["key"])), refusal);
}

/// A configuration that wants librados to talk is overruled: it would say which key it could not
/// decode. Run in a process of its own to hear it.
#[test]
fn a_malformed_key_is_refused_without_a_word() {
    const CHILD: &str = "CINDERBLOCK_TEST_MALFORMED_KEY";
    const KEY: &str = "AQcanary-is-no-base64";
    let lab = Lab::from_environment();
    if let Some(ceph_conf) = env::var_os(CHILD) {
        let ceph_conf = Some(ceph_conf.into());
        let options = ConnectOptions { ceph_conf, key: Some(Key::new(KEY)), ..lab.options() };
        assert_eq!(errno(connect(&options)), Errno::EINVAL);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "connections::a_malformed_key_is_refused_without_a_word", "--nocapture"])
        .env(CHILD, talkative(&lab, folder.path()))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    assert!(!said.contains("canary"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no log beside the ceph.conf");
}

#[test]
fn unreachable_monitors_are_given_up_in_time() {
    // One accepts connections and never says a word, one refuses them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [silent.local_addr().unwrap(), refusing] {
        let options = unreachable(address);
        let start = Instant::now();
        let error = connect(&options).unwrap_err();
        assert_eq!(error.errno, Errno::ETIMEDOUT);
        assert!(error.object.contains(&address.to_string()), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}

fn unreachable(monitor: SocketAddr) -> ConnectOptions {
    ConnectOptions {
        monitors: vec![format!("[v2:{monitor}]")],
        ceph_conf: None,
        user: "admin".to_owned(),
        key: Some(Key::new("AQBqmJtmAAAAABAAxV1hGSzMf4N8Y0aHSy4ZVg==")),
        timeouts: Timeouts { connect: Duration::from_secs(1), ..Timeouts::default() },
    }
}

#[test]
fn callers_share_one_connection() {
    let lab = Lab::from_environment();
    let cluster = lab.connect();
    let connections = Connections::default();
    let together = Barrier::new(100);
    let addresses: Vec<String> = thread::scope(|scope| {
        let callers: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    address(&connections.get(&lab.options()).unwrap())
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert!(addresses.iter().all(|other| *other == addresses[0]), "{addresses:?}");
    // Another user, or another key of the same user, is another connection.
    let user = User::new(&*cluster, "shared");
    let other = connections.get(&user.options(&lab)).unwrap();
    assert_ne!(address(&other), addresses[0]);
    let wrong_key = ConnectOptions { key: Some(lab.key.clone()), ..user.options(&lab) };
    assert_eq!(errno(connections.get(&wrong_key)), Errno::EACCES);
    assert_eq!(address(&connections.get(&user.options(&lab)).unwrap()), address(&other));
}

#[test]
fn a_failure_is_shared_but_not_kept() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = unreachable(silent.local_addr().unwrap());
    let connections = Connections::default();
    let start = Instant::now();
    let together = Barrier::new(20);
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                together.wait();
                assert_eq!(errno(connections.get(&options)), Errno::ETIMEDOUT);
            });
        }
    });
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "one after the other: {:?}",
        start.elapsed()
    );

    let lab = Lab::from_environment();
    let folder = tempfile::tempdir().unwrap();
    let ceph_conf = folder.path().join("ceph.conf");
    let options =
        ConnectOptions { monitors: vec![], ceph_conf: Some(ceph_conf.clone()), ..lab.options() };
    assert_eq!(errno(connections.get(&options)), Errno::ENOENT);
    fs::copy(&lab.ceph_conf, &ceph_conf).unwrap();
    assert_eq!(connections.get(&options).unwrap().fsid().unwrap(), lab.fsid);
}

#[test]
fn idle_connections_are_dropped_and_used_ones_kept() {
    let lab = Lab::from_environment();
    let cluster = lab.connect();
    let (idle, used, other) =
        (User::new(&*cluster, "idle"), User::new(&*cluster, "used"), User::new(&*cluster, "other"));
    let connections = Connections::new(Duration::ZERO);
    let idle_address = address(&connections.get(&idle.options(&lab)).unwrap());
    let held = connections.get(&used.options(&lab)).unwrap().pool(POOL, "").unwrap();
    connections.get(&other.options(&lab)).unwrap();
    assert_ne!(address(&connections.get(&idle.options(&lab)).unwrap()), idle_address);
    assert_eq!(address(&connections.get(&used.options(&lab)).unwrap()), address(&held.cluster()));
}

#[test]
fn a_connection_set_aside_is_replaced_and_still_serves_who_has_it() {
    let lab = Lab::from_environment();
    let connections = Connections::default();
    let stuck = connections.get(&lab.options()).unwrap();
    connections.set_aside(&address(&stuck));
    let fresh = connections.get(&lab.options()).unwrap();
    assert_ne!(address(&fresh), address(&stuck));
    assert_eq!(stuck.monitors().unwrap(), fresh.monitors().unwrap());
    // Doing so again does not touch its successor.
    connections.set_aside(&address(&stuck));
    assert_eq!(address(&connections.get(&lab.options()).unwrap()), address(&fresh));
}

#[test]
fn a_timeout_is_looked_into() {
    let lab = OwnLab::up();
    let admin = lab.connect();
    let user = User::new(&*admin, "timeout");
    let (connect, monitor) = (Duration::from_secs(3), Duration::from_secs(1));
    let timeouts = Timeouts { connect, monitor, ..Timeouts::default() };
    let options = ConnectOptions { timeouts, ..user.options(&lab) };
    let connections = Connections::default();
    let first = connections.get(&options).unwrap();
    let is_silent = |cluster: &Arc<dyn Cluster>| {
        let errno = wait_until("the monitor is silent", || match cluster.monitors() {
            Err(error) => Ok(error.errno),
            Ok(monitors) => Err(monitors),
        });
        assert_eq!(errno, Errno::ETIMEDOUT);
    };

    // Monitors that do not answer: a new connection is out of reach, and the old one still serves.
    lab.daemon("stop", "mon");
    is_silent(&first);
    let kept = connections.get(&options).unwrap();
    assert_eq!(address(&kept), address(&first));
    assert_eq!(kept.pool(POOL, "").unwrap().omap_get("object", &["key"]).unwrap().len(), 0);
    lab.daemon("cont", "mon");
    wait_until("the monitor answers", || kept.monitors());

    // A call that was slow once: the next caller gets a new connection.
    let replaced = connections.get(&options).unwrap();
    lab.daemon("stop", "mon");
    is_silent(&replaced);
    lab.daemon("cont", "mon");
    wait_until("the monitor answers", || admin.monitors());
    let fresh = connections.get(&options).unwrap();
    assert_ne!(address(&fresh), address(&replaced));

    // A key that is gone: librados keeps trying, the next caller is told.
    command(&*admin, &json!({"prefix": "auth rm", "entity": format!("client.{}", user.name)}));
    lab.daemon("kill", "mon");
    lab.daemon("start", "mon");
    is_silent(&fresh);
    assert_eq!(errno(connections.get(&options)), Errno::EACCES);
}

#[test]
fn a_blocklisted_connection_fails_and_is_replaced() {
    let lab = Lab::from_environment();
    let admin = lab.connect();
    let namespace = Namespace::new(&lab);
    let connections = Connections::default();
    let victim = connections.get(&lab.options()).unwrap();
    let pool = namespace.pool(&*victim);
    let image = created(&pool, "image");
    let blocklist = |operation| {
        let addr = address(&victim);
        command(
            &*admin,
            &json!({"prefix": "osd blocklist", "blocklistop": operation, "addr": addr}),
        );
    };
    blocklist("add");
    let failed = wait_until("the blocklist holds", || match pool.omap_get("object", &["key"]) {
        Err(error) => Ok(error),
        Ok(entries) => Err(entries),
    });
    assert_eq!(failed.errno, Errno::ESHUTDOWN);
    assert_eq!(errno(pool.create_image("other", MIB, &layout())), Errno::ESHUTDOWN);
    assert!(image.write_at(0, b"x").is_err());

    let fresh = connections.get(&lab.options()).unwrap();
    assert_ne!(address(&fresh), address(&victim));
    assert_eq!(image_names(&namespace.pool(&*fresh)), ["image"]);
    // It is for the client that blocklisted the connection to take that back.
    let listed = command(&*admin, &json!({"prefix": "osd blocklist ls", "format": "json"}));
    let listed = String::from_utf8(listed).unwrap();
    assert!(listed.contains(&address(&victim)), "{listed}");
    drop((image, pool));
    blocklist("rm");
    wait_until("the watch is gone", || namespace.pool(&*fresh).remove_image("image"));
    namespace.assert_empty();
}

#[test]
fn the_key_is_shown_nowhere_and_written_nowhere() {
    let start = SystemTime::now();
    let lab = Lab::from_environment();
    let admin = lab.connect();
    let user = User::new(&*admin, "canary");
    let options = user.options(&lab);
    let connections = Connections::default();
    let cluster = connections.get(&options).unwrap();
    let pool = cluster.pool(POOL, "").unwrap();
    let refused = ConnectOptions { user: lab.user.clone(), ..options.clone() };
    let error = connect(&refused).unwrap_err();
    let shown = format!("{options:?} {connections:?} {cluster:?} {pool:?} {error:?} {error}");
    let of_the_process =
        ["cmdline", "environ"].map(|file| fs::read(format!("/proc/self/{file}")).unwrap());
    // No part of it either; the first characters are the same for every key.
    let part = &user.key.expose()[8..24];
    assert!(!shown.contains(part), "{shown}");
    assert!(of_the_process.iter().all(|bytes| !holds(bytes, part)));
    let lab_folder = lab.ceph_conf.parent().unwrap();
    for folder in ["/tmp", "/var/tmp", "/dev/shm"].map(Path::new) {
        for file in changed_since(start, folder, lab_folder) {
            // What others removed meanwhile holds nothing.
            let bytes = fs::read(&file).unwrap_or_default();
            assert!(!holds(&bytes, part), "{} holds the key", file.display());
        }
    }
}

fn holds(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

/// The regular files under `folder` but not under `except` that changed since `start`.
fn changed_since(start: SystemTime, folder: &Path, except: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
        if metadata.is_dir() && path != except {
            files.extend(changed_since(start, &path, except));
        } else if metadata.is_file() && metadata.modified().is_ok_and(|changed| changed >= start) {
            files.push(path);
        }
    }
    files
}
