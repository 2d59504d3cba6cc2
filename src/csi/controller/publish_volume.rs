//! The seed's `initialize_connection`: what a node needs to attach the volume, and never a key; and
//! its end, with the fencing of a node that is lost.

use super::{ControllerService, tell_refusal};
use crate::csi::clusters::operation;
use crate::csi::config::Cluster;
use crate::csi::ids::{VolumeId, static_volume};
use crate::csi::operations::Class;
use crate::csi::proto::{
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse,
    ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse,
};
use crate::csi::{repeats, validate};
use crate::kube::{Event, Nodes, Recorder, Subject};
use crate::notes::FENCED_SECONDS;
use crate::rbd::Monitor;
use crate::volume::catalogue::Publication;
use crate::volume::{Leaving, PublishVolume, image_spec};
use std::collections::{BTreeMap, BTreeSet};
use tokio::runtime::Handle;
use tonic::{Request, Response, Status};

impl ControllerService {
    /// ControllerPublishVolume: records the node and answers with the image spec and the live
    /// monitors.
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
        let (id, is_static) = self.volume_to_publish(&request).ok_or_else(|| {
            Status::not_found(format!("the volume {:?} does not exist", request.volume_id))
        })?;
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
                capability: repeats::capability_digest(capability),
                counted: false,
                token: None,
            },
            older_capability: repeats::older_capability_digest(capability),
            limit: self.volumes_per_node,
            fence: self.fence,
        };
        let cluster =
            crate::csi::parameters::cluster(self.clusters.config(), &id.location.cluster)?;
        let secret_uuid = cluster.secret_uuid.clone();
        let operation = operation(
            Class::Attach,
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
                let published = if is_static {
                    access.volumes.require_static(&publish.image).map(|()| None)
                } else {
                    access.volumes.publish(&publish)
                };
                let place = access.answer(published.inspect_err(|error| {
                    tell_refusal(&recorder, &subject, &location, error);
                }))?;
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
                if let Some(place) = place {
                    context.insert("noteObject".to_string(), place.object);
                    context.insert("noteKey".to_string(), place.key);
                    context.insert("noteToken".to_string(), place.token);
                }
                Ok(context)
            })
            .await?;
        Ok(Response::new(ControllerPublishVolumeResponse { publish_context: context }))
    }

    /// The image of the volume, and whether the volume is static.
    fn volume_to_publish(
        &self,
        request: &ControllerPublishVolumeRequest,
    ) -> Option<(VolumeId, bool)> {
        let context = &request.volume_context;
        let clusters = &self.clusters.config().clusters;
        let cluster = context.get("clusterID").and_then(|id| clusters.get(id));
        let namespace = cluster.map_or("", Cluster::default_namespace);
        if let Some(id) = static_volume(&request.volume_id, context, namespace) {
            return Some((id, true));
        }
        VolumeId::parse(&request.volume_id).map(|id| (id, false))
    }

    /// ControllerUnpublishVolume: fine when the volume is not there, or not published. A node that
    /// may still write to it is fenced first, unless it is healthy and uses the volume, or fencing
    /// is off.
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
            Class::Attach,
            "ControllerUnpublishVolume",
            &id.location,
            vec![format!("volume {id}")],
            format!("{node:?}"),
        );
        let (fence, nodes) = (self.fence, self.kubernetes_nodes.clone());
        let (recorder, volume_id) = (self.recorder.clone(), request.volume_id);
        self.run(operation, deadline, id.location, credentials, move |access, _| {
            let Some(leaving) =
                access.answer(access.volumes.leaving(&id.image, node.as_deref(), fence))?
            else {
                return Ok(());
            };
            if !leaving.clients.is_empty() {
                require_fencing(fence, &leaving)?;
                require_no_use(nodes.as_ref(), &leaving, &volume_id)?;
                access.answer(access.volumes.fence(leaving.addresses()))?;
                tell_fenced(&recorder, &volume_id, &leaving);
            }
            access.answer(access.volumes.unpublish(leaving))
        })
        .await?;
        Ok(Response::new(ControllerUnpublishVolumeResponse {}))
    }
}

/// Refuses to release a volume whose clients are to be fenced by hand.
fn require_fencing(enabled: bool, leaving: &Leaving) -> Result<(), Status> {
    if enabled {
        return Ok(());
    }
    let commands = leaving
        .addresses()
        .into_iter()
        .map(|address| format!("ceph osd blocklist add {address} {FENCED_SECONDS}"))
        .collect::<Vec<_>>();
    Err(Status::failed_precondition(format!(
        "{} may still write to the volume, and this controller does not fence (--no-fence), so it stays published: unstage it there. If \
         the node is lost, run {}, and unpublish the volume with a controller that fences",
        spelled(leaving),
        commands.join("; ")
    )))
}

/// Refuses to cut off a node that is healthy and uses the volume, as Kubernetes says. `UNAVAILABLE`
/// when it does not say: a node that may be lost is not released without being fenced, nor one
/// fenced that may be healthy.
fn require_no_use(nodes: Option<&Nodes>, leaving: &Leaving, volume_id: &str) -> Result<(), Status> {
    let Some(nodes) = nodes else { return Ok(()) };
    for node in leaving.clients.keys() {
        let answer = Handle::current().block_on(nodes.is_using(node, volume_id));
        let in_use = answer.map_err(|why| {
            Status::unavailable(format!(
                "{} may still write to the volume, and whether that node is lost cannot be told, since Kubernetes does not say: \
                 {why}; try again",
                spelled(leaving)
            ))
        })?;
        if in_use {
            return Err(Status::failed_precondition(format!(
                "the node {node} is Ready and lists the volume among its volumesInUse, so it is not cut off, and the volume stays \
                 published there: end the pods that use it. If the node is lost all the same, give it the taint \
                 node.kubernetes.io/out-of-service"
            )));
        }
    }
    Ok(())
}

/// Says in the log, to the claim and to each node that its clients are fenced.
fn tell_fenced(recorder: &Recorder, volume_id: &str, leaving: &Leaving) {
    for (node, addresses) in &leaving.clients {
        tracing::warn!(
            volume_id,
            node,
            ?addresses,
            "the clients of a node that did not let go of a volume are on Ceph's blocklist"
        );
        let event = || Event::NodeFenced {
            node: node.clone(),
            volume: volume_id.to_string(),
            clients: addresses.iter().cloned().collect(),
        };
        recorder.tell(&Subject::Volume(volume_id.to_string()), event());
        recorder.tell(&Subject::Node(node.clone()), event());
    }
}

/// The nodes and their clients in words.
fn spelled(leaving: &Leaving) -> String {
    let node = |(node, addresses): (&String, &BTreeSet<String>)| {
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        format!("the node {node} (at {})", addresses.join(", "))
    };
    leaving.clients.iter().map(node).collect::<Vec<_>>().join(" and ")
}

/// The monitors in two forms: `hosts` and `ports` as parallel lists, the seed's, for one address of
/// each; and `monitors`, a `mon_host` with all of them.
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
        (
            "ports".to_string(),
            join(first.iter().map(|address| address.port().to_string()).collect()),
        ),
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
