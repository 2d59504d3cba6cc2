//! Which claim, PersistentVolume and nodes belong to which volume id.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ::kube::api::Api;
use ::kube::{Client, Error};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use serde::Serialize;

use super::walk;

/// What the names of PersistentVolumes begin with, unless the provisioner is told otherwise.
const USUAL_PREFIX: &str = "pvc-";

/// A PersistentVolume of the driver, and what hangs on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// The claim it is bound to, or was.
    pub claim: Option<Claim>,
    /// The StorageClass it was made of.
    pub storage_class: Option<String>,
    /// The name of the PersistentVolume.
    pub name: String,
    /// Its phase: `Bound`, `Released` and so on.
    pub phase: String,
    /// The volume id.
    pub id: String,
    /// The nodes it is attached to, or is about to be.
    pub attachments: Vec<Attachment>,
}

/// The name of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Claim {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

/// One node that is to have a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// The node's name.
    pub node: String,
    /// Whether it has it.
    pub attached: bool,
}

/// A claim without a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its phase, `Pending` most often.
    pub phase: String,
    /// The StorageClass it names.
    pub storage_class: Option<String>,
}

/// Every PersistentVolume of `driver`, in the order of their names.
pub async fn all(client: &Client, driver: &str) -> Result<Vec<Volume>, Error> {
    let mut attachments: BTreeMap<String, Vec<Attachment>> = BTreeMap::new();
    let api = Api::<VolumeAttachment>::all(client.clone());
    walk(&api, None, |found| {
        if let Some(volume) = found.spec.source.persistent_volume_name {
            let attached = found.status.is_some_and(|status| status.attached);
            attachments
                .entry(volume)
                .or_default()
                .push(Attachment { node: found.spec.node_name, attached });
        }
        ControlFlow::<()>::Continue(())
    })
    .await?;
    let mut volumes = Vec::new();
    let api = Api::<PersistentVolume>::all(client.clone());
    walk(&api, None, |found| {
        if let Some(id) = handle(&found, driver) {
            let id = id.to_string();
            volumes.push(volume(id, found, &mut attachments));
        }
        ControlFlow::<()>::Continue(())
    })
    .await?;
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(volumes)
}

fn volume(
    id: String,
    found: PersistentVolume,
    attachments: &mut BTreeMap<String, Vec<Attachment>>,
) -> Volume {
    let name = found.metadata.name.unwrap_or_default();
    let spec = found.spec.unwrap_or_default();
    let claim = spec
        .claim_ref
        .and_then(|claim| Some(Claim { namespace: claim.namespace?, name: claim.name? }));
    let mut attachments = attachments.remove(&name).unwrap_or_default();
    attachments.sort_by(|a, b| a.node.cmp(&b.node));
    Volume {
        claim,
        storage_class: spec.storage_class_name.filter(|name| !name.is_empty()),
        phase: found.status.and_then(|status| status.phase).unwrap_or_default(),
        name,
        id,
        attachments,
    }
}

/// The claim of that name, if there is one, without regard to its volume.
pub async fn claim(client: &Client, namespace: &str, name: &str) -> Result<Option<Waiting>, Error> {
    let found =
        Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace).get_opt(name).await?;
    Ok(found.map(|claim| Waiting {
        phase: claim.status.and_then(|status| status.phase).unwrap_or_default(),
        storage_class: claim.spec.and_then(|spec| spec.storage_class_name),
    }))
}

/// The PersistentVolume with this volume id. It is asked for by the name that it has in most
/// clusters, the end of the image's name; only when that is another's are all looked through.
pub(super) async fn with_id(
    client: &Client,
    driver: &str,
    id: &str,
) -> Result<Option<PersistentVolume>, Error> {
    let volumes = Api::<PersistentVolume>::all(client.clone());
    let is_it = |volume: &PersistentVolume| handle(volume, driver) == Some(id);
    if let Some(start) = id.rfind(USUAL_PREFIX)
        && let Some(volume) = volumes.get_opt(&id[start..]).await?
        && is_it(&volume)
    {
        return Ok(Some(volume));
    }
    let look = |volume| {
        if is_it(&volume) { ControlFlow::Break(volume) } else { ControlFlow::Continue(()) }
    };
    walk(&volumes, None, look).await
}

/// The volume id, where it is one of the driver's.
pub(super) fn handle<'a>(volume: &'a PersistentVolume, driver: &str) -> Option<&'a str> {
    let source = volume.spec.as_ref()?.csi.as_ref()?;
    (source.driver == driver).then_some(source.volume_handle.as_str())
}
