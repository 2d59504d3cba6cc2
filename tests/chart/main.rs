//! The Helm chart, rendered by Helm over a matrix of values, and what must hold of every rendering. Configurations and
//! parameters are checked by the driver's own code, arguments by its own binary. Needs `.tools/bin/helm` (`make tools`) and
//! no Ceph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod classes;
mod pods;
mod rights;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use cinderblock::csi::parameters::Parameters;
use serde_json::Value;

const NAMESPACE: &str = "storage-system";

/// Mistakes the schema and the templates find: a file of values, what is set beside it, and a word of what is said.
const REFUSED: &[(&str, &str, &str)] = &[
    ("one", "controler.replicas=3", "controler"),
    ("one", "controller.replicas=two", "replicas"),
    ("one", "controller.replicas=0", "replicas"),
    ("off", "existingConfigMap=", "name at least one Ceph cluster"),
    ("one", "clusters.prod.userKey=AQB", "userKey"),
    ("one", "clusters.prod.secret.userKey=AQB", "userKey"),
    ("one", "clusters.prod.maxCloneDepth=15", "maxCloneDepth"),
    ("three", "storageClasses.d.cluster=C_3,storageClasses.d.pool=rbd", "name an existing Secret"),
    ("one", "storageClasses.rbd.cluster=other", "not among clusters"),
    ("one", "storageClasses.rbd.pool=null", "pool"),
    ("one", "storageClasses.rbd.parameters.dataPol=ec", "dataPol"),
    ("one", "storageClasses.rbd.mounter=iscsi", "mounter"),
    ("one", "volumeAttributesClasses.slow.parameters.iops=5", "iops"),
    ("available", "volumeSnapshotClasses.rbd.parameters.volumeGroupNamePrefix=g", "volumeGroupNamePrefix"),
    ("one", "image.digest=latest", "digest"),
];

/// One rendering of the matrix: what it was made with, and its objects.
struct Rendering {
    values: Vec<String>,
    objects: Vec<Value>,
}

static RENDERINGS: LazyLock<Vec<Rendering>> = LazyLock::new(|| {
    let file = |name: &str| vec!["-f".to_owned(), format!("tests/chart/{name}.yaml")];
    let mut matrix: Vec<_> = ["one", "available", "three", "off"].map(file).into();
    for (path, value) in booleans(&yaml(&read("charts/cinderblock/values.yaml"))[0], "") {
        matrix.push([file("available"), vec!["--set".to_owned(), format!("{path}={}", !value)]].concat());
    }
    matrix.into_iter().map(|values| Rendering { objects: render(&values), values }).collect()
});

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The documents of a YAML file.
fn yaml(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// Every boolean among the values, by its path.
fn booleans(values: &Value, at: &str) -> Vec<(String, bool)> {
    match values {
        Value::Bool(value) => vec![(at.to_owned(), *value)],
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| {
                booleans(value, &if at.is_empty() { name.clone() } else { format!("{at}.{name}") })
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn helm(arguments: &[&str], values: &[impl AsRef<str>]) -> Output {
    let helm = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin/helm");
    assert!(helm.is_file(), "helm is not built; run: make tools");
    Command::new(helm)
        .args(arguments)
        .args(values.iter().map(AsRef::as_ref))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap()
}

fn template(values: &[impl AsRef<str>]) -> Output {
    helm(&["template", "cinderblock", "charts/cinderblock", "--namespace", NAMESPACE], values)
}

fn render(values: &[String]) -> Vec<Value> {
    let output = template(values);
    assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stderr));
    yaml(&String::from_utf8(output.stdout).unwrap())
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn strings(value: &Value, pointer: &str) -> Vec<String> {
    list(value, pointer).iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

/// Every object of every rendering, with what the rendering was made with.
fn objects() -> impl Iterator<Item = (&'static Rendering, &'static Value)> {
    RENDERINGS.iter().flat_map(|rendering| rendering.objects.iter().map(move |object| (rendering, object)))
}

#[test]
fn every_rendering_lints() {
    assert!(RENDERINGS.len() > 12, "the matrix has {} renderings", RENDERINGS.len());
    for rendering in RENDERINGS.iter() {
        let output = helm(&["lint", "--strict", "charts/cinderblock"], &rendering.values);
        assert!(
            output.status.success(),
            "{:?}: {}",
            rendering.values,
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

#[test]
fn with_everything_on_every_part_is_there_and_with_everything_off_nothing_is() {
    let kinds =
        |at: usize| -> BTreeSet<_> { RENDERINGS[at].objects.iter().map(|o| text(o, "/kind")).collect() };
    let all = "CSIDriver ClusterRole ClusterRoleBinding ConfigMap DaemonSet Deployment NetworkPolicy PersistentVolumeClaim Pod \
               PodDisruptionBudget Role RoleBinding ServiceAccount StorageClass VolumeAttributesClass VolumeSnapshotClass";
    assert_eq!(kinds(1), all.split_whitespace().collect());
    assert_eq!(kinds(3), BTreeSet::new());
    let classes = |kind: &str| RENDERINGS[2].objects.iter().filter(|o| text(o, "/kind") == kind).count();
    assert_eq!((classes("StorageClass"), classes("VolumeSnapshotClass")), (3, 3));
}

#[test]
fn mistakes_are_refused_with_words() {
    let with = |file: &str, option: &str, value: &str| {
        template(&["-f", &format!("tests/chart/{file}.yaml"), option, value])
    };
    let mistakes = REFUSED.iter().map(|(file, values, words)| (*values, with(file, "--set", values), *words));
    let old = ("Kubernetes 1.33", with("one", "--kube-version", "1.33.9"), "kubeVersion");
    for (values, output, words) in mistakes.chain([old]) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{values:?} is rendered");
        assert!(said.contains(words), "{values:?} gave {said:?}, which lacks {words:?}");
    }
}

fn parameters(class: &Value) -> Parameters {
    let fields = class["parameters"].as_object().unwrap();
    fields
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_else(|| panic!("{key}")).to_owned()))
        .collect()
}

#[test]
fn the_plain_manifests_are_in_step_with_the_chart() {
    let output = Command::new("deploy/render.sh").current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let fresh = String::from_utf8(output.stdout).unwrap();
    assert!(
        fresh == read("deploy/cinderblock.yaml"),
        "deploy/cinderblock.yaml is out of step; run: make manifests"
    );
}
