//! What must hold when nothing is in flight: the invariants of the lineage, read off a picture of
//! the whole cluster.

use std::collections::{BTreeMap, BTreeSet};

use cinderblock::rbd::SnapshotKind;
use cinderblock::rbd::model::{Graph, ImageGraph, LinkGraph, PoolGraph, SnapshotGraph};
use cinderblock::volume::catalogue::{Group, Publication, Silent, Snapshot, State, Volume};
use cinderblock::volume::journal::Suspect;
use cinderblock::volume::names;
use serde::de::DeserializeOwned;

use crate::lab::Lab;

/// A pool and a namespace.
type Place = (String, String);

/// What the driver wrote down, read straight from its RADOS objects.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) volumes: BTreeMap<(Place, String), Volume>,
    pub(crate) snapshots: BTreeMap<(Place, String), Snapshot>,
    pub(crate) groups: BTreeMap<(Place, String), Group>,
    pub(crate) silent: BTreeMap<(Place, String), Silent>,
    pub(crate) suspects: Vec<Suspect>,
    /// The token of each node's notes, by image and node.
    pub(crate) clients: BTreeMap<(Place, String), String>,
    pub(crate) others: Vec<String>,
}

/// What is in the cluster although the driver does not know it, or that is not as it leaves things.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exempt {
    /// Names of images that another client made.
    pub(crate) images: BTreeSet<String>,
    /// Names of snapshots that another client made.
    pub(crate) snapshots: BTreeSet<String>,
    /// Another client flattened clones or removed snapshots: snapshots for clones, and silent
    /// parents, may have lost their reason unnoticed.
    pub(crate) childless_clone_snapshots: bool,
    /// Suspects, and what they are suspected of, may wait for the next collect.
    pub(crate) unsettled: bool,
    /// A client has images open.
    pub(crate) watchers: bool,
    /// A volume was being grown, and no caller asked again: it has more bytes than its record says.
    pub(crate) grown: bool,
}

impl Notes {
    pub(crate) fn of(graph: &Graph) -> Notes {
        let mut notes = Notes::default();
        for (place, pool) in &graph.pools {
            for (key, value) in pool.objects.values().flatten() {
                let entry = |kind| {
                    key.strip_prefix(kind).map(|name: &str| (place.clone(), name.to_owned()))
                };
                if let Some(entry) = entry("volume/") {
                    notes.volumes.insert(entry, read(value));
                } else if let Some(entry) = entry("snapshot/") {
                    notes.snapshots.insert(entry, read(value));
                } else if let Some(entry) = entry("group/") {
                    notes.groups.insert(entry, read(value));
                } else if let Some(entry) = entry("silent/") {
                    notes.silent.insert(entry, read(value));
                } else if let Some(entry) = entry("notes/") {
                    let token =
                        read::<serde_json::Value>(value)["token"].as_str().unwrap().to_owned();
                    notes.clients.insert(entry, token);
                } else if key.contains('@') && key.contains('#') {
                    let suspect: Suspect = read(value);
                    // The next sweep there forgets a copy that another pool's journal has no more.
                    if (&suspect.pool, &suspect.namespace) == (&place.0, &place.1) {
                        notes.suspects.push(suspect);
                    }
                } else {
                    notes.others.push(key.clone());
                }
            }
        }
        notes
    }
}

fn read<R: DeserializeOwned>(value: &[u8]) -> R {
    serde_json::from_slice(value).unwrap()
}

impl Lab {
    /// Nothing is in flight, and nothing is exempt.
    pub(crate) fn assert_at_rest(&self) {
        self.assert_at_rest_but(&self.exempt());
    }

    /// The golden images that another client made, with their snapshot, and nothing else.
    pub(crate) fn exempt(&self) -> Exempt {
        let golden = self.golden.lock().unwrap();
        let snapshots = golden.iter().map(|_| "v1".to_owned()).collect();
        let images = golden.iter().map(|(_, name)| name.clone()).collect();
        Exempt { images, snapshots, ..Exempt::default() }
    }

    pub(crate) fn assert_at_rest_but(&self, exempt: &Exempt) {
        let graph = self.graph();
        let broken = broken(&graph, exempt);
        assert!(broken.is_empty(), "not at rest:\n  {}\n{graph}", broken.join("\n  "));
    }
}

/// Every way in which the cluster is not at rest.
pub(crate) fn broken(graph: &Graph, exempt: &Exempt) -> Vec<String> {
    let notes = Notes::of(graph);
    let mut check = Check { graph, notes: &notes, exempt, broken: Vec::new() };
    for (place, pool) in &graph.pools {
        check.directory(place, pool);
    }
    for (pool, namespace, id, image) in graph.images() {
        check.image(&(pool.to_owned(), namespace.to_owned()), id, image);
    }
    check.records();
    check.journal();
    check.broken
}

struct Check<'a> {
    graph: &'a Graph,
    notes: &'a Notes,
    exempt: &'a Exempt,
    broken: Vec<String>,
}

