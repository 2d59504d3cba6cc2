//! Everything the tests stand on: Ceph, the control plane, the chart's objects in it, and the
//! chart's containers as processes.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::api::{Api, list, text, wait_until};
use super::chart::{self, NAMESPACE};
use super::common::{Lab, POOL};
use super::kubelet::Kubelet;
use super::metadata::Service;
use super::nodes::{NODES, Nodes};
use super::processes::{Container, Place};

/// Sidecars of the controller, each of which has a port for its metrics.
const SIDECARS: u16 = 5;

/// What the driver's objects are called by.
pub(crate) const DRIVER: &str = "rbd.csi.cinderblock.dev";

/// The release as it runs.
pub(crate) struct Field {
    pub(crate) api: Arc<Api>,
    pub(crate) lab: Lab,
    /// The RADOS namespace of all volumes.
    pub(crate) rados_namespace: String,
    /// The chart's containers: of one pod of the Deployment, and of the DaemonSet's pod on node-a.
    pub(crate) controller: Vec<Container>,
    node: Vec<Container>,
    /// Ports of the health endpoints, controller and node.
    pub(crate) health: [u16; 2],
    pub(crate) snapshot_metadata: Service,
    pub(crate) kubelet: Kubelet,
    nodes: Nodes,
    objects: Vec<Value>,
    folder: TempDir,
}

impl Field {
    /// Installs the chart with tests/kubernetes/values.yaml and `more` over it, on nodes in these
    /// zones.
    pub(crate) fn install(more: &Value, zones: Option<[&str; 2]>) -> Field {
        Field::install_in(&[], more, zones)
    }

