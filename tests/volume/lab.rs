//! A cluster in memory with one controller, and short ways to ask it for things.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cinderblock::notes::Place;
use cinderblock::rbd::model::{Graph, Model, Session};
use cinderblock::rbd::{CloneFormat, Features, Image, ImageKey, ImageOptions, OpenMode, Pool};
use cinderblock::volume::catalogue::{self, Publication};
use cinderblock::volume::trash::Parked;
use cinderblock::volume::{
    Activity, CreateGroup, CreateSnapshot, CreateVolume, DeleteWithSnapshots, Error, FlattenTarget,
    GroupSource, ImageLocation, Leases, Made, Policy, Process, PublishVolume, Result, Sizes,
    VolumeSource, Volumes, image_spec,
};

/// Bytes in a block, and in an object of every image here: a flatten or a copy takes one step for
/// each.
pub(crate) const BLOCK: u64 = 4096;

/// Blocks of a volume when a test does not say.
pub(crate) const BLOCKS: u64 = 3;

/// A pool and a RADOS namespace of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Home {
    pub(crate) pool: &'static str,
    pub(crate) namespace: &'static str,
}

pub(crate) const RBD: Home = Home { pool: "rbd", namespace: "" };
pub(crate) const OTHER_POOL: Home = Home { pool: "two", namespace: "" };
pub(crate) const OTHER_NAMESPACE: Home = Home { pool: "rbd", namespace: "tenant" };
pub(crate) const HOMES: [Home; 3] = [RBD, OTHER_POOL, OTHER_NAMESPACE];

/// The home a picture of the cluster speaks of.
pub(crate) fn home(place: &(String, String)) -> Home {
    *HOMES.iter().find(|home| (home.pool, home.namespace) == (&*place.0, &*place.1)).unwrap()
}

/// What a volume is asked to be.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) home: Home,
    pub(crate) name: String,
    pub(crate) source: Option<VolumeSource>,
    pub(crate) sizes: Sizes,
    pub(crate) format: CloneFormat,
    pub(crate) deep_flatten: bool,
    pub(crate) policy: Policy,
    pub(crate) delete_with_snapshots: DeleteWithSnapshots,
    pub(crate) trash_retention: Option<u64>,
}

impl Wish {
    /// A volume in the pool `rbd`, empty, of [`BLOCKS`] blocks.
    pub(crate) fn new(name: &str) -> Wish {
        Wish {
            home: RBD,
            name: name.to_owned(),
            source: None,
            sizes: Sizes { required: BLOCKS * BLOCK, limit: 0 },
            format: CloneFormat::V2,
            deep_flatten: true,
            policy: Policy::default(),
            delete_with_snapshots: DeleteWithSnapshots::Retain,
            trash_retention: None,
        }
    }

    /// Of another volume of the same home.
    pub(crate) fn of(self, source: &str) -> Wish {
        let home = self.home;
        self.of_volume_in(home, source)
    }

    /// Of another volume.
    pub(crate) fn of_volume_in(self, home: Home, source: &str) -> Wish {
        let source = VolumeSource::Volume {
            id: volume_id(home, source),
            pool: home.pool.to_owned(),
            namespace: home.namespace.to_owned(),
            image: source.to_owned(),
        };
        Wish { source: Some(source), sizes: Sizes::default(), ..self }
    }

    /// Of a snapshot.
    pub(crate) fn of_snapshot(self, source: &Cut) -> Wish {
        let source = VolumeSource::Snapshot {
            id: source.id(),
            pool: source.home.pool.to_owned(),
            namespace: source.home.namespace.to_owned(),
            image_id: source.image_id.clone(),
            snapshot: source.name.clone(),
        };
        Wish { source: Some(source), sizes: Sizes::default(), ..self }
    }

    /// Of the snapshot `snapshot` of a golden image.
    pub(crate) fn of_image(self, lab: &Lab, home: Home, image: &str, snapshot: &str) -> Wish {
        let namespace = match home.namespace {
            "" => String::new(),
            namespace => format!("{namespace}/"),
        };
        let (fsid, pool) = (lab.fsid(), home.pool);
        let location = format!("rbd://{fsid}/{pool}/{namespace}{image}/{snapshot}");
        let source = VolumeSource::Image(ImageLocation::parse(&location).unwrap());
        Wish { source: Some(source), sizes: Sizes::default(), ..self }
    }

