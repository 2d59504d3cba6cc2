//! Nodes that were declared out of service: an administrator, or whoever looks after machines, has made sure that they are down, and
//! has put the taint `node.kubernetes.io/out-of-service` on them, so that their volumes can go elsewhere at once.
//!
//! Whether a node may still be writing is a question where unknown is not "no": an API server that does not answer gives an error, within
//! [`BOUND`].

use std::ops::ControlFlow;
use std::time::Duration;

use ::kube::Client;
use ::kube::api::Api;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::CSINode;

use super::{walk, words};

/// The key of the taint.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How long the answer may take.
pub const BOUND: Duration = Duration::from_secs(5);

/// The nodes of the cluster, as one CSI driver knows them.
#[derive(Clone)]
pub struct Nodes {
    client: Client,
    driver: String,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Nodes").field("driver", &self.driver).finish_non_exhaustive()
    }
}

impl Nodes {
    /// The nodes on which `driver` is the name of the CSI driver.
    pub fn new(client: Client, driver: &str) -> Nodes {
        Nodes { client, driver: driver.to_string() }
    }

    /// Whether the node with this CSI node id carries the taint. A node that Kubernetes does not know carries none. The error says
    /// why that cannot be told.
    pub async fn is_out_of_service(&self, node_id: &str) -> Result<bool, String> {
        let answer = tokio::time::timeout(BOUND, self.carries_the_taint(node_id));
        match answer.await {
            Ok(Ok(tainted)) => Ok(tainted),
            Ok(Err(error)) => Err(words(&error)),
            Err(_) => Err(format!("the API server did not answer within {} seconds", BOUND.as_secs())),
        }
    }

    async fn carries_the_taint(&self, node_id: &str) -> Result<bool, ::kube::Error> {
        let name = self.name(node_id).await?;
        let node = Api::<Node>::all(self.client.clone()).get_opt(&name).await?;
        let taints = node.and_then(|node| node.spec).and_then(|spec| spec.taints).unwrap_or_default();
        Ok(taints.iter().any(|taint| taint.key == OUT_OF_SERVICE))
    }

    /// The name of the node on which the driver goes by this id: most often the same, and else the id itself where no node says so.
    async fn name(&self, node_id: &str) -> Result<String, ::kube::Error> {
        let nodes = Api::<CSINode>::all(self.client.clone());
        let has_the_id = |node: &CSINode| {
            node.spec.drivers.iter().any(|driver| driver.name == self.driver && driver.node_id == node_id)
        };
        if nodes.get_opt(node_id).await?.is_some_and(|node| has_the_id(&node)) {
            return Ok(node_id.to_string());
        }
        let name = walk(&nodes, |node| match node.metadata.name {
            Some(ref name) if has_the_id(&node) => ControlFlow::Break(name.clone()),
            _ => ControlFlow::Continue(()),
        });
        Ok(name.await?.unwrap_or_else(|| node_id.to_string()))
    }
}
