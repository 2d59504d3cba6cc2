//! Volume, snapshot and group snapshot ids: what the orchestrator keeps, and a person can read.
//!
//! A volume id is `<clusterID>/<pool>[/<namespace>]/<image>`: the part after the cluster is the RBD
//! image spec. A snapshot id is `<clusterID>/<pool>[/<namespace>]/<image id>@<snapshot>`: the
//! image's id survives the rename of a silent parent.
//!
//! A group snapshot id is `<clusterID>/<pool>[/<namespace>]/group@<name>`; no image id reads
//! `group`, so it is no snapshot's.
//!
//! The grammar is strict, so no part of an id can name a path, an option or another object. An id
//! that does not parse is an id that cannot exist.

use std::collections::BTreeMap;
use std::fmt;

/// Bytes an id may have (the CSI specification's limit for strings).
pub const MAX_BYTES: usize = 128;

/// Bytes of an image id in a snapshot id; librbd's have fewer.
const IMAGE_ID_BYTES: usize = 20;

/// The cluster, pool and RADOS namespace something is in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// The `clusterID` of the configuration.
    pub cluster: String,
    /// The pool's name.
    pub pool: String,
    /// The RADOS namespace, "" for the default one.
    pub namespace: String,
}

/// The id of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeId {
    /// Where its image is.
    pub location: Location,
    /// The image's name.
    pub image: String,
}

/// The id of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SnapshotId {
    /// Where its image is.
    pub location: Location,
    /// The image's id.
    pub image_id: String,
    /// The snapshot's name.
    pub snapshot: String,
}

/// The id of a group snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupId {
    /// Where its volumes' images are.
    pub location: Location,
    /// The key of its record.
    pub group: String,
}

/// Stands for an image id in a group snapshot's id.
const GROUP: &str = "group";

impl Location {
    fn parse(text: &str) -> Option<(Location, &str)> {
        if text.len() > MAX_BYTES {
            return None;
        }
        let mut parts = text.split('/');
        let (cluster, pool) = (parts.next()?, parts.next()?);
        let third = parts.next()?;
        let (namespace, last) = match parts.next() {
            None => ("", third),
            Some(_) if third.is_empty() => return None,
            Some(last) => (third, last),
        };
        let whole = parts.next().is_none() && is_name(cluster) && is_name(pool);
        (whole && (namespace.is_empty() || is_name(namespace))).then(|| {
            let location = Location {
                cluster: cluster.to_string(),
                pool: pool.to_string(),
                namespace: namespace.to_string(),
            };
            (location, last)
        })
    }

    /// Bytes that are left for an image's name in a volume id here.
    pub fn room(&self) -> usize {
        MAX_BYTES.saturating_sub(self.to_string().len() + 1)
    }
}

impl VolumeId {
    /// Reads a volume id; `None` when it is none.
    pub fn parse(text: &str) -> Option<VolumeId> {
        let (location, image) = Location::parse(text)?;
        is_name(image).then(|| VolumeId { location, image: image.to_string() })
    }
}

/// Marks a volume whose id is the name of an image, and whose context says where that is: an
/// administrator's PersistentVolume, in the form of ceph-csi. The catalogue does not know it.
pub const STATIC: &str = "staticVolume";

/// The image of a static volume; `None` when the context says that the volume is none, or when it
/// has no place. `namespace` is the RADOS namespace where the context names none.
pub fn static_volume(
    text: &str,
    context: &BTreeMap<String, String>,
    namespace: &str,
) -> Option<VolumeId> {
    context.get(STATIC).filter(|value| *value == "true")?;
    let part = |key: &str| context.get(key).map(String::as_str).filter(|part| !part.is_empty());
    let location = Location {
        cluster: part("clusterID")?.to_string(),
        pool: part("pool")?.to_string(),
        namespace: part("radosNamespace").unwrap_or(namespace).to_string(),
    };
    // The parts must be what an id could have.
    let id = VolumeId { location, image: text.to_string() };
    VolumeId::parse(&id.to_string()).filter(|parsed| *parsed == id)
}

impl SnapshotId {
    /// Reads a snapshot id; `None` when it is none.
    pub fn parse(text: &str) -> Option<SnapshotId> {
        let (location, rest) = Location::parse(text)?;
        let (image_id, snapshot) = rest.split_once('@')?;
        (is_name(image_id) && image_id != GROUP && is_name(snapshot)).then(|| SnapshotId {
            location,
            image_id: image_id.to_string(),
            snapshot: snapshot.to_string(),
        })
    }
}

