//! Node requests: checked as a whole, and turned into the words of [`crate::node`].
//!
//! What is asked comes in three parts. The volume id says which image; the volume context, made
//! when the volume was created, how it is attached and whether it was created empty; the publish
//! context, made when it was published to this node, how the cluster is reached. A context may hold
//! keys that are not ours (orchestrators add theirs), and may be missing (a volume made by hand):
//! then the defaults hold, and an empty image is not formatted.

use std::collections::BTreeMap;

use tonic::Status;

use super::Monitors;
use crate::csi::clusters::looks_like_a_user;
use crate::csi::ids::{VolumeId, static_volume};
use crate::csi::proto::volume_capability::AccessType;
use crate::csi::proto::volume_capability::access_mode::Mode;
use crate::csi::proto::{
    NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, VolumeCapability,
};
use crate::csi::validate;
use crate::node::attach::{Image, Mounter};
use crate::node::options;
use crate::node::{Access, AccessMode, Capability, Expand, MapOptions, Publish, Stage};
use crate::notes::Place;
use crate::rbd::Key;
use crate::volume::{Sizes, image_spec};

/// Bytes a path may have: the kernel's limit.
const PATH_BYTES: usize = 4096;

/// A path that must be there, be absolute, and go nowhere but down: an orchestrator has no other,
/// and with `..` in it a path is not where it seems to be.
pub(super) fn path(field: &str, value: &str) -> Result<(), Status> {
    some_path(field, value)?;
    if !value.starts_with('/') {
        return Err(Status::invalid_argument(format!("{field} must be absolute, not {value:?}")));
    }
    Ok(())
}

/// The path of a volume that is asked about. A relative one is well-formed, and no volume is there.
pub(super) fn volume_path(value: &str) -> Result<(), Status> {
    some_path("volume_path", value)
}

fn some_path(field: &str, value: &str) -> Result<(), Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is missing")));
    }
    if value.len() > PATH_BYTES || value.contains('\0') {
        return Err(Status::invalid_argument(format!(
            "{field} is not a path: it has {} bytes, at most {PATH_BYTES} are allowed, and none of them may be NUL",
            value.len()
        )));
    }
    if value.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(Status::invalid_argument(format!(
            "{field} must have no \".\" or \"..\" in it, not {value:?}"
        )));
    }
    Ok(())
}

/// Reads a NodeStageVolume request.
pub(super) fn stage(
    request: &NodeStageVolumeRequest,
    monitors: &Monitors,
) -> Result<Stage, Status> {
    validate::required("volume_id", &request.volume_id)?;
    path("staging_target_path", &request.staging_target_path)?;
    let capability = capability(request.volume_capability.as_ref())?;
    validate::map("publish_context", &request.publish_context)?;
    validate::map("volume_context", &request.volume_context)?;
    validate::map("secrets", &request.secrets)?;
    let id = volume(request).ok_or_else(|| {
        Status::not_found(format!("the volume {:?} does not exist", request.volume_id))
    })?;
    require_agreement(&id, &request.volume_context, &request.publish_context)?;

    let monitors = match request.publish_context.get("monitors") {
        Some(monitors) => monitors.clone(),
        None => configured_monitors(&id.location.cluster, monitors)?,
    };
    let (user, key) = match request.publish_context.get("auth_enabled").map(String::as_str) {
        Some("false") => (None, None),
        _ => credentials(&request.secrets).map(|(user, key)| (Some(user), Some(key)))?,
    };
    let context = |key: &str| request.volume_context.get(key).map(String::as_str);
    let mounter: Mounter =
        context("mounter").unwrap_or("rbd").parse().map_err(|error| super::status(&error))?;
    let map_options =
        context("mapOptions").map_or_else(|| Ok(MapOptions::default()), MapOptions::parse);
    Ok(Stage {
        map_options: map_options.map_err(|error| super::status(&error))?,
        image: Image {
            pool: id.location.pool,
            namespace: id.location.namespace,
            name: id.image,
            monitors,
            user,
        },
        key,
        mounter,
        capability,
        mkfs_options: context("mkfsOptions").map(str::to_owned),
        notes: notes_place(&request.publish_context)?,
        // Only what is known to have been created empty may be formatted.
        created_empty: context("contentSource") == Some("none"),
        volume_id: request.volume_id.clone(),
        staging_path: request.staging_target_path.clone().into(),
    })
}

