//! What there is to adopt of ceph-csi's, by its journal and its trash.

use super::{
    Adopted, CsiJournal, Item, Kind, Owner, Planned, Result, Silent, State, Verdict, VolumeIds,
    Volumes, catalogue, is_same, names, now, sorted,
};
use crate::rbd::{ImageKey, OpenMode, SnapshotKind};
use crate::volume::survey::Known;
use std::collections::BTreeSet;

/// A kind of entries in the journal.
struct Section {
    kind: Kind,
    /// The directory is named so, and then the instance.
    directory: &'static str,
    /// The object of an entry is named so, and then the uuid; its key in the directory is named so,
    /// and then the CSI name.
    entry: &'static str,
    /// Its image is named so, and then the uuid, if no class said otherwise.
    image: &'static str,
}

const SECTIONS: [Section; 2] = [
    Section {
        kind: Kind::Volume,
        directory: "csi.volumes.",
        entry: "csi.volume.",
        image: "csi-vol-",
    },
    Section {
        kind: Kind::Snapshot,
        directory: "csi.snaps.",
        entry: "csi.snap.",
        image: "csi-snap-",
    },
];

/// What ends the name of the image between a volume and its clone.
pub(super) const TEMPORARY: &str = "-temp";

impl Volumes {
    /// All that ceph-csi has in this pool and namespace, and all that was adopted of it. `instance`
    /// is its `--instanceid`.
    pub fn plan_from_ceph_csi(&self, instance: &str, ids: &VolumeIds<'_>) -> Result<Vec<Item>> {
        let known = self.known()?;
        let mut items = Vec::new();
        for section in &SECTIONS {
            let directory = format!("{}{instance}", section.directory);
            for (key, uuid) in self.journal_entries(&directory)? {
                let object = format!("{}{uuid}", section.entry);
                let entries = self.journal_entries(&object)?;
                let journal =
                    CsiJournal { directory: directory.clone(), key, uuid, object, entries };
                items.push(self.plan_entry(section, journal, &known, ids)?);
            }
        }
        self.add_adopted(&known, &mut items)?;
        let mut parents = Vec::new();
        for item in items.iter().filter(|item| item.kind == Kind::Volume && item.is_adoptable()) {
            let name = format!("{}{TEMPORARY}", item.image);
            if let Some(id) = self.pool.image_id(&name)? {
                parents.extend(self.plan_parent(&name, &id, &known, ids)?);
            }
        }
        for entry in self.pool.trash_list()? {
            // An adopted volume in the trash can be given back by the tool that moved it there.
            let is_a_volume = known.volumes.iter().any(|(image, stored)| {
                *image == entry.name || stored.record.image_id.as_ref() == Some(&entry.id)
            });
            if !entry.migrating && !is_a_volume && self.is_dropped(&entry.name)? {
                parents.extend(self.plan_parent(&entry.name, &entry.id, &known, ids)?);
            }
        }
        items.extend(parents);
        Ok(sorted(items))
    }

    fn plan_entry(
        &self,
        section: &Section,
        journal: CsiJournal,
        known: &Known,
        ids: &VolumeIds<'_>,
    ) -> Result<Item> {
        let name = journal.key.strip_prefix(section.entry).unwrap_or(&journal.key).to_owned();
        let uuid = journal.uuid.clone();
        let image = journal.entries.get("csi.imagename").cloned();
        let image = image.unwrap_or_else(|| format!("{}{uuid}", section.image));
        let mut item = Item::new(section.kind, &image, &name, Verdict::Adopt);
        item.uuid = Some(uuid.clone());
        if uuid::Uuid::try_parse(&uuid).is_err() {
            let why = if uuid.contains('/') {
                "its image is in another pool than the journal (topology), which is not adopted"
            } else {
                "it maps an old handle to a new one after a fail-over, which is not followed"
            };
            item.refuse(why.to_owned());
            return Ok(item);
        }
        if journal.entries.is_empty() {
            return Ok(begun(item, &journal, known));
        }
        if journal.entries.contains_key("csi.volume.encryptKMS") {
            item.refuse("it is encrypted, and this driver does not open it".to_owned());
            return Ok(item);
        }
        let in_group = ["csi.groupid", "csi.csi.groupid"]
            .iter()
            .any(|key| journal.entries.get(*key).is_some_and(|group| !group.is_empty()));
        if in_group {
            item.refuse(
                "it belongs to a group of ceph-csi's: take it out of that first".to_owned(),
            );
            return Ok(item);
        }
        let owner = Adopted { from: Owner::CephCsi, journal: Some(journal) };
        match section.kind {
            Kind::Volume | Kind::Parent => self.plan_volume(&mut item, owner, 2, ids)?,
            Kind::Snapshot => self.plan_snapshot(&mut item, owner, ids)?,
        }
        Ok(item)
    }

