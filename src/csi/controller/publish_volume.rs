//! The seed's `initialize_connection`: what a node needs to attach the volume, and never a key.

use super::{ControllerService, tell_refusal};
use crate::csi::clusters::{Access, operation};
use crate::csi::ids::VolumeId;
use crate::csi::proto::{
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse,
};
use crate::csi::validate;
use crate::kube::{Event, Nodes, Subject};
use crate::rbd::Monitor;
use crate::volume::catalogue::Publication;
use crate::volume::{Lingering, PublishVolume, image_spec, names};
use std::collections::BTreeMap;
use tokio::runtime::Handle;
use tonic::{Request, Response, Status};

impl ControllerService {
    /// ControllerPublishVolume: records the node and answers with the image spec and the live monitors.
    pub(super) async fn handle_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("volume_id", &request.volume_id)?;
        validate::required_node_id(&request.node_id)?;
        validate::map("volume_context", &request.volume_context)?;
        let capability = request
            .volume_capability
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
        let mode = validate::complete(capability)?;
        if let Some(why) = validate::unsupported(capability, mode) {
            return Err(Status::failed_precondition(why));
        }
        let id = VolumeId::parse(&request.volume_id)
            .ok_or_else(|| Status::not_found(format!("the volume {:?} does not exist", request.volume_id)))?;
        if !self.nodes.is_empty() && !self.nodes.contains(&request.node_id) {
            return Err(Status::not_found(format!(
                "the node {:?} is not one this controller knows: see nodes in its configuration",
                request.node_id
            )));
        }
        let credentials = self.credentials(&id.location, &request.secrets)?;
        let publish = PublishVolume {
            image: id.image.clone(),
            publication: Publication {
                node: request.node_id,
                readonly: request.readonly,
                shared: validate::is_shared(mode),
                capability: names::digest(&format!("{capability:?}")),
                counted: false,
            },
            limit: self.volumes_per_node,
        };
        let cluster = crate::csi::parameters::cluster(self.clusters.config(), &id.location.cluster)?;
        let secret_uuid = cluster.secret_uuid.clone();
        let operation = operation(
            "ControllerPublishVolume",
            &id.location,
            vec![format!("volume {id}")],
            format!("{:?}", publish.publication),
        );
        let location = id.location.clone();
        let (recorder, subject) = (self.recorder.clone(), Subject::Volume(request.volume_id));
        let context = self
            .run(operation, deadline, id.location, credentials, move |access, clusters| {
                let monitors = clusters
                    .monitors(&location.cluster, &**access.volumes.pool())
                    .map_err(|error| access.scope.connection_status(&error))?;
                let published = access.volumes.publish(&publish);
                access.answer(
                    published.inspect_err(|error| tell_refusal(&recorder, &subject, &location, error)),
                )?;
                let mut context = monitor_context(&monitors);
                let image = image_spec(&location.pool, &location.namespace, &publish.image);
                context.insert("image".to_string(), image);
                context.insert("readonly".to_string(), publish.publication.readonly.to_string());
                context.insert("auth_enabled".to_string(), true.to_string());
                context.insert("auth_username".to_string(), access.scope.user.clone());
                context.insert("secret_type".to_string(), "ceph".to_string());
                if let Some(uuid) = secret_uuid {
                    context.insert("secret_uuid".to_string(), uuid);
                }
                Ok(context)
            })
            .await?;
        Ok(Response::new(ControllerPublishVolumeResponse { publish_context: context }))
    }

    /// ControllerUnpublishVolume: fine when the volume is not there, or not published. With fencing, and from a node that is out of
    /// service, a node that has not closed the image is kept from writing to it first.
    pub(super) async fn handle_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("volume_id", &request.volume_id)?;
        let node = (!request.node_id.is_empty()).then_some(request.node_id);
        if let Some(node) = &node {
            validate::required_node_id(node)?;
        }
        let Some(id) = VolumeId::parse(&request.volume_id) else {
            return Ok(Response::new(ControllerUnpublishVolumeResponse {}));
        };
        let credentials = self.credentials(&id.location, &request.secrets)?;
        let operation = operation(
            "ControllerUnpublishVolume",
            &id.location,
            vec![format!("volume {id}")],
            format!("{node:?}"),
        );
        let (always, nodes) = (self.fence, self.kubernetes_nodes.clone());
        let (recorder, subject) = (self.recorder.clone(), Subject::Volume(request.volume_id));
        self.run(operation, deadline, id.location, credentials, move |access, _| {
            if (always || nodes.is_some())
                && let Some(lingering) =
                    access.answer(access.volumes.lingering(&id.image, node.as_deref()))?
                && (always || are_out_of_service(nodes.as_ref(), &lingering, access)?)
            {
                access.answer(access.volumes.fence(&lingering))?;
                let Lingering { nodes, addresses } = lingering;
                tracing::warn!(
                    image = id.image,
                    ?nodes,
                    ?addresses,
                    "clients of a lost node are on Ceph's blocklist now"
                );
                let event = Event::NodeFenced {
                    nodes: nodes.into_iter().collect(),
                    clients: addresses.into_iter().collect(),
                };
                recorder.tell(&subject, event);
            }
            access.answer(access.volumes.unpublish(&id.image, node.as_deref()))
        })
        .await?;
        Ok(Response::new(ControllerUnpublishVolumeResponse {}))
    }
}

