//! Pools as ceph-csi and Cinder leave them: their images, snapshots, trash and journals, made by
//! the same calls to librbd and librados in the same order.

use std::collections::BTreeMap;
use std::sync::Arc;

use cinderblock::rbd::{
    CloneFormat, Features, Guard, ImageKey, ImageOptions, OmapUpdate, OpenMode, Pool, SnapshotSpec,
};

/// Bytes of every volume.
pub const SIZE: u64 = 16 << 20;
/// Where every volume has a mark of its own, behind what its filesystem takes.
pub const MARK_AT: u64 = 14 << 20;

/// What ceph-csi or Cinder calls its `n`-th object.
pub fn uuid(n: u32) -> String {
    format!("{n:08x}-1111-4111-8111-111111111111")
}

fn options(features: Features, format: CloneFormat) -> ImageOptions {
    ImageOptions { features: Some(features), clone_format: format, ..ImageOptions::default() }
}

fn clone(pool: &Arc<dyn Pool>, image: &str, snapshot: &str, to: &str, options: &ImageOptions) {
    let parent = SnapshotSpec {
        pool: pool.name().to_owned(),
        namespace: pool.namespace().to_owned(),
        image: image.to_owned(),
        snapshot: snapshot.to_owned(),
    };
    pool.clone_image(&parent, to, options).unwrap();
}

fn open(pool: &Arc<dyn Pool>, image: &str) -> Box<dyn cinderblock::rbd::Image> {
    pool.open_image(ImageKey::Name(image), OpenMode::ReadWrite).unwrap()
}

/// Writes the blocks of `bytes` that hold something, and the image's own mark.
pub fn fill(pool: &Arc<dyn Pool>, image: &str, bytes: &[u8], mark: &str) {
    let opened = open(pool, image);
    for (at, block) in bytes.chunks(64 << 10).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            opened.write_at((at as u64) * (64 << 10), block).unwrap();
        }
    }
    opened.write_at(MARK_AT, mark.as_bytes()).unwrap();
    opened.flush().unwrap();
}

/// All bytes of an image.
pub fn read(pool: &Arc<dyn Pool>, image: &str) -> Vec<u8> {
    let opened = pool.open_image(ImageKey::Name(image), OpenMode::ReadOnly).unwrap();
    let mut bytes = vec![0; usize::try_from(opened.info().unwrap().size).unwrap()];
    let mut at = 0;
    while at < bytes.len() {
        let count = opened.read_at(None, at as u64, &mut bytes[at..]).unwrap();
        assert!(count > 0);
        at += count;
    }
    bytes
}

/// ceph-csi at work in a pool and namespace.
pub struct CephCsi {
    pub pool: Arc<dyn Pool>,
}

const PVC_KEYS: [&str; 4] = [
    "csi.storage.k8s.io/pvc/name",
    "csi.storage.k8s.io/pvc/namespace",
    "csi.storage.k8s.io/pv/name",
    "csi.ceph.com/cluster/name",
];
const TEMPORARY: Features = Features(Features::LAYERING.0 | Features::DEEP_FLATTEN.0);

impl CephCsi {
    pub fn new(pool: Arc<dyn Pool>) -> CephCsi {
        CephCsi { pool }
    }

    pub fn set(&self, object: &str, pairs: &[(&str, &str)]) {
        let set = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
        let update = OmapUpdate { set: set.collect(), ..OmapUpdate::default() };
        self.pool.omap_update(object, &update).unwrap();
    }

    fn begin(&self, n: u32) -> String {
        let (uuid, name) = (uuid(n), format!("pvc-{n}"));
        self.set("csi.volumes.default", &[(&format!("csi.volume.{name}"), &uuid)]);
        let image = format!("csi-vol-{uuid}");
        self.set(
            &format!("csi.volume.{uuid}"),
            &[("csi.volname", &name), ("csi.imagename", &image), ("csi.volume.owner", "demo")],
        );
        image
    }

    fn end(&self, n: u32) {
        let uuid = uuid(n);
        let opened = open(&self.pool, &format!("csi-vol-{uuid}"));
        self.set(&format!("csi.volume.{uuid}"), &[("csi.imageid", &opened.id().unwrap())]);
        let values = [format!("claim-{n}"), "demo".into(), format!("pvc-{n}"), "k8s".into()];
        for (key, value) in PVC_KEYS.iter().zip(values) {
            opened.metadata_set(key, &value).unwrap();
        }
    }

    /// CreateVolume of an empty volume.
    pub fn volume(&self, n: u32) -> String {
        let image = self.begin(n);
        let options = options(Features::LAYERING, CloneFormat::V2);
        self.pool.create_image(&image, SIZE, &options).unwrap();
        self.end(n);
        image
    }

