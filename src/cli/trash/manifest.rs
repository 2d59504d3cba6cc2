//! Manifests that give a volume back to its claim.

use std::collections::BTreeMap;

use cinderblock::volume::catalogue::Volume;
use clap::Args;
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PersistentVolumeSpec, SecretReference, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What the manifests need that Ceph does not know.
#[derive(Debug, Args)]
#[command(next_help_heading = "Manifests")]
pub(super) struct ManifestArgs {
    /// The CSI driver's name, as in CSIDriver and StorageClass objects
    #[arg(long, default_value = "rbd.csi.cinderblock.dev", value_name = "NAME")]
    driver_name: String,

    /// The Secret of the Ceph user, as the StorageClass names it
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = namespace_and_name)]
    secret: Option<(String, String)>,

    /// The StorageClass that volume and claim name
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    storage_class: String,

    /// How nodes use it; may be repeated
    #[arg(long, value_name = "MODE", default_value = "ReadWriteOnce")]
    access_mode: Vec<String>,
}

fn namespace_and_name(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("expected NAMESPACE/NAME".to_owned()),
    }
}

impl ManifestArgs {
    /// A PersistentVolume of the record, and its claim where that is known. `content` is what the
    /// image is marked to hold: `TYPE,UUID` or `block`.
    pub(super) fn of(&self, record: &Volume, content: Option<&str>) -> Result<String, String> {
        let claim = record.claim.as_deref().and_then(|claim| claim.split_once('/'));
        let is_block = content == Some("block");
        let volume_mode = Some(if is_block { "Block" } else { "Filesystem" }.to_owned());
        let fs_type = content.and_then(|content| Some(content.split_once(',')?.0.to_owned()));
        let secret = self.secret.as_ref().map(|(namespace, name)| SecretReference {
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
        });
        let size = BTreeMap::from([("storage".to_owned(), Quantity(record.size.to_string()))]);
        let volume = PersistentVolume {
            metadata: ObjectMeta { name: Some(record.name.clone()), ..ObjectMeta::default() },
            spec: Some(PersistentVolumeSpec {
                access_modes: Some(self.access_mode.clone()),
                capacity: Some(size.clone()),
                claim_ref: claim.map(|(namespace, name)| ObjectReference {
                    namespace: Some(namespace.to_owned()),
                    name: Some(name.to_owned()),
                    ..ObjectReference::default()
                }),
                csi: Some(CSIPersistentVolumeSource {
                    driver: self.driver_name.clone(),
                    volume_handle: record.id.clone(),
                    volume_attributes: Some(record.context.clone()),
                    fs_type,
                    node_stage_secret_ref: secret.clone(),
                    controller_publish_secret_ref: secret.clone(),
                    controller_expand_secret_ref: secret.clone(),
                    node_expand_secret_ref: secret,
                    ..CSIPersistentVolumeSource::default()
                }),
                // What was deleted once by mistake is not to go with the next claim.
                persistent_volume_reclaim_policy: Some("Retain".to_owned()),
                storage_class_name: Some(self.storage_class.clone()),
                volume_mode: volume_mode.clone(),
                ..PersistentVolumeSpec::default()
            }),
            ..PersistentVolume::default()
        };
        let written =
            |error: serde_saphyr::ser::Error| format!("no manifest can be written: {error}");
        let mut text = serde_saphyr::to_string(&volume).map_err(written)?;
        if let Some((namespace, name)) = claim {
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    namespace: Some(namespace.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(PersistentVolumeClaimSpec {
                    access_modes: Some(self.access_mode.clone()),
                    resources: Some(VolumeResourceRequirements {
                        requests: Some(size),
                        ..VolumeResourceRequirements::default()
                    }),
                    storage_class_name: Some(self.storage_class.clone()),
                    volume_mode,
                    volume_name: Some(record.name.clone()),
                    ..PersistentVolumeClaimSpec::default()
                }),
                ..PersistentVolumeClaim::default()
            };
            text = format!("{text}---\n{}", serde_saphyr::to_string(&claim).map_err(written)?);
        }
        Ok(text.trim_end().to_owned())
    }
}
