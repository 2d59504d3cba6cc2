//! The program, as people and scripts run it on a real Ceph.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use cinderblock::rbd::{ImageKey, OpenMode, Pool};
use cinderblock::volume::Volumes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::driver::OneVolume;
use crate::common::random::Random;
use crate::common::{Lab, Namespace, OwnLab, POOL, wait_until};
use crate::field::{MIB, assert_same, backup_snapshots, read, volume, volumes_of, write};
use crate::server::{ACCESS_KEY, S3, SECRET_KEY};

/// A configuration with a user, and a place for a target.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn new(lab: &Lab) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "- clusterID: lab\n  monitors: [\"{}\"]\n  userID: {}\n  keyFile: {}\n",
            lab.monitors,
            lab.user,
            lab.key_file.display()
        );
        std::fs::write(folder.path().join("config.yaml"), text).unwrap();
        Place { folder }
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    pub fn target(&self) -> PathBuf {
        self.folder.path().join("target")
    }
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderblock"));
    command.arg("backup").args(arguments);
    command
}

pub fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

pub fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Random bytes in random places of a volume.
pub fn scribble(pool: &Arc<dyn Pool>, name: &str, seed: u64) {
    let image = pool.open_image(ImageKey::Name(name), OpenMode::ReadWrite).unwrap();
    let size = image.info().unwrap().size;
    let mut random = Random::new(seed);
    for _ in 0..6 {
        let offset = random.below(size - 300_000);
        let length = usize::try_from(1 + random.below(300_000)).unwrap();
        let bytes: Vec<_> = (0..length).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        image.write_at(offset, &bytes).unwrap();
    }
    image.discard(random.below(size / 2), size / 4).unwrap();
}

fn bytes(pool: &Arc<dyn Pool>, name: &str) -> Vec<u8> {
    read(&volumes_of(Arc::clone(pool)), name)
}

#[tokio::test]
async fn a_volume_is_backed_up_deleted_and_restored() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let OneVolume { driver: _driver, mut controller, class, id, image: name } =
        OneVolume::new(&lab, &namespace.name, 24 << 20).await;
    let pool = namespace.pool(&*lab.connect());
    let place = Place::new(&lab);
    let (config, target) = (text(&place.config()), text(&place.target()));
    let create = ["create", "--config", &config, &id, &target, "--output", "json"];

    // Open as a node has it.
    let in_use = pool.open_image(ImageKey::Name(&name), OpenMode::ReadWrite).unwrap();
    scribble(&pool, &name, 1);
    let first = (json(&run(&create)), bytes(&pool, &name));
    assert_eq!(first.0["parent"], Value::Null);
    scribble(&pool, &name, 2);
    let second = (json(&run(&create)), bytes(&pool, &name));
    assert_eq!(second.0["parent"], first.0["point"]);
    drop(in_use);

    // A backup that stands still keeps the volume.
    let child = command(&create)
        .env("CINDERBLOCK_STOP_BEFORE", "diff")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    wait_until("it stands still", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        if status.rsplit_once(')').unwrap().1.trim().starts_with('T') {
            Ok(())
        } else {
            Err(status)
        }
    });
    let refused = controller.delete_volume(class.delete_volume(&id)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Aborted, "{refused}");
    assert!(refused.message().contains("is being backed up"), "{refused}");
    let twice = run(&create);
    assert_eq!(twice.status.code(), Some(3), "{twice:?}");
    assert!(String::from_utf8_lossy(&twice.stderr).contains("is being backed up"), "{twice:?}");
    kill(pid, Signal::SIGCONT).unwrap();
    let third = child.wait_with_output().unwrap();
    let third = json(&third);
    assert_eq!(third["parent"], second.0["point"]);
    assert_eq!(backup_snapshots(&volumes_of(pool.clone()), &name).len(), 1);

    let listed = json(&run(&["list", &target, "--output", "json"]));
    assert_eq!(listed.as_array().unwrap().len(), 3, "{listed}");
    assert_eq!(listed[1]["point"], second.0["point"]);
    assert_eq!(listed[1]["volume"], id.as_str());
    let table = String::from_utf8(run(&["list", &target]).stdout).unwrap();
    assert!(
        table.contains("POINT") && table.contains("increment") && table.contains(&id),
        "{table}"
    );
    let point = second.0["point"].as_str().unwrap();
    let shown = json(&run(&["show", &target, point, "--output", "json"]));
    assert_eq!(shown["source"]["fsid"], lab.fsid.as_str());
    assert_eq!(shown["stream"]["format"], "rbd diff v1");
    let verified = run(&["verify", &target]);
    assert!(verified.status.success(), "{verified:?}");

    // The volume, and all that backups keep on it, goes.
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    assert!(pool.list_images().unwrap().is_empty());
    for ((point, expected), volume) in [(first, "one"), (second, "two")] {
        let point = point["point"].as_str().unwrap().to_owned();
        let volume = format!("lab/{POOL}/{}/{volume}", namespace.name);
        let restore =
            ["restore", "--config", &config, &target, &point, &volume, "--output", "json"];
        let restored = json(&run(&restore));
        assert_eq!(restored["volume"], volume.as_str());
        let name = volume.rsplit('/').next().unwrap();
        assert_same(&bytes(&pool, name), &expected, name);
        let again = run(&restore);
        assert_eq!(again.status.code(), Some(3), "{again:?}");
        assert!(String::from_utf8_lossy(&again.stderr).contains("--overwrite"), "{again:?}");
        // A volume as any other: the driver deletes it.
        controller.delete_volume(class.delete_volume(&volume)).await.unwrap();
    }
    namespace.assert_nothing_is_left();
}