/// The image to stage. The controller, which knows the cluster's configuration, says in which RADOS
/// namespace a static volume is.
fn volume(request: &NodeStageVolumeRequest) -> Option<VolumeId> {
    let parts =
        request.publish_context.get("image").map(|spec| spec.split('/').collect::<Vec<_>>());
    let namespace = match parts.as_deref() {
        Some([_, namespace, _]) => *namespace,
        _ => "",
    };
    static_volume(&request.volume_id, &request.volume_context, namespace)
        .or_else(|| VolumeId::parse(&request.volume_id))
}

/// Reads a NodePublishVolume request.
pub(super) fn publish(request: &NodePublishVolumeRequest) -> Result<Publish, Status> {
    validate::required("volume_id", &request.volume_id)?;
    path("target_path", &request.target_path)?;
    let capability = capability(request.volume_capability.as_ref())?;
    validate::map("publish_context", &request.publish_context)?;
    validate::map("volume_context", &request.volume_context)?;
    validate::map("secrets", &request.secrets)?;
    if request.staging_target_path.is_empty() {
        return Err(Status::failed_precondition(
            "staging_target_path is missing: this driver publishes what NodeStageVolume has staged",
        ));
    }
    path("staging_target_path", &request.staging_target_path)?;
    let published_read_only =
        request.publish_context.get("readonly").is_some_and(|value| value == "true");
    Ok(Publish {
        volume_id: request.volume_id.clone(),
        staging_path: request.staging_target_path.clone().into(),
        target_path: request.target_path.clone().into(),
        capability,
        read_only: request.readonly || published_read_only,
    })
}

/// Reads a NodeExpandVolume request. A secret is there when the StorageClass names one for it.
pub(super) fn expand(
    request: &NodeExpandVolumeRequest,
    monitors: &Monitors,
) -> Result<Expand, Status> {
    validate::required("volume_id", &request.volume_id)?;
    volume_path(&request.volume_path)?;
    if request.volume_capability.is_some() {
        capability(request.volume_capability.as_ref())?;
    }
    validate::map("secrets", &request.secrets)?;
    let Sizes { required, limit } = validate::sizes(request.capacity_range.as_ref())?;
    let user = if request.secrets.is_empty() { None } else { Some(credentials(&request.secrets)?) };
    let monitors = VolumeId::parse(&request.volume_id)
        .and_then(|id| configured_monitors(&id.location.cluster, monitors).ok())
        .unwrap_or_default();
    Ok(Expand { required, limit, user, monitors })
}

/// INVALID_ARGUMENT for a capability that is not complete, FAILED_PRECONDITION for one no volume
/// has here.
fn capability(capability: Option<&VolumeCapability>) -> Result<Capability, Status> {
    let capability =
        capability.ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
    let mode = validate::complete(capability)?;
    if let Some(why) = validate::unsupported(capability, mode) {
        return Err(Status::failed_precondition(why));
    }
    let access = match &capability.access_type {
        Some(AccessType::Mount(mount)) => Access::Mount {
            fs_type: Some(mount.fs_type.as_str())
                .filter(|name| !name.is_empty())
                .map(str::parse)
                .transpose()
                .map_err(|error| super::status(&error))?,
            flags: mount.mount_flags.iter().flat_map(|entry| options::split(entry)).collect(),
        },
        _ => Access::Block,
    };
    Ok(Capability { access, mode: access_mode(mode)? })
}

fn access_mode(mode: Mode) -> Result<AccessMode, Status> {
    Ok(match mode {
        Mode::SingleNodeWriter => AccessMode::SingleNodeWriter,
        Mode::SingleNodeReaderOnly => AccessMode::SingleNodeReaderOnly,
        Mode::SingleNodeSingleWriter => AccessMode::SingleNodeSingleWriter,
        Mode::SingleNodeMultiWriter => AccessMode::SingleNodeMultiWriter,
        Mode::MultiNodeReaderOnly => AccessMode::MultiNodeReaderOnly,
        Mode::MultiNodeSingleWriter => AccessMode::MultiNodeSingleWriter,
        Mode::MultiNodeMultiWriter => AccessMode::MultiNodeMultiWriter,
        Mode::Unknown => return Err(Status::invalid_argument("the access mode is unknown")),
    })
}

