//! What is in a RADOS namespace, in words that depend neither on ids nor on times nor on the
//! namespace's own name: two namespaces with the same picture hold the same volumes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use cinderblock::rbd::{
    Errno, Image, ImageKey, OpenMode, Pool, Snapshot, SnapshotId, SnapshotKind,
};
use cinderblock::volume::Leases;
use cinderblock::volume::catalogue::{self, Catalogue, Cursor, Silent};
use cinderblock::volume::journal::{Journal, Suspect};

/// Where marks are written: in two objects of the image.
pub const MARKS: [u64; 2] = [0, 4 << 20];
/// Bytes of a mark.
pub const MARK_BYTES: usize = 8;

/// One line for each image, trash entry, record and journal entry, in order.
pub fn picture(pool: &Arc<dyn Pool>) -> Vec<String> {
    let mut names = BTreeMap::from([(pool.namespace().to_string(), "NAMESPACE".to_string())]);
    let mut lines = Vec::new();
    for entry in pool.list_images().unwrap() {
        match pool.open_image(ImageKey::Id(&entry.id), OpenMode::ReadOnly) {
            Ok(image) => {
                lines.push(format!("image {}", describe(&**pool, &*image)));
                for snapshot in image.snapshots().unwrap() {
                    names.insert(format!("Some({})", snapshot.id), label(&snapshot));
                }
            }
            Err(error) if error.errno == Errno::ENOENT => {
                lines.push(format!("remains of an image {}", entry.name));
            }
            Err(error) => panic!("{error}"),
        }
        names.insert(entry.id, entry.name);
    }
    for entry in pool.trash_list().unwrap() {
        lines.push(format!("trash {}", entry.name));
    }
    lines.extend(records(pool, &names));
    lines.sort();
    lines
}

fn describe(pool: &dyn Pool, image: &dyn Image) -> String {
    let snapshots = image.snapshots().unwrap();
    let link = |at: Option<SnapshotId>| match image.parent(at).unwrap() {
        None => String::new(),
        Some(link) => {
            let home = pool.cluster().pool(&link.pool, &link.namespace).unwrap();
            let parent = home.open_image(ImageKey::Id(&link.image_id), OpenMode::ReadOnly).unwrap();
            let snapshots = parent.snapshots().unwrap();
            let snapshot = snapshots.iter().find(|snapshot| snapshot.id == link.snapshot_id);
            let elsewhere = if link.namespace == pool.namespace() { "" } else { "elsewhere/" };
            format!(
                " <- {elsewhere}{}@{}",
                parent.name().unwrap(),
                snapshot.map_or("?".to_string(), label)
            )
        }
    };
    let mut text = format!(
        "{} of {} bytes, reads {:?}{}",
        image.name().unwrap(),
        image.info().unwrap().size,
        content(image, None),
        link(None)
    );
    for snapshot in &snapshots {
        let children = image.children(Some(snapshot.id)).unwrap();
        let mut children: Vec<_> = children.into_iter().map(|child| child.image).collect();
        children.sort();
        let (label, content) = (label(snapshot), content(image, Some(snapshot.id)));
        write!(text, "; @{label} reads {content:?}{} -> {children:?}", link(Some(snapshot.id)))
            .unwrap();
    }
    text
}

fn label(snapshot: &Snapshot) -> String {
    let name = match &snapshot.kind {
        SnapshotKind::Trash { original_name } => format!("({original_name})"),
        // A retry numbers the snapshot it cuts while the one of the attempt before still has its
        // clone.
        _ => snapshot.name.replace(".1.clone_snap", ".clone_snap"),
    };
    format!("{name}{}", if snapshot.protected { "*" } else { "" })
}

fn content(image: &dyn Image, at: Option<SnapshotId>) -> String {
    let read = |offset| {
        let mut bytes = [0; MARK_BYTES];
        let count = image.read_at(at, offset, &mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).trim_end_matches('\0').to_string()
    };
    MARKS.map(read).join(" ")
}

fn records(pool: &Arc<dyn Pool>, names: &BTreeMap<String, String>) -> Vec<String> {
    let name = |id: &str| names.get(id).cloned().unwrap_or_else(|| format!("the lost image {id}"));
    let catalogue = Catalogue::new(pool.clone(), "default", Leases::default());
    let start = Cursor::default();
    let mut lines = Vec::new();
    for (key, stored) in catalogue.list::<catalogue::Volume>(&start, 0).unwrap().0 {
        let volume = stored.record;
        let image = volume.image_id.as_deref().map(name);
        let published = volume.published.iter().map(|publication| publication.node.as_str());
        lines.push(format!(
            "volume {key}: {:?} as {}, {} bytes, image {image:?}, published to {:?}",
            volume.state,
            volume.id.replace(pool.namespace(), "NAMESPACE"),
            volume.size,
            published.collect::<Vec<_>>()
        ));
    }
    for (key, stored) in catalogue.list::<catalogue::Snapshot>(&start, 0).unwrap().0 {
        let snapshot = stored.record;
        lines.push(format!(
            "snapshot {key}: {:?} on {}, {} bytes",
            snapshot.state,
            name(&snapshot.image_id),
            snapshot.size
        ));
    }
    for (key, _) in catalogue.list::<Silent>(&start, 0).unwrap().0 {
        lines.push(format!("silent {}", name(&key)));
    }
    for entry in Journal::new(pool.clone(), "default").entries().unwrap() {
        if is_a_flatten_that_never_was(&**pool, &entry.suspect) {
            continue;
        }
        let suspect = names
            .iter()
            .fold(format!("{:?}", entry.suspect), |text, (id, name)| text.replace(id, name));
        lines.push(format!("journal {suspect}"));
    }
    lines
}

/// Whether this was noted for a flatten that did not come to pass: it waits for the link to go, and
/// nothing is to be done until then.
fn is_a_flatten_that_never_was(pool: &dyn Pool, suspect: &Suspect) -> bool {
    let Some((snapshot, child)) =
        suspect.snapshot.zip(suspect.child.as_ref().filter(|child| child.flattened))
    else {
        return false;
    };
    match pool.open_image(ImageKey::Id(&suspect.image_id), OpenMode::ReadOnly) {
        Ok(image) => {
            let snapshots = image.snapshots().unwrap();
            snapshots.iter().any(|found| found.id == snapshot)
                && image
                    .children(Some(snapshot))
                    .unwrap()
                    .iter()
                    .any(|listed| listed.image_id == child.image_id)
        }
        Err(error) => {
            assert_eq!(error.errno, Errno::ENOENT, "{error}");
            false
        }
    }
}
