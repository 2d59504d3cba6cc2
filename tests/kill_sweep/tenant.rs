//! A RADOS namespace with volumes in it, the driver that made them, and the way to be rid of them.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cinderblock::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    DeleteVolumeRequest,
};
use cinderblock::rbd::{Errno, ImageKey, ImageOptions, OpenMode, Pool, Watcher};
use cinderblock::volume::names;
use tonic::Code;

use crate::common::driver::{
    Class, Driver, MIB, filesystem, from_snapshot, from_volume, lab_config,
};
use crate::common::{OwnLab, PATIENCE, POOL, unsettled, wait_until, wait_until_settled};
use crate::picture::{MARK_BYTES, MARKS, picture};
use crate::rpc::{Answer, Controller, Rpc, is_transient};

/// Bytes of a volume: both marks fit.
pub const SIZE: i64 = 8 * MIB;

/// The image that another tool made, and its snapshot.
const GOLDEN: &str = "golden";
const GOLDEN_SNAPSHOT: &str = "v1";

/// Names of volumes that live in the tenant's second namespace begin so.
const FAR: &str = "far-";

/// One RADOS namespace and what a test made in it; and one more, for clones that are not where
/// their source is.
pub struct Tenant<'a> {
    lab: &'a OwnLab,
    near: Arc<dyn Pool>,
    far: Arc<dyn Pool>,
    class: Class,
    /// The driver requests go to that are not to be killed.
    controller: Controller,
    volumes: Vec<CreateVolumeRequest>,
    snapshots: Vec<(Rpc, String)>,
}