#[test]
fn mistakes_are_told() {
    let lab = Lab::from_environment();
    let place = Place::new(&lab);
    let (config, target) = (text(&place.config()), text(&place.target()));
    let absent = format!("lab/{POOL}/absent");
    for (arguments, code, words) in [
        (vec!["list", &target], 3, "there is no folder"),
        (vec!["create", "--config", &config, &absent, &target], 3, "there is no image rbd/absent"),
        (vec!["list", "https://host/a"], 3, "cannot hold backups"),
        (vec!["list", "s3://key:geheim@bucket"], 2, "environment"),
        (vec!["show", &target, "a/b"], 3, "there is no restore point"),
        (vec!["restore", "--config", &config, &target, "a", "rbd/b"], 2, "is no id of a volume"),
        (
            vec!["restore", "--config", &config, &target, "a", &absent],
            3,
            "there is no restore point",
        ),
        (vec!["delete", &target, "a/b"], 3, "there is no restore point"),
        (vec!["prune", &target], 2, "no rule keeps anything"),
    ] {
        let output = run(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words) && !said.contains("geheim"), "{arguments:?}: {said}");
    }
}

#[test]
fn restore_points_go_to_s3_and_come_back() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let volumes = volumes_of(namespace.pool(&*lab.connect()));
    let (place, s3) = (Place::new(&lab), S3::start());
    let config = text(&place.config());
    let target = "s3://disks/some/prefix";
    let run = |arguments: &[&str]| {
        let output = command(arguments)
            .env("AWS_ENDPOINT", format!("http://{}", s3.address))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .output()
            .unwrap();
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        assert!(!String::from_utf8_lossy(&said).contains(SECRET_KEY), "a secret is told");
        output
    };
    volume(&volumes, "vm", 40 * MIB);
    let id = format!("lab/{POOL}/{}/vm", namespace.name);
    let mut points = Vec::new();
    for seed in [1, 2] {
        scribble(volumes.pool(), "vm", seed);
        let create = ["create", "--config", &config, &id, target, "--output", "json"];
        let created = json(&run(&create));
        points.push((created["point"].as_str().unwrap().to_owned(), read(&volumes, "vm")));
    }
    assert!(s3.file("some/prefix/cinderblock-backup.json").exists());
    assert!(run(&["verify", target]).status.success());
    let listed = json(&run(&["list", target, "--output", "json"]));
    assert_eq!(listed[1]["parent"], points[0].0.as_str());
    for (point, expected) in &points {
        let volume = format!("lab/{POOL}/{}/back", namespace.name);
        let restored = run(&["restore", "--config", &config, target, point, &volume]);
        assert!(restored.status.success(), "{restored:?}");
        assert_same(&read(&volumes, "back"), expected, point);
        volumes.delete("back").unwrap();
    }
    let object = s3.file(&format!("some/prefix/{}/000000.zst", points[0].0));
    let mut stored = std::fs::read(&object).unwrap();
    stored[9] ^= 1;
    std::fs::write(&object, stored).unwrap();
    let verified = run(&["verify", target]);
    assert_eq!(verified.status.code(), Some(4), "{verified:?}");
    let refused = run(&["delete", target, &points[1].0]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(run(&["delete", "--chain", target, &points[1].0]).status.success());
    assert_eq!(json(&run(&["list", target, "--output", "json"])), Value::Array(Vec::new()));
    volumes.delete("vm").unwrap();
    namespace.assert_nothing_is_left();
}

