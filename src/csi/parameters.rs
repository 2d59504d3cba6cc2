//! StorageClass and VolumeSnapshotClass parameters, checked before anything is done with them.
//!
//! Names are ceph-csi's wherever both have the thing. An unknown name is refused with the nearest
//! known one, since a typing mistake would otherwise change silently what users get.
//! `csi.storage.k8s.io/*` keys, which sidecars add as they are configured, are always tolerated and
//! never compared.

use super::config::{Cluster, Config};
use super::ids::{self, Location};
use crate::node::{self, MapOptions};
use crate::rbd::{CloneFormat, Features, ImageOptions};
use crate::volume::{DeleteWithSnapshots, FlattenTarget, ImageLocation, Policy};
use std::collections::BTreeMap;
use tonic::Status;

/// Parameters as they come in a request.
pub type Parameters = BTreeMap<String, String>;

/// One parameter or key of the configuration, as people read of it.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it may be, and what happens with it.
    pub meaning: &'static str,
    /// What holds without it.
    pub default: &'static str,
}

/// A row of a table of parameters.
pub(super) const fn parameter(
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Parameter {
    Parameter { name, meaning, default }
}

/// The parameters of a StorageClass.
pub const VOLUME_PARAMETERS: &[Parameter] = &[
    parameter("clusterID", "required", "A cluster of the configuration."),
    parameter("pool", "required", "The pool of the images."),
    parameter(
        "radosNamespace",
        "the cluster's",
        "A RADOS namespace in the pool; registered with `rbd namespace create`.",
    ),
    parameter(
        "dataPool",
        "`pool`",
        "The pool of the data objects, such as an erasure-coded one that allows overwrites.",
    ),
    parameter("volumeNamePrefix", "`csi-`", "What image names begin with, at most 24 bytes."),
    parameter(
        "imageFeatures",
        "all but `journaling`",
        "Comma-separated: `layering` (needed), `exclusive-lock`, `object-map`, `fast-diff`, `deep-flatten`, `journaling`.",
    ),
    parameter(
        "objectSize",
        "the cluster's",
        "Bytes of an object: a power of two from 4096 to 33554432.",
    ),
    parameter(
        "stripeUnit",
        "none",
        "Bytes of a stripe unit, from 512 to 33554432; goes with `stripeCount`.",
    ),
    parameter(
        "stripeCount",
        "none",
        "Objects striped over, from 1 to 65536; goes with `stripeUnit`.",
    ),
    parameter(
        "sourceImage",
        "none",
        "A golden image that volumes are cloned from when the request names no source: `rbd://FSID/POOL/IMAGE/SNAPSHOT` or \
         `rbd://FSID/POOL/NAMESPACE/IMAGE/SNAPSHOT`, each part percent-encoded. The user needs `profile rbd-read-only` on that pool. See \
         [golden images](../golden-images.md).",
    ),
    parameter("mounter", "`rbd`", "How nodes attach: `rbd`, `rbd-nbd` or `fuse`."),
    parameter(
        "mapOptions",
        "none",
        "Options that tune what `rbd` (krbd) and `rbd-nbd` map, as `[krbd:\\|nbd:]name[=value],…;…`; others are refused, and `share` for \
         writable volumes.",
    ),
    parameter("unmapOptions", "none", "Taken, and without effect: `force`, `reattach-timeout`."),
    parameter(
        "mkfsOptions",
        "none",
        "Single-letter options of mkfs that describe a filesystem; files, devices and force are refused.",
    ),
    parameter(
        "maxCloneDepth",
        "the cluster's",
        "Images in a chain of clones, from 0 to 14; 0 makes every clone a full copy.",
    ),
    parameter(
        "flattenTarget",
        "the cluster's",
        "What is flattened at the limit: `auto`, `source` or `clone`.",
    ),
    parameter(
        "flattenOnRestore",
        "the cluster's",
        "Whether a volume made from a snapshot is flattened at once: `true` or `false`.",
    ),
    parameter(
        "deleteWithSnapshots",
        "the cluster's",
        "What DeleteVolume does with a volume that has snapshots: `retain` keeps them, `refuse` answers FAILED_PRECONDITION.",
    ),
    parameter(
        "trashRetention",
        "none",
        "For how long DeleteVolume parks the volume in the trash before it is deleted for good: a whole number with `m`, `h` or `d`, up to \
         `365d`. `cinderblock trash` lists, restores and purges.",
    ),
    parameter(
        "cloneFormat",
        "the cluster's",
        "The format of clones and their snapshots: `1` or `2`.",
    ),
    parameter("imageFormat", "`2`", "Taken when it is `2`: there are no others."),
    parameter("encrypted", "`false`", "Taken when it is `false`; encryption is not supported."),
    parameter("thickProvision", "`false`", "Taken when it is `false`: images are thin."),
    parameter(
        "tryOtherMounters",
        "`false`",
        "Taken when it is `false`: a class names its mounter.",
    ),
];

/// The one value with which parameters that other drivers have are taken here: it asks for what is
/// done anyway.
const HARMLESS: &[(&str, &str)] = &[
    ("imageFormat", "2"),
    ("encrypted", "false"),
    ("thickProvision", "false"),
    ("tryOtherMounters", "false"),
];

/// Parameters that ceph-csi has and this driver has not.
const UNSUPPORTED: &[&str] = &[
    "cephLogDir",
    "cephLogDirHostPath",
    "cephLogStrategy",
    "encryptionKMSID",
    "encryptionType",
    "qosBasedOnCapacity",
    "topologyConstrainedPools",
];

/// How like a known name an unknown one must be for that to be taken for a typing mistake.
const LIKE: f64 = 0.85;

/// The parameters of a VolumeSnapshotClass.
pub const SNAPSHOT_PARAMETERS: &[Parameter] = &[
    parameter(
        "clusterID",
        "the volume's",
        "Checked, and otherwise passed over: a snapshot is where its volume is.",
    ),
    parameter("pool", "the volume's", "As `clusterID`."),
    parameter("radosNamespace", "the volume's", "As `clusterID`."),
    parameter(
        "snapshotNamePrefix",
        "`csi-snap-`",
        "What snapshot names begin with, at most 24 bytes.",
    ),
];

/// The parameters of a VolumeGroupSnapshotClass.
pub const GROUP_PARAMETERS: &[Parameter] = &[
    parameter("clusterID", "the volumes'", "As in a VolumeSnapshotClass."),
    parameter("pool", "the volumes'", "As `clusterID`."),
    parameter("radosNamespace", "the volumes'", "As `clusterID`."),
    parameter(
        "volumeGroupNamePrefix",
        "`csi-group-`",
        "What the keys of groups begin with, at most 24 bytes.",
    ),
    parameter(
        "snapshotNamePrefix",
        "`csi-snap-`",
        "What the names of their members begin with, at most 24 bytes.",
    ),
];

/// Keys that sidecars add by themselves.
const SIDECAR_PREFIX: &str = "csi.storage.k8s.io/";

/// How a node attaches a volume.
const MOUNTERS: &[&str] = &["rbd", "rbd-nbd", "fuse"];

/// Checked parameters of a StorageClass.
#[derive(Debug, Clone)]
pub struct VolumeParameters {
    /// Where volumes of the class are made.
    pub location: Location,
    /// What image names begin with.
    pub prefix: String,
    /// Layout of new images.
    pub options: ImageOptions,
    /// How lineages are kept in bounds.
    pub policy: Policy,
    /// What DeleteVolume does with a volume that has snapshots.
    pub delete_with_snapshots: DeleteWithSnapshots,
    /// For how many seconds DeleteVolume parks a volume in the trash.
    pub trash_retention: Option<u64>,
    /// What volumes are made from whose request names no source.
    pub source_image: Option<ImageLocation>,
    /// What nodes need to know, without the image's name.
    pub context: Parameters,
}

/// Checked parameters of a VolumeSnapshotClass.
#[derive(Debug, Clone)]
pub struct SnapshotParameters {
    /// What snapshot names begin with.
    pub prefix: String,
}

/// Checked parameters of a VolumeGroupSnapshotClass.
#[derive(Debug, Clone)]
pub struct GroupParameters {
    /// What the keys of groups begin with.
    pub prefix: String,
    /// What the names of their members begin with.
    pub snapshot_prefix: String,
}

/// The parameters without the keys sidecars add: what two requests are compared by.
pub fn compared(parameters: &Parameters) -> Parameters {
    parameters
        .iter()
        .filter(|(key, _)| !key.starts_with(SIDECAR_PREFIX))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// The refusal of a key that is not among `known`, with the nearest one that is, if one is near.
pub(super) fn unknown(what: &str, key: &str, known: &[Parameter]) -> Status {
    if UNSUPPORTED.contains(&key) {
        return Status::invalid_argument(format!(
            "the {what} {key} is not supported by this driver: leave it out"
        ));
    }
    let likeness = |parameter: &Parameter| {
        strsim::jaro_winkler(&parameter.name.to_lowercase(), &key.to_lowercase())
    };
    let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    if let Some(nearest) = nearest.filter(|nearest| likeness(nearest) >= LIKE) {
        let nearest = nearest.name;
        return Status::invalid_argument(format!(
            "unknown {what} {key:?}; did you mean {nearest:?}?"
        ));
    }
    let names: Vec<_> = known.iter().map(|parameter| parameter.name).collect();
    Status::invalid_argument(format!("unknown {what} {key:?}; known are {}", names.join(", ")))
}

/// Finds a cluster of the configuration.
pub fn cluster<'a>(config: &'a Config, id: &str) -> Result<&'a Cluster, Status> {
    config.clusters.get(id).ok_or_else(|| {
        let known: Vec<_> = config.clusters.keys().map(String::as_str).collect();
        Status::invalid_argument(format!(
            "clusterID {id:?} is not in the driver's configuration, which knows {}",
            known.join(", ")
        ))
    })
}

