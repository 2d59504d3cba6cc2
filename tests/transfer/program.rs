//! The program, as people and scripts run it on a real Ceph.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use cinderblock::csi::proto::ListVolumesRequest;
use cinderblock::rbd::{ImageKey, ImageOptions, OpenMode, SnapshotSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::driver::OneVolume;
use crate::common::{Lab, Namespace, POOL, wait_until};
use crate::disk::{Disks, MIB, assert_same, disk, images, read, snapshots};

/// Writes a configuration with a user.
pub fn configuration(disks: &Disks, lab: &Lab) -> PathBuf {
    let path = disks.path("config.yaml");
    std::fs::write(
        &path,
        format!(
            "- clusterID: lab\n  monitors: [\"{}\"]\n  userID: {}\n  keyFile: {}\n",
            lab.monitors,
            lab.user,
            lab.key_file.display()
        ),
    )
    .unwrap();
    path
}

fn command(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderblock"));
    command.arg("image").args(arguments).arg("--config").arg(config);
    command
}

fn run(config: &Path, arguments: &[&str]) -> Output {
    command(config, arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

#[test]
fn an_image_goes_in_and_out() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let disks = Disks::new();
    let config = configuration(&disks, &lab);
    let bytes = disk(21, 9 * MIB + 777);
    let path = disks.sparse("disk", &bytes).display().to_string();
    let spec = format!("{POOL}/{}/image", namespace.name);

    let imported = json(&run(&config, &["import", &path, &spec, "--output", "json"]));
    assert_eq!(imported["image"], spec.as_str());
    assert_eq!(imported["size"], bytes.len());
    assert_eq!(imported["checksum"], format!("blake3:{}", blake3::hash(&bytes)));
    // As Ceph's own program reads it.
    let theirs = disks.path("theirs");
    lab.run("rbd", &["export", "--no-progress", &spec, &theirs.display().to_string()]);
    assert_same(&std::fs::read(&theirs).unwrap(), &bytes, "rbd export");

    let out = run(&config, &["export", &spec, "-", "--checksum", "sha256"]);
    assert_same(&out.stdout, &bytes, "standard output");
    let said = String::from_utf8(out.stderr).unwrap();
    let sums = Command::new("sha256sum").arg(&path).output().unwrap();
    let sum = String::from_utf8(sums.stdout).unwrap();
    let sum = format!("sha256:{}", sum.split(' ').next().unwrap());
    assert!(said.contains(&sum), "{said}");

    let piped = format!("{spec}-piped");
    let mut import = command(&config, &["import", "-", &piped, "--checksum", &sum])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    import.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(import.wait().unwrap().success());
    assert_same(&read(&*pool, "image-piped"), &bytes, "from a pipe");

    let wrong = "sha256:".to_owned() + &"0".repeat(64);
    let other = format!("{spec}-other");
    for (arguments, expected, words) in [
        (vec!["import", &path, &spec], 3, "exists, and is not replaced"),
        (vec!["import", &path, &other, "--checksum", &wrong], 4, "is damaged, or another one"),
        (vec!["import", &path, "image"], 2, "POOL/NAME"),
        (vec!["import", "/nowhere", &other], 1, "cannot open /nowhere"),
        (vec!["import", "s3://key:secret@bucket/a", &other], 2, "environment"),
        (vec!["export", &other, "/nowhere/a"], 3, "there is no image"),
        (vec!["export", &spec, "/nowhere/a"], 1, "cannot create /nowhere/.a.partial"),
        (vec!["rm", &other], 3, "there is no image"),
    ] {
        let output = run(&config, &arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(code(&output), expected, "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
    assert_eq!(images(&*pool), ["image", "image-piped"]);
    for image in [&spec, &piped] {
        assert!(run(&config, &["rm", image]).status.success());
    }
    namespace.assert_empty();
}

#[test]
fn golden_images_are_marked_listed_and_kept_while_they_have_clones() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let cluster = lab.connect();
    let pool = namespace.pool(&*cluster);
    let disks = Disks::new();
    let config = configuration(&disks, &lab);
    let path = disks.sparse("disk", &disk(22, 5 * MIB)).display().to_string();
    let place = format!("{POOL}/{}", namespace.name);
    let spec = format!("{place}/debian");
    assert!(run(&config, &["import", &path, &spec]).status.success());

    let location = format!("rbd://{}/{place}/debian/golden", lab.fsid);
    for _ in 0..2 {
        let output = run(&config, &["snapshot", &spec]);
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), location);
    }
    // As clones of either format need it.
    let protected = lab.run("rbd", &["snap", "ls", "--format", "json", &spec]);
    let protected: Value = serde_json::from_str(&protected).unwrap();
    assert_eq!(protected[0]["name"], "golden");
    assert_eq!(protected[0]["protected"], "true");
    pool.create_image("other", MIB, &ImageOptions::default()).unwrap();

    let golden = SnapshotSpec {
        pool: POOL.to_owned(),
        namespace: namespace.name.clone(),
        image: "debian".to_owned(),
        snapshot: "golden".to_owned(),
    };
    pool.clone_image(&golden, "clone", &ImageOptions::default()).unwrap();
    let listed = json(&run(&config, &["ls", &place, "--output", "json"]));
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["image"], spec.as_str());
    assert_eq!(listed[0]["source"], path.as_str());
    assert_eq!(listed[0]["snapshots"][0]["location"], location.as_str());
    assert_eq!(listed[0]["snapshots"][0]["clones"], 1);
    let table = String::from_utf8(run(&config, &["ls", &place]).stdout).unwrap();
    assert!(table.contains(&location) && table.contains("LOCATION"), "{table}");

    let refused = |arguments: &[&str], words: &str| {
        let output = run(&config, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(code(&output), 3, "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    };
    refused(&["rm", &spec], &format!("has clones, which read from it: {place}/clone"));
    let image = pool.open_image(ImageKey::Name("debian"), OpenMode::ReadOnly).unwrap();
    assert!(image.snapshots().unwrap()[0].protected, "a refused removal changes nothing");
    drop(image);
    refused(&["rm", &format!("{place}/other")], "was not imported here");
    refused(&["snapshot", &format!("{place}/nowhere")], "there is no image");
    refused(&["snapshot", &spec, "--snapshot", "a.clone_snap"], "the driver's own");
    pool.remove_image("clone").unwrap();
    let open = pool.open_image(ImageKey::Name("debian"), OpenMode::ReadWrite).unwrap();
    refused(&["rm", &spec], "is in use");
    drop(open);
    assert!(run(&config, &["rm", &spec]).status.success());
    assert_eq!(images(&*pool), ["other"]);
    pool.remove_image("other").unwrap();
    namespace.assert_empty();
}

#[tokio::test]
async fn a_volume_is_exported_by_its_id_and_an_image_is_no_volume() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let OneVolume { driver: _driver, mut controller, class, id, image: name } =
        OneVolume::new(&lab, &namespace.name, 16 << 20).await;
    let pool = namespace.pool(&*lab.connect());
    let bytes = disk(23, 16 * MIB);
    // Open as a node has it, during the export.
    let in_use = pool.open_image(ImageKey::Name(&name), OpenMode::ReadWrite).unwrap();
    in_use.write_at(0, &bytes).unwrap();

    let disks = Disks::new();
    let config = configuration(&disks, &lab);
    let back = disks.path("back").display().to_string();
    let exported = json(&run(&config, &["export", &id, &back, "--output", "json"]));
    assert_eq!(exported["image"], format!("{POOL}/{}/{name}", namespace.name));
    assert_same(&std::fs::read(&back).unwrap(), &bytes, "the volume");
    assert!(snapshots(&*pool, &name).is_empty());
    drop(in_use);

    let golden = format!("{POOL}/{}/golden", namespace.name);
    assert!(run(&config, &["import", &back, &golden]).status.success());
    let listed = controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    let listed: Vec<_> =
        listed.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
    assert_eq!(listed, std::slice::from_ref(&id));
    let volume = format!("{POOL}/{}/{name}", namespace.name);
    for arguments in [["rm", &volume], ["snapshot", &volume]] {
        let output = run(&config, &arguments);
        assert_eq!(code(&output), 3, "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("is a volume"), "{output:?}");
    }
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    assert!(run(&config, &["rm", &golden]).status.success());
    namespace.assert_nothing_is_left();
}

#[tokio::test]
async fn a_volume_may_be_deleted_while_it_is_exported() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let OneVolume { driver: _driver, mut controller, class, id, image: name } =
        OneVolume::new(&lab, &namespace.name, 64 << 20).await;
    let pool = namespace.pool(&*lab.connect());
    let bytes = disk(24, 64 * MIB);
    let image = pool.open_image(ImageKey::Name(&name), OpenMode::ReadWrite).unwrap();
    image.write_at(0, &bytes).unwrap();
    drop(image);

    let disks = Disks::new();
    let config = configuration(&disks, &lab);
    let mut export = export_to_a_pipe(&config, &id);
    let mut out = export.stdout.take().unwrap();
    let mut read = vec![0; 4096];
    out.read_exact(&mut read).unwrap();
    // It goes on with what it reads, and everything goes when it has ended.
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    assert!(!images(&*pool).contains(&name));
    out.read_to_end(&mut read).unwrap();
    assert!(export.wait().unwrap().success());
    assert_same(&read, &bytes, "the deleted volume");
    wait_until("all is gone", || {
        let left = images(&*pool);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    namespace.assert_nothing_is_left();
}

fn export_to_a_pipe(config: &Path, what: &str) -> Child {
    command(config, &["export", what, "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

#[test]
fn a_signal_stops_a_transfer_and_leaves_nothing() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let disks = Disks::new();
    let config = configuration(&disks, &lab);
    let bytes = disk(25, 64 * MIB);
    let spec = format!("{POOL}/{}/image", namespace.name);
    // More is to come from its standard input, and never does.
    let mut import = command(&config, &["import", "-", &spec])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    import.stdin.as_mut().unwrap().write_all(&bytes).unwrap();
    wait_until("it fills the image", || {
        if images(&*pool) == ["image.importing"] { Ok(()) } else { Err(()) }
    });
    send(&import, Signal::SIGINT);
    let stdin = import.stdin.take();
    let output = import.wait_with_output().unwrap();
    drop(stdin);
    assert_eq!(code(&output), 130, "{output:?}");
    assert!(images(&*pool).is_empty());

    let path = disks.sparse("disk", &bytes).display().to_string();
    assert!(run(&config, &["import", &path, &spec]).status.success());
    // The test does not read its standard output to the end.
    let mut export = export_to_a_pipe(&config, &spec);
    let mut out = export.stdout.take().unwrap();
    out.read_exact(&mut [0; 4096]).unwrap();
    send(&export, Signal::SIGTERM);
    let output = export.wait_with_output().unwrap();
    assert_eq!(code(&output), 143, "{output:?}");
    assert_eq!(images(&*pool), ["image"]);
    assert!(snapshots(&*pool, "image").is_empty());
    // A reader that goes.
    let mut export = export_to_a_pipe(&config, &spec);
    drop(export.stdout.take());
    let output = export.wait_with_output().unwrap();
    assert_eq!(code(&output), 1, "{output:?}");
    assert!(snapshots(&*pool, "image").is_empty());
    assert!(run(&config, &["rm", &spec]).status.success());
    namespace.assert_empty();
}

#[test]
fn memory_stays_small() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let disks = Disks::new();
    let config = configuration(&disks, &lab);
    let path = disks.path("disk");
    let mut file = std::fs::File::create(&path).unwrap();
    let data = disk(26, 4 * MIB);
    // Random data, and a large hole.
    for _ in 0..64 {
        file.write_all(&data).unwrap();
    }
    file.set_len(4096 * MIB).unwrap();
    let (path, back) = (path.display().to_string(), disks.path("back").display().to_string());
    let spec = format!("{POOL}/{}/image", namespace.name);
    for arguments in [["import", &path, &spec], ["export", &spec, &back]] {
        let mut child = command(&config, &arguments).spawn().unwrap();
        let mut most = 0;
        while child.try_wait().unwrap().is_none() {
            most = most.max(peak(child.id()).unwrap_or(0));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(most > 0 && most < 100_000, "{arguments:?}: {most} kB");
    }
    assert!(run(&config, &["rm", &spec]).status.success());
    namespace.assert_empty();
}

/// The most memory a process has had, in kB.
fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
