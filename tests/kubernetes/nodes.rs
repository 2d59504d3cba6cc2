//! Two nodes made by hand: node-a, whose kubelet is played by [`super::kubelet`], and node-b, which
//! has no kubelet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::api::Api;

/// The nodes' names, which are their CSI node ids too.
pub(crate) const NODES: [&str; 2] = ["node-a", "node-b"];

/// The label that says in which zone a node is.
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";

/// The nodes, kept ready by their leases until [`Nodes::remove`].
pub(crate) struct Nodes {
    over: Arc<AtomicBool>,
    heart: Option<JoinHandle<()>>,
}

impl Nodes {
    /// Makes them, with the driver `driver` on them as kubelet notes it down. `zones` are their
    /// labels for the topology key `zone`, when the driver has one.
    pub(crate) fn make(api: &Arc<Api>, driver: &str, zones: Option<[&str; 2]>) -> Nodes {
        for (number, name) in NODES.into_iter().enumerate() {
            let labels = zones.map_or(json!({}), |zones| json!({ZONE: zones[number]}));
            let labels = &labels;
            api.apply(&node(name, labels), "");
            api.patch_status("Node", "", name, &status());
            api.apply(&csi_node(name, driver, labels), "");
        }
        beat(api);
        let over = Arc::new(AtomicBool::new(false));
        let (ended, api) = (over.clone(), api.clone());
        let heart = std::thread::spawn(move || {
            for turn in 0_u32.. {
                std::thread::sleep(Duration::from_millis(500));
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                if turn % 20 == 0 {
                    beat(&api);
                }
            }
        });
        Nodes { over, heart: Some(heart) }
    }

    /// Takes them out of the cluster.
    pub(crate) fn remove(mut self, api: &Api) {
        self.over.store(true, Ordering::SeqCst);
        self.heart.take().unwrap().join().unwrap();
        for name in NODES {
            api.delete("CSINode", "", name);
            api.delete("Lease", "kube-node-lease", name);
            api.delete("Node", "", name);
        }
    }
}

fn node(name: &str, labels: &Value) -> Value {
    let mut labels = labels.clone();
    labels["kubernetes.io/hostname"] = name.into();
    labels["kubernetes.io/os"] = "linux".into();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": labels,
            // What kubelet says of itself, so that VolumeAttachments are made for it.
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
        },
    })
}

fn status() -> Value {
    let room = json!({"cpu": "64", "memory": "256Gi", "pods": "1000"});
    let now = now();
    json!({"status": {
        "capacity": room,
        "allocatable": room,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "MadeByHand", "message": "nobody is there",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }],
    }})
}

fn csi_node(name: &str, driver: &str, labels: &Value) -> Value {
    let topology: Vec<_> = labels.as_object().unwrap().keys().collect();
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSINode",
        "metadata": {"name": name},
        "spec": {"drivers": [{"name": driver, "nodeID": name, "topologyKeys": topology}]},
    })
}

/// Renews the leases, as kubelets do every ten seconds.
fn beat(api: &Api) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    for name in NODES {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now},
        });
        api.apply(&lease, "kube-node-lease");
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
