//! What Kubernetes knows of the volumes behind claims, for backups and restores of them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ::kube::api::Api;
use ::kube::{Client, Error};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::volumes::{Claim, handle, with_id};
use super::walk;

/// What `kubectl apply` remembers of what it applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What Kubernetes knows of a volume of the driver.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// The volume id.
    pub id: String,
    /// The name of the PersistentVolume.
    pub name: String,
    /// The claim it is bound to, or was.
    pub claim: Option<Claim>,
    /// The name of its StorageClass.
    pub storage_class: Option<String>,
    /// The class's parameters; none when the class is gone.
    pub parameters: BTreeMap<String, String>,
    /// The PersistentVolume as it can be created again, for a claim of the same name.
    pub object: Value,
}

/// A claim, and what is behind it.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// A volume of the driver.
    Volume(Box<Known>),
    /// Nothing that the driver knows, and why.
    Nothing {
        /// The claim.
        claim: Claim,
        /// `is Pending`, for example.
        why: String,
    },
}

/// The claims with these labels, in the order of their names; in these namespaces, or in all when
/// none is named.
pub async fn with_labels(
    client: &Client,
    driver: &str,
    namespaces: &[String],
    labels: &str,
) -> Result<Vec<Found>, Error> {
    let claims: Vec<Api<PersistentVolumeClaim>> = match namespaces {
        [] => vec![Api::all(client.clone())],
        some => some.iter().map(|name| Api::namespaced(client.clone(), name)).collect(),
    };
    let mut listed = Vec::new();
    for api in claims {
        walk(&api, Some(labels), |claim| {
            listed.push(claim);
            ControlFlow::<()>::Continue(())
        })
        .await?;
    }
    let name = |claim: &PersistentVolumeClaim| {
        (claim.metadata.namespace.clone(), claim.metadata.name.clone())
    };
    listed.sort_by_key(name);
    listed.dedup_by_key(|claim| name(claim));
    let mut found = Vec::new();
    for claim in listed {
        found.push(Box::pin(behind(client, driver, claim)).await?);
    }
    Ok(found)
}

/// What is behind the claim of that name, if there is one.
pub async fn named(
    client: &Client,
    driver: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<Found>, Error> {
    let api = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
    match api.get_opt(name).await? {
        Some(claim) => Ok(Some(Box::pin(behind(client, driver, claim)).await?)),
        None => Ok(None),
    }
}

/// What is known of the volume with this id, if Kubernetes has one.
pub async fn of_volume(client: &Client, driver: &str, id: &str) -> Result<Option<Known>, Error> {
    match with_id(client, driver, id).await? {
        Some(volume) => Ok(Some(Box::pin(known(client, id.to_owned(), volume)).await?)),
        None => Ok(None),
    }
}

async fn behind(
    client: &Client,
    driver: &str,
    claim: PersistentVolumeClaim,
) -> Result<Found, Error> {
    let ObjectMeta { name, namespace, .. } = claim.metadata;
    let names = Claim { namespace: namespace.unwrap_or_default(), name: name.unwrap_or_default() };
    let volume = claim.spec.and_then(|spec| spec.volume_name).filter(|name| !name.is_empty());
    let phase = claim.status.and_then(|status| status.phase).unwrap_or_default();
    let nothing = |why: String| Found::Nothing { claim: names.clone(), why };
    let Some(volume) = volume else {
        return Ok(nothing(format!("is {phase} and has no volume")));
    };
    let Some(found) = Api::<PersistentVolume>::all(client.clone()).get_opt(&volume).await? else {
        return Ok(nothing(format!("is {phase}: its PersistentVolume {volume} is gone")));
    };
    match handle(&found, driver).map(str::to_owned) {
        Some(id) => Ok(Found::Volume(Box::new(known(client, id, found).await?))),
        None => {
            Ok(nothing(format!("has the PersistentVolume {volume}, which is none of {driver}")))
        }
    }
}

async fn known(client: &Client, id: String, volume: PersistentVolume) -> Result<Known, Error> {
    let ObjectMeta { name, labels, mut annotations, .. } = volume.metadata;
    let name = name.unwrap_or_default();
    let mut spec = volume.spec.unwrap_or_default();
    let storage_class = spec.storage_class_name.clone().filter(|name| !name.is_empty());
    let claim = spec.claim_ref.as_mut().and_then(|claim| {
        // Of the claim that it was bound to, which a new one of the same name is not.
        (claim.uid, claim.resource_version) = (None, None);
        Some(Claim { namespace: claim.namespace.clone()?, name: claim.name.clone()? })
    });
    let class = match &storage_class {
        Some(name) => Api::<StorageClass>::all(client.clone()).get_opt(name).await?,
        None => None,
    };
    if let Some(annotations) = &mut annotations {
        annotations.remove(LAST_APPLIED);
    }
    let metadata =
        ObjectMeta { name: Some(name.clone()), labels, annotations, ..Default::default() };
    let object = PersistentVolume { metadata, spec: Some(spec), status: None };
    Ok(Known {
        id,
        name,
        claim,
        storage_class,
        parameters: class.and_then(|class| class.parameters).unwrap_or_default(),
        object: serde_json::to_value(object).map_err(Error::SerdeError)?,
    })
}