    fn plan_snapshot(&self, item: &mut Item, owner: Adopted, ids: &VolumeIds<'_>) -> Result<()> {
        let name = item.image.clone();
        item.snapshot = Some(name.clone());
        if let Some(stored) = self.catalogue.snapshot(&name)? {
            match &stored.record.adopted {
                Some(adopted) if is_same(adopted, &owner) => {
                    known_snapshot(item, stored.record, Verdict::Finish);
                }
                _ => item.refuse(format!("the catalogue has another snapshot named {name}")),
            }
            return Ok(());
        }
        let Some(opened) = self.open_to_adopt(&name)? else {
            item.verdict = Verdict::Lost("its image is not there".to_owned());
            return Ok(());
        };
        item.image_id = opened.id()?;
        let snapshots = opened.snapshots()?;
        let Some(cut) =
            snapshots.iter().find(|cut| cut.kind == SnapshotKind::User && cut.name == name)
        else {
            item.verdict = Verdict::Lost(format!("its image has no snapshot {name}"));
            return Ok(());
        };
        item.size = cut.size;
        let source = owner.journal.as_ref().and_then(|journal| journal.entries.get("csi.source"));
        let (Some(source_volume), Some(volume)) =
            (source.and_then(|source| ids(source)), ids(&name))
        else {
            item.refuse(
                "no volume id can have the name of its image, its source or its pool".to_owned(),
            );
            return Ok(());
        };
        if let Some(why) = self.obstacle(&*opened)? {
            item.refuse(why);
        }
        let created = jiff::Timestamp::try_from(cut.created);
        let record = catalogue::Snapshot {
            state: State::Ready,
            name: item.name.clone(),
            source_volume,
            image_id: item.image_id.clone(),
            snapshot_id: cut.id,
            size: cut.size,
            created: created.map_or_else(|_| now(), jiff::Timestamp::as_second),
            clone_format: if cut.protected { 1 } else { 2 },
            attempt: uuid::Uuid::new_v4().simple().to_string(),
            group: None,
            adopted: Some(owner),
        };
        let silent = silent(volume, &name);
        item.record = Some(Planned::Snapshot(record, Some(silent)));
        Ok(())
    }

    fn plan_parent(
        &self,
        name: &str,
        id: &str,
        known: &Known,
        ids: &VolumeIds<'_>,
    ) -> Result<Option<Item>> {
        let mut item = Item::new(Kind::Parent, name, "", Verdict::Adopt);
        id.clone_into(&mut item.image_id);
        if let Some(stored) = known.silent.get(id) {
            item.record = Some(Planned::Parent(stored.record.clone()));
            item.verdict = Verdict::Adopted;
        }
        match self.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly) {
            Ok(opened) => item.size = opened.info()?.size,
            // A removal that was interrupted, or is going on.
            Err(error) if error.errno == crate::rbd::Errno::ENOENT => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        if item.record.is_none() {
            let Some(volume) = ids(name) else {
                item.refuse("no volume id can have the name of its image or pool".to_owned());
                return Ok(Some(item));
            };
            item.record = Some(Planned::Parent(silent(volume, name)));
        }
        Ok(Some(item))
    }