impl SnapshotId {
    /// Bytes that are left for a snapshot's name in an id at `location`.
    pub fn room(location: &Location) -> usize {
        location.room().saturating_sub(IMAGE_ID_BYTES + 1)
    }
}

impl GroupId {
    /// Reads a group snapshot id; `None` when it is none.
    pub fn parse(text: &str) -> Option<GroupId> {
        let (location, rest) = Location::parse(text)?;
        let group = rest.strip_prefix(GROUP)?.strip_prefix('@')?;
        is_name(group).then(|| GroupId { location, group: group.to_string() })
    }

    /// Bytes that are left for a group's key in an id at `location`.
    pub fn room(location: &Location) -> usize {
        location.room().saturating_sub(GROUP.len() + 1)
    }
}

/// Whether `text` can be a cluster id, a pool, a namespace, an image or a snapshot in an id.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text != "."
        && text != ".."
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.cluster, self.pool)?;
        if self.namespace.is_empty() { Ok(()) } else { write!(formatter, "/{}", self.namespace) }
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.location, self.image)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}@{}", self.location, self.image_id, self.snapshot)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{GROUP}@{}", self.location, self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_read_as_image_specs() {
        let id = VolumeId::parse("prod/rbd/csi-pvc-1").unwrap();
        assert_eq!((id.location.namespace.as_str(), id.image.as_str()), ("", "csi-pvc-1"));
        let id = SnapshotId::parse("prod/rbd/tenant/10ab@csi-snap-1").unwrap();
        assert_eq!((id.location.namespace.as_str(), id.image_id.as_str()), ("tenant", "10ab"));
        let id = GroupId::parse("prod/rbd/tenant/group@csi-group-1").unwrap();
        assert_eq!((id.location.namespace.as_str(), id.group.as_str()), ("tenant", "csi-group-1"));
    }

    #[test]
    fn what_cannot_exist_does_not_parse() {
        for text in [
            "",
            "fake-vol-id",
            "a/b",
            "a/b/c/d/e",
            "a//c",
            "a/b//c",
            "a/b/",
            "/a/b",
            "a/b/..",
            "a/../c",
            "a/b/c@d",
            "a/b/c d",
            "a/b/c,d",
            "a/b/c\n",
            &format!("a/b/{}", "c".repeat(MAX_BYTES)),
        ] {
            assert_eq!(VolumeId::parse(text), None, "{text:?}");
        }
        for text in ["a/b/c", "a/b/@s", "a/b/c@", "a/b/c@d@e", "a/b/c@d/e", "a/b/group@s"] {
            assert_eq!(SnapshotId::parse(text), None, "{text:?}");
        }
        for text in ["a/b/group", "a/b/group@", "a/b/10ab@s", "a/b/groups@s", "a/b/group@s@t"] {
            assert_eq!(GroupId::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_static_volume_is_where_its_context_says() {
        let context = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string()));
            pairs.collect::<BTreeMap<_, _>>()
        };
        let place = [("staticVolume", "true"), ("clusterID", "prod"), ("pool", "rbd")];
        let id = static_volume("disk-8", &context(&place), "").unwrap();
        assert_eq!(id.to_string(), "prod/rbd/disk-8");
        let id = static_volume("disk-8", &context(&place), "tenant").unwrap();
        assert_eq!(id.to_string(), "prod/rbd/tenant/disk-8");
        let named = [&place[..], &[("radosNamespace", "own")]].concat();
        let id = static_volume("disk-8", &context(&named), "tenant").unwrap();
        assert_eq!(id.to_string(), "prod/rbd/own/disk-8");
        for (text, context) in [
            ("disk-8", context(&place[1..])),
            ("disk-8", context(&[("staticVolume", "false"), place[1], place[2]])),
            ("disk-8", context(&place[..2])),
            ("disk 8", context(&place)),
            ("tenant/disk-8", context(&place)),
            ("../disk-8", context(&place)),
            ("", context(&place)),
        ] {
            assert_eq!(static_volume(text, &context, ""), None, "{text:?} {context:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_printing_gives_the_text_back(text in "[a-c/@.]{0,20}|.{0,140}") {
            if let Some(id) = VolumeId::parse(&text) {
                prop_assert_eq!(id.to_string(), text.clone());
            }
            if let Some(id) = SnapshotId::parse(&text) {
                prop_assert_eq!(id.to_string(), text.clone());
            }
            if let Some(id) = GroupId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
