//! Configurations, classes and examples, checked by the driver's own code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use cinderblock::csi::config::Config;
use cinderblock::csi::parameters::{GroupParameters, SnapshotParameters, VolumeParameters};
use cinderblock::csi::qos;
use serde_json::Value;

use super::{RENDERINGS, parameters, read, rendering, text, yaml};

/// Has the driver check the configuration and the classes among these objects. Classes without a
/// configuration are an error.
fn check_with_the_driver(objects: &[Value], at: &str) {
    let config = objects.iter().find_map(|object| object["data"]["clusters.yaml"].as_str());
    let config =
        config.map(|text| Config::parse(text).unwrap_or_else(|error| panic!("{at}: {error}")));
    let config =
        || config.as_ref().unwrap_or_else(|| panic!("{at}: classes without a configuration"));
    for class in objects {
        let name = format!("{at}: {} {}", text(class, "/kind"), text(class, "/metadata/name"));
        match text(class, "/kind") {
            "StorageClass" => {
                let parsed = VolumeParameters::parse(&parameters(class), config());
                let parsed = parsed.unwrap_or_else(|status| panic!("{name}: {status}"));
                let mounter =
                    parsed.context["mounter"].parse::<cinderblock::node::attach::Mounter>();
                mounter.unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            "VolumeSnapshotClass" => {
                SnapshotParameters::parse(&parameters(class), config())
                    .unwrap_or_else(|status| panic!("{name}: {status}"));
            }
            "VolumeGroupSnapshotClass" => {
                GroupParameters::parse(&parameters(class), config())
                    .unwrap_or_else(|status| panic!("{name}: {status}"));
            }
            "VolumeAttributesClass" => {
                qos::settings(&parameters(class))
                    .unwrap_or_else(|status| panic!("{name}: {status}"));
            }
            _ => {}
        }
    }
}

#[test]
fn the_driver_takes_its_configuration_and_the_parameters_of_every_class() {
    for rendering in RENDERINGS.iter() {
        check_with_the_driver(&rendering.objects, &format!("{:?}", rendering.values));
    }
    let class = rendering(&["available"])
        .objects
        .iter()
        .find(|o| text(o, "/kind") == "StorageClass")
        .unwrap();
    assert_eq!(text(class, "/parameters/objectSize"), "8388608");
}

#[test]
fn classes_outlive_the_release() {
    for (rendering, object) in super::objects() {
        let kind = text(object, "/kind");
        if kind.ends_with("Class") {
            let annotations = &object["metadata"]["annotations"];
            let at = format!("{:?}: {kind}", rendering.values);
            assert_eq!(annotations["helm.sh/resource-policy"], "keep", "{at}");
        }
    }
}

#[test]
fn volumes_of_a_cluster_with_a_topology_wait_for_a_node_that_reaches_it() {
    let class = |name: &str| {
        let objects = &rendering(&["everything"]).objects;
        let is_it = |object: &&Value| {
            text(object, "/kind") == "StorageClass" && text(object, "/metadata/name") == name
        };
        objects.iter().find(is_it).unwrap()
    };
    assert_eq!(text(class("near"), "/volumeBindingMode"), "WaitForFirstConsumer");
    let here = serde_json::json!([{"matchLabelExpressions": [
        {"key": "topology.kubernetes.io/region", "values": ["here"]},
        {"key": "topology.kubernetes.io/zone", "values": ["a"]},
    ]}]);
    assert_eq!(class("near")["allowedTopologies"], here);
    assert!(class("far").get("allowedTopologies").is_none());
}

#[test]
fn the_driver_takes_the_examples_and_they_fit_together() {
    let mut all = Vec::new();
    for entry in
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples")).unwrap()
    {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            all.extend(yaml(&fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(all.len() >= 24, "{} objects", all.len());
    check_with_the_driver(&all, "deploy/examples");
    let there: BTreeSet<_> =
        all.iter().map(|o| (text(o, "/kind"), text(o, "/metadata/name"))).collect();
    assert_eq!(there.len(), all.len(), "two examples have one name");
    for object in &all {
        for (pointer, kind) in [
            ("/spec/storageClassName", "StorageClass"),
            ("/spec/volumeAttributesClassName", "VolumeAttributesClass"),
            ("/spec/volumeSnapshotClassName", "VolumeSnapshotClass"),
            ("/spec/volumeGroupSnapshotClassName", "VolumeGroupSnapshotClass"),
            ("/spec/source/persistentVolumeClaimName", "PersistentVolumeClaim"),
            ("/spec/source/volumeSnapshotContentName", "VolumeSnapshotContent"),
            ("/spec/volumeSnapshotRef/name", "VolumeSnapshot"),
            ("/spec/dataSource/name", text(object, "/spec/dataSource/kind")),
            ("/spec/volumes/0/persistentVolumeClaim/claimName", "PersistentVolumeClaim"),
        ] {
            let name = text(object, pointer);
            assert!(name.is_empty() || there.contains(&(kind, name)), "{object}: no {kind} {name}");
        }
    }
}

#[test]
fn the_class_of_the_golden_images_page_is_one() {
    let page = read("docs/golden-images.md");
    let (_, class) = page.split_once("```yaml\n").unwrap();
    let (class, _) = class.split_once("```").unwrap();
    let mut objects = yaml(class);
    objects.extend(yaml(&read("deploy/examples/clusters.yaml")));
    check_with_the_driver(&objects, "docs/golden-images.md");
    assert!(text(&objects[0], "/parameters/sourceImage").starts_with("rbd://"));
}

#[test]
fn the_order_of_application_names_every_example_once_and_after_what_it_needs() {
    let order = read("deploy/README.md");
    let mut named: Vec<_> = order
        .split('`')
        .filter(|word| Path::new(word).extension().is_some_and(|extension| extension == "yaml"))
        .filter(|word| !word.contains('/') && *word != "values.yaml" && *word != "cinderblock.yaml")
        .collect();
    let position = |name: &str| {
        named.iter().position(|known| *known == name).unwrap_or_else(|| panic!("{name}"))
    };
    for (first, then) in [
        ("clusters.yaml", "classes.yaml"),
        ("classes.yaml", "pvc.yaml"),
        ("pvc.yaml", "snapshot-and-restore.yaml"),
        ("pvc.yaml", "clone.yaml"),
        ("pvc.yaml", "group-snapshot.yaml"),
        ("pvc.yaml", "backup.yaml"),
        ("backup.yaml", "restore.yaml"),
        ("restore-claim.yaml", "restore.yaml"),
        ("golden-image.yaml", "golden-image-snapshot.yaml"),
        ("golden-image-snapshot.yaml", "golden-image-use.yaml"),
    ] {
        assert!(position(first) < position(then), "{then} is named before {first}");
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples");
    let mut there: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    named.sort_unstable();
    assert_eq!(named, there);
}
