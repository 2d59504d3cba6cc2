//! Every file of deploy/examples, in the order of deploy/README.md: applied, with the commands at
//! its top run, waited for, and deleted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::api::{list, text};
use super::chart::{self, NAMESPACE};
use super::field::Field;
use super::jobs;
use super::kubelet::pattern;
use super::shell;
use super::space::{Space, conditions, is};

struct Example {
    path: PathBuf,
    objects: Vec<Value>,
    /// What its user is told to run: all but what waits, which the test does itself, and what makes
    /// the Secret.
    commands: Vec<String>,
}

pub(crate) fn every_example_works(field: &Field) {
    let space = Space::new(field, "examples");
    make_disk(field);
    let (examples, root) = (in_order(), Path::new(env!("CARGO_MANIFEST_DIR")));
    for example in &examples {
        println!("    {}", example.path.display());
        // Some are applied by their commands, with a word put in.
        if !example.commands.iter().any(|command| command.contains("apply -f -")) {
            chart::apply(space.api(), &example.objects, &space.name);
            wait_for(&space, &example.objects);
        }
        let point = newest_point(field);
        shell::run(&space, root, &[("point", &point)], &example.commands.join("\n"));
        wait_for(&space, &example.objects);
        for job in space.api().list("Job", NAMESPACE) {
            let name = text(&job, "/metadata/name");
            let said = jobs::run(field, NAMESPACE, name);
            println!("    {name}: {}", said.last().unwrap().trim().replace('\n', "; "));
        }
    }
    golden_image_is_there(field);

    // Snapshots that their class keeps in Ceph are of no use any more.
    for content in space.api().list("VolumeSnapshotContent", "") {
        let is_first = content.pointer("/spec/source/volumeHandle").is_some();
        if is_first && text(&content, "/spec/deletionPolicy") == "Retain" {
            let change = json!({"spec": {"deletionPolicy": "Delete"}});
            space.api().patch(
                "VolumeSnapshotContent",
                "",
                text(&content, "/metadata/name"),
                &change,
            );
        }
    }
    for object in examples.iter().rev().flat_map(|example| example.objects.iter().rev()) {
        let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
        let there = place(&space, object);
        there.delete(kind, name);
        there.gone(kind, name);
    }
    space.finish();
}

/// The disk that `image-import.yaml` finds on its server.
fn make_disk(field: &Field) {
    let (disk, raw) = (jobs::volume(field, "disks"), jobs::volume(field, "scratch").join("raw"));
    fs::write(&raw, pattern(5, 3 << 20)).unwrap();
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([&raw, &disk.join("debian-13.qcow2")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// What became of that disk; it is removed.
fn golden_image_is_there(field: &Field) {
    let back = jobs::volume(field, "scratch").join("back");
    let file = back.display().to_string();
    field.lab.run("rbd", &["export", "--no-progress", "rbd/debian-13@golden", &file]);
    assert!(fs::read(back).unwrap() == pattern(5, 3 << 20), "the image has other bytes");
    let removed = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .args(["image", "rm", "rbd/debian-13", "--config"])
        .arg(field.configuration())
        .output()
        .unwrap();
    assert!(removed.status.success(), "{removed:?}");
}

/// The newest restore point in the folder that `backup.yaml` names.
fn newest_point(field: &Field) -> String {
    let listed = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .args(["backup", "list", "--output", "json"])
        .arg(jobs::volume(field, "target"))
        .output()
        .unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
    let newest = listed.as_array().and_then(|points| points.last());
    newest.map_or("none", |point| text(point, "/point")).to_owned()
}

/// The examples in the README's order. Fails when it does not list them all.
fn in_order() -> Vec<Example> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let readme = fs::read_to_string(deploy.join("README.md")).unwrap();
    let listed: Vec<_> =
        readme.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    for file in
        fs::read_dir(deploy.join("examples")).unwrap().map(|entry| entry.unwrap().file_name())
    {
        assert!(
            listed.contains(&file.to_str().unwrap()),
            "deploy/README.md does not list {}",
            file.display()
        );
    }
    let example = |name: &&str| {
        let path = deploy.join("examples").join(name);
        let text = fs::read_to_string(&path).unwrap();
        let commands = text.lines().filter_map(|line| line.strip_prefix("#   "));
        let commands =
            commands.filter(|line| !line.contains(" wait ") && !line.contains("create secret"));
        Example {
            path,
            objects: chart::objects(&text),
            commands: commands.map(str::to_owned).collect(),
        }
    };
    listed.iter().map(example).collect()
}

/// The namespace an object is in.
fn place<'a>(space: &Space<'a>, object: &Value) -> Space<'a> {
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
    space.elsewhere(namespace.unwrap_or(&space.name))
}

/// Waits until each object is what its user wants it to be. A pod that was deleted meanwhile is.
fn wait_for(space: &Space<'_>, objects: &[Value]) {
    for object in objects {
        let name = text(object, "/metadata/name");
        let space = place(space, object);
        match text(object, "/kind") {
            "PersistentVolumeClaim" => wait_for_claim(&space, name),
            "Pod" if space.api().find("Pod", &space.name, name).is_some() => {
                let pod = space.wait("Pod", name, "scheduled", |pod| {
                    let waits = text(pod, "/spec/nodeName").is_empty();
                    if waits { Err(pod["status"].to_string()) } else { Ok(()) }
                });
                for volume in list(object, "/spec/volumes") {
                    let claim = text(volume, "/persistentVolumeClaim/claimName");
                    space.attached(claim, text(&pod, "/spec/nodeName"));
                }
            }
            kind @ ("VolumeSnapshot" | "VolumeGroupSnapshot") => {
                space.ready(kind, name);
            }
            _ => {}
        }
    }
}

/// Waits until a claim has what it asks for. Where the node's part is missing, the test plays it.
fn wait_for_claim(space: &Space<'_>, name: &str) {
    space.bound(name);
    space.wait("PersistentVolumeClaim", name, "as it was asked for", |claim| {
        let class = text(claim, "/spec/volumeAttributesClassName");
        is(claim, "/status/currentVolumeAttributesClassName", class)?;
        if conditions(claim).contains(&"FileSystemResizePending") {
            space.note_expansion(name);
        }
        is(claim, "/status/capacity/storage", text(claim, "/spec/resources/requests/storage"))
    });
}
