//! The driver that is measured, and the cluster it works on.

use std::collections::BTreeMap;
use std::sync::Arc;

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, VolumeContentSource,
};
use cinderblock::rbd::Pool;
use serde::Deserialize;
use tonic::transport::{Channel, Endpoint};

use crate::common::driver::{Class, Driver, filesystem, lab_config_with_own_user};
use crate::common::{Lab, OwnLab, POOL, unsettled};

/// Size of each volume.
pub(crate) const SIZE: i64 = 64 << 20;
/// Its size once it has grown.
pub(crate) const GROWN: i64 = 128 << 20;

/// Where our driver works on a cluster of its own.
const NAMESPACE: &str = "bench";

/// What another driver is asked with: the parameters and secrets of its classes.
#[derive(Deserialize)]
struct Other {
    parameters: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
}

/// The driver that is measured, and the cluster it works on.
///
/// By default that is this driver on a cluster of its own. With `BENCH_ENDPOINT` it is any driver
/// at that address (`unix:///...`), on the cluster of `lab/ceph env`; `BENCH_CLASS` is a JSON file
/// with the `parameters` and the `secrets` it is asked with.
pub(crate) struct Target {
    /// Declared before the cluster, to end before it.
    driver: Option<Driver>,
    /// The cluster, when it is of its own.
    cluster: Option<OwnLab>,
    endpoint: Option<String>,
    /// What requests have in common.
    pub(crate) class: Class,
    /// Where the bare calls work.
    pub(crate) pool: Arc<dyn Pool>,
    /// Where the driver works, when that is ours.
    own: Option<Arc<dyn Pool>>,
}

impl Target {
    pub(crate) fn from_environment() -> Target {
        if let Ok(endpoint) = std::env::var("BENCH_ENDPOINT") {
            let lab = Lab::from_environment();
            let file = std::env::var("BENCH_CLASS").expect("BENCH_CLASS names a file");
            let other: Other =
                serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
            let class = Class { parameters: other.parameters, secrets: other.secrets };
            let pool = lab.connect().pool(POOL, "").unwrap();
            return Target {
                driver: None,
                cluster: None,
                endpoint: Some(endpoint),
                class,
                pool,
                own: None,
            };
        }
        let lab = OwnLab::up_with(&["--monitor-round", "1"]);
        let namespace = lab.namespace(NAMESPACE);
        let driver = start(&lab, &namespace);
        let cluster = lab.connect();
        Target {
            class: Class::new(&lab, &namespace),
            pool: cluster.pool(POOL, "").unwrap(),
            own: Some(cluster.pool(POOL, &namespace).unwrap()),
            driver: Some(driver),
            cluster: Some(lab),
            endpoint: None,
        }
    }

    /// Another process of the same driver; `None` when the driver is not ours.
    pub(crate) fn start_another(&self) -> Option<Driver> {
        self.cluster.as_ref().map(|lab| start(lab, NAMESPACE))
    }

    /// The driver's process, when it is ours.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.driver.as_ref().map(Driver::pid)
    }

    pub(crate) async fn client(&self) -> ControllerClient<Channel> {
        match (&self.driver, &self.endpoint) {
            (Some(driver), _) => driver.controller().await,
            (None, endpoint) => {
                let endpoint = endpoint.clone().unwrap_or_default();
                let channel = Endpoint::try_from(endpoint).unwrap().connect().await.unwrap();
                ControllerClient::new(channel)
            }
        }
        .max_decoding_message_size(64 << 20)
    }

    /// Waits until the driver has finished what its answers left to be done, as far as its journal
    /// tells.
    pub(crate) async fn settle(&self) {
        while let Some(pool) = &self.own {
            if unsettled(&**pool).is_empty() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn create(
        &self,
        name: &str,
        source: Option<VolumeContentSource>,
    ) -> CreateVolumeRequest {
        CreateVolumeRequest {
            volume_content_source: source,
            ..self.class.create_volume(name, SIZE)
        }
    }

    pub(crate) fn expand(&self, id: &str) -> ControllerExpandVolumeRequest {
        ControllerExpandVolumeRequest {
            volume_id: id.to_string(),
            capacity_range: Some(CapacityRange { required_bytes: GROWN, limit_bytes: 0 }),
            secrets: self.class.secrets.clone(),
            ..ControllerExpandVolumeRequest::default()
        }
    }

    pub(crate) fn publish(&self, id: &str) -> ControllerPublishVolumeRequest {
        ControllerPublishVolumeRequest {
            volume_id: id.to_string(),
            node_id: "node".to_string(),
            volume_capability: Some(filesystem()),
            secrets: self.class.secrets.clone(),
            ..ControllerPublishVolumeRequest::default()
        }
    }

    pub(crate) fn unpublish(&self, id: &str) -> ControllerUnpublishVolumeRequest {
        ControllerUnpublishVolumeRequest {
            volume_id: id.to_string(),
            node_id: "node".to_string(),
            secrets: self.class.secrets.clone(),
        }
    }
}

fn start(lab: &Lab, namespace: &str) -> Driver {
    Driver::start(&lab_config_with_own_user(lab, namespace), &["--role", "controller"])
}