    /// The same, where the chart has objects in these namespaces, too.
    pub(crate) fn install_in(namespaces: &[&str], more: &Value, zones: Option<[&str; 2]>) -> Field {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let lab = Lab::from_environment();
        let api = Arc::new(Api::from_environment());
        let folder = tempfile::Builder::new().prefix("field-").tempdir().unwrap();
        let rados_namespace =
            format!("field-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        lab.run("rbd", &["namespace", "create", "--pool", POOL, "--namespace", &rados_namespace]);

        let health = [free_port(), free_port()];
        let snapshot_metadata = Service::make(&folder.path().join("Deployment/tls"));
        let own = json!({
            "clusters": {"prod": {
                "monitors": [lab.monitors],
                "rbd": {"radosNamespace": rados_namespace},
                "pools": [format!("{POOL}/{rados_namespace}")],
                "ownUser": {"userID": lab.user},
            }},
            "controller": {"healthPort": health[0], "metricsPort": free_port()},
            "node": {"healthPort": health[1], "metricsPort": free_port()},
            "metrics": {"port": free_ports(SIDECARS)},
            "snapshotMetadata": snapshot_metadata.values(),
        });
        let values = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes/values.yaml");
        let files = [("own.json", &own), ("more.json", more)].map(|(name, values)| {
            std::fs::write(folder.path().join(name), values.to_string()).unwrap();
            folder.path().join(name)
        });
        let mut rendered = chart::render(&[&values, &files[0], &files[1]]);
        snapshot_metadata.put_address(&mut rendered);

        for namespace in [&[NAMESPACE][..], namespaces].concat() {
            api.make_namespace(namespace);
        }
        let mut objects = vec![secret("ceph-prod", &lab.user, lab.key.expose())];
        objects.extend(chart::with_rights_apart(&rendered));
        let nodes = Nodes::make(&api, DRIVER, zones);
        chart::apply(&api, &objects, NAMESPACE);

        write_configuration(&rendered, &lab, folder.path());
        let node = start(&rendered, "DaemonSet", NODES[0], &api, folder.path());
        let controller = start(&rendered, "Deployment", NODES[0], &api, folder.path());
        let kubelet = Kubelet::of(&api, &folder.path().join("DaemonSet"));
        Field {
            api,
            lab,
            rados_namespace,
            controller,
            node,
            health,
            snapshot_metadata,
            kubelet,
            nodes,
            objects,
            folder,
        }
    }

    /// Kills every container of the controller at once; they are started again.
    pub(crate) fn kill_controller(&self) {
        for container in &self.controller {
            container.kill();
        }
    }

    /// Waits until the driver of the controller serves again.
    pub(crate) fn wait_for_controller(&self) {
        let socket = self.folder.path().join("Deployment/socket/driver/csi.sock");
        wait_until("the controller serves", || {
            UnixStream::connect(&socket).map(drop).map_err(|error| error.to_string())
        });
    }

    /// The image of a PersistentVolume, as `rbd` names it.
    #[allow(clippy::unused_self, reason = "it is of this field's cluster")]
    pub(crate) fn image(&self, volume: &Value) -> String {
        text(volume, "/spec/csi/volumeHandle").strip_prefix("prod/").unwrap().to_owned()
    }

    /// One container of the controller.
    pub(crate) fn container(&self, name: &str) -> &Container {
        self.controller.iter().find(|container| container.name == name).unwrap()
    }

    /// Fails when anything of a volume or a snapshot is left, in Ceph or in Kubernetes.
    pub(crate) fn assert_nothing_is_left(&self) {
        for kind in [
            "PersistentVolume",
            "VolumeAttachment",
            "VolumeSnapshotContent",
            "VolumeGroupSnapshotContent",
        ] {
            wait_until(&format!("no {kind} is left"), || {
                let left: Vec<_> = self
                    .api
                    .list(kind, "")
                    .iter()
                    .map(|o| text(o, "/metadata/name").to_owned())
                    .collect();
                if left.is_empty() { Ok(()) } else { Err(left.join(" ")) }
            });
        }
        // OSDs drop the objects of removed snapshots in their own time.
        wait_until("nothing is left in Ceph", || {
            let left = self.left_in_ceph();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }

    /// What lab/leaks.sh finds.
    fn left_in_ceph(&self) -> String {
        let script = "set -o pipefail; source lab/leaks.sh && rbd_left \"$1\" \"$2\" || echo 'Ceph does not answer'";
        let output = Command::new("bash")
            .args(["-c", script, "leaks", POOL, &self.rados_namespace])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The end of every log, for a look at what went wrong.
    pub(crate) fn logs(&self) -> String {
        let ends = logs(self.folder.path()).into_iter().map(|(log, written)| {
            let lines: Vec<_> = written.lines().collect();
            format!("--- {log}\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"))
        });
        ends.collect()
    }

    /// Ends everything, and fails when a process does not leave, a log holds a key, or a right was
    /// missing.
    pub(crate) fn uninstall(self) {
        for container in self.controller.into_iter().chain(self.node) {
            container.stop();
        }
        chart::delete(&self.api, &self.objects);
        // No kubelet says that its pods have ended.
        wait_until("no pods are left", || {
            let left = self.api.list("Pod", NAMESPACE);
            for pod in &left {
                self.api.delete("Pod", NAMESPACE, text(pod, "/metadata/name"));
            }
            if left.is_empty() { Ok(()) } else { Err(format!("{} pods", left.len())) }
        });
        self.api.delete("Namespace", "", NAMESPACE);
        self.nodes.remove(&self.api);
        for (log, written) in logs(self.folder.path()) {
            assert!(!written.contains(self.lab.key.expose()), "{log} holds a key");
            // The chart's rights are enough for whatever the tests made of its containers.
            let refused = written
                .lines()
                .find(|line| line.contains("is forbidden") && !line.contains("nobody"));
            assert!(refused.is_none(), "{log}: {}", refused.unwrap_or_default());
        }
        let place = ["--pool", POOL, "--namespace", &self.rados_namespace];
        for object in self.lab.run("rados", &[&place[..], &["ls"]].concat()).lines() {
            self.lab.run("rados", &[&place[..], &["rm", object]].concat());
        }
        self.lab.run("rbd", &[&["namespace", "remove"][..], &place[..]].concat());
    }
}

impl Field {
    /// The folder of the pods' volumes.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The driver's configuration, as the chart makes it for the lab.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.folder().join("Deployment/clusters/clusters.yaml")
    }
}

/// Every log with what is in it.
fn logs(folder: &Path) -> Vec<(String, String)> {
    let folders = ["Deployment", "DaemonSet"].map(|kind| folder.join(kind).join("logs"));
    let files = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path());
    files.map(|log| (log.display().to_string(), std::fs::read_to_string(log).unwrap())).collect()
}

/// A Secret with a Ceph user.
pub(crate) fn secret(name: &str, user: &str, key: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "stringData": {"userID": user, "userKey": key},
    })
}

