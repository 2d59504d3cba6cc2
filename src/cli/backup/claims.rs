//! `cinderblock backup create --claims`: one backup after the other, of all claims with some labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use cinderblock::backup::{Create, Created, Kubernetes, Store, create};
use cinderblock::csi::ids::VolumeId;
use cinderblock::kube::claims::{Found, Known, with_labels};
use cinderblock::rbd::Cluster;
use cinderblock::transfer::{Error, Job, Which};
use serde::Serialize;

use super::super::image::{Failure, Output, json, watch};
use super::super::kubernetes::ask;
use super::super::print_line;
use super::create::{CreateArgs, text};

/// A claim that was backed up.
#[derive(Serialize)]
struct BackedUp {
    /// The claim, as NAMESPACE/NAME.
    claim: String,
    #[serde(flatten)]
    created: Created,
}

/// Backs up each claim. One that fails keeps no other from it, and is told in the end.
pub(super) fn run(args: &CreateArgs, labels: &str, store: &Store) -> Result<(), Failure> {
    let (driver, namespaces) = (&args.kubernetes.driver.driver_name, &args.kubernetes.namespaces);
    let found = ask(async |client| with_labels(&client, driver, namespaces, labels).await)?;
    let mut volumes = Vec::new();
    for found in found {
        match found {
            Found::Volume(known) => volumes.push(*known),
            Found::Nothing { claim, why } => {
                say(&format!(
                    "the claim {}/{} {why}: it is passed over",
                    claim.namespace, claim.name
                ));
            }
        }
    }
    if volumes.is_empty() {
        say(&format!("no claim with the labels {labels} has a volume of {driver}"));
    }
    let count = volumes.len();
    let mut clusters = BTreeMap::new();
    let (mut made, mut failed) = (Vec::new(), Vec::new());
    let outcome = watch::watched(|job| {
        for known in volumes {
            let claim = shown(&known);
            match back_up(args, known, store, &mut clusters, job) {
                Ok(created) => {
                    if args.output == Output::Text {
                        print_line(format!("claim     {claim}\n{}\n", text(&created)));
                    }
                    made.push(BackedUp { claim, created });
                }
                Err(Failure::Transfer(Error::Cancelled)) => {
                    return Err(Failure::Transfer(Error::Cancelled));
                }
                Err(failure) => {
                    say(&format!("{claim}: {failure}"));
                    failed.push(claim);
                }
            }
        }
        Ok(())
    })?;
    if args.output == Output::Json {
        print_line(json(&made)?);
    }
    outcome?;
    if failed.is_empty() {
        return Ok(());
    }
    let (failed, names) = (failed.len(), failed.join(", "));
    Err(Failure::Other(format!("{failed} of {count} claims were not backed up: {names}")))
}

fn say(what: &str) {
    eprintln!("cinderblock backup create: {what}");
}

fn shown(known: &Known) -> String {
    let claim = known.claim.as_ref().map(|claim| format!("{}/{}", claim.namespace, claim.name));
    claim.unwrap_or_else(|| known.name.clone())
}

fn back_up(
    args: &CreateArgs,
    known: Known,
    store: &Store,
    clusters: &mut BTreeMap<String, Arc<dyn Cluster>>,
    job: &Job,
) -> Result<Created, Failure> {
    let Some(VolumeId { location, image }) = VolumeId::parse(&known.id) else {
        return Err(Failure::Other(format!("{:?} is no id of a volume", known.id)));
    };
    if !clusters.contains_key(&location.cluster) {
        let cluster = args.cluster.connect(Some(&location.cluster))?;
        clusters.insert(location.cluster.clone(), cluster);
    }
    let cluster = &clusters[&location.cluster];
    let volumes = args.cluster.volumes(cluster.pool(&location.pool, &location.namespace)?);
    let request = Create {
        image: Which::Name(image),
        snapshot: None,
        full: args.full,
        increments: args.increments,
        kubernetes: Some(stored(known)),
    };
    Ok(create(&volumes, store, &request, job)?)
}

/// What is stored of what Kubernetes knows.
pub(super) fn stored(known: Known) -> Kubernetes {
    Kubernetes {
        claim: known.claim.map(|claim| format!("{}/{}", claim.namespace, claim.name)),
        persistent_volume: known.name,
        storage_class: known.storage_class,
        parameters: known.parameters,
        object: known.object,
    }
}
