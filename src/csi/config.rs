//! The configuration file: which clusters there are, and how their volumes are kept.
//!
//! ceph-csi's `config.json` is read as it is: a list of clusters with `clusterID` and `monitors`.
//! Ours may be YAML, may wrap the list as `clusters:` beside other keys, and knows more keys per
//! cluster. An unknown key is an error, so that a typing mistake is found at start-up and not by a
//! user.

use super::ids;
use super::parameters::{Parameter, parameter};
use super::topology::{self, Segments};
use crate::volume::{DeleteWithSnapshots, FlattenTarget, Policy};
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The keys of a cluster.
pub const CLUSTER_KEYS: &[Parameter] = &[
    parameter(
        "clusterID",
        "required",
        "What StorageClasses call it by: 1 to 36 letters, digits, `.`, `_`, `-`.",
    ),
    parameter(
        "monitors",
        "`cephConf`'s",
        "Addresses: `host`, `host:port` or `[v2:host:port,v1:host:port]`.",
    ),
    parameter("cephConf", "none", "The path of a ceph.conf to read instead of `monitors`."),
    parameter(
        "rbd",
        "none",
        "A map, as ceph-csi has it; `radosNamespace` in it is for classes that name none.",
    ),
    parameter(
        "userID",
        "none",
        "The driver's own user, for work that comes without secrets; goes with `keyFile`.",
    ),
    parameter(
        "keyFile",
        "none",
        "A file that holds that user's key and nothing else; read anew each time.",
    ),
    parameter(
        "pools",
        "none",
        "Pools this driver serves, as `pool` or `pool/namespace`: what is listed, and finished at start-up, as `userID`.",
    ),
    parameter("secretUUID", "none", "Handed out with published volumes, for libvirt."),
    parameter(
        "maxCloneDepth",
        "5",
        "Images in a chain of clones, from 0 to 14; 0 makes every clone a full copy.",
    ),
    parameter(
        "maxSnapshotsPerImage",
        "450",
        "Snapshots of one image, from 2 to 500: the kernel maps at most 510.",
    ),
    parameter(
        "flattenOnRestore",
        "false",
        "Whether a volume made from a snapshot is flattened at once.",
    ),
    parameter(
        "flattenTarget",
        "`auto`",
        "What is flattened at the limit: `source`, `clone`, or `auto`: the source when nothing is attached to it.",
    ),
    parameter(
        "deleteWithSnapshots",
        "`retain`",
        "What DeleteVolume does with a volume that has snapshots: `retain` or `refuse`.",
    ),
    parameter("cloneFormat", "2", "The format of clones and their snapshots, 1 or 2."),
    parameter(
        "topology",
        "none",
        "A map of segments, such as `topology.kubernetes.io/zone: a`: nodes that are elsewhere do not reach the cluster.",
    ),
    parameter("cephFS", "none", "Passed over: ceph-csi's."),
    parameter("nfs", "none", "Passed over: ceph-csi's."),
    parameter("readAffinity", "none", "Passed over: ceph-csi's."),
];

/// The keys beside the list of clusters.
pub const FILE_KEYS: &[Parameter] = &[
    parameter("clusters", "required", "The list of clusters."),
    parameter("nodes", "any", "Ids of the nodes that volumes may be published to."),
];

/// The whole file.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The clusters by `clusterID`.
    pub clusters: BTreeMap<String, Cluster>,
    /// Ids of the nodes that volumes may be published to; empty: any.
    pub nodes: Vec<String>,
}

/// One cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// What StorageClasses call it by.
    #[serde(rename = "clusterID")]
    pub cluster_id: String,
    /// Monitor addresses, `host`, `host:port` or `[v2:host:port,v1:host:port]`.
    #[serde(default)]
    pub monitors: Vec<String>,
    /// A ceph.conf to read instead, the seed's `rbd_ceph_conf`.
    pub ceph_conf: Option<PathBuf>,
    #[serde(default)]
    rbd: Rbd,
    /// The driver's own user for work that comes without secrets.
    #[serde(rename = "userID")]
    pub user_id: Option<String>,
    /// File that holds that user's key and nothing else.
    pub key_file: Option<PathBuf>,
    /// Pools this instance serves, as `pool` or `pool/namespace`; needed for work that comes
    /// without a pool.
    #[serde(default)]
    pub pools: Vec<String>,
    /// Handed out with a published volume, the seed's `rbd_secret_uuid`.
    #[serde(rename = "secretUUID")]
    pub secret_uuid: Option<String>,
    max_clone_depth: Option<u32>,
    max_snapshots_per_image: Option<usize>,
    flatten_on_restore: Option<bool>,
    flatten_target: Option<FlattenTargetName>,
    /// What DeleteVolume does with a volume that has snapshots, unless the class says otherwise.
    #[serde(default)]
    pub delete_with_snapshots: DeleteWithSnapshots,
    /// Format of clones, 1 or 2, unless the class says otherwise.
    #[serde(default = "two")]
    pub clone_format: u8,
    /// From where the cluster is reached; from everywhere when empty.
    #[serde(default)]
    pub topology: Segments,
    // Keys of ceph-csi's file that concern other file systems, or its own way of working.
    #[serde(default, rename = "cephFS")]
    _ceph_fs: IgnoredAny,
    #[serde(default, rename = "nfs")]
    _nfs: IgnoredAny,
    #[serde(default, rename = "readAffinity")]
    _read_affinity: IgnoredAny,
}