    pub(crate) fn home(self, home: Home) -> Wish {
        Wish { home, ..self }
    }

    pub(crate) fn format(self, format: CloneFormat) -> Wish {
        Wish { format, ..self }
    }

    pub(crate) fn blocks(self, blocks: u64) -> Wish {
        Wish { sizes: Sizes { required: blocks * BLOCK, limit: 0 }, ..self }
    }

    pub(crate) fn depth(mut self, max_clone_depth: u32) -> Wish {
        self.policy.max_clone_depth = max_clone_depth;
        self
    }

    pub(crate) fn flatten(mut self, target: FlattenTarget) -> Wish {
        self.policy.flatten_target = target;
        self
    }

    /// With a class that parks volumes in the trash for an hour.
    pub(crate) fn parked(self) -> Wish {
        Wish { trash_retention: Some(3600), ..self }
    }

    pub(crate) fn shallow_flatten(self) -> Wish {
        Wish { deep_flatten: false, ..self }
    }

    pub(crate) fn max_snapshots(mut self, most: usize) -> Wish {
        self.policy.max_snapshots = most;
        self
    }

    /// The request as the CSI side would make it.
    pub(crate) fn request(&self) -> CreateVolume {
        let layering = Features::LAYERING.union(Features::EXCLUSIVE_LOCK);
        let features =
            if self.deep_flatten { layering.union(Features::DEEP_FLATTEN) } else { layering };
        CreateVolume {
            id: volume_id(self.home, &self.name),
            name: self.name.clone(),
            image: self.name.clone(),
            sizes: self.sizes,
            source: self.source.clone(),
            digest: format!("{:?} {features:?} {:?}", self.format, self.policy),
            older_digest: format!("older {:?} {features:?}", self.format),
            policy: self.policy,
            options: ImageOptions {
                features: Some(features),
                order: Some(12),
                clone_format: self.format,
                ..ImageOptions::default()
            },
            delete_with_snapshots: self.delete_with_snapshots,
            context: BTreeMap::new(),
            settings: BTreeMap::new(),
            claim: None,
            trash_retention: self.trash_retention,
        }
    }
}

/// A snapshot that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) home: Home,
    pub(crate) image_id: String,
    pub(crate) name: String,
}

impl Cut {
    pub(crate) fn id(&self) -> String {
        format!(
            "lab/{}",
            image_spec(
                self.home.pool,
                self.home.namespace,
                &format!("{}@{}", self.image_id, self.name)
            )
        )
    }
}

pub(crate) fn volume_id(home: Home, name: &str) -> String {
    format!("lab/{}", image_spec(home.pool, home.namespace, name))
}

/// One process of the driver.
#[derive(Debug, Clone)]
pub(crate) struct Controller {
    pub(crate) session: Session,
    leases: Leases,
}

impl Controller {
    /// One for which the leases of all others have expired: they have stood still for long, or are
    /// dead.
    pub(crate) fn new(model: &Model) -> Controller {
        Controller::patient(model, Duration::ZERO)
    }

    /// One for which a lease expires after `patience`.
    pub(crate) fn patient(model: &Model, patience: Duration) -> Controller {
        Controller { session: model.connect(), leases: Leases::new(patience) }
    }

    /// The same process, on another connection.
    pub(crate) fn reconnected(&self, model: &Model) -> Controller {
        Controller { session: model.connect(), leases: self.leases.clone() }
    }

    /// The volumes of `home`, as a single RPC sees them.
    pub(crate) fn volumes(&self, home: Home) -> Result<Volumes> {
        self.volumes_for(home, Arc::new(Activity::default()))
    }

    /// The same for the operation that does this.
    pub(crate) fn volumes_for(&self, home: Home, activity: Arc<Activity>) -> Result<Volumes> {
        let pool = self.session.cluster().pool(home.pool, home.namespace)?;
        // The other controllers of a test stand still while one waits; and calls come in one order.
        let (patience, at_once) = (Duration::ZERO, 1);
        let process =
            Process { leases: self.leases.clone(), patience, at_once, ..Process::default() };
        Ok(Volumes::new(pool, "test", process, activity))
    }

    /// Does something, and settles what it leaves, as the driver does in the background.
    fn settled<T>(&self, home: Home, act: impl FnOnce(&Volumes) -> Result<T>) -> Result<T> {
        let volumes = self.volumes(home)?;
        let outcome = act(&volumes);
        volumes.settle_own();
        outcome
    }