/// Refuses contexts that speak of another image than the volume id does.
fn require_agreement(
    id: &VolumeId,
    volume_context: &BTreeMap<String, String>,
    publish_context: &BTreeMap<String, String>,
) -> Result<(), Status> {
    let location = &id.location;
    let spec = image_spec(&location.pool, &location.namespace, &id.image);
    for (name, context, key, expected) in [
        ("volume_context", volume_context, "clusterID", &location.cluster),
        ("volume_context", volume_context, "pool", &location.pool),
        ("volume_context", volume_context, "radosNamespace", &location.namespace),
        ("volume_context", volume_context, "imageName", &id.image),
        ("publish_context", publish_context, "image", &spec),
    ] {
        if let Some(value) = context.get(key)
            && value != expected
        {
            return Err(Status::invalid_argument(format!(
                "{name} says {key} is {value:?}, the volume id {id} says {expected:?}"
            )));
        }
    }
    Ok(())
}

/// Where the clients of the volume are noted, as the controller says; `None` when it says nothing
/// of it.
fn notes_place(publish_context: &BTreeMap<String, String>) -> Result<Option<Place>, Status> {
    match ["noteObject", "noteKey", "noteToken"].map(|key| publish_context.get(key).cloned()) {
        [Some(object), Some(key), Some(token)] => Ok(Some(Place { object, key, token })),
        [None, None, None] => Ok(None),
        _ => Err(Status::invalid_argument(
            "publish_context holds some of noteObject, noteKey and noteToken, and not all: hand it on as the controller made it",
        )),
    }
}

/// The monitors of a cluster as the driver's configuration has them.
fn configured_monitors(cluster: &str, monitors: &Monitors) -> Result<String, Status> {
    monitors.get(cluster).filter(|addresses| !addresses.is_empty()).map(|addresses| addresses.join(",")).ok_or_else(
        || {
            Status::failed_precondition(format!(
                "the request has no publish context, and the node's configuration has no monitors of the cluster \
                 {cluster:?}: add them there, or set attachRequired in the CSIDriver object"
            ))
        },
    )
}

