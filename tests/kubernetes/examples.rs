//! Every file of deploy/examples: applied after those it builds on, with the commands in its comments run, waited for, and deleted.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::api::{list, text};
use super::chart;
use super::field::Field;
use super::space::{Space, is};

/// Where an object names another, and of which kind that is; no kind where the object says it itself.
const REFERENCES: &[(&str, &str)] = &[
    ("/spec/storageClassName", "StorageClass"),
    ("/spec/volumeAttributesClassName", "VolumeAttributesClass"),
    ("/spec/volumeSnapshotClassName", "VolumeSnapshotClass"),
    ("/spec/volumeGroupSnapshotClassName", "VolumeGroupSnapshotClass"),
    ("/spec/volumeSnapshotRef/name", "VolumeSnapshot"),
    ("/spec/source/persistentVolumeClaimName", "PersistentVolumeClaim"),
    ("/spec/source/volumeSnapshotContentName", "VolumeSnapshotContent"),
    ("/spec/dataSource/name", ""),
    ("/spec/dataSourceRef/name", ""),
    ("/spec/volumes/0/persistentVolumeClaim/claimName", "PersistentVolumeClaim"),
];

struct Example {
    name: String,
    objects: Vec<Value>,
    /// The `kubectl patch` commands of its comments.
    commands: Vec<String>,
}

pub(crate) fn every_example_works(field: &Field) {
    let space = Space::new(field, "examples");
    let examples = in_order(read());
    for example in &examples {
        println!("    {}", example.name);
        for object in &example.objects {
            space.api().apply(object, &space.name);
        }
        for object in &example.objects {
            wait_for(&space, object);
        }
        for command in &example.commands {
            run(command, &space.name);
        }
        for object in &example.objects {
            wait_for(&space, object);
        }
    }
    for example in examples.iter().rev() {
        for object in example.objects.iter().rev() {
            let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
            let namespace =
                object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or(&space.name);
            space.api().delete(kind, namespace, name);
            if namespace == space.name {
                space.gone(kind, name);
            }
        }
    }
    space.finish();
}

fn read() -> Vec<Example> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    files.sort();
    assert!(files.len() >= 8, "{files:?}");
    let example = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        let commands = text.lines().filter_map(|line| line.strip_prefix("#   "));
        Example {
            name: path.file_name().unwrap().display().to_string(),
            objects: chart::objects(&text),
            commands: commands.filter(|line| line.starts_with("kubectl patch ")).map(str::to_owned).collect(),
        }
    };
    files.iter().map(|path| example(path)).collect()
}

/// The examples, each after those whose objects it names.
fn in_order(mut left: Vec<Example>) -> Vec<Example> {
    let mut ordered: Vec<Example> = Vec::new();
    while !left.is_empty() {
        let builds_on = |example: &Example, other: &Example| {
            other.name != example.name
                && example
                    .objects
                    .iter()
                    .any(|object| other.objects.iter().any(|another| names(object, another)))
        };
        let next = left.iter().position(|example| !left.iter().any(|other| builds_on(example, other)));
        ordered.push(left.remove(next.expect("examples that build on each other in a circle")));
    }
    ordered
}

/// Whether `object` cannot be without `another`.
fn names(object: &Value, another: &Value) -> bool {
    let (kind, name) = (text(another, "/kind"), text(another, "/metadata/name"));
    let by_name = REFERENCES.iter().any(|(pointer, of_kind)| {
        let wanted =
            if of_kind.is_empty() { text(object, &pointer.replace("/name", "/kind")) } else { of_kind };
        wanted == kind && text(object, pointer) == name
    });
    let labels = object.pointer("/spec/source/selector/matchLabels").and_then(Value::as_object);
    let by_label = labels.is_some_and(|labels| {
        kind == "PersistentVolumeClaim"
            && labels.iter().all(|(label, value)| another["metadata"]["labels"].get(label) == Some(value))
    });
    by_name || by_label
}

/// Waits until an object is what its user wants it to be.
fn wait_for(space: &Space<'_>, object: &Value) {
    let name = text(object, "/metadata/name");
    match text(object, "/kind") {
        "PersistentVolumeClaim" => {
            space.bound(name);
            space.wait("PersistentVolumeClaim", name, "as it was asked for", |claim| {
                let class = text(claim, "/spec/volumeAttributesClassName");
                is(claim, "/status/currentVolumeAttributesClassName", class)?;
                let asked = text(claim, "/spec/resources/requests/storage");
                if list(claim, "/status/conditions")
                    .iter()
                    .any(|c| text(c, "/type") == "FileSystemResizePending")
                {
                    space.note_expansion(name);
                }
                is(claim, "/status/capacity/storage", asked)
            });
        }
        "Pod" => {
            let volumes = list(object, "/spec/volumes");
            for claim in volumes.iter().map(|volume| text(volume, "/persistentVolumeClaim/claimName")) {
                let pod = space.wait("Pod", name, "scheduled", |pod| {
                    if text(pod, "/spec/nodeName").is_empty() {
                        Err(pod["status"].to_string())
                    } else {
                        Ok(())
                    }
                });
                space.attached(claim, text(&pod, "/spec/nodeName"));
            }
        }
        kind @ ("VolumeSnapshot" | "VolumeGroupSnapshot") => {
            space.ready(kind, name);
        }
        _ => {}
    }
}

/// Runs a command of an example as a person would.
fn run(command: &str, namespace: &str) {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin");
    let script = format!(
        "set -e; kubectl() {{ '{}/kubectl' --namespace '{namespace}' \"$@\"; }}; {command}",
        tools.display()
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}
