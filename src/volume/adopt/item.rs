//! What an adoption finds, and what it does with each.

use crate::volume::catalogue::{Silent, Snapshot, Volume};
use serde::Serialize;
use std::collections::BTreeMap;

/// Something of another driver's, and what an adoption does with it.
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Its image's name.
    pub image: String,
    /// The snapshot's name on the image, for a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Its image's id, if there is an image.
    pub image_id: String,
    /// The CSI name. Empty for a parent.
    pub name: String,
    /// What the former driver's handle ends in, if it has handles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Bytes.
    pub size: u64,
    /// What is to be done.
    pub verdict: Verdict,
    #[serde(skip)]
    pub(super) record: Option<Planned>,
}

/// What is adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
    /// An image that only clones and snapshots need.
    Parent,
}

/// What an adoption does with an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "action", content = "why")]
pub enum Verdict {
    /// It is adopted.
    Adopt,
    /// An earlier run has begun to adopt it, and this one finishes that.
    Finish,
    /// An earlier run has adopted it.
    Adopted,
    /// It is left to its owner, and why.
    Refuse(String),
    /// The journal names it, and there is nothing to adopt.
    Lost(String),
}

/// The records to write.
#[derive(Debug, Clone)]
pub(super) enum Planned {
    Volume(Volume),
    /// A snapshot, with the silent parent that its image is if that serves the snapshot alone.
    Snapshot(Snapshot, Option<Silent>),
    Parent(Silent),
}

impl Item {
    /// One with nothing to adopt, for now.
    pub(super) fn new(kind: Kind, image: &str, name: &str, verdict: Verdict) -> Item {
        Item {
            kind,
            image: image.to_owned(),
            snapshot: None,
            image_id: String::new(),
            name: name.to_owned(),
            uuid: None,
            size: 0,
            verdict,
            record: None,
        }
    }

    /// Whether [`Volumes::adopt`] has something to do, or had it.
    pub fn is_adoptable(&self) -> bool {
        matches!(self.verdict, Verdict::Adopt | Verdict::Finish | Verdict::Adopted)
    }

    /// Leaves it to its owner.
    pub fn refuse(&mut self, why: String) {
        if matches!(self.verdict, Verdict::Adopt) {
            self.verdict = Verdict::Refuse(why);
        }
    }

    /// The volume's id, or that of the volume a snapshot is of.
    pub fn volume_id(&self) -> Option<&str> {
        match self.record.as_ref()? {
            Planned::Volume(record) => Some(&record.id),
            Planned::Snapshot(record, _) => Some(&record.source_volume),
            Planned::Parent(_) => None,
        }
    }

    /// The context that nodes get with the volume.
    pub fn context(&self) -> Option<&BTreeMap<String, String>> {
        match self.record.as_ref()? {
            Planned::Volume(record) => Some(&record.context),
            _ => None,
        }
    }

    /// Sets the context that nodes get with a volume that is not adopted yet.
    pub fn set_context(&mut self, context: BTreeMap<String, String>) {
        if let (Verdict::Adopt, Some(Planned::Volume(record))) = (&self.verdict, &mut self.record) {
            record.context = context;
        }
    }
}