/// Puts the rendered configuration where both pods mount it, with the key's file where this lab has
/// it.
fn write_configuration(rendered: &[Value], lab: &Lab, folder: &Path) {
    let map = rendered.iter().find_map(|object| object["data"]["clusters.yaml"].as_str()).unwrap();
    let mounted = "/etc/cinderblock/keys/prod";
    assert!(map.contains(mounted), "{map}");
    let configuration = map.replace(mounted, &lab.key_file.display().to_string());
    for kind in ["Deployment", "DaemonSet"] {
        let volume = folder.join(kind).join("clusters");
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::write(volume.join("clusters.yaml"), &configuration).unwrap();
    }
}

/// Starts the containers of a rendered pod, in the name of one that the controllers of Kubernetes
/// have made of it.
fn start(rendered: &[Value], kind: &str, node: &str, api: &Api, folder: &Path) -> Vec<Container> {
    let spec = chart::pod(rendered, kind);
    let account = text(spec, "/serviceAccountName");
    let pod = wait_until(&format!("a pod of the {kind} is on {node}"), || {
        let pods = api.list("Pod", NAMESPACE);
        let of_this = |pod: &&Value| text(pod, "/spec/serviceAccountName") == account;
        let here = |pod: &&Value| kind == "Deployment" || text(pod, "/spec/nodeName") == node;
        let found = pods
            .iter()
            .find(|pod| of_this(pod) && here(pod))
            .map(|pod| text(pod, "/metadata/name").to_owned());
        found.ok_or_else(|| format!("{} pods", pods.len()))
    });
    let volumes = folder.join(kind);
    let logs = volumes.join("logs");
    std::fs::create_dir_all(&logs).unwrap();
    let place = Place {
        volumes: &volumes,
        logs: &logs,
        fields: [
            ("metadata.namespace", NAMESPACE.to_owned()),
            ("metadata.name", pod),
            ("spec.nodeName", node.to_owned()),
        ]
        .into(),
    };
    for volume in list(spec, "/volumes").iter().filter(|volume| text(volume, "/name") != "dev") {
        std::fs::create_dir_all(volumes.join(text(volume, "/name"))).unwrap();
    }
    // The registrar asks for a kubelet, which this machine has not.
    let containers = list(spec, "/containers")
        .iter()
        .filter(|container| text(container, "/name") != "registrar");
    let started = containers.map(|container| {
        let kubeconfig = chart::talks_to_kubernetes(container)
            .then(|| token(NAMESPACE, text(container, "/name")));
        Container::start(container, &place, kubeconfig.as_deref())
    });
    let started = started.collect();
    let socket = if kind == "Deployment" { "socket/driver/csi.sock" } else { "plugin/csi.sock" };
    wait_until(&format!("the driver of the {kind} serves"), || {
        UnixStream::connect(volumes.join(socket)).map(drop).map_err(|error| error.to_string())
    });
    started
}

/// A kubeconfig of a ServiceAccount.
pub(crate) fn token(namespace: &str, account: &str) -> PathBuf {
    let output = Command::new("lab/kubernetes")
        .args(["token", &format!("{namespace}/{account}")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(
            std::env::var_os("LAB_KUBERNETES_DIR")
                .iter()
                .flat_map(|dir| [std::ffi::OsStr::new("--dir"), dir]),
        )
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// The first of so many free ports in a row.
fn free_ports(count: u16) -> u16 {
    loop {
        let first = free_port();
        let are_free = (0..count).all(|more| {
            first.checked_add(more).is_some_and(|port| TcpListener::bind(("0.0.0.0", port)).is_ok())
        });
        if are_free {
            return first;
        }
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
