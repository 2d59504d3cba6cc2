//! What there is to adopt of Cinder's, by the names of images: Cinder keeps everything else in its
//! database.

use super::{
    Adopted, Item, Kind, Owner, Planned, Result, Silent, State, Verdict, VolumeIds, Volumes,
    catalogue, names, now, sorted,
};
use crate::rbd::{ImageKey, OpenMode, Snapshot, SnapshotKind};
use crate::volume::survey::Known;

/// Begins the name of a volume's image; a uuid follows.
const VOLUME: &str = "volume-";
/// Begins the name of a snapshot; a uuid follows.
const SNAPSHOT: &str = "snapshot-";
/// Begins the CSI names of what Cinder had, before the uuid.
const NAME: &str = "cinder-";

impl Volumes {
    /// All volumes, snapshots and `.deleted` images of Cinder's in this pool, and all that was
    /// adopted of them. Lists the pool.
    pub fn plan_from_cinder(&self, ids: &VolumeIds<'_>) -> Result<Vec<Item>> {
        let known = self.known()?;
        let mut items = Vec::new();
        for entry in self.pool.list_images()? {
            let Some(rest) = entry.name.strip_prefix(VOLUME) else { continue };
            let uuid = rest.strip_suffix(names::SILENT_SUFFIX).unwrap_or(rest);
            if !is_uuid(uuid) {
                continue;
            }
            if uuid.len() < rest.len() {
                self.plan_deleted(&entry.name, &entry.id, &known, ids, &mut items)?;
                continue;
            }
            let name = format!("{NAME}{uuid}");
            let mut item = Item::new(Kind::Volume, &entry.name, &name, Verdict::Adopt);
            item.uuid = Some(uuid.to_owned());
            self.plan_volume(&mut item, owner(), 1, ids)?;
            if item.verdict == Verdict::Finish {
                item.verdict = Verdict::Adopted;
            }
            if item.is_adoptable() {
                let (image, id) = (item.image.clone(), item.image_id.clone());
                items.push(item);
                self.plan_snapshots(&image, &id, &image, &known, ids, &mut items)?;
            } else {
                items.push(item);
            }
        }
        Ok(sorted(items))
    }

    /// A volume that Cinder deleted while clones hung on it.
    fn plan_deleted(
        &self,
        name: &str,
        id: &str,
        known: &Known,
        ids: &VolumeIds<'_>,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let mut item = Item::new(Kind::Parent, name, "", Verdict::Adopt);
        id.clone_into(&mut item.image_id);
        let volume = names::before_silence(name, id);
        if let Some(stored) = known.silent.get(id) {
            item.record = Some(Planned::Parent(stored.record.clone()));
            item.verdict = Verdict::Adopted;
        } else if let Some(id) = ids(volume) {
            item.record = Some(Planned::Parent(Silent {
                trash: None,
                volume: id,
                deleted: now(),
                image: None,
                adopted: Some(owner()),
            }));
        } else {
            item.refuse("no volume id can have the name of its image or pool".to_owned());
        }
        let is_adoptable = item.is_adoptable();
        items.push(item);
        if is_adoptable {
            self.plan_snapshots(name, id, volume, known, ids, items)?;
        }
        Ok(())
    }

    /// The snapshots on the image `image`, which is or was the volume `volume`.
    fn plan_snapshots(
        &self,
        image: &str,
        id: &str,
        volume: &str,
        known: &Known,
        ids: &VolumeIds<'_>,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let opened = match self.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly) {
            Ok(opened) => opened,
            Err(error) if error.errno == crate::rbd::Errno::ENOENT => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let Some(source_volume) = ids(volume) else { return Ok(()) };
        for cut in opened.snapshots()? {
            let Some(uuid) = cinders_snapshot(&cut) else { continue };
            let name = format!("{NAME}{SNAPSHOT}{uuid}");
            let mut item = Item::new(Kind::Snapshot, image, &name, Verdict::Adopt);
            item.snapshot = Some(cut.name.clone());
            id.clone_into(&mut item.image_id);
            item.size = cut.size;
            item.uuid = Some(uuid.to_owned());
            let record = catalogue::Snapshot {
                state: State::Ready,
                name,
                source_volume: source_volume.clone(),
                image_id: id.to_owned(),
                snapshot_id: cut.id,
                size: cut.size,
                created: jiff::Timestamp::try_from(cut.created)
                    .map_or_else(|_| now(), jiff::Timestamp::as_second),
                clone_format: if cut.protected { 1 } else { 2 },
                attempt: uuid::Uuid::new_v4().simple().to_string(),
                group: None,
                adopted: Some(owner()),
            };
            match known.snapshots.get(&cut.name).map(|stored| &stored.record) {
                Some(other) if other.image_id == id => item.verdict = Verdict::Adopted,
                Some(_) => {
                    item.refuse(format!("the catalogue has another snapshot named {}", cut.name));
                }
                None => {}
            }
            item.record = Some(Planned::Snapshot(record, None));
            items.push(item);
        }
        Ok(())
    }
}

fn owner() -> Adopted {
    Adopted { from: Owner::Cinder, journal: None }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

/// The uuid of a snapshot that a user of Cinder asked for.
fn cinders_snapshot(cut: &Snapshot) -> Option<&str> {
    let uuid = cut.name.strip_prefix(SNAPSHOT)?;
    (cut.kind == SnapshotKind::User && is_uuid(uuid)).then_some(uuid)
}