impl VolumeParameters {
    /// Checks the parameters of a CreateVolume request.
    pub fn parse(parameters: &Parameters, config: &Config) -> Result<VolumeParameters, Status> {
        let mut left = Left::new(parameters, VOLUME_PARAMETERS)?;
        let cluster = cluster(config, &left.required("clusterID")?)?;
        let pool = left.required_name("pool")?;
        let namespace =
            left.name("radosNamespace")?.unwrap_or_else(|| cluster.default_namespace().to_string());
        let prefix = left.prefix("volumeNamePrefix", "csi-")?;
        let location = Location { cluster: cluster.cluster_id.clone(), pool, namespace };
        if location.room() < crate::volume::names::least_room(&prefix) {
            return Err(Status::invalid_argument(format!(
                "clusterID, pool, radosNamespace and volumeNamePrefix together are too long: a volume id has at most {} bytes",
                ids::MAX_BYTES
            )));
        }

        for (key, harmless) in HARMLESS {
            if let Some(value) = left.take(key)
                && value != *harmless
            {
                return Err(Status::invalid_argument(format!(
                    "{key}={value:?} is not supported by this driver: leave it out, or set it to {harmless:?}"
                )));
            }
        }
        let options = image_options(&mut left, cluster)?;
        let defaults = cluster.policy();
        let policy = Policy {
            max_clone_depth: left
                .number("maxCloneDepth", 0, u64::from(Policy::DEEPEST))?
                .map_or(defaults.max_clone_depth, |depth| {
                    u32::try_from(depth).unwrap_or(Policy::DEEPEST)
                }),
            flatten_target: left
                .one_of(
                    "flattenTarget",
                    &[
                        ("auto", FlattenTarget::Auto),
                        ("source", FlattenTarget::Source),
                        ("clone", FlattenTarget::Clone),
                    ],
                )?
                .unwrap_or(defaults.flatten_target),
            flatten_on_restore: left
                .one_of("flattenOnRestore", &[("true", true), ("false", false)])?
                .unwrap_or(defaults.flatten_on_restore),
            max_snapshots: defaults.max_snapshots,
        };
        let delete_with_snapshots = left
            .one_of(
                "deleteWithSnapshots",
                &[("retain", DeleteWithSnapshots::Retain), ("refuse", DeleteWithSnapshots::Refuse)],
            )?
            .unwrap_or(cluster.delete_with_snapshots);

        let trash_retention = left
            .take("trashRetention")
            .map(|text| seconds(&text))
            .transpose()
            .map_err(|why| Status::invalid_argument(format!("trashRetention {why}")))?;

        let source_image = left
            .take("sourceImage")
            .map(|text| ImageLocation::parse(&text))
            .transpose()
            .map_err(|why| Status::invalid_argument(format!("sourceImage {why}")))?;

        let mut context = Parameters::new();
        let mounter = left.take("mounter").unwrap_or_else(|| MOUNTERS[0].to_string());
        if !MOUNTERS.contains(&mounter.as_str()) {
            return Err(Status::invalid_argument(format!(
                "mounter is {}, not {mounter:?}",
                MOUNTERS.join(", ")
            )));
        }
        context.insert("clusterID".to_string(), location.cluster.clone());
        context.insert("pool".to_string(), location.pool.clone());
        if !location.namespace.is_empty() {
            context.insert("radosNamespace".to_string(), location.namespace.clone());
        }
        context.insert("mounter".to_string(), mounter);
        for key in ["mapOptions", "unmapOptions", "mkfsOptions"] {
            if let Some(options) = left.take(key) {
                if options.is_empty()
                    || options.len() > 1024
                    || !options.bytes().all(|b| matches!(b, b' '..=b'~'))
                {
                    return Err(Status::invalid_argument(format!(
                        "{key} must be 1 to 1024 printable ASCII characters"
                    )));
                }
                match key {
                    "mkfsOptions" => node::check_mkfs_options(&options),
                    "mapOptions" => MapOptions::parse(&options).map(drop),
                    _ => node::check_unmap_options(&options),
                }
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
                context.insert(key.to_string(), options);
            }
        }
        Ok(VolumeParameters {
            location,
            prefix,
            options,
            policy,
            delete_with_snapshots,
            trash_retention,
            source_image,
            context,
        })
    }
}

