//! Whether a node uses a volume, in good health: then it is not cut off from it, whatever a detach
//! says.
//!
//! A node that is not Ready, that is gone, or that carries the taint
//! `node.kubernetes.io/out-of-service` (an administrator, or what looks after machines, has made
//! sure that it is down) may be lost. Unknown is neither: an API server that does not answer gives
//! an error, within [`BOUND`].

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

    /// Whether the node with this CSI node id is Ready, carries no taint [`OUT_OF_SERVICE`], and
    /// lists the volume among its `volumesInUse`. A node that Kubernetes does not know is using
    /// nothing. The error says why that cannot be told.
    pub async fn is_using(&self, node_id: &str, volume_id: &str) -> Result<bool, String> {
        match tokio::time::timeout(BOUND, self.uses(node_id, volume_id)).await {
            Ok(Ok(uses)) => Ok(uses),
            Ok(Err(error)) => Err(words(&error)),
            Err(_) => {
                Err(format!("the API server did not answer within {} seconds", BOUND.as_secs()))
            }
        }
    }

    async fn uses(&self, node_id: &str, volume_id: &str) -> Result<bool, ::kube::Error> {
        let name = node_name(&self.client, &self.driver, node_id).await?;
        let Some(node) = Api::<Node>::all(self.client.clone()).get_opt(&name).await? else {
            return Ok(false);
        };
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let status = node.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let is_ready = conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        // As kubelet names a volume of a CSI driver's.
        let volume = format!("kubernetes.io/csi/{}^{volume_id}", self.driver);
        let is_in_use = status.volumes_in_use.unwrap_or_default().contains(&volume);
        Ok(is_ready && is_in_use && !taints.iter().any(|taint| taint.key == OUT_OF_SERVICE))
    }
}

/// The name of the node on which `driver` goes by this id: most often the same, and else the id
/// itself where no node says so.
pub(super) async fn node_name(
    client: &Client,
    driver: &str,
    node_id: &str,
) -> Result<String, ::kube::Error> {
    let nodes = Api::<CSINode>::all(client.clone());
    let has_the_id = |node: &CSINode| {
        node.spec.drivers.iter().any(|known| known.name == driver && known.node_id == node_id)
    };
    if nodes.get_opt(node_id).await?.is_some_and(|node| has_the_id(&node)) {
        return Ok(node_id.to_string());
    }
    let name = walk(&nodes, None, |node| match node.metadata.name {
        Some(ref name) if has_the_id(&node) => ControlFlow::Break(name.clone()),
        _ => ControlFlow::Continue(()),
    });
    Ok(name.await?.unwrap_or_else(|| node_id.to_string()))
}
