//! Volumes of a RADOS namespace of their own, with a driver of their own, and what each of them
//! must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::volume_capability::access_mode::Mode;
use cinderblock::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use cinderblock::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, Volume, VolumeContentSource,
};
use cinderblock::rbd::{Cluster, Image, ImageKey, OpenMode, Pool};
use futures_util::StreamExt;
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::driver::{Class, Driver, block, filesystem, lab_config};
use crate::common::{Lab, Namespace, POOL, unsettled, wait_until_settled};
use crate::picture::picture;

/// Bytes of a block, and of an object of every image here.
pub(crate) const BLOCK: usize = 4096;

/// Blocks of a volume when a test does not say.
pub(crate) const BLOCKS: usize = 3;

/// Requests at a time, as many as a sidecar has.
const AT_ONCE: usize = 10;

/// How long to wait before asking again.
const RETRY: Duration = Duration::from_millis(100);

/// What a volume is made from, by the name it goes by here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From<'a> {
    Volume(&'a str),
    Snapshot(&'a str),
}

/// Volumes and snapshots, by their CSI names.
pub(crate) struct Family<'a> {
    lab: &'a Lab,
    cluster: Arc<dyn Cluster>,
    places: Vec<Place<'a>>,
    pub(crate) driver: Driver,
    pub(crate) controller: ControllerClient<Channel>,
    /// What the next volumes are asked for with.
    pub(crate) class: Class,
    volumes: BTreeMap<String, Held>,
    snapshots: BTreeMap<String, Held>,
}

struct Place<'a> {
    /// What pictures call it; home is "".
    label: &'static str,
    namespace: Namespace<'a>,
    pool: Arc<dyn Pool>,
}

/// What the caller knows of a volume or snapshot: the id it was handed out under, and the text each
/// block is filled with.
#[derive(Debug, Clone)]
struct Held {
    id: String,
    texts: Vec<String>,
}