/// Runs the program, with a kill after that many changes.
fn killed(lab: &OwnLab, at: usize, arguments: &[&str]) -> Output {
    command(arguments)
        .env("CINDERBLOCK_KILL_AT", format!("change:{at}"))
        .env("CEPH_CONF", &lab.ceph_conf)
        .output()
        .unwrap()
}

#[test]
fn what_sigkill_leaves_is_gone_on_with() {
    let lab = OwnLab::up();
    // A watch outlives its client by that many seconds: 30, unless said otherwise.
    lab.run("ceph", &["config", "set", "osd", "osd_client_watch_timeout", "2"]);
    let place = Place::new(&lab);
    let (config, target) = (text(&place.config()), text(&place.target()));
    let volumes: Volumes = volumes_of(lab.connect().pool(POOL, "").unwrap());
    let id = format!("lab/{POOL}/vm");
    let create = ["create", "--config", &config, &id, &target, "--output", "json"];
    let is_killed = |output: &Output| output.status.signal() == Some(9);
    volume(&volumes, "vm", 12 * MIB);
    scribble(volumes.pool(), "vm", 1);
    json(&run(&create));
    let mut at = 1;
    let newest = loop {
        write(&volumes, "vm", 0, &u64::try_from(at).unwrap().to_le_bytes());
        let output = killed(&lab, at, &create);
        let verified = run(&["verify", &target]);
        assert!(verified.status.success(), "killed at {at}: {verified:?}");
        if !is_killed(&output) {
            break json(&output)["point"].as_str().unwrap().to_owned();
        }
        json(&killed(&lab, usize::MAX, &create));
        assert_eq!(backup_snapshots(&volumes, "vm").len(), 1, "killed at {at}");
        at += 1;
    };
    assert!(at > 5, "killed at {at} points only");
    let expected = read(&volumes, "vm");

    let back = format!("lab/{POOL}/back");
    let restore = ["restore", "--config", &config, &target, &newest, &back, "--output", "json"];
    at = 1;
    loop {
        let output = killed(&lab, at, &restore);
        if !is_killed(&output) {
            json(&output);
            break;
        }
        let is_there = volumes.handed_out("back").is_ok();
        // The killed one's watch lasts a moment longer.
        let again = wait_until("the killed restore lets go of the image", || {
            let again = killed(&lab, usize::MAX, &restore);
            let waits =
                String::from_utf8_lossy(&again.stderr).contains("a client that died lets go");
            if waits { Err(again) } else { Ok(again) }
        });
        assert_eq!(again.status.success(), !is_there, "killed at {at}: {again:?}");
        assert_same(&read(&volumes, "back"), &expected, &format!("killed at {at}"));
        volumes.delete("back").unwrap();
        at += 1;
    }
    assert!(at > 5, "killed at {at} points only");
    assert_same(&read(&volumes, "back"), &expected, "not killed");
    for name in ["back", "vm"] {
        volumes.delete(name).unwrap();
    }
    assert!(volumes.pool().list_images().unwrap().is_empty());
}