impl SnapshotParameters {
    /// Checks the parameters of a CreateSnapshot request. The snapshot is where its volume is,
    /// whatever pool is named.
    pub fn parse(parameters: &Parameters, config: &Config) -> Result<SnapshotParameters, Status> {
        let mut left = Left::new(parameters, SNAPSHOT_PARAMETERS)?;
        left.where_the_volume_is(config)?;
        Ok(SnapshotParameters { prefix: left.prefix("snapshotNamePrefix", "csi-snap-")? })
    }
}

impl GroupParameters {
    /// Checks the parameters of a CreateVolumeGroupSnapshot request. The snapshots are where their
    /// volumes are, whatever pool is named.
    pub fn parse(parameters: &Parameters, config: &Config) -> Result<GroupParameters, Status> {
        let mut left = Left::new(parameters, GROUP_PARAMETERS)?;
        left.where_the_volume_is(config)?;
        Ok(GroupParameters {
            prefix: left.prefix("volumeGroupNamePrefix", "csi-group-")?,
            snapshot_prefix: left.prefix("snapshotNamePrefix", "csi-snap-")?,
        })
    }
}

/// A time as classes have it, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    const LONGEST: u64 = 365 * 24 * 60 * 60;
    let number = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[number.len()..] {
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => 0,
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .filter(|seconds| (1..=LONGEST).contains(seconds))
        .ok_or_else(|| format!("is a whole number with m, h or d, from 1m to 365d, not {text:?}"))
}

