//! The API server in KUBECONFIG, as its administrator. Objects are JSON, as they are in manifests.

use std::path::Path;
use std::time::{Duration, Instant};

use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Long enough for anything that controllers do, with their pauses after a failure, on a busy
/// machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// The kinds these tests meet, with group and version; those with `true` are in namespaces.
const KINDS: &[(&str, &str, &str, bool)] = &[
    ("ConfigMap", "", "v1", true),
    ("Event", "", "v1", true),
    ("Namespace", "", "v1", false),
    ("Node", "", "v1", false),
    ("PersistentVolume", "", "v1", false),
    ("PersistentVolumeClaim", "", "v1", true),
    ("Pod", "", "v1", true),
    ("Secret", "", "v1", true),
    ("Service", "", "v1", true),
    ("ServiceAccount", "", "v1", true),
    ("DaemonSet", "apps", "v1", true),
    ("Deployment", "apps", "v1", true),
    ("CronJob", "batch", "v1", true),
    ("Job", "batch", "v1", true),
    ("Lease", "coordination.k8s.io", "v1", true),
    ("NetworkPolicy", "networking.k8s.io", "v1", true),
    ("PodDisruptionBudget", "policy", "v1", true),
    ("ClusterRole", "rbac.authorization.k8s.io", "v1", false),
    ("ClusterRoleBinding", "rbac.authorization.k8s.io", "v1", false),
    ("Role", "rbac.authorization.k8s.io", "v1", true),
    ("RoleBinding", "rbac.authorization.k8s.io", "v1", true),
    ("CSIDriver", "storage.k8s.io", "v1", false),
    ("CSINode", "storage.k8s.io", "v1", false),
    ("CSIStorageCapacity", "storage.k8s.io", "v1", true),
    ("StorageClass", "storage.k8s.io", "v1", false),
    ("VolumeAttachment", "storage.k8s.io", "v1", false),
    ("VolumeAttributesClass", "storage.k8s.io", "v1", false),
    ("VolumeSnapshot", "snapshot.storage.k8s.io", "v1", true),
    ("VolumeSnapshotClass", "snapshot.storage.k8s.io", "v1", false),
    ("VolumeSnapshotContent", "snapshot.storage.k8s.io", "v1", false),
    ("VolumeGroupSnapshot", "groupsnapshot.storage.k8s.io", "v1", true),
    ("VolumeGroupSnapshotClass", "groupsnapshot.storage.k8s.io", "v1", false),
    ("VolumeGroupSnapshotContent", "groupsnapshot.storage.k8s.io", "v1", false),
    ("SnapshotMetadataService", "cbt.storage.k8s.io", "v1beta1", false),
];

/// A client whose calls return when they are answered.
pub(crate) struct Api {
    runtime: Runtime,
    client: Client,
}

impl Api {
    /// Reads KUBECONFIG. Fails the test when it is not the lab's: nodes are made and removed there.
    pub(crate) fn from_environment() -> Api {
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| {
                panic!(
                    "{name} is not set: run tests/kubernetes.sh, or `lab/kubernetes up` and `eval \"$(lab/kubernetes env)\"`"
                )
            })
        };
        let (path, lab) = (variable("KUBECONFIG"), variable("LAB_KUBERNETES_DIR"));
        assert!(
            Path::new(&path).starts_with(&lab),
            "KUBECONFIG is {path}, which is not of the lab in {lab}"
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let client = runtime.block_on(async {
            let file = Kubeconfig::read_from(path).unwrap();
            let config =
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
            Client::try_from(config).unwrap()
        });
        Api { runtime, client }
    }

    /// Runs what is asynchronous to its end.
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// An object, when it is there.
    pub(crate) fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let found = self.run(self.of(kind, namespace).get_opt(name));
        found.unwrap_or_else(|error| panic!("{kind} {name}: {error}")).map(json)
    }

    /// An object that must be there.
    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Value {
        self.find(kind, namespace, name).unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    /// All objects of a kind, in one namespace, or in all when it is empty.
    pub(crate) fn list(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let found = self.run(self.of(kind, namespace).list(&ListParams::default()));
        found
            .unwrap_or_else(|error| panic!("{kind}s: {error}"))
            .items
            .into_iter()
            .map(json)
            .collect()
    }

    /// Makes an object or changes it to what is said here; in `namespace`, unless it names another
    /// itself.
    pub(crate) fn apply(&self, object: &Value, namespace: &str) {
        let what = || format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"));
        self.try_apply(object, namespace).unwrap_or_else(|error| panic!("{}: {error}", what()));
    }

    /// The same, with the API server's refusal.
    pub(crate) fn try_apply(&self, object: &Value, namespace: &str) -> Result<(), String> {
        let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
        let namespace =
            object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or(namespace);
        let how = PatchParams::apply("tests").force();
        let done = self.run(self.of(kind, namespace).patch(name, &how, &Patch::Apply(object)));
        done.map(drop).map_err(|error| error.to_string())
    }

    /// Makes a namespace, and waits until there can be pods in it. One of that name may still be on
    /// its way out.
    pub(crate) fn make_namespace(&self, name: &str) {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        wait_until(&format!("there is a namespace {name}"), || {
            self.try_apply(&namespace, "")?;
            let made = self.find("Namespace", "", name).unwrap_or_default();
            if text(&made, "/status/phase") != "Active" {
                return Err("it is being removed".to_owned());
            }
            self.find("ServiceAccount", name, "default")
                .map(drop)
                .ok_or("no ServiceAccount".to_owned())
        });
    }

    /// Merges `change` into an object.
    pub(crate) fn patch(&self, kind: &str, namespace: &str, name: &str, change: &Value) {
        let done = self.run(self.of(kind, namespace).patch(
            name,
            &PatchParams::default(),
            &Patch::Merge(change),
        ));
        done.unwrap_or_else(|error| panic!("{kind} {name}, {change}: {error}"));
    }

    /// Merges `change` into an object, by way of its status.
    pub(crate) fn patch_status(&self, kind: &str, namespace: &str, name: &str, change: &Value) {
        let api = self.of(kind, namespace);
        let done = self.run(api.patch_status(name, &PatchParams::default(), &Patch::Merge(change)));
        done.unwrap_or_else(|error| panic!("{kind} {name}, {change}: {error}"));
    }

    /// Asks for an object's end, which may take its time. Pods end at once: no kubelet runs them.
    /// One that is not there is no error.
    pub(crate) fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let how = if kind == "Pod" {
            DeleteParams::default().grace_period(0)
        } else {
            DeleteParams::background()
        };
        match self.run(self.of(kind, namespace).delete(name, &how)) {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => panic!("{kind} {name}: {error}"),
        }
    }

    fn of(&self, kind: &str, namespace: &str) -> kube::Api<DynamicObject> {
        let known = KINDS.iter().find(|(known, ..)| *known == kind);
        let (_, group, version, namespaced) =
            known.unwrap_or_else(|| panic!("KINDS does not list {kind}"));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        if *namespaced && !namespace.is_empty() {
            return kube::Api::namespaced_with(self.client.clone(), namespace, &resource);
        }
        kube::Api::all_with(self.client.clone(), &resource)
    }
}

fn json(object: DynamicObject) -> Value {
    serde_json::to_value(object).unwrap()
}

/// The text at a JSON pointer, empty when there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The list at a JSON pointer, empty when there is none.
pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Waits until `condition` gives a value; what it gives instead is shown when it does not in time.
pub(crate) fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(instead) => {
                assert!(
                    Instant::now() < deadline,
                    "waited {PATIENCE:?} in vain until {what}: {instead}"
                );
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
