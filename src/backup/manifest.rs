//! What is told of a restore point: its manifest, which makes it one, and the note of one in the
//! making.
//!
//! `SERIES/POINT/manifest.json` lists the objects beside it. It is written last, unless it is
//! there, so a folder without one is no restore point.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::transfer::{Error, Result};
use crate::volume::DeleteWithSnapshots;

/// What a manifest calls its format.
const FORMAT: &str = "cinderblock-backup";
/// The version of manifests that this build writes; it reads no newer ones.
const VERSION: u32 = 1;

/// The object that makes a restore point.
pub(super) const MANIFEST: &str = "manifest.json";
/// The object that says what a restore point in the making is of.
pub(super) const DRAFT: &str = "draft.json";

/// A restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u32,
    /// The restore point's id: the moment its snapshot was cut, if the backup cut it; else the
    /// moment the backup began. It is unique in its series, and later ones sort behind earlier
    /// ones.
    pub id: String,
    /// The restore point that it is an increment to; a full one has none.
    pub parent: Option<Parent>,
    /// Where the bytes are from.
    pub source: Source,
    /// The image's size in bytes.
    pub size: u64,
    /// The stream that the objects make when they are decompressed one after another.
    pub stream: Stream,
    /// Its objects, in order.
    pub chunks: Vec<Chunk>,
    /// How the image was laid out.
    pub layout: Layout,
    /// What the image's metadata said of its content, if anything.
    pub content: Option<String>,
    /// What the catalogue knew of the volume, if it did.
    pub volume: Option<Volume>,
    /// What Kubernetes knew of the volume, if it was asked.
    pub kubernetes: Option<Kubernetes>,
}

/// A restore point that another one is based on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its id.
    pub id: String,
    /// The BLAKE3 digest of its manifest, in hexadecimal digits.
    pub blake3: String,
}

/// Where the bytes of a restore point are from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The cluster's fsid.
    pub fsid: String,
    /// The pool.
    pub pool: String,
    /// The RADOS namespace, "" for the default one.
    pub namespace: String,
    /// The image's name.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// The snapshot's name.
    pub snapshot: String,
    /// librbd's id of the snapshot.
    pub snapshot_id: u64,
    /// Seconds since 1970 when the snapshot was cut.
    pub cut: i64,
}

/// What the objects hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// `rbd diff v1`.
    pub format: String,
    /// `zstd`: each object is a whole frame.
    pub compression: String,
    /// The snapshot that an image must have before the stream is imported.
    pub from: Option<String>,
    /// The snapshot that it has afterwards.
    pub to: String,
    /// Bytes of the stream.
    pub bytes: u64,
}

/// An object of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Its name in the restore point's folder.
    pub object: String,
    /// Its bytes.
    pub size: u64,
    /// The bytes of the stream that it holds.
    pub bytes: u64,
    /// The BLAKE3 digest of the object, in hexadecimal digits.
    pub blake3: String,
}

/// How an image is laid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// log2 of the bytes of an object.
    pub order: u8,
    /// The feature bits, as librbd has them.
    pub features: u64,
    /// Stripe unit in bytes.
    pub stripe_unit: u64,
    /// Stripe count.
    pub stripe_count: u64,
}

/// What the catalogue knew of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its volume id.
    pub id: String,
    /// Its CSI name.
    pub name: String,
    /// The context that nodes need. It has the StorageClass parameters that are for nodes.
    pub context: BTreeMap<String, String>,
    /// The format its clones are made in.
    pub clone_format: u8,
    /// What DeleteVolume does when it still has snapshots.
    pub delete_with_snapshots: DeleteWithSnapshots,
}

/// What Kubernetes knew of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    /// The PersistentVolume's name.
    pub persistent_volume: String,
    /// The claim it was bound to, as NAMESPACE/NAME.
    pub claim: Option<String>,
    /// The StorageClass's name.
    pub storage_class: Option<String>,
    /// The StorageClass's parameters.
    pub parameters: BTreeMap<String, String>,
    /// The PersistentVolume as it can be created again.
    #[serde(default)]
    pub object: serde_json::Value,
}

/// A restore point in the making.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Draft {
    version: u32,
    /// The snapshot that is read.
    pub(super) snapshot: String,
    /// librbd's id of it.
    pub(super) snapshot_id: u64,
    /// The restore point that it is an increment to.
    pub(super) parent: Option<String>,
    /// A digest of what goes into which object.
    pub(super) plan: String,
}

impl Manifest {
    /// One of this version. Its format and version are set by this.
    #[expect(clippy::too_many_arguments, reason = "each is a field of the stored form")]
    pub(super) fn new(
        id: String,
        parent: Option<Parent>,
        source: Source,
        size: u64,
        from: Option<String>,
        chunks: Vec<Chunk>,
        layout: Layout,
        content: Option<String>,
        volume: Option<Volume>,
        kubernetes: Option<Kubernetes>,
    ) -> Manifest {
        let stream = Stream {
            format: "rbd diff v1".to_owned(),
            compression: "zstd".to_owned(),
            from,
            to: source.snapshot.clone(),
            bytes: chunks.iter().map(|chunk| chunk.bytes).sum(),
        };
        let (format, version) = (FORMAT.to_owned(), VERSION);
        Manifest {
            format,
            version,
            id,
            parent,
            source,
            size,
            stream,
            chunks,
            layout,
            content,
            volume,
            kubernetes,
        }
    }

    /// Bytes that its objects take.
    pub fn stored(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.size).sum()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        json(self)
    }

    /// Reads a manifest; `shown` names it in the error.
    pub(super) fn parse(bytes: &[u8], shown: &str) -> Result<Manifest> {
        #[derive(Deserialize)]
        struct Version {
            format: String,
            version: u32,
        }
        let unreadable = |why: String| Error::Failed(format!("{shown} {why}"));
        let found: Version = serde_json::from_slice(bytes)
            .map_err(|error| unreadable(format!("is no manifest ({error})")))?;
        if found.format != FORMAT {
            return Err(unreadable(format!("has the format {:?}, not {FORMAT}", found.format)));
        }
        if found.version > VERSION {
            return Err(unreadable(format!(
                "has version {}, and this program reads {VERSION}: run a newer one",
                found.version
            )));
        }
        serde_json::from_slice(bytes)
            .map_err(|error| unreadable(format!("is no manifest ({error})")))
    }
}

impl Draft {
    pub(super) fn new(source: &Source, parent: Option<String>, plan: String) -> Draft {
        let (snapshot, snapshot_id) = (source.snapshot.clone(), source.snapshot_id);
        Draft { version: VERSION, snapshot, snapshot_id, parent, plan }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        json(self)
    }

    /// Reads a draft. `None` for one of another version, or of none.
    pub(super) fn parse(bytes: &[u8]) -> Option<Draft> {
        serde_json::from_slice(bytes).ok().filter(|draft: &Draft| draft.version == VERSION)
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "plain structs with string keys always serialise")]
    serde_json::to_vec_pretty(value).expect("a manifest serialises")
}

/// The BLAKE3 digest of `bytes`, in hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