fn check_prefix(key: &str, prefix: &str) -> Result<(), Status> {
    if prefix.len() <= 24 && prefix.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{key} is at most 24 bytes and begins with a letter or digit, not {prefix:?}"
    )))
}

fn image_options(left: &mut Left, cluster: &Cluster) -> Result<ImageOptions, Status> {
    let stripe_unit = left.number("stripeUnit", 512, 1 << 25)?;
    let stripe_count = left.number("stripeCount", 1, 1 << 16)?;
    if stripe_unit.is_some() != stripe_count.is_some() {
        return Err(Status::invalid_argument("stripeUnit and stripeCount go together"));
    }
    let object_size = left.number("objectSize", 1 << 12, 1 << 25)?;
    if let Some(size) = object_size
        && !size.is_power_of_two()
    {
        return Err(Status::invalid_argument(format!("objectSize is a power of two, not {size}")));
    }
    let clone_format =
        match left.number("cloneFormat", 1, 2)?.unwrap_or(u64::from(cluster.clone_format)) {
            1 => CloneFormat::V1,
            _ => CloneFormat::V2,
        };
    Ok(ImageOptions {
        features: Some(features(left.take("imageFeatures"))?),
        order: object_size.and_then(|size| u8::try_from(size.trailing_zeros()).ok()),
        stripe_unit,
        stripe_count,
        data_pool: left.name("dataPool")?,
        clone_format,
    })
}

