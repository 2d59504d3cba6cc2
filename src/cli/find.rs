//! `cinderblock find`: which claim, PersistentVolume, image and nodes belong together.

use std::process::ExitCode;

use ::kube::{Client, Error};
use cinderblock::csi::ids::VolumeId;
use cinderblock::kube::volumes::{self, Attachment, Volume};
use cinderblock::volume::image_spec;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::kubernetes::{DriverArgs, ask};
use super::table;

/// Kubernetes knows nothing of that name.
const EXIT_NOT_FOUND: u8 = 3;

/// Find out which image a claim is, which claim an image is, and which nodes have it
///
/// Kubernetes is asked, and nothing else: as the pod's service account in a pod, else as KUBECONFIG
/// says. Nothing is changed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock find default/data                    # a PersistentVolumeClaim, by namespace and name
  cinderblock find pvc-0b9e7a52-5c1e-4b6f-9d0a-2f1c7d3e8a46   # a PersistentVolume
  cinderblock find rbd/csi-pvc-0b9e7a52-5c1e-4b6f-9d0a-2f1c7d3e8a46   # an image, as pool[/namespace]/image
  cinderblock find prod/rbd/csi-pvc-0b9e7a52-5c1e-4b6f-9d0a-2f1c7d3e8a46   # a volume id, as VolumeAttachments and logs name it
  rbd info $(cinderblock find default/data --output json | jq -r '.[0].image_spec')
  kubectl --namespace cinderblock exec deploy/cinderblock-controller -- cinderblock find default/data

What is a name in several of these ways is shown for each.

Exit status: 0 when it was found, 1 when Kubernetes could not be asked, 2 when arguments are wrong, 3 when there is no such thing.")]
pub(crate) struct FindArgs {
    /// NAMESPACE/NAME of a claim, the name of a PersistentVolume, POOL[/NAMESPACE]/IMAGE, or a
    /// volume id
    #[arg(value_name = "NAME")]
    name: String,

    #[command(flatten)]
    driver: DriverArgs,

    /// How what was found is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table for people
    Text,
    /// A JSON array
    Json,
}

/// A volume with the parts of its id.
#[derive(Debug, Serialize)]
struct Found {
    #[serde(flatten)]
    volume: Volume,
    cluster: String,
    pool: String,
    namespace: String,
    image: String,
    image_spec: String,
}

