//! The Helm chart, rendered by Helm over a matrix of values and versions of Kubernetes, and what
//! must hold of every rendering. Configurations and parameters are checked by the driver's own
//! code, arguments by its own binary, objects by the schemas of every version. Needs what
//! `make tools` builds, and no Ceph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod classes;
mod monitoring;
mod pods;
mod rights;
mod schemas;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{LazyLock, Mutex};
use std::thread;

use cinderblock::csi::parameters::Parameters;
use serde_json::Value;

const NAMESPACE: &str = "storage-system";

/// The versions of Kubernetes the chart is for.
const VERSIONS: &[&str] = &["1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"];
const NEWEST: &str = VERSIONS[VERSIONS.len() - 1];

/// The versions from which on the chart comes out differently, up to the next of these.
const TURNS: &[&str] = &["1.30", "1.34", "1.35"];

/// Mistakes the schema and the templates find: a file of values, what is set beside it, and a word
/// of what is said.
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
    (
        "available",
        "volumeSnapshotClasses.rbd.parameters.volumeGroupNamePrefix=g",
        "volumeGroupNamePrefix",
    ),
    ("one", "image.digest=latest", "digest"),
    ("one", "storageCapacity=maybe", "storageCapacity"),
    ("everything", "node.topology=null", "nodes have to say where they are"),
    ("everything", "snapshotMetadata.tlsSecret=", "snapshotMetadata.tlsSecret"),
    ("everything", "snapshotMetadata.caCert=", "snapshotMetadata.caCert"),
    ("one", "node.topologyLabels={kubernetes.io/hostname}", "topologyLabels"),
    ("one", "node.restartable=true,node.hostNetwork=false", "node.hostNetwork"),
    ("one", "global.imageRegistry=a b", "imageRegistry"),
    ("one", "openshift.enable=true", "enable"),
    ("one", "backup.enabled=true", "no ownUser"),
    ("available", "backup.enabled=true,backup.target=", "backup.target"),
    ("available", "backup.enabled=true,backup.target=/backup", "backup.volume"),
    ("available", "backup.enabled=true,backup.target=ftp://host", "backup/target"),
    ("everything", "backup.retention=null", "backup.retention"),
    ("available", "backup.environment.AWS_SECRET_ACCESS_KEY=a", "AWS_SECRET_ACCESS_KEY"),
    ("available", "backup.retentions.last=3", "retentions"),
];

/// One rendering of the matrix: what it was made with, the versions of Kubernetes it comes out the
/// same for, and its objects.
struct Rendering {
    values: Vec<String>,
    versions: Vec<&'static str>,
    objects: Vec<Value>,
}

impl Rendering {
    /// Whether it was made with this file of values, or this one set.
    fn has(&self, value: &str) -> bool {
        self.values.iter().any(|given| given == value || *given == file_of(value))
    }
}

fn file_of(name: &str) -> String {
    format!("tests/chart/{name}.yaml")
}

/// The values of the matrix, with the versions each is rendered for: files, for all; and every
/// boolean the other way round, beside a file that has most things off and beside one that has them
/// on, for those at which the templates change their minds.
fn matrix() -> Vec<(Vec<String>, Vec<&'static str>)> {
    let file = |name: &str| vec!["-f".to_owned(), file_of(name)];
    let since =
        |first: &str| VERSIONS.iter().copied().filter(|version| *version >= first).collect();
    let mut matrix: Vec<_> = ["one", "available", "minimal", "three", "off", "everything"]
        .map(|name| (file(name), VERSIONS.to_vec()))
        .into();
    for (name, first) in [("since-1.34", "1.34"), ("since-1.35", "1.35")] {
        matrix.push(([file("available"), file(name)].concat(), since(first)));
    }
    for (path, values) in switches(&yaml(&read("charts/cinderblock/values.yaml"))[0], "") {
        for value in values {
            let set = vec!["--set".to_owned(), format!("{path}={value}")];
            matrix.push(([file("available"), set.clone()].concat(), TURNS.to_vec()));
            matrix.push(([file("everything"), set].concat(), TURNS.to_vec()));
        }
    }
    matrix
}

