//! Whether a node is out of service.

use std::time::Duration;

use cinderblock::kube::Nodes;
use cinderblock::kube::nodes::{BOUND, OUT_OF_SERVICE};

use crate::DRIVER;
use crate::api::{Api, Mood};

#[tokio::test]
async fn the_taint_counts_on_the_node_that_has_the_id() {
    let api = Api::new();
    api.node("down", DRIVER, "down", &["example.com/other", OUT_OF_SERVICE]);
    api.node("up", DRIVER, "up", &["node.kubernetes.io/unreachable"]);
    // Ids that are no names of nodes, one of them another node's name.
    api.node("swapped-down", DRIVER, "up-by-name", &[OUT_OF_SERVICE]);
    api.node("up-by-name", DRIVER, "i-0815", &[]);
    // Another driver's ids mean nothing.
    api.node("foreign", "other.example.com", "i-4711", &[OUT_OF_SERVICE]);
    let nodes = Nodes::new(api.client(), DRIVER);
    for (id, out_of_service) in [
        ("down", true),
        ("up", false),
        ("up-by-name", true),
        ("i-0815", false),
        ("i-4711", false),
        ("gone", false),
    ] {
        assert_eq!(nodes.is_out_of_service(id).await, Ok(out_of_service), "{id}");
    }
    // A node without a driver's entry goes by its own name.
    api.remove("/apis/storage.k8s.io/v1/csinodes/down");
    assert_eq!(nodes.is_out_of_service("down").await, Ok(true));
}

#[tokio::test(start_paused = true)]
async fn unknown_is_not_no() {
    let api = Api::new();
    api.node("n", DRIVER, "n", &[]);
    let nodes = Nodes::new(api.client(), DRIVER);
    api.set_mood(Mood::Refusing(403));
    assert!(nodes.is_out_of_service("n").await.unwrap_err().contains("no, says the test"));
    api.set_mood(Mood::Refusing(500));
    nodes.is_out_of_service("n").await.unwrap_err();
    api.set_mood(Mood::Hanging);
    let asked = tokio::time::Instant::now();
    let error = nodes.is_out_of_service("n").await.unwrap_err();
    assert!(error.contains("within 5 seconds"), "{error}");
    assert!(asked.elapsed() < BOUND + Duration::from_secs(1), "{:?}", asked.elapsed());
    api.set_mood(Mood::Up);
    assert_eq!(nodes.is_out_of_service("n").await, Ok(false));
}
