//! A cluster in memory, targets, and short ways to back up and restore.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cinderblock::backup::{Create, Created, Restore, Restored, Store, create, restore};
use cinderblock::rbd::model::{Model, Session};
use cinderblock::rbd::{
    CloneFormat, Features, Image, ImageKey, ImageOptions, OpenMode, Pool, SnapshotKind,
};
use cinderblock::transfer::{Job, Place, Result, Which};
use cinderblock::volume::{
    CreateVolume, DeleteWithSnapshots, Leases, Policy, Process, Sizes, Volumes,
};
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tempfile::TempDir;

use crate::common::{Lab, Namespace, POOL};

pub const MIB: u64 = 1 << 20;

/// log2 of the bytes of an object of the images here.
const ORDER: u8 = 20;

pub fn model() -> Model {
    let model = Model::new();
    model.create_pool(POOL);
    model.create_pool("two");
    model
}

pub fn pool(session: &Session) -> Arc<dyn Pool> {
    session.cluster().pool(POOL, "").unwrap()
}

/// A process for which the leases of all others have expired.
pub fn impatient() -> Process {
    Process { leases: Leases::new(Duration::ZERO), patience: Duration::ZERO, ..Process::default() }
}

pub fn volumes_of(pool: Arc<dyn Pool>) -> Volumes {
    Volumes::new(pool, "default", impatient(), Arc::default())
}

/// A cluster with a pool for tests.
pub trait Ground {
    /// The pool, over a connection of its own.
    fn pool(&self) -> Arc<dyn Pool>;
}

impl Ground for Model {
    fn pool(&self) -> Arc<dyn Pool> {
        pool(&self.connect())
    }
}

/// A RADOS namespace of a real Ceph.
pub struct Real<'a> {
    lab: &'a Lab,
    namespace: Namespace<'a>,
}

impl Ground for Real<'_> {
    fn pool(&self) -> Arc<dyn Pool> {
        self.namespace.pool(&*self.lab.connect())
    }
}

/// Runs a test on the model and on a real Ceph.
pub fn on_both(test: impl Fn(&dyn Ground)) {
    test(&model());
    let lab = &Lab::from_environment();
    let real = Real { lab, namespace: Namespace::new(lab) };
    test(&real);
    let pool = real.pool();
    for entry in pool.list_images().unwrap() {
        let image = pool.open_image(ImageKey::Id(&entry.id), OpenMode::ReadWrite).unwrap();
        for snapshot in image.snapshots().unwrap() {
            image.remove_snapshot_by_id(snapshot.id).unwrap();
        }
        drop(image);
        pool.remove_image(&entry.name).unwrap();
    }
    for object in real.namespace.objects().iter().filter(|name| name.starts_with("cinderblock.")) {
        pool.remove_object(object).unwrap();
    }
    real.namespace.assert_empty();
}

/// What a new process sees of the pool.
pub fn volumes(ground: &(impl Ground + ?Sized)) -> Volumes {
    volumes_of(ground.pool())
}

pub fn options() -> ImageOptions {
    ImageOptions { features: Some(Features::DEFAULT), order: Some(ORDER), ..Default::default() }
}

/// A request for a volume.
pub fn request(name: &str, size: u64) -> CreateVolume {
    CreateVolume {
        id: format!("lab/{POOL}/{name}"),
        name: name.to_owned(),
        image: name.to_owned(),
        sizes: Sizes { required: size, limit: 0 },
        source: None,
        digest: "d".to_owned(),
        older_digest: "d".to_owned(),
        policy: Policy::default(),
        options: ImageOptions { clone_format: CloneFormat::V2, ..options() },
        delete_with_snapshots: DeleteWithSnapshots::Retain,
        context: BTreeMap::from([("imageName".to_owned(), name.to_owned())]),
        settings: BTreeMap::new(),
        claim: None,
        trash_retention: None,
    }
}

/// A volume of so many bytes.
pub fn volume(volumes: &Volumes, name: &str, size: u64) {
    volumes.create(&request(name, size)).unwrap();
}

pub fn open(volumes: &Volumes, name: &str) -> Box<dyn Image> {
    volumes.pool().open_image(ImageKey::Name(name), OpenMode::ReadWrite).unwrap()
}

pub fn write(volumes: &Volumes, name: &str, offset: u64, data: &[u8]) {
    open(volumes, name).write_at(offset, data).unwrap();
}