/// Tells a story in both clone formats, each in a place of its own, and checks that it leaves
/// nothing behind.
pub(crate) async fn in_both_formats(story: impl AsyncFn(&mut Family<'_>)) {
    let lab = Lab::from_environment();
    for format in ["1", "2"] {
        let mut family = Family::new(&lab, "").await;
        family.set("cloneFormat", format);
        story(&mut family).await;
        family.end();
    }
}

impl<'a> Family<'a> {
    /// An empty place. `keys` are added to the cluster's entry in the driver's configuration.
    pub(crate) async fn new(lab: &'a Lab, keys: &str) -> Family<'a> {
        let driver =
            Driver::start(&format!("{}  {keys}\n", lab_config(lab)), &["--role", "controller"]);
        let mut family = Family {
            lab,
            cluster: lab.connect(),
            places: Vec::new(),
            controller: driver.controller().await,
            driver,
            class: Class::new(lab, "").with("objectSize", &BLOCK.to_string()),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
        };
        family.add_place("");
        family.go_to("");
        family
    }

    /// Another RADOS namespace, which pictures call `label`.
    pub(crate) fn add_place(&mut self, label: &'static str) {
        let namespace = Namespace::new(self.lab);
        let pool = namespace.pool(&*self.cluster);
        self.places.push(Place { label, namespace, pool });
    }

    /// The next volumes are made there.
    pub(crate) fn go_to(&mut self, label: &str) {
        let place = self.places.iter().find(|place| place.label == label).unwrap();
        let name = place.namespace.name.clone();
        self.set("radosNamespace", &name);
    }

    /// The next volumes are asked for with this parameter.
    pub(crate) fn set(&mut self, parameter: &str, value: &str) {
        self.class.parameters.insert(parameter.to_owned(), value.to_owned());
    }

    /// Whether snapshots with clones are protected here.
    pub(crate) fn is_format_1(&self) -> bool {
        self.class.parameters.get("cloneFormat").is_some_and(|format| format == "1")
    }

    /// Creates a volume and fills each of its blocks with its name.
    pub(crate) async fn create(&mut self, name: &str) {
        self.make(name, None, BLOCKS).await.unwrap();
        for block in 0..BLOCKS {
            self.write(name, block, name);
        }
    }

    /// Clones a volume.
    pub(crate) async fn clone_volume(&mut self, source: &str, name: &str) {
        self.make(name, Some(From::Volume(source)), 0).await.unwrap();
    }

    /// Clones a volume under all these names.
    pub(crate) async fn clone_all(&mut self, source: &str, names: &[String]) {
        let requests =
            names.iter().map(|name| self.request(name, Some(From::Volume(source)), 0)).collect();
        let answers = self.ask_all(requests, async |mut controller, request| {
            controller.create_volume(request).await
        });
        for (name, answer) in names.iter().zip(answers.await) {
            let id = answer.volume.unwrap().volume_id;
            self.volumes
                .insert(name.clone(), Held { id, texts: self.volumes[source].texts.clone() });
        }
    }

    /// Takes a snapshot of each of these volumes, under the volume's name.
    pub(crate) async fn snapshot_all(&mut self, volumes: &[String]) {
        let requests = volumes
            .iter()
            .map(|name| self.class.create_snapshot(name, &self.volume_id(name)))
            .collect();
        let ask = async |mut controller: ControllerClient<Channel>, request| {
            controller.create_snapshot(request).await
        };
        for (name, answer) in volumes.iter().zip(self.ask_all(requests, ask).await) {
            let held = Held {
                id: answer.snapshot.unwrap().snapshot_id,
                texts: self.volumes[name].texts.clone(),
            };
            self.snapshots.insert(name.clone(), held);
        }
    }

    /// Asks for all of these, so many at a time, and again where told to, as sidecars do. The
    /// answers come in the order of the requests.
    async fn ask_all<T: Clone, A>(
        &self,
        requests: Vec<T>,
        ask: impl AsyncFn(ControllerClient<Channel>, T) -> Result<tonic::Response<A>, Status>,
    ) -> Vec<A> {
        let insist = async |request: T| {
            loop {
                match ask(self.controller.clone(), request.clone()).await {
                    Err(status) if status.code() == Code::Aborted => {
                        tokio::time::sleep(RETRY).await;
                    }
                    answer => return answer.unwrap().into_inner(),
                }
            }
        };
        futures_util::stream::iter(requests).map(insist).buffered(AT_ONCE).collect().await
    }

    /// Restores a snapshot.
    pub(crate) async fn restore(&mut self, source: &str, name: &str) {
        self.make(name, Some(From::Snapshot(source)), 0).await.unwrap();
    }

    /// Asks for a volume of so many blocks, 0 for as many as the source has.
    pub(crate) async fn make(
        &mut self,
        name: &str,
        source: Option<From<'_>>,
        blocks: usize,
    ) -> Result<Volume, Status> {
        let request = self.request(name, source, blocks);
        let volume = self.controller.create_volume(request).await?.into_inner().volume.unwrap();
        let mut texts = match source {
            None => Vec::new(),
            Some(From::Volume(source)) => self.volumes[source].texts.clone(),
            Some(From::Snapshot(source)) => self.snapshots[source].texts.clone(),
        };
        texts.resize(texts.len().max(blocks), String::new());
        assert_eq!(
            usize::try_from(volume.capacity_bytes).unwrap(),
            texts.len() * BLOCK,
            "size of {name}"
        );
        self.volumes.insert(name.to_owned(), Held { id: volume.volume_id.clone(), texts });
        Ok(volume)
    }

    /// The request of [`Family::make`].
    pub(crate) fn request(
        &self,
        name: &str,
        source: Option<From<'_>>,
        blocks: usize,
    ) -> CreateVolumeRequest {
        let source = source.map(|source| match source {
            From::Volume(source) => {
                Type::Volume(VolumeSource { volume_id: self.volume_id(source) })
            }
            From::Snapshot(source) => {
                Type::Snapshot(SnapshotSource { snapshot_id: self.snapshot_id(source) })
            }
        });
        let mut request = self.class.create_volume(name, i64::try_from(blocks * BLOCK).unwrap());
        // No filesystem has room in blocks this small.
        request.volume_capabilities = vec![block(Mode::SingleNodeWriter)];
        request.volume_content_source =
            source.map(|source| VolumeContentSource { r#type: Some(source) });
        request
    }

    /// Deletes a volume.
    pub(crate) async fn delete(&mut self, name: &str) {
        self.try_delete(name).await.unwrap();
        self.volumes.remove(name);
    }

    pub(crate) async fn try_delete(&mut self, name: &str) -> Result<(), Status> {
        let request = self.class.delete_volume(&self.volume_id(name));
        self.controller.delete_volume(request).await.map(drop)
    }

    /// Publishes a volume to a node.
    pub(crate) async fn publish(&self, name: &str) -> Result<(), Status> {
        let publish = ControllerPublishVolumeRequest {
            volume_id: self.volume_id(name),
            node_id: "node-1".to_owned(),
            volume_capability: Some(filesystem()),
            secrets: self.class.secrets.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        self.controller.clone().controller_publish_volume(publish).await.map(drop)
    }

    /// Unpublishes it again.
    pub(crate) async fn unpublish(&self, name: &str) {
        let unpublish = ControllerUnpublishVolumeRequest {
            volume_id: self.volume_id(name),
            node_id: "node-1".to_owned(),
            secrets: self.class.secrets.clone(),
        };
        self.controller.clone().controller_unpublish_volume(unpublish).await.unwrap();
    }

    /// Grows a volume to so many bytes.
    pub(crate) async fn expand(&self, name: &str, bytes: i64) -> Result<(), Status> {
        let expand = ControllerExpandVolumeRequest {
            volume_id: self.volume_id(name),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            secrets: self.class.secrets.clone(),
            ..ControllerExpandVolumeRequest::default()
        };
        self.controller.clone().controller_expand_volume(expand).await.map(drop)
    }

    /// Takes a snapshot.
    pub(crate) async fn snapshot(&mut self, volume: &str, name: &str) {
        self.try_snapshot(volume, name).await.unwrap();
    }

    pub(crate) async fn try_snapshot(&mut self, volume: &str, name: &str) -> Result<(), Status> {
        let request = self.class.create_snapshot(name, &self.volume_id(volume));
        let snapshot =
            self.controller.create_snapshot(request).await?.into_inner().snapshot.unwrap();
        let texts = self.volumes[volume].texts.clone();
        self.snapshots.insert(name.to_owned(), Held { id: snapshot.snapshot_id, texts });
        Ok(())
    }

    /// Deletes all of these volumes at once. Returns how long until the last was answered, and
    /// until all was settled.
    pub(crate) async fn delete_all(&mut self, names: &[String]) -> (Duration, Duration) {
        let requests =
            names.iter().map(|name| self.class.delete_volume(&self.volume_id(name))).collect();
        let began = Instant::now();
        let ask = async |mut controller: ControllerClient<Channel>, request| {
            controller.delete_volume(request).await
        };
        drop(self.ask_all(requests, ask).await);
        let answered = began.elapsed();
        for place in &self.places {
            wait_until_settled(&*place.pool);
        }
        for name in names {
            self.volumes.remove(name);
        }
        (answered, began.elapsed())
    }

    /// Deletes a snapshot.
    pub(crate) async fn delete_snapshot(&mut self, name: &str) {
        let request = self.class.delete_snapshot(&self.snapshot_id(name));
        self.controller.delete_snapshot(request).await.unwrap();
        self.snapshots.remove(name);
    }

    /// The id a volume was handed out under.
    pub(crate) fn volume_id(&self, name: &str) -> String {
        self.volumes[name].id.clone()
    }

    /// The id a snapshot was handed out under.
    pub(crate) fn snapshot_id(&self, name: &str) -> String {
        self.snapshots[name].id.clone()
    }

    /// A volume's image, behind the driver's back.
    pub(crate) fn open(&self, name: &str, mode: OpenMode) -> Box<dyn Image> {
        let (pool, image) = self.find(&self.volumes[name].id);
        pool.open_image(ImageKey::Name(image), mode).unwrap()
    }

    /// Fills a block of a volume with a text.
    pub(crate) fn write(&mut self, name: &str, block: usize, text: &str) {
        let image = self.open(name, OpenMode::ReadWrite);
        image.write_at((block * BLOCK) as u64, &filling(text)).unwrap();
        text.clone_into(&mut self.volumes.get_mut(name).unwrap().texts[block]);
    }

    /// A volume is deleted that was asked for by its id.
    pub(crate) fn forget(&mut self, name: &str) {
        self.volumes.remove(name);
    }

    /// The spec of a volume's image, as `rbd` has it.
    pub(crate) fn spec(&self, name: &str) -> String {
        let (pool, image) = self.find(&self.volumes[name].id);
        format!("{POOL}/{}/{image}", pool.namespace())
    }

    /// Runs `rbd`, as an administrator or a backup tool does.
    pub(crate) fn rbd(&self, arguments: &[&str]) -> String {
        self.lab.run("rbd", arguments)
    }

    /// Runs `cinderblock gc` for the place called `label`, and gives what it says.
    pub(crate) fn gc(&self, label: &str, more: &[&str]) -> String {
        let place = self.places.iter().find(|place| place.label == label).unwrap();
        let config = self.driver.folder().join("config.yaml");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_cinderblock"))
            .arg("gc")
            .arg("--config")
            .arg(config)
            .args(["--pool", POOL, "--namespace", &place.namespace.name, "--user", &self.lab.user])
            .arg("--key-file")
            .arg(&self.lab.key_file)
            .args(more)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    /// The pool of an id, and what comes after it.
    fn find<'b>(&self, id: &'b str) -> (&Arc<dyn Pool>, &'b str) {
        let mut parts = id.splitn(4, '/');
        assert_eq!((parts.next(), parts.next()), (Some("lab"), Some(POOL)), "{id}");
        let namespace = parts.next().unwrap();
        let place = self.places.iter().find(|place| place.namespace.name == namespace).unwrap();
        (&place.pool, parts.next().unwrap())
    }

    /// The images, their snapshots and parents are as drawn; every volume and snapshot that was
    /// handed out and not deleted holds what was written to it, and is recorded as such; nothing is
    /// in flight. In format 2 nothing is protected, so `*` counts in format 1 only.
    pub(crate) fn assert(&self, drawn: &str) {
        for place in &self.places {
            wait_until_settled(&*place.pool);
        }
        let places: Vec<_> = self.places.iter().map(|place| (place.label, &place.pool)).collect();
        let protected = if self.is_format_1() { "*" } else { "" };
        assert_eq!(
            picture(&places),
            drawn.replace('*', protected),
            "what there is, and what there should be"
        );
        self.assert_bytes();
        for place in &self.places {
            self.assert_recorded(place);
        }
    }

    /// Every volume and snapshot holds what was written to it.
    pub(crate) fn assert_bytes(&self) {
        for (name, volume) in &self.volumes {
            let (pool, image) = self.find(&volume.id);
            assert_holds(name, &**pool, ImageKey::Name(image), None, &volume.texts);
        }
        for (name, snapshot) in &self.snapshots {
            let (pool, image_and_snapshot) = self.find(&snapshot.id);
            let (image_id, snapshot_name) = image_and_snapshot.split_once('@').unwrap();
            assert_holds(
                name,
                &**pool,
                ImageKey::Id(image_id),
                Some(snapshot_name),
                &snapshot.texts,
            );
        }
    }

    /// The catalogue has a `ready` record for each volume and snapshot, one for each silent parent,
    /// and no other. The journal has no suspect but those whose link stands: it was about to be cut
    /// in one place, and holds in another.
    fn assert_recorded(&self, place: &Place<'_>) {
        let here = |id: &str| self.find(id).0.namespace() == place.pool.namespace();
        let mut expected = BTreeSet::new();
        for volume in self.volumes.values().filter(|volume| here(&volume.id)) {
            expected.insert(format!("volume/{} ready", self.find(&volume.id).1));
        }
        for snapshot in self.snapshots.values().filter(|snapshot| here(&snapshot.id)) {
            expected.insert(format!("snapshot/{} ready", snapshot.id.split_once('@').unwrap().1));
        }
        for image in place.pool.list_images().unwrap() {
            if image.name.ends_with(".deleted") {
                expected.insert(format!("silent/{} ", image.id));
            }
        }
        let mut recorded = BTreeSet::new();
        for shard in 0..16 {
            let object = format!("cinderblock.default.catalogue.{shard:02}");
            for (key, value) in place.pool.omap_list(&object, "", 1000).unwrap().entries {
                let record: Value = serde_json::from_slice(&value).unwrap();
                recorded.insert(format!("{key} {}", record["state"].as_str().unwrap_or_default()));
            }
        }
        assert_eq!(recorded, expected, "what is recorded, and what should be");
        assert_eq!(unsettled(&*place.pool), Vec::<String>::new(), "what is left in the journal");
    }

    /// Every object of every place, and every key of its omap: headers with sizes, features,
    /// snapshots, parents and metadata, the directories, the children, the driver's records. The
    /// objects of the catalogue come into being with their first record and stay, so empty ones do
    /// not count.
    pub(crate) fn everything(&self) -> BTreeSet<String> {
        let mut everything = BTreeSet::new();
        for place in &self.places {
            wait_until_settled(&*place.pool);
        }
        for Place { label, namespace, pool } in &self.places {
            for object in namespace.objects() {
                // The children of format 1 have keys that are no text.
                if object == "rbd_children" {
                    let place = ["--pool", POOL, "--namespace", &namespace.name];
                    let keys =
                        self.lab.run("rados", &[&place[..], &["listomapvals", &object]].concat());
                    everything.insert(format!("{label}{object}: {keys}"));
                    continue;
                }
                let page = pool.omap_list(&object, "", 1000).unwrap();
                assert!(!page.more, "{object} has more keys than a page");
                for (key, value) in page.entries {
                    everything.insert(format!("{label}{object} {key}: {}", value.escape_ascii()));
                }
                if !object.starts_with("cinderblock.") {
                    everything.insert(format!("{label}{object}"));
                }
            }
        }
        everything
    }

    /// Nothing has changed since [`Family::everything`] was asked.
    pub(crate) fn assert_unchanged(&self, before: &BTreeSet<String>) {
        let now = self.everything();
        let (gone, new): (Vec<_>, Vec<_>) =
            (before.difference(&now).collect(), now.difference(before).collect());
        assert!(
            gone.is_empty() && new.is_empty(),
            "this is gone: {gone:#?}; this is new: {new:#?}"
        );
    }

    /// Nothing is left of anything, and the driver ends in order.
    pub(crate) fn end(self) {
        assert!(
            self.volumes.is_empty() && self.snapshots.is_empty(),
            "the story does not delete what it made"
        );
        self.assert("");
        for place in &self.places {
            place.namespace.assert_nothing_is_recorded();
            place.namespace.assert_empty();
        }
        self.driver.stop();
    }
}

fn assert_holds(
    name: &str,
    pool: &dyn Pool,
    image: ImageKey<'_>,
    at: Option<&str>,
    texts: &[String],
) {
    let image = pool.open_image(image, OpenMode::ReadOnly).unwrap();
    let snapshots = image.snapshots().unwrap();
    let snapshot = at.map(|at| snapshots.iter().find(|snapshot| snapshot.name == at).unwrap());
    let size = snapshot.map_or_else(|| image.info().unwrap().size, |snapshot| snapshot.size);
    assert_eq!(size, (texts.len() * BLOCK) as u64, "size of {name}");
    let mut bytes = vec![0; texts.len() * BLOCK];
    image.read_at(snapshot.map(|snapshot| snapshot.id), 0, &mut bytes).unwrap();
    for (block, (bytes, text)) in bytes.chunks(BLOCK).zip(texts).enumerate() {
        assert!(bytes == filling(text), "block {block} of {name} is not filled with {text:?}");
    }
}

/// A block filled with a text; with zeros for none.
fn filling(text: &str) -> Vec<u8> {
    let mut block: Vec<u8> = text.bytes().cycle().take(BLOCK).collect();
    block.resize(BLOCK, 0);
    block
}

/// The code and the message of a refusal.
pub(crate) fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_owned())
}
