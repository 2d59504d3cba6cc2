//! A picture of the whole model, to check invariants on and to print when one is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::state::{Header, ImageRef, Link, Place, Protection, Space, State};
use crate::rbd::{SnapshotId, SnapshotKind};

/// Everything in the cluster at one moment. Printed (`{}`), one line per image, trash entry and
/// object, in the form `rbd/b [s1 #4 protected] <- rbd/a@#2`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    /// By pool and RADOS namespace; namespaces that hold nothing are left out.
    pub pools: BTreeMap<(String, String), PoolGraph>,
}

/// One RADOS namespace of one pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolGraph {
    /// The directory: name to id.
    pub names: BTreeMap<String, String>,
    /// The id objects by which images open: name to id. Differs from `names` only after a crash.
    pub id_objects: BTreeMap<String, String>,
    /// Every image with a header, by id.
    pub images: BTreeMap<String, ImageGraph>,
    /// Trash entries by image id.
    pub trash: BTreeMap<String, TrashGraph>,
    /// Plain RADOS objects with their omaps.
    pub objects: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageGraph {
    /// Its name in the directory or the trash; `None` when neither knows it.
    pub name: Option<String>,
    /// Size of the head in bytes.
    pub size: u64,
    /// What the head is a clone of.
    pub link: Option<LinkGraph>,
    /// Snapshots of any kind by id.
    pub snapshots: BTreeMap<SnapshotId, SnapshotGraph>,
    /// Image metadata.
    pub metadata: BTreeMap<String, String>,
    /// Addresses of those who watch it.
    pub watchers: Vec<String>,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotGraph {
    /// Its name; in the trash namespace librbd's own.
    pub name: String,
    /// Which namespace it is in.
    pub kind: SnapshotKind,
    /// Size in bytes.
    pub size: u64,
    /// Whether it is protected.
    pub protected: bool,
    /// What it is a clone of.
    pub link: Option<LinkGraph>,
    /// The clones registered with it, of both formats, as (pool, namespace, image id).
    pub children: BTreeSet<(String, String, String)>,
}

/// The clone's side of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkGraph {
    /// Pool of the parent.
    pub pool: String,
    /// RADOS namespace of the parent.
    pub namespace: String,
    /// Id of the parent.
    pub image_id: String,
    /// The snapshot on it.
    pub snapshot: SnapshotId,
}

/// A trash entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrashGraph {
    /// The name the image had.
    pub name: String,
    /// Whether it is an unfinished removal.
    pub removing: bool,
}

impl Graph {
    pub(super) fn of(state: &State) -> Graph {
        let pool = |(place, space): (&Place, &Space)| {
            let names = (place.pool.to_string(), place.namespace.to_string());
            (names, pool_graph(state, place, space))
        };
        let mut pools: BTreeMap<_, _> = state.spaces.iter().map(pool).collect();
        pools.retain(|_, pool| *pool != PoolGraph::default());
        Graph { pools }
    }

    /// Whether there is nothing at all: no image or part of one, no trash, no object.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    /// Whether there is no image or part of one and no trash; plain objects may be there.
    pub fn has_no_images(&self) -> bool {
        self.pools.values().all(|pool| {
            pool.names.is_empty()
                && pool.id_objects.is_empty()
                && pool.images.is_empty()
                && pool.trash.is_empty()
        })
    }

    /// Every image with its pool, namespace and id.
    pub fn images(&self) -> impl Iterator<Item = (&str, &str, &str, &ImageGraph)> {
        self.pools.iter().flat_map(|((pool, namespace), graph)| {
            graph
                .images
                .iter()
                .map(move |(id, image)| (pool.as_str(), namespace.as_str(), id.as_str(), image))
        })
    }

    /// The image a link points to.
    pub fn parent(&self, link: &LinkGraph) -> Option<&ImageGraph> {
        self.pools.get(&(link.pool.clone(), link.namespace.clone()))?.images.get(&link.image_id)
    }
}

fn link_graph(link: &Link) -> LinkGraph {
    let image = &link.parent.image;
    LinkGraph {
        pool: image.place.pool.to_string(),
        namespace: image.place.namespace.to_string(),
        image_id: image.id.to_string(),
        snapshot: link.parent.snapshot,
    }
}