    /// CreateSnapshot of the volume `of`.
    pub fn snapshot(&self, n: u32, of: u32) -> String {
        let (uuid, name) = (uuid(n), format!("snapshot-{n}"));
        let (source, image) = (format!("csi-vol-{}", self::uuid(of)), format!("csi-snap-{uuid}"));
        self.set("csi.snaps.default", &[(&format!("csi.snap.{name}"), &uuid)]);
        self.set(
            &format!("csi.snap.{uuid}"),
            &[
                ("csi.snapname", &name),
                ("csi.imagename", &image),
                ("csi.source", &source),
                ("csi.volume.owner", "demo"),
            ],
        );
        let opened = open(&self.pool, &source);
        opened.create_snapshot(&image).unwrap();
        clone(&self.pool, &source, &image, &image, &options(TEMPORARY, CloneFormat::V2));
        opened.remove_snapshot(&image).unwrap();
        let opened = open(&self.pool, &image);
        opened.create_snapshot(&image).unwrap();
        self.set(&format!("csi.snap.{uuid}"), &[("csi.imageid", &opened.id().unwrap())]);
        for key in PVC_KEYS {
            opened.metadata_remove(key).unwrap();
        }
        image
    }

    /// CreateVolume from a snapshot.
    pub fn restored(&self, n: u32, from: u32) -> String {
        let image = self.begin(n);
        let source = format!("csi-snap-{}", uuid(from));
        let options = options(Features::LAYERING, CloneFormat::V2);
        clone(&self.pool, &source, &source, &image, &options);
        self.end(n);
        image
    }

    /// CreateVolume from a volume.
    pub fn cloned(&self, n: u32, of: u32) -> String {
        let image = self.begin(n);
        let (source, temporary) = (format!("csi-vol-{}", uuid(of)), format!("{image}-temp"));
        let opened = open(&self.pool, &source);
        opened.create_snapshot(&temporary).unwrap();
        clone(&self.pool, &source, &temporary, &temporary, &options(TEMPORARY, CloneFormat::V2));
        opened.remove_snapshot(&temporary).unwrap();
        let opened = open(&self.pool, &temporary);
        for key in PVC_KEYS {
            opened.metadata_remove(key).unwrap();
        }
        opened.create_snapshot(&image).unwrap();
        let options = options(Features::LAYERING, CloneFormat::V2);
        clone(&self.pool, &temporary, &image, &image, &options);
        opened.remove_snapshot(&image).unwrap();
        drop(opened);
        self.end(n);
        image
    }

    fn forget(&self, directory: &str, key: &str, object: &str) {
        self.pool.remove_object(object).unwrap();
        let update = OmapUpdate { remove: vec![key.to_owned()], ..OmapUpdate::default() };
        self.pool.omap_update(directory, &update).unwrap();
    }

    /// DeleteVolume of a volume on which clones hang.
    pub fn delete_volume(&self, n: u32) {
        let uuid = uuid(n);
        self.pool.trash_move(&format!("csi-vol-{uuid}"), 0).unwrap();
        let key = format!("csi.volume.pvc-{n}");
        self.forget("csi.volumes.default", &key, &format!("csi.volume.{uuid}"));
    }

    /// DeleteSnapshot of a snapshot on which restored volumes hang.
    pub fn delete_snapshot(&self, n: u32) {
        let uuid = uuid(n);
        let image = format!("csi-snap-{uuid}");
        open(&self.pool, &image).remove_snapshot(&image).unwrap();
        self.pool.trash_move(&image, 0).unwrap();
        let key = format!("csi.snap.snapshot-{n}");
        self.forget("csi.snaps.default", &key, &format!("csi.snap.{uuid}"));
    }

    /// All that its journal holds, by object.
    pub fn journal(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let mut journal = BTreeMap::new();
        for (directory, object) in
            [("csi.volumes.default", "csi.volume."), ("csi.snaps.default", "csi.snap.")]
        {
            let listed = self.entries(directory);
            for uuid in listed.values() {
                let object = format!("{object}{uuid}");
                journal.insert(object.clone(), self.entries(&object));
            }
            journal.insert(directory.to_owned(), listed);
        }
        journal
    }

    fn entries(&self, object: &str) -> BTreeMap<String, String> {
        let page = self.pool.omap_list(object, "", 1000).unwrap();
        let text = |value| String::from_utf8(value).unwrap();
        page.entries.into_iter().map(|(key, value)| (key, text(value))).collect()
    }

    /// Checks that the journal names nothing, and removes its directories.
    pub fn assert_journal_is_empty(&self) {
        for directory in ["csi.volumes.default", "csi.snaps.default"] {
            assert_eq!(self.entries(directory), BTreeMap::new(), "{directory}");
            let _ = self.pool.remove_object(directory);
        }
    }
}