    pub(crate) fn create(&self, wish: &Wish) -> Result<catalogue::Volume> {
        self.settled(wish.home, |volumes| volumes.create(&wish.request())).map(Made::into_record)
    }

    pub(crate) fn delete(&self, home: Home, name: &str) -> Result<()> {
        self.settled(home, |volumes| volumes.delete(name).map(drop))
    }

    /// What is in the trash.
    pub(crate) fn trash(&self, home: Home) -> Vec<Parked> {
        self.volumes(home).unwrap().trash().unwrap()
    }

    /// Brings the volume of that name back from the trash, as one who has seen it there.
    pub(crate) fn take_back(&self, home: Home, name: &str) -> Result<catalogue::Volume> {
        self.settled(home, |volumes| {
            let id = match volumes.trash()?.into_iter().find(|parked| parked.image == name) {
                Some(parked) => Some(parked.image_id),
                None => volumes.catalogue().volume(name)?.and_then(|stored| stored.record.image_id),
            };
            volumes.take_back(&id.unwrap_or_default())
        })
    }

    /// Purges all volumes of that name from the trash.
    pub(crate) fn purge(&self, home: Home, name: &str) -> Result<()> {
        self.settled(home, |volumes| {
            let parked = volumes.trash()?;
            let of_that_name = parked.iter().filter(|parked| parked.image == name);
            of_that_name.map(|parked| &parked.image_id).try_for_each(|id| volumes.purge(id))
        })
    }

    pub(crate) fn snapshot(
        &self,
        home: Home,
        volume: &str,
        name: &str,
        max_snapshots: usize,
    ) -> Result<Cut> {
        let request = CreateSnapshot {
            name: name.to_owned(),
            snapshot: name.to_owned(),
            volume_id: volume_id(home, volume),
            image: volume.to_owned(),
            max_snapshots,
        };
        let record = self.settled(home, |volumes| volumes.create_snapshot(&request))?.into_record();
        Ok(Cut { home, image_id: record.image_id, name: name.to_owned() })
    }

    pub(crate) fn delete_snapshot(&self, cut: &Cut) -> Result<()> {
        self.settled(cut.home, |volumes| volumes.delete_snapshot(&cut.image_id, &cut.name))
    }

    /// Cuts a group snapshot; its members are called after it and their volumes.
    pub(crate) fn group(
        &self,
        home: Home,
        name: &str,
        volumes: &[&str],
    ) -> Result<catalogue::Group> {
        let source = |volume: &&str| GroupSource {
            volume_id: volume_id(home, volume),
            image: (*volume).to_owned(),
            snapshot: format!("{name}-{volume}"),
        };
        let request = CreateGroup {
            name: name.to_owned(),
            group: name.to_owned(),
            sources: volumes.iter().map(source).collect(),
            max_snapshots: Policy::default().max_snapshots,
        };
        self.settled(home, |volumes| volumes.create_group(&request))
    }

    pub(crate) fn delete_group(&self, home: Home, name: &str) -> Result<()> {
        self.settled(home, |volumes| volumes.delete_group(name))
    }

    pub(crate) fn grow(&self, home: Home, name: &str, blocks: u64) -> Result<u64> {
        self.volumes(home)?.grow(name, Sizes { required: blocks * BLOCK, limit: 0 })
    }

    pub(crate) fn publish(&self, home: Home, name: &str, node: &str) -> Result<()> {
        self.publish_noted(home, name, node).map(drop)
    }

    /// Publishes, and says where the node notes its clients.
    pub(crate) fn publish_noted(
        &self,
        home: Home,
        name: &str,
        node: &str,
    ) -> Result<Option<Place>> {
        self.volumes(home)?.publish(&publish_volume(name, node, false))
    }

    /// Publishes to a node that may have `limit` volumes.
    pub(crate) fn publish_limited(
        &self,
        home: Home,
        name: &str,
        node: &str,
        limit: u32,
    ) -> Result<()> {
        self.publish_among_others(home, name, node, Some(limit)).map(drop)
    }

    /// Publishes to one node of several, and says where it notes its clients.
    pub(crate) fn publish_shared(
        &self,
        home: Home,
        name: &str,
        node: &str,
    ) -> Result<Option<Place>> {
        self.publish_among_others(home, name, node, None)
    }