fn pool_graph(state: &State, place: &Place, space: &Space) -> PoolGraph {
    let image = |(id, header): (&String, &Header)| {
        (id.clone(), image_graph(state, &ImageRef::new(place, id), header))
    };
    let trash = |(id, item): (&String, &super::state::TrashItem)| {
        (id.clone(), TrashGraph { name: item.name.clone(), removing: item.removing })
    };
    PoolGraph {
        names: space.names.clone(),
        id_objects: space.id_objects.clone(),
        images: space.headers.iter().map(image).collect(),
        trash: space.trash.iter().map(trash).collect(),
        objects: space.objects.clone(),
    }
}

fn image_graph(state: &State, image: &ImageRef, header: &Header) -> ImageGraph {
    let snapshots = header.snapshots.iter().map(|(id, snapshot)| {
        let child = |child: ImageRef| {
            (child.place.pool.to_string(), child.place.namespace.to_string(), child.id.to_string())
        };
        let graph = SnapshotGraph {
            name: snapshot.name.clone(),
            kind: snapshot.kind.clone(),
            size: snapshot.size,
            protected: snapshot.protection != Protection::Unprotected,
            link: snapshot.link.as_ref().map(link_graph),
            children: state.registered(image, *id).into_iter().map(child).collect(),
        };
        (*id, graph)
    });
    ImageGraph {
        name: state.image_name(image).map(|(name, _)| name),
        size: header.size,
        link: header.link.as_ref().map(link_graph),
        snapshots: snapshots.collect(),
        metadata: header.metadata.clone(),
        watchers: header.watches.iter().map(|watch| watch.address.clone()).collect(),
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((pool, namespace), graph) in &self.pools {
            let place = Place::new(pool, namespace);
            for (id, image) in &graph.images {
                self.write_image(formatter, &place, graph, id, image)?;
            }
            for (name, id) in graph.names.iter().filter(|(_, id)| !graph.images.contains_key(*id)) {
                writeln!(formatter, "{} (id {id}): in the directory, no header", place.spec(name))?;
            }
            for (name, id) in
                graph.id_objects.iter().filter(|(name, id)| graph.names.get(*name) != Some(id))
            {
                writeln!(
                    formatter,
                    "{} (id {id}): id object, not in the directory",
                    place.spec(name)
                )?;
            }
            for (id, item) in &graph.trash {
                let removing = if item.removing { ", removing" } else { "" };
                writeln!(
                    formatter,
                    "{} (id {id}): in the trash{removing}",
                    place.spec(&item.name)
                )?;
            }
            for (object, omap) in &graph.objects {
                writeln!(formatter, "{}: object with {} keys", place.spec(object), omap.len())?;
                for (key, value) in omap {
                    writeln!(formatter, "    {key} = {}", String::from_utf8_lossy(value))?;
                }
            }
        }
        Ok(())
    }
}

impl Graph {
    fn write_image(
        &self,
        formatter: &mut fmt::Formatter<'_>,
        place: &Place,
        graph: &PoolGraph,
        id: &str,
        image: &ImageGraph,
    ) -> fmt::Result {
        let name = image.name.as_deref().unwrap_or("(nameless)");
        write!(formatter, "{} (id {id}, {} bytes)", place.spec(name), image.size)?;
        for (snapshot_id, snapshot) in &image.snapshots {
            let name = match &snapshot.kind {
                SnapshotKind::Trash { original_name } => format!("parked {original_name}"),
                _ => snapshot.name.clone(),
            };
            let protected = if snapshot.protected { "*" } else { "" };
            write!(formatter, " [{name}{protected} #{snapshot_id}")?;
            self.write_link(formatter, snapshot.link.as_ref())?;
            for (_, _, child) in &snapshot.children {
                write!(formatter, ", child {child}")?;
            }
            write!(formatter, "]")?;
        }
        self.write_link(formatter, image.link.as_ref())?;
        if graph.trash.contains_key(id) {
            write!(formatter, " (trashed)")?;
        }
        for watcher in &image.watchers {
            write!(formatter, " watched by {watcher}")?;
        }
        writeln!(formatter)
    }

    fn write_link(
        &self,
        formatter: &mut fmt::Formatter<'_>,
        link: Option<&LinkGraph>,
    ) -> fmt::Result {
        let Some(link) = link else { return Ok(()) };
        let name =
            self.parent(link).and_then(|image| image.name.as_deref()).unwrap_or(&link.image_id);
        write!(
            formatter,
            " <- {}@#{}",
            Place::new(&link.pool, &link.namespace).spec(name),
            link.snapshot
        )
    }
}