/// Ten volumes of ceph-csi, with snapshots, restored volumes and clones of each other, a deleted
/// volume and a deleted snapshot. `fill` is called with each image that is made empty. Returns the
/// images of the ten.
pub fn ten_volumes(csi: &CephCsi, fill: &dyn Fn(&str, u32)) -> Vec<String> {
    let mut images = Vec::new();
    let mut made = |image: String, n: u32, is_empty: bool| {
        if is_empty {
            fill(&image, n);
        } else {
            let opened = open(&csi.pool, &image);
            opened.write_at(MARK_AT.min(SIZE - 512), format!("mark {n}").as_bytes()).unwrap();
        }
        images.push(image);
    };
    made(csi.volume(1), 1, true);
    csi.snapshot(101, 1);
    made(csi.restored(2, 101), 2, false);
    made(csi.cloned(3, 1), 3, false);
    csi.snapshot(102, 3);
    made(csi.restored(4, 102), 4, false);
    made(csi.cloned(5, 4), 5, false);
    let deleted = csi.volume(6);
    fill(&deleted, 6);
    made(csi.cloned(7, 6), 7, false);
    csi.delete_volume(6);
    made(csi.volume(8), 8, true);
    csi.snapshot(103, 8);
    made(csi.restored(9, 103), 9, false);
    csi.delete_snapshot(103);
    made(csi.volume(10), 10, true);
    made(csi.volume(11), 11, true);
    // As ceph-csi of long ago wrote it.
    let update = OmapUpdate {
        guards: vec![Guard::Equals("csi.volume.owner".into(), b"demo".to_vec())],
        remove: vec!["csi.imageid".into()],
        set: vec![],
    };
    csi.pool.omap_update(&format!("csi.volume.{}", uuid(11)), &update).unwrap();
    images
}

/// Cinder at work in a pool.
pub struct Cinder {
    pub pool: Arc<dyn Pool>,
}

impl Cinder {
    fn image(n: u32) -> String {
        format!("volume-{}", uuid(n))
    }

    fn options() -> ImageOptions {
        options(Features::DEFAULT, CloneFormat::V1)
    }

    pub fn volume(&self, n: u32) -> String {
        let image = Self::image(n);
        self.pool.create_image(&image, SIZE, &Self::options()).unwrap();
        image
    }

    fn cut(&self, image: &str, snapshot: &str) {
        let opened = open(&self.pool, image);
        opened.create_snapshot(snapshot).unwrap();
        opened.protect_snapshot(snapshot).unwrap();
    }

    pub fn snapshot(&self, n: u32, of: u32) -> String {
        let name = format!("snapshot-{}", uuid(n));
        self.cut(&Self::image(of), &name);
        name
    }

    pub fn restored(&self, n: u32, of: u32, snapshot: u32) -> String {
        let (image, snapshot) = (Self::image(n), format!("snapshot-{}", uuid(snapshot)));
        clone(&self.pool, &Self::image(of), &snapshot, &image, &Self::options());
        image
    }

    pub fn cloned(&self, n: u32, of: u32) -> String {
        let image = Self::image(n);
        let snapshot = format!("{image}.clone_snap");
        self.cut(&Self::image(of), &snapshot);
        clone(&self.pool, &Self::image(of), &snapshot, &image, &Self::options());
        image
    }

    /// A volume that is deleted while clones hang on it.
    pub fn delete(&self, n: u32) {
        let image = Self::image(n);
        self.pool.rename_image(&image, &format!("{image}.deleted")).unwrap();
    }

    /// A clone that is deleted: today's Cinder leaves its snapshot, and the parents, for ever.
    pub fn leak(&self, n: u32) {
        self.pool.remove_image(&Self::image(n)).unwrap();
    }

    /// Ten volumes with snapshots and clones, two deleted ones that clones hang on, and a chain
    /// that Cinder has leaked.
    pub fn ten_volumes(&self, fill: &dyn Fn(&str, u32)) -> Vec<String> {
        let mut images = Vec::new();
        let mut made = |image: String, n: u32, is_empty: bool| {
            if is_empty {
                fill(&image, n);
            } else {
                let opened = open(&self.pool, &image);
                opened.write_at(MARK_AT.min(SIZE - 512), format!("mark {n}").as_bytes()).unwrap();
            }
            images.push(image);
        };
        made(self.volume(1), 1, true);
        self.snapshot(101, 1);
        made(self.restored(2, 1, 101), 2, false);
        made(self.cloned(3, 1), 3, false);
        self.snapshot(102, 3);
        made(self.restored(4, 3, 102), 4, false);
        made(self.cloned(5, 4), 5, false);
        fill(&self.volume(6), 6);
        made(self.cloned(7, 6), 7, false);
        self.delete(6);
        // A user's snapshot stays on a deleted volume.
        fill(&self.volume(12), 12);
        self.snapshot(103, 12);
        made(self.restored(8, 12, 103), 8, false);
        self.delete(12);
        fill(&self.volume(13), 13);
        self.cloned(14, 13);
        self.delete(13);
        self.cloned(15, 14);
        self.delete(14);
        self.leak(15);
        made(self.volume(9), 9, true);
        made(self.volume(10), 10, true);
        made(self.volume(11), 11, true);
        images
    }
}
