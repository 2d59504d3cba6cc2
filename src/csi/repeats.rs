//! What a repeated CreateVolume or ControllerPublishVolume must match, as a digest that is kept in
//! the volume's record.
//!
//! The text that is digested is written out here and has a version: how Rust or a library shows a
//! value may change with any update, and a request that is repeated after one must still find its
//! volume. A digest of another version than today's is found by writing the request as that version
//! did ([`older_digest`], [`older_capability_digest`]).

use super::parameters::{self, Parameters};
use super::proto::VolumeCapability;
use super::proto::volume_capability::{AccessType, BlockVolume, MountVolume};
use crate::volume::names;
use serde::Serialize;
use std::collections::BTreeMap;

/// The version of the text. To be raised with any change of it, and the text before kept as an
/// older one.
const VERSION: u32 = 2;

/// The text, as JSON.
#[derive(Serialize)]
struct Text<'a> {
    version: u32,
    parameters: &'a Parameters,
    capabilities: Vec<Capability<'a>>,
    settings: &'a BTreeMap<String, String>,
}

#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct Capability<'a> {
    access: &'static str,
    fs_type: &'a str,
    mount_flags: &'a [String],
    volume_mount_group: &'a str,
    mode: i32,
}

impl<'a> Capability<'a> {
    fn of(capability: &'a VolumeCapability) -> Capability<'a> {
        let mode = capability.access_mode.as_ref().map_or(0, |mode| mode.mode);
        match &capability.access_type {
            Some(AccessType::Mount(MountVolume { fs_type, mount_flags, volume_mount_group })) => {
                Capability { access: "mount", fs_type, mount_flags, volume_mount_group, mode }
            }
            Some(AccessType::Block(BlockVolume {})) => Capability {
                access: "block",
                fs_type: "",
                mount_flags: &[],
                volume_mount_group: "",
                mode,
            },
            None => Capability {
                access: "",
                fs_type: "",
                mount_flags: &[],
                volume_mount_group: "",
                mode,
            },
        }
    }
}

/// The digest of everything in a request that a repeated one must match, sizes and source apart.
/// `settings` are the mutable parameters as image metadata.
pub fn digest(
    parameters: &Parameters,
    capabilities: &[VolumeCapability],
    settings: &BTreeMap<String, String>,
) -> String {
    let parameters = &parameters::compared(parameters);
    let mut capabilities: Vec<_> = capabilities.iter().map(Capability::of).collect();
    capabilities.sort();
    capabilities.dedup();
    digest_of(&Text { version: VERSION, parameters, capabilities, settings })
}

fn digest_of(text: &impl Serialize) -> String {
    #[expect(clippy::expect_used, reason = "plain structs with string keys always serialise")]
    let text = serde_json::to_string(text).expect("the text serialises");
    names::digest(&text)
}

/// The digest of the capability under which a volume is published.
pub fn capability_digest(capability: &VolumeCapability) -> String {
    digest_of(&(VERSION, Capability::of(capability)))
}

/// The digest of a capability that drivers before version 2 of the text kept.
pub fn older_capability_digest(capability: &VolumeCapability) -> String {
    names::digest(&format!("{capability:?}"))
}

/// The digest that drivers before version 2 of the text kept: of how Rust shows the values.
pub fn older_digest(
    parameters: &Parameters,
    capabilities: &[VolumeCapability],
    settings: &BTreeMap<String, String>,
) -> String {
    let compared = parameters::compared(parameters);
    let mut capabilities: Vec<_> =
        capabilities.iter().map(|capability| format!("{capability:?}")).collect();
    capabilities.sort();
    capabilities.dedup();
    names::digest(&format!("{compared:?} {capabilities:?} {settings:?}"))
}

#[cfg(test)]
mod tests {
    use super::super::proto::volume_capability::AccessMode;
    use super::*;

    fn request() -> (Parameters, Vec<VolumeCapability>, BTreeMap<String, String>) {
        let text = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
        };
        let mount = MountVolume {
            fs_type: "xfs".to_string(),
            mount_flags: vec!["noatime".to_string()],
            volume_mount_group: "1000".to_string(),
        };
        let capability = |access, mode| VolumeCapability {
            access_type: Some(access),
            access_mode: Some(AccessMode { mode }),
        };
        let capabilities = vec![
            capability(AccessType::Mount(mount), 1),
            capability(AccessType::Block(BlockVolume {}), 5),
        ];
        let parameters = text(&[
            ("clusterID", "lab"),
            ("pool", "rbd"),
            ("csi.storage.k8s.io/pvc/name", "not compared"),
        ]);
        (parameters, capabilities, text(&[("conf_rbd_qos_iops_limit", "500")]))
    }

    /// Records hold these: a change here makes every repeated request of an upgraded cluster fail.
    #[test]
    fn digests_are_what_they_always_were() {
        let (parameters, mut capabilities, settings) = request();
        for _ in 0..2 {
            assert_eq!(
                digest(&parameters, &capabilities, &settings),
                "aaf7d198401df04e200835338aa48f5cd91d470c0861cd9a3d360ed364ba8ea6"
            );
            assert_eq!(
                older_digest(&parameters, &capabilities, &settings),
                "046ce6b6d08239ea94d65b6800dee55d453c35de3c539a27fcb7be1b52fb2137"
            );
            capabilities.reverse();
            capabilities.push(capabilities[0].clone());
        }
    }

    #[test]
    fn digests_of_capabilities_are_what_they_always_were() {
        let (_, capabilities, _) = request();
        let digests = |digest: fn(&VolumeCapability) -> String| {
            capabilities.iter().map(digest).collect::<Vec<_>>()
        };
        assert_eq!(
            digests(capability_digest),
            [
                "cbf7003e6e0b80dcf46502a850f43b280b5db5a1cdd8ee880a388529bd090ee6",
                "5aa9688d9de5eba282715cda8bd0ff4ec536173fa942db9fc76366011a0f88fd",
            ]
        );
        assert_eq!(
            digests(older_capability_digest),
            [
                "dc9c4a47056f1478c05fda07f8d4de1033f63de934fdffdc23dd0d481dc615c0",
                "9a73c25bd67ee940639fd9863a57864e7b52b13522da9cb98f1f4f00e018c0cd",
            ]
        );
    }

    #[test]
    fn whatever_differs_has_another_digest() {
        let (parameters, capabilities, settings) = request();
        let known = digest(&parameters, &capabilities, &settings);
        let mut other = parameters.clone();
        other.insert("mounter".to_string(), "fuse".to_string());
        assert_ne!(digest(&other, &capabilities, &settings), known);
        assert_ne!(digest(&parameters, &capabilities[..1], &settings), known);
        assert_ne!(digest(&parameters, &capabilities, &BTreeMap::new()), known);
        for change in 0..4 {
            let mut changed = capabilities.clone();
            let Some(AccessType::Mount(mount)) = &mut changed[0].access_type else {
                unreachable!()
            };
            match change {
                0 => mount.fs_type = "ext4".to_string(),
                1 => mount.mount_flags.clear(),
                2 => mount.volume_mount_group.clear(),
                _ => changed[0].access_mode = Some(AccessMode { mode: 2 }),
            }
            assert_ne!(digest(&parameters, &changed, &settings), known);
            assert_ne!(capability_digest(&changed[0]), capability_digest(&capabilities[0]));
        }
    }
}
