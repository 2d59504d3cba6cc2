//! Whether a node uses a volume, in good health.

use std::time::Duration;

use cinderblock::kube::Nodes;
use cinderblock::kube::nodes::{BOUND, OUT_OF_SERVICE};

use crate::DRIVER;
use crate::api::{Api, Mood};

const VOLUME: &str = "lab/rbd/csi-a";

/// A node that is Ready and uses the volume.
fn healthy(api: &Api, name: &str, driver: &str, id: &str, taints: &[&str]) {
    api.node(name, driver, id, taints);
    api.status(name, true, &[format!("kubernetes.io/csi/{DRIVER}^{VOLUME}")]);
}

#[tokio::test]
async fn the_health_counts_of_the_node_that_has_the_id() {
    let api = Api::new();
    healthy(&api, "down", DRIVER, "down", &["example.com/other", OUT_OF_SERVICE]);
    healthy(&api, "up", DRIVER, "up", &["node.kubernetes.io/unreachable"]);
    // Ids that are no names of nodes, one of them another node's name.
    healthy(&api, "swapped-down", DRIVER, "up-by-name", &[OUT_OF_SERVICE]);
    healthy(&api, "up-by-name", DRIVER, "i-0815", &[]);
    // Another driver's ids mean nothing.
    healthy(&api, "foreign", "other.example.com", "i-4711", &[]);
    healthy(&api, "silent", DRIVER, "silent", &[]);
    api.status("silent", false, &[format!("kubernetes.io/csi/{DRIVER}^{VOLUME}")]);
    healthy(&api, "idle", DRIVER, "idle", &[]);
    api.status("idle", true, &[format!("kubernetes.io/csi/other^{VOLUME}")]);
    api.node("new", DRIVER, "new", &[]);
    let nodes = Nodes::new(api.client(), DRIVER);
    for (id, uses) in [
        ("down", false),
        ("up", true),
        ("up-by-name", false),
        ("i-0815", true),
        ("i-4711", false),
        ("silent", false),
        ("idle", false),
        ("new", false),
        ("gone", false),
    ] {
        assert_eq!(nodes.is_using(id, VOLUME).await, Ok(uses), "{id}");
    }
    assert_eq!(nodes.is_using("up", "lab/rbd/csi-b").await, Ok(false));
    // A node without a driver's entry goes by its own name.
    api.remove("/apis/storage.k8s.io/v1/csinodes/up");
    assert_eq!(nodes.is_using("up", VOLUME).await, Ok(true));
}

#[tokio::test(start_paused = true)]
async fn unknown_is_not_no() {
    let api = Api::new();
    healthy(&api, "n", DRIVER, "n", &[]);
    let nodes = Nodes::new(api.client(), DRIVER);
    api.set_mood(Mood::Refusing(403));
    assert!(nodes.is_using("n", VOLUME).await.unwrap_err().contains("no, says the test"));
    api.set_mood(Mood::Refusing(500));
    nodes.is_using("n", VOLUME).await.unwrap_err();
    api.set_mood(Mood::Hanging);
    let asked = tokio::time::Instant::now();
    let error = nodes.is_using("n", VOLUME).await.unwrap_err();
    assert!(error.contains("within 5 seconds"), "{error}");
    assert!(asked.elapsed() < BOUND + Duration::from_secs(1), "{:?}", asked.elapsed());
    api.set_mood(Mood::Up);
    assert_eq!(nodes.is_using("n", VOLUME).await, Ok(true));
}