    fn publish_among_others(
        &self,
        home: Home,
        name: &str,
        node: &str,
        limit: Option<u32>,
    ) -> Result<Option<Place>> {
        self.volumes(home)?.publish(&PublishVolume { limit, ..publish_volume(name, node, true) })
    }

    pub(crate) fn unpublish(&self, home: Home, name: &str) -> Result<()> {
        self.release(home, name, None)
    }

    /// Fences what is noted, and unpublishes.
    pub(crate) fn release(&self, home: Home, name: &str, node: Option<&str>) -> Result<()> {
        let volumes = self.volumes(home)?;
        let Some(leaving) = volumes.leaving(name, node, true)? else { return Ok(()) };
        volumes.fence(leaving.addresses())?;
        volumes.unpublish(leaving)
    }

    /// What a controller does when it starts.
    pub(crate) fn recover(&self) -> Result<()> {
        self.sweep(Duration::from_hours(1))
    }

    /// What a controller does when it starts, and every minute, if creations are abandoned after
    /// `patience`.
    pub(crate) fn sweep(&self, patience: Duration) -> Result<()> {
        HOMES.iter().try_for_each(|home| self.sweep_one(*home, patience))
    }

    /// The same in one pool and namespace alone.
    pub(crate) fn sweep_one(&self, home: Home, patience: Duration) -> Result<()> {
        self.settled(home, |volumes| {
            volumes.recount_nodes()?;
            volumes.settle(volumes.sweep(patience)?);
            Ok(())
        })
    }
}

