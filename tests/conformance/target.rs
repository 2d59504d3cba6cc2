//! The driver under test: how it is reached, what it is given, and what it says it can do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::identity_client::IdentityClient;
use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::*;
use serde::Deserialize;
use tonic::transport::{Channel, Endpoint};

pub type Map = BTreeMap<String, String>;
/// Capabilities of the controller service.
pub use controller_service_capability::rpc::Type as Controller;
/// Services of a plugin.
pub use plugin_capability::service::Type as Service;

/// What must be known of a driver to try it: a YAML or JSON file named by `CONFORMANCE_TARGET`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Description {
    /// The socket, `unix:///path`. Controller and node service are asked there.
    pub endpoint: String,
    /// StorageClass parameters.
    #[serde(default)]
    pub parameters: Map,
    /// Others that are as good, for a volume that must not be taken for one of `parameters`.
    pub other_parameters: Option<Map>,
    /// VolumeSnapshotClass parameters.
    #[serde(default)]
    pub snapshot_parameters: Map,
    /// What ControllerModifyVolume may set.
    #[serde(default)]
    pub mutable_parameters: Map,
    /// Others that are as good.
    #[serde(default)]
    pub other_mutable_parameters: Map,
    /// Given with every request that has secrets.
    #[serde(default)]
    pub secrets: Map,
    /// Secrets as they should be, but of no user.
    pub wrong_secrets: Option<Map>,
    /// Bytes of the volumes that are made; a size the driver can give exactly.
    #[serde(default = "sixteen_mebibytes")]
    pub size: i64,
    /// What sizes are a multiple of, in bytes: what the backend rounds to.
    #[serde(default = "sector")]
    pub granularity: i64,
    /// A filesystem the driver knows.
    #[serde(default = "ext4")]
    pub fs_type: String,
    /// Where the driver differs, and why: checks that must fail.
    #[serde(default)]
    pub differences: BTreeMap<String, String>,
}

fn sixteen_mebibytes() -> i64 {
    16 << 20
}

fn sector() -> i64 {
    512
}

fn ext4() -> String {
    "ext4".to_string()
}

impl Description {
    /// The one `CONFORMANCE_TARGET` names.
    pub fn from_environment() -> Description {
        let path = std::env::var("CONFORMANCE_TARGET").unwrap();
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

/// What a check needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A capability of the controller service.
    Controller(Controller),
    /// The description's `otherParameters`.
    OtherParameters,
    /// The description's `mutableParameters` and `otherMutableParameters`.
    MutableParameters,
    /// The description's `parameters`, at least one.
    Parameters,
    /// The description's `secrets` and `wrongSecrets`.
    Secrets,
    /// The node service on the same socket.
    Node,
}

impl fmt::Display for Need {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::Controller(capability) => formatter.write_str(capability.as_str_name()),
            other => write!(formatter, "{other:?}"),
        }
    }
}

/// A connected driver.
pub struct Target {
    pub description: Description,
    pub channel: Channel,
    pub services: BTreeSet<i32>,
    pub controller: BTreeSet<i32>,
    /// The node's id, when the node service is served.
    pub node_id: Option<String>,
}

impl Target {
    /// Connects, and asks what it can do.
    pub async fn connect(description: Description) -> Target {
        let channel =
            Endpoint::try_from(description.endpoint.clone()).unwrap().connect().await.unwrap();
        let plugin = IdentityClient::new(channel.clone())
            .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
            .await
            .unwrap()
            .into_inner();
        let services =
            plugin.capabilities.iter().filter_map(|capability| match &capability.r#type {
                Some(plugin_capability::Type::Service(service)) => Some(service.r#type),
                _ => None,
            });
        let controller = ControllerClient::new(channel.clone())
            .controller_get_capabilities(ControllerGetCapabilitiesRequest {})
            .await
            .unwrap()
            .into_inner();
        let controller = controller.capabilities.iter().filter_map(|capability| {
            let controller_service_capability::Type::Rpc(rpc) = capability.r#type.as_ref()?;
            Some(rpc.r#type)
        });
        let node = NodeClient::new(channel.clone()).node_get_info(NodeGetInfoRequest {}).await;
        Target {
            services: services.collect(),
            controller: controller.collect(),
            node_id: node.ok().map(|answer| answer.into_inner().node_id),
            channel,
            description,
        }
    }

    /// Whether the driver has what a check needs.
    pub fn has(&self, need: Need) -> bool {
        let description = &self.description;
        match need {
            Need::Controller(capability) => self.controller.contains(&i32::from(capability)),
            Need::OtherParameters => description.other_parameters.is_some(),
            Need::MutableParameters => {
                !description.mutable_parameters.is_empty()
                    && !description.other_mutable_parameters.is_empty()
            }
            Need::Parameters => !description.parameters.is_empty(),
            Need::Secrets => !description.secrets.is_empty() && description.wrong_secrets.is_some(),
            Need::Node => self.node_id.is_some(),
        }
    }
}