#[test]
fn gc_tells_of_a_killed_restore_and_how_it_goes_on_or_is_given_up() {
    let lab = OwnLab::up();
    lab.run("ceph", &["config", "set", "osd", "osd_client_watch_timeout", "2"]);
    let place = Place::new(&lab);
    let (config, target) = (text(&place.config()), text(&place.target()));
    let volumes: Volumes = volumes_of(lab.connect().pool(POOL, "").unwrap());
    volume(&volumes, "vm", 12 * MIB);
    scribble(volumes.pool(), "vm", 1);
    let all = usize::MAX;
    let create = ["create", "--config", &config, &format!("lab/{POOL}/vm"), &target];
    assert!(killed(&lab, all, &create).status.success());
    let series = series_in(&target);
    let gc = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
            .args(["gc", "--config", &config, "--pool", POOL])
            .args(arguments)
            .env("CEPH_CONF", &lab.ceph_conf)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let kill = |name: &str| {
        let id = format!("lab/{POOL}/{name}");
        let output = killed(&lab, 6, &["restore", "--config", &config, &target, &series, &id]);
        assert_eq!(output.status.signal(), Some(9), "{output:?}");
        // While the killed one's watch lasts, it may be at work.
        wait_until("the killed one's watch has ended", || match gc(&[]) {
            (Some(3), told) if told.contains(name) => Ok(()),
            other => Err(other),
        });
    };

    kill("back");
    let refused = crate::holds::publish(&volumes, "back").unwrap_err();
    assert!(refused.to_string().contains("is being restored from a backup"), "{refused}");
    let (_, told) = gc(&[]);
    assert!(told.contains("the restore to lab/rbd/back was not finished"), "{told}");
    let (code, told) = gc(&["--apply"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("cinderblock backup restore"), "{told}");
    let back = format!("lab/{POOL}/back");
    let restore = ["restore", "--config", &config, &target, &series, &back];
    assert!(killed(&lab, all, &restore).status.success());
    assert_same(&read(&volumes, "back"), &read(&volumes, "vm"), "back");

    kill("again");
    // One that is whole is not given up.
    let (code, told) = gc(&["--apply", "--give-up", "again", "--give-up", "back"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("cleared  again"), "{told}");
    let images = volumes.pool().list_images().unwrap();
    let names: Vec<_> = images.into_iter().map(|image| image.name).collect();
    assert!(names.contains(&"back".to_owned()) && !names.contains(&"again".to_owned()));

    // Its data go to another pool.
    lab.run("ceph", &["osd", "pool", "create", "data", "1"]);
    let id = format!("lab/{POOL}/apart");
    let apart = |pool| {
        let arguments =
            ["restore", "--config", &config, "--data-pool", pool, &target, &series, &id];
        killed(&lab, all, &arguments)
    };
    let refused = apart("absent");
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the data pool absent"));
    assert!(apart("data").status.success());
    assert!(lab.run("rbd", &["info", "rbd/apart"]).contains("data_pool: data"));
    assert_same(&read(&volumes, "apart"), &read(&volumes, "vm"), "apart");

    for name in ["apart", "back", "vm"] {
        volumes.delete(name).unwrap();
    }
    assert!(volumes.pool().list_images().unwrap().is_empty());
    assert_eq!(gc(&[]).0, Some(0));
}

/// The one series in a target.
fn series_in(target: &str) -> String {
    let listed = json(&run(&["list", target, "--output", "json"]));
    let point = listed[0]["point"].as_str().unwrap();
    point.split('/').next().unwrap().to_owned()
}