/// A cluster with one controller, and an outsider who uses the same images without the driver.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) model: Model,
    pub(crate) controller: Controller,
    pub(crate) outsider: Session,
    /// The wish that every volume of this lab begins as.
    pub(crate) plain: Wish,
    /// The golden images that another client made.
    pub(crate) golden: Mutex<Vec<(Home, String)>>,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let model = Model::new();
        for home in HOMES {
            if home.namespace.is_empty() {
                model.create_pool(home.pool);
            } else {
                model.create_namespace(home.pool, home.namespace);
            }
        }
        let controller = Controller::new(&model);
        let outsider = model.connect();
        Lab { model, controller, outsider, plain: Wish::new(""), golden: Mutex::default() }
    }

    /// A lab whose volumes are cloned in format 1.
    pub(crate) fn format_1() -> Lab {
        let mut lab = Lab::new();
        lab.plain.format = CloneFormat::V1;
        lab
    }

    /// A wish as this lab makes them.
    pub(crate) fn wish(&self, name: &str) -> Wish {
        Wish { name: name.to_owned(), ..self.plain.clone() }
    }

    /// Creates an empty volume and fills each block with the volume's name.
    pub(crate) fn create(&self, name: &str) {
        self.make(&self.wish(name));
        for block in 0..BLOCKS {
            self.write(RBD, name, block, name);
        }
    }

    pub(crate) fn clone(&self, source: &str, name: &str) {
        self.make(&self.wish(name).of(source));
    }

    pub(crate) fn restore(&self, source: &Cut, name: &str) {
        self.make(&self.wish(name).of_snapshot(source));
    }

    pub(crate) fn make(&self, wish: &Wish) -> catalogue::Volume {
        let made = self.controller.create(wish);
        made.unwrap_or_else(|error| panic!("creating {}: {error}\n{}", wish.name, self.graph()))
    }

    pub(crate) fn delete(&self, name: &str) {
        let deleted = self.controller.delete(RBD, name);
        deleted.unwrap_or_else(|error| panic!("deleting {name}: {error}\n{}", self.graph()));
    }

    pub(crate) fn snapshot(&self, volume: &str, name: &str) -> Cut {
        let cut = self.controller.snapshot(RBD, volume, name, Policy::default().max_snapshots);
        cut.unwrap_or_else(|error| panic!("snapshot {name} of {volume}: {error}\n{}", self.graph()))
    }

    pub(crate) fn delete_snapshot(&self, cut: &Cut) {
        let deleted = self.controller.delete_snapshot(cut);
        deleted.unwrap_or_else(|error| {
            panic!("deleting snapshot {}: {error}\n{}", cut.name, self.graph())
        });
    }

    pub(crate) fn fsid(&self) -> String {
        self.outsider.cluster().fsid().unwrap()
    }

    /// Another client makes an image without the driver, fills each block with the image's name,
    /// and cuts the snapshot "v1" of it.
    pub(crate) fn golden(&self, home: Home, name: &str) {
        let options = ImageOptions { order: Some(12), ..ImageOptions::default() };
        self.pool(home).create_image(name, BLOCKS * BLOCK, &options).unwrap();
        for block in 0..BLOCKS {
            self.write(home, name, block, name);
        }
        self.open(home, name).create_snapshot("v1").unwrap();
        self.golden.lock().unwrap().push((home, name.to_owned()));
    }

    /// The other client removes its golden images, on which nothing hangs any more.
    pub(crate) fn remove_golden(&self) {
        for (home, name) in self.golden.lock().unwrap().drain(..) {
            let image = self.open(home, &name);
            for snapshot in image.snapshots().unwrap() {
                let children = image.children(Some(snapshot.id)).unwrap();
                assert!(children.is_empty(), "{name} still has {children:?}");
                if snapshot.protected {
                    image.unprotect_snapshot(&snapshot.name).unwrap();
                }
                image.remove_snapshot_by_id(snapshot.id).unwrap();
            }
            drop(image);
            self.pool(home).remove_image(&name).unwrap();
        }
    }

    pub(crate) fn graph(&self) -> Graph {
        self.model.graph()
    }

    /// A pool as the outsider sees it.
    pub(crate) fn pool(&self, home: Home) -> Arc<dyn Pool> {
        self.outsider.cluster().pool(home.pool, home.namespace).unwrap()
    }

    /// An image as the outsider has it open.
    pub(crate) fn open(&self, home: Home, name: &str) -> Box<dyn Image> {
        self.pool(home).open_image(ImageKey::Name(name), OpenMode::ReadWrite).unwrap()
    }

    /// `rbd flatten`, behind the driver's back.
    pub(crate) fn flatten_outside(&self, name: &str) {
        self.open(RBD, name).flatten(&mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
    }

    /// Fills a block of a volume with a repeated text.
    pub(crate) fn write(&self, home: Home, name: &str, block: u64, text: &str) {
        self.open(home, name).write_at(block * BLOCK, &filling(text)).unwrap();
    }

    /// Whether each block of a volume is filled with the text given for it, "" for zeros, and there
    /// are no more.
    pub(crate) fn assert_holds(&self, home: Home, name: &str, texts: &[&str]) {
        let image = self.pool(home).open_image(ImageKey::Name(name), OpenMode::ReadOnly).unwrap();
        assert_eq!(image.info().unwrap().size, texts.len() as u64 * BLOCK, "size of {name}");
        for (block, text) in (0..).zip(texts) {
            let mut bytes = filling("");
            image.read_at(None, block * BLOCK, &mut bytes).unwrap();
            assert!(bytes == filling(text), "block {block} of {name} does not hold {text:?}");
        }
    }

    /// Everything the driver made is gone.
    pub(crate) fn assert_empty(&self) {
        let graph = self.graph();
        assert!(graph.has_no_images(), "images are left:\n{graph}");
        assert!(self.has_no_records(), "records are left:\n{graph}");
    }

    /// Whether nothing is written down anywhere.
    pub(crate) fn has_no_records(&self) -> bool {
        let graph = self.graph();
        graph.pools.values().flat_map(|pool| pool.objects.values()).all(BTreeMap::is_empty)
    }

    /// Asks for something that must be refused, and checks that nothing changed by it.
    pub(crate) fn refused<T: std::fmt::Debug>(
        &self,
        ask: impl FnOnce(&Controller) -> Result<T>,
    ) -> Error {
        let before = self.graph();
        let error = ask(&self.controller).expect_err("this must be refused");
        assert_eq!(before, self.graph(), "refused with {error:?}, but it changed something");
        error
    }
}

fn filling(text: &str) -> Vec<u8> {
    let length = usize::try_from(BLOCK).unwrap();
    let mut bytes = text.repeat(length / text.len().max(1)).into_bytes();
    bytes.resize(length, 0);
    bytes
}

/// A request to publish a volume to a node.
pub(crate) fn publish_volume(name: &str, node: &str, shared: bool) -> PublishVolume {
    let publication = Publication {
        node: node.to_owned(),
        readonly: false,
        shared,
        capability: "a".to_owned(),
        counted: false,
        token: None,
    };
    let older_capability = "older a".to_owned();
    PublishVolume {
        image: name.to_owned(),
        publication,
        older_capability,
        limit: None,
        fence: true,
    }
}