/// Whether all nodes that have not let go of the volume were declared out of service. `UNAVAILABLE` when that cannot be told: a node
/// that may be lost is not let go without being kept from writing.
fn are_out_of_service(nodes: Option<&Nodes>, lingering: &Lingering, access: &Access) -> Result<bool, Status> {
    let Some(nodes) = nodes else { return Ok(false) };
    for node in &lingering.nodes {
        let answer = Handle::current().block_on(nodes.is_out_of_service(node));
        let out_of_service = answer.map_err(|why| {
            let addresses: Vec<_> = lingering.addresses.iter().map(String::as_str).collect();
            Status::unavailable(format!(
                "the node {node} has not let go of the volume, which is open at {}, and whether it is out of service and to be kept from \
                 writing cannot be told, since Kubernetes does not say: {why}; try again",
                addresses.join(", ")
            ))
        })?;
        if !out_of_service {
            tracing::warn!(
                node,
                pool = %access.scope.location,
                addresses = ?lingering.addresses,
                "a node is unpublished from a volume that it has open, and nobody says that it is lost: it is not kept from writing"
            );
            return Ok(false);
        }
    }
    Ok(true)
}

/// The monitors in two forms: `hosts` and `ports` as parallel lists, the seed's, for one address of each; and `monitors`, a
/// `mon_host` with all of them.
fn monitor_context(monitors: &[Monitor]) -> BTreeMap<String, String> {
    let first: Vec<_> = monitors.iter().filter_map(|monitor| monitor.v1.or(monitor.v2)).collect();
    let join = |parts: Vec<String>| parts.join(",");
    let vectors = monitors.iter().map(|monitor| {
        let v2 = monitor.v2.map(|address| format!("v2:{address}"));
        let v1 = monitor.v1.map(|address| format!("v1:{address}"));
        format!("[{}]", join(v2.into_iter().chain(v1).collect()))
    });
    BTreeMap::from([
        ("hosts".to_string(), join(first.iter().map(|address| address.ip().to_string()).collect())),
        ("ports".to_string(), join(first.iter().map(|address| address.port().to_string()).collect())),
        ("monitors".to_string(), join(vectors.collect())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monitors_are_handed_out_in_both_forms() {
        let monitor = |name: &str, v2: Option<&str>, v1: Option<&str>| Monitor {
            name: name.to_string(),
            v2: v2.map(|address| address.parse().unwrap()),
            v1: v1.map(|address| address.parse().unwrap()),
        };
        let context = monitor_context(&[
            monitor("a", Some("10.0.0.1:3300"), Some("10.0.0.1:6789")),
            monitor("b", Some("[::1]:3300"), None),
        ]);
        assert_eq!(context["hosts"], "10.0.0.1,::1");
        assert_eq!(context["ports"], "6789,3300");
        assert_eq!(context["monitors"], "[v2:10.0.0.1:3300,v1:10.0.0.1:6789],[v2:[::1]:3300]");
    }
}