fn features(list: Option<String>) -> Result<Features, Status> {
    let Some(list) = list else {
        return Ok(Features::DEFAULT);
    };
    let known = [
        ("layering", Features::LAYERING),
        ("exclusive-lock", Features::EXCLUSIVE_LOCK),
        ("object-map", Features::OBJECT_MAP),
        ("fast-diff", Features::FAST_DIFF),
        ("deep-flatten", Features::DEEP_FLATTEN),
        ("journaling", Features::JOURNALING),
    ];
    let mut features = Features(0);
    for name in list.split(',').map(str::trim) {
        let feature = known.iter().find(|(known, _)| *known == name).ok_or_else(|| {
            let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
            Status::invalid_argument(format!(
                "imageFeatures holds {name:?}; known are {}",
                names.join(", ")
            ))
        })?;
        features = features.union(feature.1);
    }
    for (feature, needed, words) in [
        (Features::OBJECT_MAP, Features::EXCLUSIVE_LOCK, "object-map needs exclusive-lock"),
        (Features::FAST_DIFF, Features::OBJECT_MAP, "fast-diff needs object-map"),
        (Features::JOURNALING, Features::EXCLUSIVE_LOCK, "journaling needs exclusive-lock"),
        (
            Features(0),
            Features::LAYERING,
            "layering cannot be left out: clones and restores need it",
        ),
    ] {
        if features.contains(feature) && !features.contains(needed) {
            return Err(Status::invalid_argument(format!("imageFeatures: {words}")));
        }
    }
    Ok(features)
}

/// Parameters that are taken out one by one.
struct Left(Parameters);

impl Left {
    fn new(parameters: &Parameters, known: &[Parameter]) -> Result<Left, Status> {
        let parameters = compared(parameters);
        for key in parameters.keys() {
            if !known.iter().any(|parameter| parameter.name == key) {
                return Err(unknown("parameter", key, known));
            }
        }
        Ok(Left(parameters))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    fn required(&mut self, key: &str) -> Result<String, Status> {
        self.take(key)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Status::invalid_argument(format!("the parameter {key} is missing")))
    }

    fn required_name(&mut self, key: &str) -> Result<String, Status> {
        let value = self.required(key)?;
        check_name(key, value)
    }

    fn name(&mut self, key: &str) -> Result<Option<String>, Status> {
        self.take(key).map(|value| check_name(key, value)).transpose()
    }

    fn number(&mut self, key: &str, least: u64, most: u64) -> Result<Option<u64>, Status> {
        let Some(text) = self.take(key) else {
            return Ok(None);
        };
        match text.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(Status::invalid_argument(format!(
                "{key} is a number from {least} to {most}, not {text:?}"
            ))),
        }
    }

    /// A prefix of names, or the one used when none is given.
    fn prefix(&mut self, key: &str, default: &str) -> Result<String, Status> {
        let prefix = self.name(key)?.unwrap_or_else(|| default.to_string());
        check_prefix(key, &prefix)?;
        Ok(prefix)
    }

    /// Parameters that say where volumes are, which a snapshot's volume says itself: looked at for
    /// mistakes alone.
    fn where_the_volume_is(&mut self, config: &Config) -> Result<(), Status> {
        if let Some(id) = self.take("clusterID") {
            cluster(config, &id)?;
        }
        self.name("pool")?;
        self.name("radosNamespace")?;
        Ok(())
    }

    fn one_of<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Result<Option<T>, Status> {
        let Some(text) = self.take(key) else {
            return Ok(None);
        };
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(Some(*choice));
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        Err(Status::invalid_argument(format!("{key} is {}, not {text:?}", names.join(" or "))))
    }
}