/// Finds and writes.
pub(crate) fn run(args: &FindArgs) -> ExitCode {
    let found = ask(async |client| find(args, &client).await);
    let text = match found {
        Ok(found) if found.is_empty() => {
            eprintln!(
                "cinderblock find: Kubernetes has no PersistentVolume of {} that belongs to {:?}",
                args.driver.driver_name, args.name
            );
            return ExitCode::from(EXIT_NOT_FOUND);
        }
        Ok(found) => write(&found, args.output),
        Err(error) => Err(error),
    };
    match text {
        Ok(text) => {
            super::print_line(text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cinderblock find: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn find(args: &FindArgs, client: &Client) -> Result<Vec<Found>, Error> {
    let driver = &args.driver.driver_name;
    let all = volumes::all(client, driver).await?;
    let found: Vec<_> =
        all.into_iter().map(Found::new).filter(|found| found.is(&args.name)).collect();
    if found.is_empty()
        && let Some((namespace, name)) =
            args.name.split_once('/').filter(|(_, name)| !name.contains('/'))
        && let Some(claim) = volumes::claim(client, namespace, name).await?
    {
        eprintln!(
            "cinderblock find: the claim {} is {} and has no volume of {}; its StorageClass is {}",
            args.name,
            claim.phase,
            driver,
            claim.storage_class.as_deref().unwrap_or("not said")
        );
    }
    Ok(found)
}

impl Found {
    fn new(volume: Volume) -> Found {
        // An id of an older form, or one that an administrator wrote by hand, has no parts to show.
        let id = VolumeId::parse(&volume.id);
        let part =
            |part: fn(&VolumeId) -> &String| id.as_ref().map(part).cloned().unwrap_or_default();
        Found {
            cluster: part(|id| &id.location.cluster),
            pool: part(|id| &id.location.pool),
            namespace: part(|id| &id.location.namespace),
            image: part(|id| &id.image),
            image_spec: id
                .as_ref()
                .map(|id| image_spec(&id.location.pool, &id.location.namespace, &id.image))
                .unwrap_or_default(),
            volume,
        }
    }

    fn is(&self, name: &str) -> bool {
        let claim =
            self.volume.claim.as_ref().map(|claim| format!("{}/{}", claim.namespace, claim.name));
        let names = [&self.volume.name, &self.volume.id, &self.image_spec].map(String::as_str);
        !name.is_empty() && (names.contains(&name) || claim.as_deref() == Some(name))
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let Volume { claim, storage_class, name, phase, id, attachments } = &self.volume;
        let claim = claim.as_ref().map(|claim| format!("{}/{}", claim.namespace, claim.name));
        let node = |attachment: &Attachment| {
            let attaching = if attachment.attached { "" } else { " (not attached yet)" };
            format!("{}{attaching}", attachment.node)
        };
        let nodes: Vec<_> = attachments.iter().map(node).collect();
        let or_none = |text: Option<String>| {
            text.filter(|text| !text.is_empty()).unwrap_or("none".to_string())
        };
        vec![
            ("claim", or_none(claim)),
            ("storage class", or_none(storage_class.clone())),
            ("volume", name.clone()),
            ("phase", phase.clone()),
            ("volume id", id.clone()),
            ("cluster", self.cluster.clone()),
            ("image", self.image_spec.clone()),
            ("nodes", or_none(Some(nodes.join(", ")))),
        ]
    }
}

fn write(found: &[Found], output: Output) -> Result<String, String> {
    match output {
        Output::Json => serde_json::to_string_pretty(found).map_err(|error| error.to_string()),
        Output::Text => Ok(found
            .iter()
            .map(|found| table::of_pairs(found.rows()))
            .collect::<Vec<_>>()
            .join("\n\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinderblock::kube::volumes::Claim;

    fn found(id: &str) -> Found {
        Found::new(Volume {
            claim: Some(Claim { namespace: "shop".to_string(), name: "data".to_string() }),
            storage_class: Some("fast".to_string()),
            name: "pvc-1".to_string(),
            phase: "Bound".to_string(),
            id: id.to_string(),
            attachments: vec![
                Attachment { node: "a".to_string(), attached: true },
                Attachment { node: "b".to_string(), attached: false },
            ],
        })
    }

    #[test]
    fn a_volume_is_found_by_each_of_its_names_and_no_other() {
        let volume = found("prod/rbd/tenant/csi-pvc-1");
        for name in ["shop/data", "pvc-1", "prod/rbd/tenant/csi-pvc-1", "rbd/tenant/csi-pvc-1"] {
            assert!(volume.is(name), "{name}");
        }
        for name in ["data", "pvc-2", "rbd/csi-pvc-1", "csi-pvc-1", "shop/data/", ""] {
            assert!(!volume.is(name), "{name}");
        }
        // One whose id is none of this driver's making is found by what Kubernetes calls it.
        let strange = found("handmade");
        assert!(strange.is("handmade") && strange.is("shop/data") && !strange.is(""));
    }

    #[test]
    fn people_read_the_whole_chain() {
        assert_eq!(
            table::of_pairs(found("prod/rbd/csi-pvc-1").rows()),
            "claim          shop/data
storage class  fast
volume         pvc-1
phase          Bound
volume id      prod/rbd/csi-pvc-1
cluster        prod
image          rbd/csi-pvc-1
nodes          a, b (not attached yet)"
        );
    }

    #[test]
    fn programs_get_the_parts() {
        let text = write(&[found("prod/rbd/tenant/csi-pvc-1")], Output::Json).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json[0]["image_spec"], "rbd/tenant/csi-pvc-1");
        assert_eq!(json[0]["claim"]["name"], "data");
        assert_eq!(json[0]["attachments"][1]["attached"], false);
    }
}