impl<'a> Tenant<'a> {
    /// A new namespace, whose volumes are made with these StorageClass parameters. It goes with the
    /// lab.
    pub fn new(lab: &'a OwnLab, parameters: &[(&str, &str)]) -> Tenant<'a> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let cluster = lab.connect();
        let namespace = |kind: &str| {
            let name = format!("{kind}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
            cluster.pool(POOL, &lab.namespace(&name)).unwrap()
        };
        let (near, far) = (namespace("near"), namespace("far"));
        let mut class = Class::new(lab, near.namespace());
        for (key, value) in parameters {
            class = class.with(key, value);
        }
        Tenant {
            lab,
            near,
            far,
            class,
            controller: controller(lab, &[]),
            volumes: Vec::new(),
            snapshots: Vec::new(),
        }
    }

    // --- requests -------------------------------------------------------------------------------

    /// A request for an empty volume.
    pub fn create(&self, name: &str) -> Rpc {
        Rpc::CreateVolume(self.class.create_volume(name, SIZE))
    }

    /// A request for a copy of a volume.
    pub fn clone_volume(&self, name: &str, source: &str) -> Rpc {
        let class = self.class.clone().with("radosNamespace", self.place(name).namespace());
        Rpc::CreateVolume(CreateVolumeRequest {
            volume_content_source: Some(from_volume(&self.id(source))),
            ..class.create_volume(name, SIZE)
        })
    }

    /// A request for a copy of a volume, with more room.
    pub fn clone_larger(&self, name: &str, source: &str) -> Rpc {
        let Rpc::CreateVolume(mut request) = self.clone_volume(name, source) else {
            unreachable!()
        };
        request.capacity_range = self.class.create_volume(name, 2 * SIZE).capacity_range;
        Rpc::CreateVolume(request)
    }

    /// A request for a copy of a snapshot.
    pub fn restore(&self, name: &str, snapshot: &str) -> Rpc {
        Rpc::CreateVolume(self.restore_of_size(name, SIZE, snapshot))
    }

    /// A request for a copy of a snapshot, with more room.
    pub fn restore_larger(&self, name: &str, snapshot: &str) -> Rpc {
        Rpc::CreateVolume(self.restore_of_size(name, 2 * SIZE, snapshot))
    }

    fn restore_of_size(&self, name: &str, size: i64, snapshot: &str) -> CreateVolumeRequest {
        CreateVolumeRequest {
            volume_content_source: Some(from_snapshot(&self.snapshot_id(snapshot))),
            ..self.class.create_volume(name, size)
        }
    }

    /// A request for a volume made of the golden image, with more room.
    pub fn of_golden(&self, name: &str) -> Rpc {
        let place = format!("{POOL}/{}", self.near.namespace());
        let location = format!("rbd://{}/{place}/{GOLDEN}/{GOLDEN_SNAPSHOT}", self.lab.fsid);
        let class = self.class.clone().with("sourceImage", &location);
        Rpc::CreateVolume(class.create_volume(name, 2 * SIZE))
    }

    /// A request for the end of a volume.
    pub fn delete(&self, name: &str) -> Rpc {
        Rpc::DeleteVolume(self.class.delete_volume(&self.id(name)))
    }

    /// A request for a snapshot.
    pub fn create_snapshot(&self, name: &str, volume: &str) -> Rpc {
        Rpc::CreateSnapshot(self.class.create_snapshot(name, &self.id(volume)))
    }

    /// A request for the end of a snapshot.
    pub fn delete_snapshot(&self, name: &str) -> Rpc {
        Rpc::DeleteSnapshot(self.class.delete_snapshot(&self.snapshot_id(name)))
    }

    /// A request for twice the room.
    pub fn expand(&self, name: &str) -> Rpc {
        Rpc::Expand(ControllerExpandVolumeRequest {
            volume_id: self.id(name),
            capacity_range: Some(CapacityRange { required_bytes: 2 * SIZE, limit_bytes: 0 }),
            secrets: self.class.secrets.clone(),
            ..ControllerExpandVolumeRequest::default()
        })
    }

    /// A request to attach a volume to a node.
    pub fn publish(&self, name: &str) -> Rpc {
        Rpc::Publish(ControllerPublishVolumeRequest {
            volume_id: self.id(name),
            node_id: "node".to_string(),
            volume_capability: Some(filesystem()),
            secrets: self.class.secrets.clone(),
            ..ControllerPublishVolumeRequest::default()
        })
    }

    /// A request to detach it.
    pub fn unpublish(&self, name: &str) -> Rpc {
        Rpc::Unpublish(ControllerUnpublishVolumeRequest {
            volume_id: self.id(name),
            node_id: "node".to_string(),
            secrets: self.class.secrets.clone(),
        })
    }

    /// What takes back what `rpc` has done or begun, if anything does. Asked for by ids the
    /// orchestrator may never have heard, since the driver may have died before it answered.
    pub fn opposite(&self, rpc: &Rpc) -> Rpc {
        let secrets = self.class.secrets.clone();
        match rpc {
            Rpc::CreateVolume(request) => self.delete(&request.name),
            Rpc::DeleteVolume(request) => {
                let made =
                    self.volumes.iter().find(|volume| self.id(&volume.name) == request.volume_id);
                Rpc::CreateVolume(made.unwrap().clone())
            }
            Rpc::CreateSnapshot(request) => {
                let source = request.source_volume_id.rsplit('/').next().unwrap();
                let image_id = self.near.image_id(source).unwrap().unwrap();
                let id = format!(
                    "lab/{POOL}/{}/{image_id}@csi-snap-{}",
                    self.near.namespace(),
                    request.name
                );
                Rpc::DeleteSnapshot(DeleteSnapshotRequest { snapshot_id: id, secrets })
            }
            Rpc::DeleteSnapshot(request) => {
                let made = self.snapshots.iter().find(|(_, id)| *id == request.snapshot_id);
                made.unwrap().0.clone()
            }
            Rpc::Expand(request) => Rpc::DeleteVolume(DeleteVolumeRequest {
                volume_id: request.volume_id.clone(),
                secrets,
            }),
            Rpc::Publish(request) => self.unpublish(self.name(&request.volume_id)),
            Rpc::Unpublish(request) => self.publish(self.name(&request.volume_id)),
        }
    }

    fn id(&self, name: &str) -> String {
        let namespace = self.place(name).namespace();
        format!("lab/{POOL}/{namespace}/{}", names::rbd_name("csi-", name, usize::MAX))
    }

    /// The namespace the volume lives in.
    fn place(&self, name: &str) -> &dyn Pool {
        if name.starts_with(FAR) { &*self.far } else { &*self.near }
    }

    fn name(&self, id: &str) -> &str {
        let volume = self.volumes.iter().find(|volume| self.id(&volume.name) == id);
        &volume.unwrap().name
    }

    fn snapshot_id(&self, name: &str) -> String {
        let suffix = format!("@csi-snap-{name}");
        self.snapshots.iter().find(|(_, id)| id.ends_with(&suffix)).unwrap().1.clone()
    }

    // --- what is there before -------------------------------------------------------------------

    /// Makes an empty volume and marks it with its name.
    pub fn have_volume(&mut self, name: &str) {
        self.do_once(&self.create(name));
        self.mark(name);
    }

    /// Makes a golden image without the driver, and marks it.
    pub fn have_golden(&self) {
        let options = ImageOptions::default();
        self.near.create_image(GOLDEN, SIZE.try_into().unwrap(), &options).unwrap();
        let image = self.near.open_image(ImageKey::Name(GOLDEN), OpenMode::ReadWrite).unwrap();
        image.write_at(MARKS[0], GOLDEN.as_bytes()).unwrap();
        image.create_snapshot(GOLDEN_SNAPSHOT).unwrap();
        image.protect_snapshot(GOLDEN_SNAPSHOT).unwrap();
    }

    /// Makes a volume of the golden image.
    pub fn have_of_golden(&mut self, name: &str) {
        self.do_once(&self.of_golden(name));
    }

    /// Removes the golden image, if there is one, as only one can who has no clones any more.
    fn remove_golden(&self) {
        let image = match self.near.open_image(ImageKey::Name(GOLDEN), OpenMode::ReadWrite) {
            Err(error) if error.errno == Errno::ENOENT => return,
            image => image.unwrap(),
        };
        assert!(image.children(None).unwrap().is_empty(), "the golden image has clones");
        image.unprotect_snapshot(GOLDEN_SNAPSHOT).unwrap();
        image.remove_snapshot(GOLDEN_SNAPSHOT).unwrap();
        drop(image);
        self.near.remove_image(GOLDEN).unwrap();
    }

    /// Makes a clone of a volume and marks it as well, beside its parent's mark.
    pub fn have_clone(&mut self, name: &str, source: &str) {
        self.do_once(&self.clone_volume(name, source));
        self.mark(name);
    }

    /// Makes a volume of a snapshot.
    pub fn have_restore(&mut self, name: &str, snapshot: &str) {
        self.do_once(&self.restore(name, snapshot));
    }

    /// Makes a snapshot, and writes something else to the volume.
    pub fn have_snapshot(&mut self, name: &str, volume: &str) {
        self.do_once(&self.create_snapshot(name, volume));
        self.mark(&format!("{volume}+"));
    }

    /// Deletes a volume.
    pub fn have_deleted(&mut self, name: &str) {
        self.do_once(&self.delete(name));
    }

    /// Attaches a volume.
    pub fn have_published(&mut self, name: &str) {
        self.do_once(&self.publish(name));
    }

    /// Writes the name into a volume's first object when it is its own master, into the second when
    /// it is a clone.
    fn mark(&self, text: &str) {
        let name = format!("csi-{}", text.trim_end_matches('+'));
        let image =
            self.place(text).open_image(ImageKey::Name(&name), OpenMode::ReadWrite).unwrap();
        let mut mark = text.as_bytes().to_vec();
        mark.resize(MARK_BYTES, b'.');
        let clone = image.parent(None).unwrap().is_some();
        image.write_at(MARKS[usize::from(clone)], &mark).unwrap();
        image.flush().unwrap();
    }

    // --- asking ---------------------------------------------------------------------------------

    /// Asks until it is done; and once more, which must answer the same.
    pub fn done(&mut self, rpc: &Rpc) {
        let answer = self.do_once(rpc);
        let again = self.do_once(rpc);
        assert_eq!(answer, again, "asked again, {rpc:?} answers something else");
    }

    /// Asks, again and again where the orchestrator would.
    fn do_once(&mut self, rpc: &Rpc) -> Answer {
        let answer = self.insist(rpc);
        for pool in [&self.near, &self.far] {
            wait_until_settled(&**pool);
        }
        match rpc {
            Rpc::CreateVolume(request) => {
                assert_eq!(answer.id, self.id(&request.name));
                self.volumes.retain(|volume| volume.name != request.name);
                self.volumes.push(request.clone());
            }
            Rpc::CreateSnapshot(_) => {
                self.snapshots.retain(|(_, id)| *id != answer.id);
                self.snapshots.push((rpc.clone(), answer.id.clone()));
            }
            _ => {}
        }
        answer
    }

    /// The same for a request that may be one for something that is gone by now. Says whether it
    /// was done.
    pub fn done_unless_gone(&mut self, rpc: &Rpc) -> bool {
        match self.controller.ask(rpc) {
            Err(status) if status.code() == Code::NotFound => false,
            _ => {
                self.done(rpc);
                true
            }
        }
    }

    fn insist(&mut self, rpc: &Rpc) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.controller.ask(rpc) {
                Ok(answer) => return answer,
                Err(status) if is_transient(&status) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(status) => panic!("{rpc:?}: {status:?}"),
            }
        }
    }

    /// Another driver takes over.
    pub fn new_controller(&mut self) {
        self.controller = controller(self.lab, &[]);
    }

    /// One more driver, with these variables in its environment.
    pub fn driver(&self, environment: &[(&str, &str)]) -> Controller {
        controller(self.lab, environment)
    }

    /// Waits until the driver has settled what its answer left to be done, or is dead. Says whether
    /// it is dead.
    pub fn settled_or_dead(&self, driver: &mut Driver) -> bool {
        wait_until("the journal is settled", || {
            let left: Vec<_> =
                [&self.near, &self.far].into_iter().flat_map(|pool| unsettled(&**pool)).collect();
            match (driver.has_ended(), left.is_empty()) {
                (false, false) => Err(left),
                (ended, _) => Ok(ended),
            }
        })
    }

    /// Makes the watches of dead drivers go at once, as an operator would who knows that they are
    /// dead: 30 seconds are long.
    pub fn fence_the_dead(&self) {
        for watcher in self.watchers() {
            let command = serde_json::json!({"prefix": "osd blocklist", "blocklistop": "add", "addr": watcher.address});
            self.near.cluster().monitor_command(&command.to_string()).unwrap();
        }
        self.wait_for_the_dead();
    }

    /// Waits until the watches of dead drivers have run out.
    pub fn wait_for_the_dead(&self) {
        wait_until("dead drivers let go", || {
            let watchers = self.watchers();
            if watchers.is_empty() { Ok(()) } else { Err(watchers) }
        });
    }

    fn watchers(&self) -> Vec<Watcher> {
        let mut watchers = Vec::new();
        for pool in [&self.near, &self.far] {
            for entry in pool.list_images().unwrap() {
                match pool.open_image(ImageKey::Id(&entry.id), OpenMode::ReadOnly) {
                    Ok(image) => watchers.extend(image.watchers().unwrap()),
                    Err(error) => assert_eq!(error.errno, Errno::ENOENT, "{error}"),
                }
            }
        }
        watchers
    }

    /// The namespace itself.
    pub fn pool(&self) -> &dyn Pool {
        &*self.near
    }

    /// What is there.
    pub fn picture(&self) -> Vec<String> {
        let far = picture(&self.far).into_iter().map(|line| format!("far: {line}"));
        picture(&self.near).into_iter().chain(far).collect()
    }

    /// Runs `cinderblock gc --apply`.
    pub fn collect(&self) {
        let directory = tempfile::tempdir().unwrap();
        let (config, key) = (directory.path().join("config.yaml"), directory.path().join("key"));
        std::fs::write(&config, lab_config(self.lab)).unwrap();
        std::fs::write(&key, self.lab.key.expose()).unwrap();
        for pool in [&self.far, &self.near] {
            let output = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
                .args([
                    "gc",
                    "--apply",
                    "--patience",
                    "0",
                    "--pool",
                    POOL,
                    "--namespace",
                    pool.namespace(),
                ])
                .args(["--user", &self.lab.user])
                .arg("--key-file")
                .arg(&key)
                .arg("--config")
                .arg(&config)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
        }
    }

    /// Deletes everything through the driver, the latest first or last, and fails when anything is
    /// left.
    pub fn clear(&mut self, latest_first: bool) {
        for volume in &self.volumes.clone() {
            self.do_once(&self.unpublish(&volume.name));
        }
        let volumes = self.volumes.iter().map(|volume| self.delete(&volume.name));
        let snapshots = self.snapshots.iter().map(|(_, id)| {
            let secrets = self.class.secrets.clone();
            Rpc::DeleteSnapshot(DeleteSnapshotRequest { snapshot_id: id.clone(), secrets })
        });
        let mut deletions: Vec<_> = volumes.chain(snapshots).collect();
        if latest_first {
            deletions.reverse();
        }
        for deletion in deletions {
            self.do_once(&deletion);
        }
        self.volumes.clear();
        self.snapshots.clear();
        self.remove_golden();
        assert_eq!(self.picture(), Vec::<String>::new(), "left behind");
    }

    /// The end: no object is left but what librbd and the driver keep for themselves, with nothing
    /// in it.
    pub fn end(self) {
        // OSDs drop the objects of removed snapshots in their own time.
        wait_until("nothing is left in the namespaces", || {
            let objects = self.lab.run("rados", &["--pool", POOL, "--all", "ls"]);
            let is_left = |pool: &Arc<dyn Pool>, line: &&str| {
                let object =
                    line.strip_prefix(pool.namespace()).and_then(|rest| rest.strip_prefix('\t'));
                object.is_some_and(|object| !is_empty_list(&**pool, object))
            };
            let left: Vec<_> = objects
                .lines()
                .filter(|line| is_left(&self.near, line) || is_left(&self.far, line))
                .collect();
            if left.is_empty() { Ok(()) } else { Err(left.join(" ")) }
        });
    }
}

fn is_empty_list(pool: &dyn Pool, object: &str) -> bool {
    let librbds = ["rbd_children", "rbd_directory", "rbd_info", "rbd_trash"].contains(&object);
    let page = pool.omap_list(object, "", 10).unwrap();
    // The directory holds a note of librbd's that the namespace is in use.
    (librbds || object.starts_with("cinderblock."))
        && page.entries.iter().all(|(key, _)| key == "state")
}

fn controller(lab: &OwnLab, environment: &[(&str, &str)]) -> Controller {
    Controller::of(Driver::start_in(environment, &lab_config(lab), &["--role", "controller"]))
}
