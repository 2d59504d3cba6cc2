//! The cluster in the notation of the lineage:
//! `A.deleted [s1*, B.clone_snap] ; B <- A.deleted@B.clone_snap`.
//!
//! Images in the order of their names, snapshots in the order they were cut; `*` is protected,
//! `(s)` is a snapshot parked in librbd's own trash namespace, `!` marks what is half-removed or
//! half-made. A snapshot's own link is written when it differs from the head's.

use cinderblock::rbd::SnapshotKind;
use cinderblock::rbd::model::{Graph, LinkGraph, SnapshotGraph};

use crate::lab::{Lab, RBD};

impl Lab {
    /// Everything there is, without what the driver notes about it.
    pub(crate) fn picture(&self) -> String {
        picture(&self.graph())
    }
}

pub(crate) fn picture(graph: &Graph) -> String {
    let mut images: Vec<String> = graph
        .images()
        .map(|(pool, namespace, id, image)| {
            let listed = graph.pools[&(pool.to_owned(), namespace.to_owned())]
                .names
                .values()
                .any(|listed| listed == id);
            let mut text = place(pool, namespace, image.name.as_deref().unwrap_or(id));
            if !listed {
                text.push('!');
            }
            if !image.snapshots.is_empty() {
                let snapshots: Vec<_> = image
                    .snapshots
                    .values()
                    .map(|snapshot| described(graph, snapshot, image.link.as_ref()))
                    .collect();
                text = format!("{text} [{}]", snapshots.join(", "));
            }
            text + &link(graph, image.link.as_ref())
        })
        .collect();
    images.sort();
    images.join(" ; ")
}

fn described(graph: &Graph, snapshot: &SnapshotGraph, head: Option<&LinkGraph>) -> String {
    let name = match &snapshot.kind {
        SnapshotKind::Trash { original_name } => format!("({original_name})"),
        _ => snapshot.name.clone(),
    };
    let protected = if snapshot.protected { "*" } else { "" };
    let own_link = match snapshot.link.as_ref() {
        own if own == head => String::new(),
        None => " <- nothing".to_owned(),
        own => link(graph, own),
    };
    name + protected + &own_link
}

fn link(graph: &Graph, link: Option<&LinkGraph>) -> String {
    let Some(link) = link else { return String::new() };
    let Some(parent) = graph.parent(link) else {
        return format!(" <- {}@{} (gone)", link.image_id, link.snapshot);
    };
    let snapshot = match parent.snapshots.get(&link.snapshot) {
        None => format!("#{} (gone)", link.snapshot),
        Some(SnapshotGraph { kind: SnapshotKind::Trash { original_name }, .. }) => {
            format!("({original_name})")
        }
        Some(snapshot) => snapshot.name.clone(),
    };
    let name = parent.name.as_deref().unwrap_or(&link.image_id);
    format!(" <- {}@{snapshot}", place(&link.pool, &link.namespace, name))
}

fn place(pool: &str, namespace: &str, name: &str) -> String {
    let at_home = pool == RBD.pool && namespace == RBD.namespace;
    if at_home { name.to_owned() } else { cinderblock::volume::image_spec(pool, namespace, name) }
}