static RENDERINGS: LazyLock<Vec<Rendering>> = LazyLock::new(|| {
    let matrix = matrix();
    let jobs: Vec<_> = matrix
        .iter()
        .flat_map(|(values, versions)| versions.iter().map(move |version| (values, *version)))
        .collect();
    let texts = in_parallel(&jobs, |(values, version)| {
        let output = template(
            &[&["--kube-version".to_owned(), (*version).to_owned()], values.as_slice()].concat(),
        );
        assert!(
            output.status.success(),
            "{values:?} on {version}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    });
    let mut same: BTreeMap<(&Vec<String>, &str), BTreeSet<&'static str>> = BTreeMap::new();
    for ((values, version), text) in jobs.iter().zip(&texts) {
        let turn = TURNS.iter().rposition(|turn| turn <= version).unwrap();
        let next = TURNS.get(turn + 1).unwrap_or(&"2");
        let alike = VERSIONS.iter().filter(|other| *other >= version && *other < next);
        same.entry((values, text)).or_default().extend(alike);
    }
    same.into_iter()
        .map(|((values, text), versions)| Rendering {
            values: values.clone(),
            versions: versions.into_iter().collect(),
            objects: yaml(text),
        })
        .collect()
});

/// The results of `work` for each job, in their order, by as many threads as there are processors.
fn in_parallel<J: Sync, R: Send>(jobs: &[J], work: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let next = Mutex::new(jobs.iter().enumerate());
    let results = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((index, job)) = next.lock().unwrap().next() else { return };
                    let result = work(job);
                    results.lock().unwrap().push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The one rendering of these files alone, for the newest Kubernetes.
fn rendering(names: &[&str]) -> &'static Rendering {
    let values: Vec<_> = names.iter().flat_map(|name| ["-f".to_owned(), file_of(name)]).collect();
    RENDERINGS
        .iter()
        .find(|rendering| rendering.values == values && rendering.versions.contains(&NEWEST))
        .unwrap_or_else(|| panic!("{names:?} are not in the matrix"))
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The documents of a YAML file.
fn yaml(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// Every boolean among the values by its path, with what it is not by default. `auto` is neither.
fn switches(values: &Value, at: &str) -> Vec<(String, Vec<bool>)> {
    match values {
        Value::Bool(value) => vec![(at.to_owned(), vec![!value])],
        Value::String(value) if value == "auto" => vec![(at.to_owned(), vec![false, true])],
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| {
                switches(value, &if at.is_empty() { name.clone() } else { format!("{at}.{name}") })
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
    RENDERINGS
        .iter()
        .flat_map(|rendering| rendering.objects.iter().map(move |object| (rendering, object)))
}

#[test]
fn the_templates_ask_for_versions_of_kubernetes_where_the_matrix_looks() {
    let mut asked = BTreeSet::new();
    for entry in
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/cinderblock/templates"))
            .unwrap()
    {
        let Ok(template) = fs::read_to_string(entry.unwrap().path()) else { continue };
        for line in template.lines().filter(|line| line.contains(".Capabilities")) {
            assert_eq!(
                line.matches(".Capabilities").count(),
                line.matches(".Capabilities.KubeVersion.Version").count()
            );
            if let Some((_, condition)) = line.split_once("semverCompare \"") {
                asked.insert(
                    condition
                        .trim_start_matches(['<', '>', '='])
                        .split(".0-0")
                        .next()
                        .unwrap()
                        .to_owned(),
                );
            } else {
                assert!(line.contains("fail"), "{line}");
            }
        }
    }
    assert!(asked.iter().eq(&TURNS[1..]), "{asked:?}");
}

#[test]
fn everything_lints() {
    let matrix = matrix();
    assert!(matrix.len() > 40, "the matrix has {} values", matrix.len());
    let outputs = in_parallel(&matrix, |(values, versions)| {
        helm(&["lint", "--strict", "charts/cinderblock", "--kube-version", versions[0]], values)
    });
    for ((values, _), output) in matrix.iter().zip(outputs) {
        assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn with_everything_on_every_part_is_there_and_with_everything_off_nothing_is() {
    let kinds = |names: &[&str]| -> BTreeSet<_> {
        rendering(names).objects.iter().map(|object| text(object, "/kind")).collect()
    };
    let always = "CSIDriver ClusterRole ClusterRoleBinding ConfigMap DaemonSet Deployment NetworkPolicy PersistentVolumeClaim Pod \
                  PodDisruptionBudget Role RoleBinding Service ServiceAccount StorageClass VolumeSnapshotClass";
    let always: BTreeSet<_> = always.split_whitespace().collect();
    let with =
        |more: &[&'static str]| -> BTreeSet<_> { always.iter().chain(more).copied().collect() };
    assert_eq!(kinds(&["available"]), always);
    assert_eq!(kinds(&["available", "since-1.34"]), with(&["VolumeAttributesClass"]));
    let asked_for = [
        "CronJob",
        "PodMonitor",
        "PrometheusRule",
        "ServiceMonitor",
        "SnapshotMetadataService",
        "VolumeGroupSnapshotClass",
    ];
    assert_eq!(kinds(&["everything"]), with(&asked_for));
    assert_eq!(kinds(&["off"]), BTreeSet::new());
    let three = &rendering(&["three"]).objects;
    let classes = |kind: &str| three.iter().filter(|object| text(object, "/kind") == kind).count();
    assert_eq!((classes("StorageClass"), classes("VolumeSnapshotClass")), (3, 3));
}

#[test]
fn mistakes_are_refused_with_words() {
    let with =
        |file: &str, option: &str, value: &str| template(&["-f", &file_of(file), option, value]);
    let mistakes =
        REFUSED.iter().map(|(file, values, words)| (*values, with(file, "--set", values), *words));
    let on = |file: &str, version: &str| {
        template(&["-f", &file_of("available"), "-f", &file_of(file), "--kube-version", version])
    };
    let old = [
        ("Kubernetes 1.29", on("available", "1.29.9"), "kubeVersion"),
        ("VolumeAttributesClasses on 1.33", on("since-1.34", "1.33.9"), "Kubernetes 1.34 or newer"),
        ("labels of nodes on 1.34", on("since-1.35", "1.34.9"), "Kubernetes 1.35 or newer"),
    ];
    for (values, output, words) in mistakes.chain(old) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{values:?} is rendered");
        assert!(said.contains(words), "{values:?} gave {said:?}, which lacks {words:?}");
    }
}

fn parameters(class: &Value) -> Parameters {
    let fields = class["parameters"].as_object().unwrap();
    fields
        .iter()
        .map(|(key, value)| {
            (key.clone(), value.as_str().unwrap_or_else(|| panic!("{key}")).to_owned())
        })
        .collect()
}

#[test]
fn the_plain_manifests_are_in_step_with_the_chart() {
    let output =
        Command::new("deploy/render.sh").current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let fresh = String::from_utf8(output.stdout).unwrap();
    assert!(
        fresh == read("deploy/cinderblock.yaml"),
        "deploy/cinderblock.yaml is out of step; run: make manifests"
    );
}