    /// Whether an image in the trash is one that ceph-csi moved there when it deleted a volume or a
    /// snapshot. Another tool's, and one that a person can bring back, is left alone.
    fn is_dropped(&self, name: &str) -> Result<bool> {
        for section in &SECTIONS {
            let Some(rest) = name.strip_prefix(section.image) else { continue };
            let uuid = rest.strip_suffix(TEMPORARY).unwrap_or(rest);
            if uuid::Uuid::try_parse(uuid).is_ok() && uuid.len() == 36 {
                let object = format!("{}{uuid}", section.entry);
                return Ok(self.journal_entries(&object)?.is_empty());
            }
        }
        Ok(false)
    }

    /// Adds what was adopted and is in the journal no more. A run that was killed may have left the
    /// object of it.
    fn add_adopted(&self, known: &Known, items: &mut Vec<Item>) -> Result<()> {
        let listed: BTreeSet<_> = items.iter().filter_map(|item| item.uuid.clone()).collect();
        let of = |adopted: &Option<Adopted>| {
            let journal = adopted.as_ref()?.journal.clone()?;
            (!listed.contains(&journal.uuid)).then_some(journal)
        };
        let verdict = |journal: &CsiJournal| {
            let is_left = self.is_in_journal(journal)?;
            Result::Ok(if is_left { Verdict::Finish } else { Verdict::Adopted })
        };
        for (image, stored) in &known.volumes {
            let Some(journal) = of(&stored.record.adopted) else { continue };
            let mut item = Item::new(Kind::Volume, image, &stored.record.name, verdict(&journal)?);
            item.uuid = Some(journal.uuid);
            item.image_id = stored.record.image_id.clone().unwrap_or_default();
            item.size = stored.record.size;
            item.record = Some(Planned::Volume(stored.record.clone()));
            items.push(item);
        }
        for (snapshot, stored) in &known.snapshots {
            let Some(journal) = of(&stored.record.adopted) else { continue };
            let found = verdict(&journal)?;
            let mut item = Item::new(Kind::Snapshot, snapshot, &stored.record.name, Verdict::Adopt);
            item.snapshot = Some(snapshot.clone());
            item.uuid = Some(journal.uuid);
            known_snapshot(&mut item, stored.record.clone(), found);
            items.push(item);
        }
        Ok(())
    }
}

fn known_snapshot(item: &mut Item, record: catalogue::Snapshot, verdict: Verdict) {
    item.image_id.clone_from(&record.image_id);
    item.size = record.size;
    item.record = Some(Planned::Snapshot(record, None));
    item.verdict = verdict;
}

/// A silent parent that keeps its name.
fn silent(volume: String, image: &str) -> Silent {
    Silent {
        trash: None,
        volume,
        deleted: now(),
        image: (!image.ends_with(names::SILENT_SUFFIX)).then(|| image.to_owned()),
        adopted: Some(Adopted { from: Owner::CephCsi, journal: None }),
    }
}

/// A key of the directory without an object: an adoption that was killed half-way leaves it, or
/// ceph-csi before it made anything.
fn begun(mut item: Item, journal: &CsiJournal, known: &Known) -> Item {
    let is_it = |adopted: &Option<Adopted>| {
        let known = adopted.as_ref().and_then(|adopted| adopted.journal.as_ref());
        known.is_some_and(|known| known.uuid == journal.uuid && known.key == journal.key)
    };
    match item.kind {
        Kind::Volume | Kind::Parent => {
            let found = known.volumes.iter().find(|(_, stored)| is_it(&stored.record.adopted));
            if let Some((image, stored)) = found {
                item.image.clone_from(image);
                item.image_id = stored.record.image_id.clone().unwrap_or_default();
                item.size = stored.record.size;
                item.record = Some(Planned::Volume(stored.record.clone()));
                item.verdict = Verdict::Finish;
                return item;
            }
        }
        Kind::Snapshot => {
            let found = known.snapshots.iter().find(|(_, stored)| is_it(&stored.record.adopted));
            if let Some((name, stored)) = found {
                item.image.clone_from(name);
                item.snapshot = Some(name.clone());
                known_snapshot(&mut item, stored.record.clone(), Verdict::Finish);
                return item;
            }
        }
    }
    item.verdict = Verdict::Lost("ceph-csi has begun to make or to delete it".to_owned());
    item
}