/// All bytes of an image.
pub fn read(volumes: &Volumes, name: &str) -> Vec<u8> {
    let image = volumes.pool().open_image(ImageKey::Name(name), OpenMode::ReadOnly).unwrap();
    let mut bytes = vec![0; usize::try_from(image.info().unwrap().size).unwrap()];
    assert_eq!(image.read_at(None, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

/// The names of the snapshots that backups have made.
pub fn backup_snapshots(volumes: &Volumes, name: &str) -> Vec<String> {
    let image = volumes.pool().open_image(ImageKey::Name(name), OpenMode::ReadOnly).unwrap();
    let snapshots = image.snapshots().unwrap().into_iter();
    let mine = snapshots.filter(|snapshot| snapshot.kind == SnapshotKind::User);
    mine.map(|snapshot| snapshot.name).filter(|name| name.starts_with("backup.")).collect()
}

pub fn whole(name: &str) -> Create {
    Create {
        image: Which::Name(name.to_owned()),
        snapshot: None,
        full: false,
        increments: 30,
        kubernetes: None,
    }
}

pub fn try_back_up(volumes: &Volumes, store: &Store, name: &str) -> Result<Created> {
    create(volumes, store, &whole(name), &Job::default())
}

pub fn back_up(volumes: &Volumes, store: &Store, name: &str) -> Created {
    try_back_up(volumes, store, name).unwrap()
}

pub fn to(point: &str, name: &str) -> Restore {
    Restore {
        point: point.to_owned(),
        image: name.to_owned(),
        id: format!("lab/{POOL}/{name}"),
        size: None,
        overwrite: false,
        data_pool: None,
    }
}

pub fn try_bring_back(
    volumes: &Volumes,
    store: &Store,
    point: &str,
    name: &str,
) -> Result<Restored> {
    restore(volumes, store, &to(point, name), &Job::default())
}

pub fn bring_back(volumes: &Volumes, store: &Store, point: &str, name: &str) -> Restored {
    try_bring_back(volumes, store, point, name).unwrap()
}

/// Fails without saying all bytes when two disks differ.
pub fn assert_same(one: &[u8], other: &[u8], what: &str) {
    assert_eq!(one.len(), other.len(), "{what}");
    if one == other {
        return;
    }
    let differing = one.iter().zip(other).position(|(one, other)| one != other);
    assert_eq!(differing, None, "{what}: the first byte that differs");
}

/// A folder as a target.
pub struct Folder {
    pub folder: TempDir,
}

impl Folder {
    pub fn new() -> Folder {
        Folder { folder: tempfile::tempdir().unwrap() }
    }

    pub fn store(&self) -> Store {
        Store::open(&Place::File(self.folder.path().to_owned()), true).unwrap()
    }

    /// The file of an object.
    pub fn file(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }

    /// All files, from the target on.
    pub fn files(&self) -> Vec<String> {
        fn below(folder: &Path, root: &Path, all: &mut Vec<String>) {
            for file in std::fs::read_dir(folder).unwrap() {
                let file = file.unwrap().path();
                if file.is_dir() {
                    below(&file, root, all);
                } else {
                    all.push(file.strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        let mut all = Vec::new();
        below(self.folder.path(), self.folder.path(), &mut all);
        all.sort();
        all
    }
}

/// What is done before a change of an object store, whose number from 0 it gets.
type Hook = Box<dyn Fn(usize) + Send + Sync>;

/// An object store in memory that stops working after so many changes, as if the process had died.
pub struct Mortal {
    inner: Arc<InMemory>,
    changes: AtomicUsize,
    dies_at: usize,
    before: Hook,
}

impl fmt::Debug for Mortal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

impl Mortal {
    pub fn new(inner: &Arc<InMemory>, dies_at: usize) -> Arc<Mortal> {
        let before = Box::new(|_| ());
        Arc::new(Mortal { inner: inner.clone(), changes: AtomicUsize::new(0), dies_at, before })
    }

    /// One that lives, and has `before` called before each change.
    pub fn observed(
        inner: &Arc<InMemory>,
        before: impl Fn(usize) + Send + Sync + 'static,
    ) -> Arc<Mortal> {
        let (changes, dies_at) = (AtomicUsize::new(0), usize::MAX);
        Arc::new(Mortal { inner: inner.clone(), changes, dies_at, before: Box::new(before) })
    }

    /// How many changes were asked for.
    pub fn changes(&self) -> usize {
        self.changes.load(Ordering::SeqCst)
    }

    fn is_dead(&self) -> bool {
        self.changes() > self.dies_at
    }

    fn change(&self) -> object_store::Result<()> {
        let number = self.changes.fetch_add(1, Ordering::SeqCst);
        (self.before)(number);
        let dead = number >= self.dies_at;
        if dead { Err(died()) } else { Ok(()) }
    }
}

fn died() -> object_store::Error {
    object_store::Error::Generic { store: "mortal", source: "it has died".into() }
}

impl fmt::Display for Mortal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("mortal")
    }
}

pub fn store(inner: Arc<dyn ObjectStore>) -> Store {
    Store::new(inner, ObjectPath::from("a/prefix"), "memory".to_owned()).unwrap()
}

#[async_trait::async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.change()?;
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(
        &self,
        location: &ObjectPath,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        if self.is_dead() {
            return Err(died());
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        match self.change() {
            Ok(()) => self.inner.delete_stream(locations),
            Err(error) => Box::pin(futures_util::stream::once(async { Err(error) })),
        }
    }

    fn list(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
