//! Every object as Kubernetes itself reads it: against the strict schemas of each version it is
//! rendered for, and through the types of k8s-openapi and back without a loss.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use k8s_openapi::api;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{RENDERINGS, VERSIONS, objects, read, text, yaml};

/// Kinds that are no part of Kubernetes. Their CRDs belong to the administrator who installs the
/// controllers they are for.
const CUSTOM: &[(&str, &str)] = &[
    ("snapshot.storage.k8s.io/v1", "VolumeSnapshot"),
    ("snapshot.storage.k8s.io/v1", "VolumeSnapshotClass"),
    ("snapshot.storage.k8s.io/v1", "VolumeSnapshotContent"),
    ("groupsnapshot.storage.k8s.io/v1", "VolumeGroupSnapshot"),
    ("groupsnapshot.storage.k8s.io/v1", "VolumeGroupSnapshotClass"),
    ("cbt.storage.k8s.io/v1beta1", "SnapshotMetadataService"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
];

fn is_custom(object: &Value) -> bool {
    CUSTOM.contains(&(text(object, "/apiVersion"), text(object, "/kind")))
}

/// The objects of the examples, with the files they are in.
fn examples() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples");
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "yaml"))
        .flat_map(|name| {
            let objects = yaml(&read(&format!("deploy/examples/{name}")));
            objects.into_iter().map(move |object| (name.clone(), object))
        })
        .collect()
}

/// Versions that have an object's kind.
fn versions_of(object: &Value) -> &'static [&'static str] {
    if text(object, "/kind") == "VolumeAttributesClass" { &VERSIONS[4..] } else { VERSIONS }
}

#[test]
fn every_object_fits_the_strict_schemas_of_every_version_it_is_rendered_for() {
    let mut seen = BTreeSet::new();
    let mut checked = Vec::new();
    let mut check = |version: &str, object: &Value| {
        if !is_custom(object) && seen.insert((version.to_owned(), object.to_string())) {
            checked.push(json!([version, object]));
        }
    };
    for rendering in RENDERINGS.iter() {
        for version in &rendering.versions {
            rendering.objects.iter().for_each(|object| check(version, object));
        }
    }
    for (_, object) in examples() {
        for version in versions_of(&object) {
            check(version, &object);
        }
    }
    // The check itself: a field that Kubernetes does not know.
    let wrong =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "wrong"}, "date": {}});
    let complaints = schemas(&json!({"versions": VERSIONS, "objects": [["1.30", wrong]]}));
    assert!(
        complaints.contains("ConfigMap wrong on 1.30") && complaints.contains("date"),
        "{complaints:?}"
    );

    assert!(checked.len() > 900, "{} objects", checked.len());
    let complaints = schemas(&json!({"versions": VERSIONS, "objects": checked}));
    assert!(complaints.is_empty(), "{complaints}");
}

/// What schemas.py has to say.
fn schemas(asked: &Value) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".tools/kubernetes-validate/bin/python");
    assert!(python.is_file(), "kubernetes-validate is not installed; run: make tools");
    let mut child = Command::new(python)
        .arg(root.join("tests/chart/schemas.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "schemas.py failed, see above");
    String::from_utf8(output.stdout).unwrap()
}

fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let typed: T =
        serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{object}: {error}"));
    serde_json::to_value(typed).unwrap()
}

/// The object decoded to the type of its kind and encoded again.
fn typed(object: &Value) -> Value {
    match (text(object, "/apiVersion"), text(object, "/kind")) {
        ("v1", "ConfigMap") => through::<api::core::v1::ConfigMap>(object),
        ("v1", "Namespace") => through::<api::core::v1::Namespace>(object),
        ("v1", "PersistentVolumeClaim") => through::<api::core::v1::PersistentVolumeClaim>(object),
        ("v1", "Pod") => through::<api::core::v1::Pod>(object),
        ("v1", "Service") => through::<api::core::v1::Service>(object),
        ("v1", "ServiceAccount") => through::<api::core::v1::ServiceAccount>(object),
        ("apps/v1", "DaemonSet") => through::<api::apps::v1::DaemonSet>(object),
        ("apps/v1", "Deployment") => through::<api::apps::v1::Deployment>(object),
        ("batch/v1", "CronJob") => through::<api::batch::v1::CronJob>(object),
        ("batch/v1", "Job") => through::<api::batch::v1::Job>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => {
            through::<api::networking::v1::NetworkPolicy>(object)
        }
        ("policy/v1", "PodDisruptionBudget") => {
            through::<api::policy::v1::PodDisruptionBudget>(object)
        }
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => {
            through::<api::rbac::v1::ClusterRole>(object)
        }
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            through::<api::rbac::v1::ClusterRoleBinding>(object)
        }
        ("rbac.authorization.k8s.io/v1", "Role") => through::<api::rbac::v1::Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => {
            through::<api::rbac::v1::RoleBinding>(object)
        }
        ("storage.k8s.io/v1", "CSIDriver") => through::<api::storage::v1::CSIDriver>(object),
        ("storage.k8s.io/v1", "StorageClass") => through::<api::storage::v1::StorageClass>(object),
        ("storage.k8s.io/v1", "VolumeAttributesClass") => {
            through::<api::storage::v1::VolumeAttributesClass>(object)
        }
        (version, kind) => panic!("{version} {kind} is of no kind that is known here: {object}"),
    }
}

#[test]
fn every_object_goes_through_the_types_of_kubernetes_without_a_loss() {
    let rendered = objects().map(|(_, object)| object.clone());
    let mut seen = BTreeSet::new();
    for object in rendered.chain(examples().into_iter().map(|(_, object)| object)) {
        if is_custom(&object) || !seen.insert(object.to_string()) {
            continue;
        }
        assert_eq!(typed(&object), object);
    }
    assert!(seen.len() > 120, "{} objects", seen.len());
}