fn two() -> u8 {
    2
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rbd {
    #[serde(default)]
    rados_namespace: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FlattenTargetName {
    Auto,
    Source,
    Clone,
}

impl Cluster {
    /// The RADOS namespace of volumes whose class names none, ceph-csi's `rbd.radosNamespace`.
    pub fn default_namespace(&self) -> &str {
        &self.rbd.rados_namespace
    }

    /// The pools and namespaces that it names.
    pub fn places(&self) -> impl Iterator<Item = ids::Location> {
        self.pools.iter().map(|named| {
            let (pool, namespace) =
                named.split_once('/').unwrap_or((named, self.default_namespace()));
            ids::Location {
                cluster: self.cluster_id.clone(),
                pool: pool.to_owned(),
                namespace: namespace.to_owned(),
            }
        })
    }

    /// How lineages are kept in bounds, unless the class says otherwise.
    pub fn policy(&self) -> Policy {
        let default = Policy::default();
        Policy {
            max_clone_depth: self.max_clone_depth.unwrap_or(default.max_clone_depth),
            max_snapshots: self.max_snapshots_per_image.unwrap_or(default.max_snapshots),
            flatten_on_restore: self.flatten_on_restore.unwrap_or(default.flatten_on_restore),
            flatten_target: match self.flatten_target {
                None => default.flatten_target,
                Some(FlattenTargetName::Auto) => FlattenTarget::Auto,
                Some(FlattenTargetName::Source) => FlattenTarget::Source,
                Some(FlattenTargetName::Clone) => FlattenTarget::Clone,
            },
        }
    }

    /// What is wrong with this cluster's entry, in words for the person who wrote it.
    fn check(&self) -> Result<(), String> {
        let id = &self.cluster_id;
        let at = |what: String| Err(format!("cluster {id:?}: {what}"));
        if !ids::is_name(id) || id.len() > 36 {
            return at("clusterID must be 1 to 36 letters, digits, '.', '_' or '-'".into());
        }
        if self.monitors.is_empty() && self.ceph_conf.is_none() {
            return at(
                "give its monitors, or cephConf with the path of a ceph.conf that names them"
                    .into(),
            );
        }
        if let Some(bad) = self
            .monitors
            .iter()
            .find(|m| m.is_empty() || m.contains(|c: char| c.is_whitespace() || c == '\0'))
        {
            return at(format!(
                "monitors holds {bad:?}: expected host, host:port or [v2:host:port,v1:host:port]"
            ));
        }
        if self.user_id.is_some() != self.key_file.is_some() {
            return at("userID and keyFile go together".into());
        }
        if !self.default_namespace().is_empty() && !ids::is_name(self.default_namespace()) {
            return at(format!(
                "rbd.radosNamespace {:?} is no RADOS namespace",
                self.default_namespace()
            ));
        }
        for pool in &self.pools {
            let (pool, namespace) = pool.split_once('/').unwrap_or((pool, "-"));
            if !ids::is_name(pool) || !ids::is_name(namespace) {
                return at(format!("pools holds {pool:?}: expected pool or pool/namespace"));
            }
        }
        if self.policy().max_clone_depth > Policy::DEEPEST {
            return at(format!(
                "maxCloneDepth is at most {}: the kernel opens at most 16 images",
                Policy::DEEPEST
            ));
        }
        if !(2..=Policy::MOST_SNAPSHOTS).contains(&self.policy().max_snapshots) {
            return at(format!(
                "maxSnapshotsPerImage is from 2 to {}: the kernel maps at most 510",
                Policy::MOST_SNAPSHOTS
            ));
        }
        for (key, value) in &self.topology {
            if let Err(why) = topology::check(key, value) {
                return at(format!("topology: {why}"));
            }
        }
        if !matches!(self.clone_format, 1 | 2) {
            return at(format!("cloneFormat is 1 or 2, not {}", self.clone_format));
        }
        Ok(())
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// The system's answer.
        error: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration {path} is wrong: {why}")]
    Wrong {
        /// The file.
        path: String,
        /// What is wrong, and where.
        why: String,
    },
}

impl Config {
    /// Reads and checks the file.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: name.clone(), error })?;
        Config::parse(&text).map_err(|why| ConfigError::Wrong { path: name, why })
    }

    /// Reads and checks the text of a configuration, YAML or JSON.
    pub fn parse(text: &str) -> Result<Config, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if file.clusters.is_empty() {
            return Err("it names no cluster".to_string());
        }
        let mut clusters = BTreeMap::new();
        for cluster in file.clusters {
            cluster.check()?;
            let id = cluster.cluster_id.clone();
            if clusters.insert(id.clone(), cluster).is_some() {
                return Err(format!("clusterID {id:?} is there twice"));
            }
        }
        Ok(Config { clusters, nodes: file.nodes })
    }
}

/// A list of clusters, or a map with that list under `clusters`.
struct File {
    clusters: Vec<Cluster>,
    nodes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wrapped {
    clusters: Vec<Cluster>,
    #[serde(default)]
    nodes: Vec<String>,
}

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<File, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = File;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of clusters, or a map with the key clusters")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<File, A::Error> {
                let clusters = Vec::deserialize(de::value::SeqAccessDeserializer::new(list))?;
                Ok(File { clusters, nodes: Vec::new() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<File, A::Error> {
                let Wrapped { clusters, nodes } =
                    Wrapped::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(File { clusters, nodes })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_file_is_read_as_it_is() {
        let config = Config::parse(
            r#"[{"clusterID": "b9127830-b0cc-4e34-aa47-9d1a2e9949a8",
                 "monitors": ["192.168.0.1:6789", "[v2:10.0.0.2:3300,v1:10.0.0.2:6789]"],
                 "rbd": {"radosNamespace": "tenant", "mirrorDaemonCount": 1, "netNamespaceFilePath": ""},
                 "cephFS": {"subvolumeGroup": "csi"}, "nfs": {}, "readAffinity": {"enabled": false}}]"#,
        )
        .unwrap();
        let cluster = &config.clusters["b9127830-b0cc-4e34-aa47-9d1a2e9949a8"];
        assert_eq!(cluster.default_namespace(), "tenant");
        assert_eq!(cluster.monitors.len(), 2);
        assert_eq!(cluster.policy(), Policy::default());
    }

    #[test]
    fn our_own_form_sets_more() {
        let config = Config::parse(
            "clusters:\n- clusterID: lab\n  cephConf: /etc/ceph/ceph.conf\n  userID: csi\n  keyFile: /run/key\n  pools: [rbd, rbd/tenant]\n  \
             maxCloneDepth: 0\n  flattenTarget: clone\n  deleteWithSnapshots: refuse\n  cloneFormat: 1\nnodes: [n1]\n",
        )
        .unwrap();
        let cluster = &config.clusters["lab"];
        assert_eq!(cluster.policy().max_clone_depth, 0);
        assert_eq!(cluster.policy().flatten_target, FlattenTarget::Clone);
        assert_eq!(cluster.delete_with_snapshots, DeleteWithSnapshots::Refuse);
        assert_eq!(config.nodes, ["n1"]);
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        for (text, words) in [
            ("", "unexpected end of input"),
            ("[]", "names no cluster"),
            ("- clusterID: a", "give its monitors"),
            ("- monitors: [a]", "clusterID"),
            ("- {clusterID: a b, monitors: [m]}", "letters, digits"),
            ("- {clusterID: a, monitors: [m], monitor: x}", "unknown field `monitor`"),
            ("- {clusterID: a, monitors: ['a b']}", "expected host"),
            ("- {clusterID: a, monitors: [m], maxCloneDepth: 15}", "at most 14"),
            ("- {clusterID: a, monitors: [m], maxSnapshotsPerImage: 501}", "from 2 to 500"),
            ("- {clusterID: a, monitors: [m], cloneFormat: 3}", "1 or 2"),
            ("- {clusterID: a, monitors: [m], userID: u}", "go together"),
            ("- {clusterID: a, monitors: [m], flattenTarget: both}", "both"),
            ("- {clusterID: a, monitors: [m]}\n- {clusterID: a, monitors: [m]}", "twice"),
            ("{clusters: [], extra: 1}", "unknown field `extra`"),
            ("just text", "list of clusters"),
            ("- [", "line"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(words), "{text:?} gave {error:?}, which lacks {words:?}");
        }
    }
}