fn check_name(key: &str, value: String) -> Result<String, Status> {
    if ids::is_name(&value) && value.len() <= 64 {
        return Ok(value);
    }
    Err(Status::invalid_argument(format!(
        "{key} is 1 to 64 letters, digits, '.', '_' or '-', not {value:?}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::parse("- {clusterID: lab, monitors: [m], rbd: {radosNamespace: tenant}}").unwrap()
    }

    fn parameters(more: &[(&str, &str)]) -> Parameters {
        [("clusterID", "lab"), ("pool", "rbd")]
            .iter()
            .chain(more)
            .map(|(key, value)| ((*key).to_string(), (*value).to_string()))
            .collect()
    }

    #[test]
    fn what_asks_for_what_is_done_anyway_is_taken_and_the_rest_is_not_supported() {
        for (key, value) in HARMLESS {
            VolumeParameters::parse(&parameters(&[(key, value)]), &config()).unwrap();
            let status =
                VolumeParameters::parse(&parameters(&[(key, "true")]), &config()).unwrap_err();
            assert!(
                status.message().contains(&format!("{key}=\"true\" is not supported")),
                "{status:?}"
            );
        }
        for key in UNSUPPORTED {
            let status =
                VolumeParameters::parse(&parameters(&[(key, "x")]), &config()).unwrap_err();
            assert!(status.message().contains("is not supported"), "{status:?}");
        }
    }

    #[test]
    fn a_hint_is_given_where_a_name_is_like_another() {
        let hint =
            |key| VolumeParameters::parse(&parameters(&[(key, "x")]), &config()).unwrap_err();
        assert!(hint("dataPol").message().contains("did you mean \"dataPool\"?"));
        let status = hint("fsType");
        assert!(
            !status.message().contains("did you mean") && status.message().contains("mkfsOptions"),
            "{status:?}"
        );
    }

    #[test]
    fn the_peers_classes_work() {
        let parsed = VolumeParameters::parse(
            &parameters(&[
                ("dataPool", "ec"),
                ("imageFeatures", "layering,exclusive-lock"),
                ("mounter", "rbd-nbd"),
                ("mkfsOptions", "-m 1"),
                ("objectSize", "8388608"),
                ("csi.storage.k8s.io/pvc/name", "any"),
                ("csi.storage.k8s.io/fstype", "xfs"),
            ]),
            &config(),
        )
        .unwrap();
        assert_eq!(parsed.location.to_string(), "lab/rbd/tenant");
        assert_eq!(parsed.options.order, Some(23));
        assert_eq!(parsed.options.features, Some(Features(5)));
        assert_eq!(parsed.context["mkfsOptions"], "-m 1");
        assert_eq!(parsed.policy, Policy::default());
    }

    #[test]
    fn wrong_parameters_are_explained() {
        for (more, words) in [
            (&[("Pool", "x")][..], "did you mean \"pool\""),
            (&[("maxCloneDepht", "3")], "did you mean \"maxCloneDepth\""),
            (&[("clusterID", "other")], "knows lab"),
            (&[("clusterID", "")], "clusterID is missing"),
            (&[("pool", "")], "pool is missing"),
            (&[("pool", "../etc")], "pool is 1 to 64"),
            (&[("radosNamespace", "a/b")], "radosNamespace is 1 to 64"),
            (&[("dataPool", "")], "dataPool is 1 to 64"),
            (&[("mounter", "iscsi")], "mounter is rbd, rbd-nbd, fuse"),
            (&[("mapOptions", "a\nb")], "printable ASCII"),
            (&[("mapOptions", "krbd:queue_depth=1,name=admin")], "holds \"name\""),
            (&[("unmapOptions", "force,queue_depth=1")], "holds \"queue_depth\""),
            (&[("mkfsOptions", "-F")], "may be given here"),
            (&[("mkfsOptions", "-d /etc")], "may be given here"),
            (&[("imageFeatures", "")], "imageFeatures holds"),
            (&[("imageFeatures", "layering,object-map")], "needs exclusive-lock"),
            (&[("imageFeatures", "exclusive-lock")], "layering cannot be left out"),
            (&[("maxCloneDepth", "15")], "from 0 to 14"),
            (&[("maxCloneDepth", "-1")], "from 0 to 14"),
            (&[("flattenTarget", "both")], "auto or source or clone"),
            (&[("flattenOnRestore", "yes")], "true or false"),
            (&[("deleteWithSnapshots", "maybe")], "retain or refuse"),
            (&[("cloneFormat", "3")], "from 1 to 2"),
            (&[("objectSize", "5000")], "power of two"),
            (&[("stripeUnit", "4096")], "go together"),
            (&[("sourceImage", "rbd://image")], "sourceImage \"rbd://image\" is not a snapshot"),
            (&[("volumeNamePrefix", "-x")], "begins with a letter"),
            (&[("volumeNamePrefix", &"x".repeat(25))], "at most 24 bytes"),
        ] {
            let status = VolumeParameters::parse(&parameters(more), &config()).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(words), "{more:?} gave {:?}", status.message());
        }
    }

    #[test]
    fn sidecar_keys_are_never_compared() {
        let with = parameters(&[("csi.storage.k8s.io/pv/name", "pv")]);
        assert_eq!(compared(&with), parameters(&[]));
    }
}