impl Check<'_> {
    fn say(&mut self, what: String) {
        self.broken.push(what);
    }

    /// No half-made or half-removed image, and the trash is empty.
    fn directory(&mut self, place: &Place, pool: &PoolGraph) {
        if pool.names != pool.id_objects {
            self.say(format!("{place:?}: the directory and the id objects differ"));
        }
        for (id, entry) in &pool.trash {
            self.say(format!("{place:?}: {} ({id}) is in the trash", entry.name));
        }
        for (name, id) in &pool.names {
            if !pool.images.contains_key(id) {
                self.say(format!("{place:?}: {name} has no header"));
            }
        }
    }

    fn image(&mut self, place: &Place, id: &str, image: &ImageGraph) {
        let name = image.name.clone().unwrap_or_default();
        if !self.exempt.watchers && !image.watchers.is_empty() {
            self.say(format!("{name} is watched"));
        }
        let foreign = self.exempt.images.contains(&name);
        let note = self.notes.silent.get(&(place.clone(), id.to_owned()));
        let (silent, parked) = (note.is_some(), note.is_some_and(|note| note.trash.is_some()));
        match self.notes.volumes.get(&(place.clone(), name.clone())) {
            Some(_) if silent => self.say(format!("{name} is a volume and silent")),
            Some(record) if !foreign => {
                let grown = self.exempt.grown && image.size > record.size;
                if record.size != image.size && !grown {
                    self.say(format!(
                        "{name} has {} bytes, its record {}",
                        image.size, record.size
                    ));
                }
                if record.image_id.as_ref().is_some_and(|recorded| recorded != id) {
                    self.say(format!("{name} has the id {id}, its record {:?}", record.image_id));
                }
            }
            Some(_) => self.say(format!("{name} is foreign, but has a record")),
            None if silent && !name.ends_with(names::SILENT_SUFFIX) => {
                self.say(format!("{name} is noted as silent"));
            }
            None if silent
                && !parked
                && image.snapshots.is_empty()
                && !self.exempt.unsettled
                && !self.exempt.childless_clone_snapshots =>
            {
                self.say(format!("{name} is silent, and nothing needs it"));
            }
            None if !silent && !foreign => self.say(format!("{name} is unknown to the catalogue")),
            None => {}
        }
        self.link(place, id, &name, image.link.as_ref());
        for (snapshot_id, snapshot) in &image.snapshots {
            self.link(place, id, &format!("{name}@{}", snapshot.name), snapshot.link.as_ref());
            self.snapshot(place, id, &name, *snapshot_id, snapshot);
        }
    }

    /// The parent of a head or of a snapshot is there, and knows of it.
    fn link(&mut self, place: &Place, id: &str, what: &str, link: Option<&LinkGraph>) {
        let Some(link) = link else { return };
        let parent =
            self.graph.parent(link).and_then(|parent| parent.snapshots.get(&link.snapshot));
        let child = (place.0.clone(), place.1.clone(), id.to_owned());
        match parent {
            None => self.say(format!("the parent of {what} is gone")),
            Some(parent) if !parent.children.contains(&child) => {
                self.say(format!("{what} is not among the children of {}", parent.name));
            }
            Some(_) => {}
        }
    }

    fn snapshot(
        &mut self,
        place: &Place,
        id: &str,
        image: &str,
        snapshot_id: u64,
        snapshot: &SnapshotGraph,
    ) {
        let name = format!("{image}@{}", snapshot.name);
        for (pool, namespace, child_id) in &snapshot.children {
            let child = self
                .graph
                .pools
                .get(&(pool.clone(), namespace.clone()))
                .and_then(|pool| pool.images.get(child_id));
            let links_here = |link: &LinkGraph| link.image_id == id && link.snapshot == snapshot_id;
            let linked = child.is_some_and(|child| {
                let mut links =
                    child.snapshots.values().map(|snapshot| &snapshot.link).chain([&child.link]);
                links.any(|link| link.as_ref().is_some_and(links_here))
            });
            if !linked {
                self.say(format!("{name} has the child {child_id}, which does not link to it"));
            }
            let format = child
                .and_then(|child| child.name.clone())
                .and_then(|child| {
                    self.notes.volumes.get(&((pool.clone(), namespace.clone()), child))
                })
                .map(|record| record.clone_format);
            if format == Some(1) && !snapshot.protected {
                self.say(format!("{name} has a clone of format 1 and is not protected"));
            }
        }
        let childless = snapshot.children.is_empty();
        match &snapshot.kind {
            SnapshotKind::User if names::is_collectable_snapshot(&snapshot.name) => {
                if childless && !self.exempt.childless_clone_snapshots && !self.exempt.unsettled {
                    self.say(format!("{name} has no child"));
                }
            }
            SnapshotKind::User if names::is_backup_snapshot(&snapshot.name) => {}
            SnapshotKind::User => {
                let foreign = self.exempt.snapshots.contains(&snapshot.name);
                let recorded =
                    self.notes.snapshots.get(&(place.clone(), snapshot.name.clone())).is_some_and(
                        |record| record.image_id == id && record.snapshot_id == snapshot_id,
                    );
                if foreign == recorded {
                    self.say(format!("{name} is foreign ({foreign}), and recorded ({recorded})"));
                }
            }
            SnapshotKind::Trash { .. } => {
                if childless && !self.exempt.unsettled {
                    self.say(format!("{name} is parked without a child"));
                }
            }
            SnapshotKind::Group | SnapshotKind::Mirror | SnapshotKind::Unknown => {}
        }
    }

    fn records(&mut self) {
        for ((place, name), record) in &self.notes.volumes {
            if record.state != State::Ready {
                self.broken.push(format!("{name} is recorded as {:?}", record.state));
            }
            let pool = self.graph.pools.get(place);
            if !pool.is_some_and(|pool| pool.names.contains_key(name)) {
                self.broken.push(format!("{name} is recorded, but does not exist"));
            }
        }
        for ((place, name), record) in &self.notes.snapshots {
            if record.state != State::Ready {
                self.broken.push(format!("the snapshot {name} is recorded as {:?}", record.state));
            }
            let image =
                self.graph.pools.get(place).and_then(|pool| pool.images.get(&record.image_id));
            match image.and_then(|image| image.snapshots.get(&record.snapshot_id)) {
                None => {
                    self.broken
                        .push(format!("the snapshot {name} is recorded, but does not exist"));
                }
                Some(found) if found.name != *name || found.size != record.size => {
                    self.broken.push(format!(
                        "the snapshot {name} is recorded as {record:?}, but is {found:?}"
                    ));
                }
                Some(_) => {}
            }
        }
        self.groups();
        for (place, id) in self.notes.silent.keys() {
            if !self.graph.pools.get(place).is_some_and(|pool| pool.images.contains_key(id)) {
                self.broken.push(format!("{id} is noted as silent, but does not exist"));
            }
        }
        let is_published = |((place, name), token): (&(Place, String), &String)| {
            let (image, node) = name.split_once('/').unwrap();
            let volume = self.notes.volumes.get(&(place.clone(), image.to_owned()));
            volume.is_some_and(|volume| {
                let has_token = |publication: &Publication| {
                    publication.node == node && publication.token.as_ref() == Some(token)
                };
                volume.published.iter().any(has_token)
            })
        };
        let left: Vec<_> =
            self.notes.clients.iter().filter(|notes| !is_published(*notes)).collect();
        let left: Vec<_> =
            left.into_iter().map(|((_, name), _)| format!("there are the notes {name}")).collect();
        self.broken.extend(left);
        for key in &self.notes.others {
            self.broken.push(format!("there is the note {key}"));
        }
    }

    /// A group is ready, and it and its members know each other.
    fn groups(&mut self) {
        let mut members: BTreeSet<_> = self
            .notes
            .snapshots
            .iter()
            .filter(|(_, record)| record.group.is_some())
            .map(|(key, _)| key)
            .collect();
        for ((place, name), group) in &self.notes.groups {
            if group.state != State::Ready {
                self.broken
                    .push(format!("the group snapshot {name} is recorded as {:?}", group.state));
            }
            for member in &group.members {
                let key = (place.clone(), member.snapshot.clone());
                members.remove(&key);
                let known = self.notes.snapshots.get(&key).is_some_and(|record| {
                    record.group.as_deref() == Some(name)
                        && (record.snapshot_id, record.size) == (member.snapshot_id, member.size)
                        && (&record.image_id, &record.source_volume)
                            == (&member.image_id, &member.source_volume)
                });
                if !known {
                    self.broken
                        .push(format!("the group snapshot {name} has no {}", member.snapshot));
                }
            }
        }
        self.broken.extend(
            members.iter().map(|(_, name)| format!("{name} is a member of no group snapshot")),
        );
    }

    /// A suspect stays only while the link it stands for does.
    fn journal(&mut self) {
        for suspect in self
            .notes
            .suspects
            .iter()
            .filter(|_| !self.exempt.unsettled && !self.exempt.childless_clone_snapshots)
        {
            let image = self
                .graph
                .pools
                .get(&(suspect.pool.clone(), suspect.namespace.clone()))
                .and_then(|pool| pool.images.get(&suspect.image_id));
            let stands = image
                .and_then(|image| image.snapshots.get(&suspect.snapshot?))
                .is_some_and(|snapshot| {
                    let child = suspect.child.as_ref().map(|child| child.image_id.as_str());
                    snapshot.children.iter().any(|(_, _, listed)| Some(listed.as_str()) == child)
                });
            // Other tools' snapshots and clones go without a word.
            let waits = image.is_some_and(|image| {
                image.snapshots.values().any(|snapshot| {
                    let is_foreign = |(pool, namespace, id): &(String, String, String)| {
                        let place = (pool.clone(), namespace.clone());
                        let name = self.graph.pools[&place].images[id].name.clone();
                        name.is_some_and(|name| self.exempt.images.contains(&name))
                    };
                    self.exempt.snapshots.contains(&snapshot.name)
                        || snapshot.children.iter().any(is_foreign)
                })
            });
            if !stands && !waits {
                self.broken.push(format!("the suspect {suspect:?} is not settled"));
            }
        }
    }
}