/// The user and the key of the node-stage secret.
fn credentials(secrets: &BTreeMap<String, String>) -> Result<(String, Key), Status> {
    let secret = |name: &str| {
        secrets.get(name).map(|value| value.trim()).filter(|value| !value.is_empty()).ok_or_else(|| {
            Status::unauthenticated(format!(
                "the node-stage secret lacks {name}: it needs userID (without \"client.\") and userKey"
            ))
        })
    };
    let user = secret("userID")?;
    if !looks_like_a_user(user) {
        return Err(Status::unauthenticated(
            "the node-stage secret's userID is no name of a Ceph user",
        ));
    }
    Ok((user.to_owned(), Key::new(secret("userKey")?)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use tonic::Code;

    use super::*;
    use crate::csi::proto::CapacityRange;
    use crate::csi::proto::volume_capability::{self, BlockVolume, MountVolume};
    use crate::node::FsType;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn mount(mode: Mode) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(volume_capability::AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }
    }

    fn complete() -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: "lab/rbd/tenant/csi-a".into(),
            publish_context: map(&[
                ("image", "rbd/tenant/csi-a"),
                ("monitors", "[v2:10.0.0.1:3300,v1:10.0.0.1:6789],[v2:[::1]:3300]"),
                ("auth_enabled", "true"),
            ]),
            staging_target_path: "/staging".into(),
            volume_capability: Some(mount(Mode::SingleNodeWriter)),
            secrets: map(&[("userID", "csi"), ("userKey", "AQBcanary==")]),
            volume_context: map(&[
                ("clusterID", "lab"),
                ("pool", "rbd"),
                ("radosNamespace", "tenant"),
                ("imageName", "csi-a"),
                ("mounter", "fuse"),
                ("contentSource", "none"),
                ("storage.kubernetes.io/csiProvisionerIdentity", "x"),
            ]),
        }
    }

    fn read(request: &NodeStageVolumeRequest) -> Result<Stage, Status> {
        stage(
            request,
            &HashMap::from([(
                "lab".to_owned(),
                vec!["10.0.0.7".to_owned(), "10.0.0.8".to_owned()],
            )]),
        )
    }

    /// The code with which the complete request is refused after `change`.
    fn refused(change: impl FnOnce(&mut NodeStageVolumeRequest)) -> Code {
        let mut request = complete();
        change(&mut request);
        read(&request).unwrap_err().code()
    }

    #[test]
    fn a_complete_request_is_read() {
        let stage = read(&complete()).unwrap();
        assert_eq!(stage.image.to_string(), "rbd/tenant/csi-a");
        assert_eq!(stage.image.monitors, "[v2:10.0.0.1:3300,v1:10.0.0.1:6789],[v2:[::1]:3300]");
        assert_eq!(stage.image.user.as_deref(), Some("csi"));
        assert_eq!(stage.key.as_ref().unwrap().expose(), "AQBcanary==");
        assert_eq!(stage.capability.mode, AccessMode::SingleNodeWriter);
        assert!(stage.created_empty);
        assert_eq!(stage.staging_path, Path::new("/staging"));
        assert!(!format!("{stage:?}").contains("canary"));
    }

    #[test]
    fn without_contexts_the_configuration_and_the_safe_defaults_hold() {
        let mut request = complete();
        request.publish_context.clear();
        request.volume_context = map(&[("mounter", "fuse")]);
        let stage = read(&request).unwrap();
        assert_eq!(stage.image.monitors, "10.0.0.7,10.0.0.8");
        assert!(!stage.created_empty, "an unknown origin is never formatted");
        request.volume_context.clear();
        assert_eq!(read(&request).unwrap().mounter, Mounter::Rbd);
        let elsewhere = |request: &mut NodeStageVolumeRequest| {
            request.publish_context.clear();
            request.volume_context.clear();
            request.volume_id = "other/rbd/csi-a".into();
        };
        assert_eq!(refused(elsewhere), Code::FailedPrecondition);
    }

    #[test]
    fn volumes_with_a_source_are_never_formatted() {
        for source in ["snapshot", "volume", "image", "something new", ""] {
            let mut request = complete();
            request.volume_context.insert("contentSource".into(), source.into());
            assert!(!read(&request).unwrap().created_empty, "{source}");
        }
    }

    #[test]
    fn arguments_are_checked_before_the_volume_is_looked_for() {
        let unknown =
            |request: &mut NodeStageVolumeRequest| request.volume_id = "fake-vol-id".into();
        assert_eq!(refused(unknown), Code::NotFound);
        let changes: [fn(&mut NodeStageVolumeRequest); 9] = [
            |request| request.volume_id.clear(),
            |request| request.volume_id = "v".repeat(129),
            |request| request.staging_target_path.clear(),
            |request| request.staging_target_path = format!("/{}", "p".repeat(4096)),
            |request| request.staging_target_path = "/a\0b".into(),
            |request| request.volume_capability = None,
            |request| request.volume_capability = Some(mount(Mode::Unknown)),
            |request| drop(request.volume_context.insert("k".into(), "v".repeat(4096))),
            |request| drop(request.publish_context.insert("k".into(), "v".repeat(4096))),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let both = |request: &mut NodeStageVolumeRequest| {
                unknown(request);
                change(request);
            };
            assert_eq!(refused(both), Code::InvalidArgument, "change {number}");
        }
    }

    #[test]
    fn contexts_of_another_image_are_refused() {
        for key in ["clusterID", "pool", "radosNamespace", "imageName"] {
            assert_eq!(
                refused(|request| drop(request.volume_context.insert(key.into(), "other".into()))),
                Code::InvalidArgument,
                "{key}"
            );
        }
        let other = |request: &mut NodeStageVolumeRequest| {
            request.publish_context.insert("image".into(), "rbd/csi-a".into());
        };
        assert_eq!(refused(other), Code::InvalidArgument);
    }

    #[test]
    fn credentials_are_needed_unless_the_cluster_wants_none() {
        for name in ["userID", "userKey"] {
            assert_eq!(
                refused(|request| drop(request.secrets.remove(name))),
                Code::Unauthenticated,
                "{name}"
            );
        }
        let mut request = complete();
        request.secrets.clear();
        request.publish_context.insert("auth_enabled".into(), "false".into());
        let stage = read(&request).unwrap();
        assert!(stage.image.user.is_none() && stage.key.is_none());
    }

    #[test]
    fn filesystems_for_several_writing_nodes_are_refused() {
        for mode in [Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter] {
            assert_eq!(
                refused(|request| request.volume_capability = Some(mount(mode))),
                Code::FailedPrecondition,
                "{mode:?}"
            );
            let mut request = complete();
            request.volume_capability = Some(mount(mode));
            let block = AccessType::Block(BlockVolume {});
            request.volume_capability.as_mut().unwrap().access_type = Some(block);
            assert_eq!(read(&request).unwrap().capability.access, Access::Block);
        }
    }

    #[test]
    fn the_filesystem_and_its_options_come_from_the_capability() {
        let access = |fs_type: &str| {
            let flags = vec!["noatime".to_owned()];
            let mount = MountVolume {
                fs_type: fs_type.into(),
                mount_flags: flags,
                ..MountVolume::default()
            };
            let mut request = complete();
            request.volume_capability.as_mut().unwrap().access_type =
                Some(AccessType::Mount(mount));
            read(&request).map(|stage| stage.capability.access)
        };
        let expected = |fs_type| Access::Mount { fs_type, flags: vec!["noatime".to_owned()] };
        assert_eq!(access("").unwrap(), expected(None));
        assert_eq!(access("xfs").unwrap(), expected(Some(FsType::Xfs)));
        assert_eq!(access("ntfs").unwrap_err().code(), Code::FailedPrecondition);
    }

    #[test]
    fn a_publish_request_needs_a_staged_volume() {
        let complete = NodePublishVolumeRequest {
            volume_id: "lab/rbd/csi-a".into(),
            staging_target_path: "/staging".into(),
            target_path: "/target".into(),
            volume_capability: Some(mount(Mode::SingleNodeWriter)),
            ..NodePublishVolumeRequest::default()
        };
        assert!(!publish(&complete).unwrap().read_only);
        let readonly = NodePublishVolumeRequest { readonly: true, ..complete.clone() };
        assert!(publish(&readonly).unwrap().read_only);
        let from_controller = NodePublishVolumeRequest {
            publish_context: map(&[("readonly", "true")]),
            ..complete.clone()
        };
        assert!(publish(&from_controller).unwrap().read_only);
        let code = |request: NodePublishVolumeRequest| publish(&request).unwrap_err().code();
        let unstaged =
            NodePublishVolumeRequest { staging_target_path: String::new(), ..complete.clone() };
        assert_eq!(code(unstaged.clone()), Code::FailedPrecondition);
        // The missing staging path is told of last.
        for request in [
            NodePublishVolumeRequest { volume_id: String::new(), ..unstaged.clone() },
            NodePublishVolumeRequest { target_path: String::new(), ..unstaged.clone() },
            NodePublishVolumeRequest { volume_capability: None, ..unstaged },
        ] {
            assert_eq!(code(request), Code::InvalidArgument);
        }
    }

    #[test]
    fn an_expand_request_may_come_without_a_capability() {
        let range =
            |required_bytes, limit_bytes| Some(CapacityRange { required_bytes, limit_bytes });
        let known = Monitors::from([("c".to_owned(), vec!["10.0.0.7".to_owned()])]);
        let expand = |request: &NodeExpandVolumeRequest| expand(request, &known);
        let request = NodeExpandVolumeRequest {
            volume_id: "v".into(),
            volume_path: "some/path".into(),
            capacity_range: range(5, 0),
            ..NodeExpandVolumeRequest::default()
        };
        let read = expand(&request).unwrap();
        assert_eq!((read.required, read.limit, read.user.is_none()), (5, 0, true));
        let secrets = map(&[("userID", "csi"), ("userKey", "AQBcanary==")]);
        let with_secrets = NodeExpandVolumeRequest { secrets, ..request.clone() };
        assert_eq!(expand(&with_secrets).unwrap().user.unwrap().0, "csi");
        let negative = NodeExpandVolumeRequest { capacity_range: range(-5, 0), ..request.clone() };
        assert_eq!(expand(&negative).unwrap_err().code(), Code::InvalidArgument);
        let nowhere = NodeExpandVolumeRequest { volume_path: String::new(), ..request };
        assert_eq!(expand(&nowhere).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn the_monitors_of_now_are_asked_when_a_volume_grows() {
        let known = Monitors::from([("c".to_owned(), vec!["10.0.0.7".to_owned()])]);
        for (volume_id, monitors) in [("c/rbd/csi-a", "10.0.0.7"), ("d/rbd/csi-a", ""), ("v", "")] {
            let request = NodeExpandVolumeRequest {
                volume_id: volume_id.into(),
                volume_path: "some/path".into(),
                ..NodeExpandVolumeRequest::default()
            };
            assert_eq!(expand(&request, &known).unwrap().monitors, monitors, "{volume_id}");
        }
    }

    #[test]
    fn paths_go_down_from_the_root() {
        for good in ["/staging", "/var/lib/kubelet/..data/x", "/a//b/", "/ü/...", "/a.b"] {
            path("target_path", good).unwrap();
        }
        for bad in [
            "",
            "relative",
            "./x",
            "/a/../b",
            "/..",
            "/a/./b",
            "/a/..",
            "../../etc",
            "/a\0b",
            &"/x".repeat(2049),
        ] {
            assert_eq!(
                path("target_path", bad).unwrap_err().code(),
                tonic::Code::InvalidArgument,
                "{bad:?}"
            );
        }
        volume_path("some/path").unwrap();
        assert!(volume_path("some/../path").is_err());
    }
}
