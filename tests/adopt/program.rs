//! Ten volumes change their driver, and back, and again, with the program, a controller and a node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::{ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest};
use cinderblock::rbd::Pool;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::driver::{
    Class, Driver, filesystem, from_snapshot, from_volume, lab_config_with_own_user,
};
use crate::common::{Lab, Namespace, OwnLab, PATIENCE, POOL};
use crate::fixtures::{CephCsi, Cinder, SIZE, fill, read, ten_volumes};
use crate::node::{OneNode, ext4};

/// The program at work in a pool and namespace.
pub struct Program {
    folder: TempDir,
    namespace: String,
}

impl Program {
    pub fn new(lab: &Lab, namespace: &str) -> Program {
        let folder = tempfile::tempdir().unwrap();
        let config = lab_config_with_own_user(lab, namespace);
        // The default namespace is written without one.
        let config = config.replace(&format!("{POOL}/]"), &format!("{POOL}]"));
        std::fs::write(folder.path().join("config.yaml"), config).unwrap();
        Program { folder, namespace: namespace.to_owned() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, command: &str, arguments: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_cinderblock"));
        program
            .arg(command)
            .arg("--config")
            .arg(self.path("config.yaml"))
            .args(["--pool", POOL, "--namespace", &self.namespace])
            .args(arguments);
        program
    }

    pub fn run(&self, command: &str, arguments: &[&str]) -> Output {
        self.command(command, arguments).output().unwrap()
    }

    /// Runs it and gives what it said. Fails the test when it ends otherwise.
    pub fn expect(&self, code: i32, command: &str, arguments: &[&str]) -> String {
        let output = self.run(command, arguments);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{command} {arguments:?}: {said}");
        said
    }
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// The objects that ceph-csi's volumes have in Kubernetes, as `kubectl get -o json` writes them.
pub fn objects(csi: &CephCsi) -> Value {
    let handle = |uuid: &str| format!("0001-0003-lab-0000000000000001-{uuid}");
    let secret = json!({ "name": "csi-rbd-secret", "namespace": "ceph" });
    let mut items = Vec::new();
    let journal = csi.journal();
    for (key, uuid) in &journal["csi.volumes.default"] {
        items.push(json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": { "name": key.strip_prefix("csi.volume.").unwrap(), "uid": "old" },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": { "storage": SIZE.to_string() },
                "claimRef": { "name": "data", "namespace": "demo", "uid": "claim" },
                "csi": {
                    "driver": "rbd.csi.ceph.com",
                    "fsType": "ext4",
                    "volumeHandle": handle(uuid),
                    "volumeAttributes": { "clusterID": "lab", "pool": POOL, "mapOptions": "krbd:lock_on_read" },
                    "nodeStageSecretRef": secret,
                },
                "persistentVolumeReclaimPolicy": "Retain",
                "volumeMode": "Filesystem",
            },
        }));
    }
    for (key, uuid) in &journal["csi.snaps.default"] {
        let name = key.strip_prefix("csi.snap.").unwrap();
        items.push(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshotContent",
            "metadata": { "name": format!("snapcontent-{name}") },
            "spec": {
                "deletionPolicy": "Retain",
                "driver": "rbd.csi.ceph.com",
                "source": { "volumeHandle": "0001-whatever" },
                "volumeSnapshotRef": { "name": name, "namespace": "demo", "uid": "old" },
            },
            "status": { "snapshotHandle": handle(uuid) },
        }));
    }
    json!({ "kind": "List", "items": items })
}

/// A handle, and the attributes beside it.
type NewVolume = (String, BTreeMap<String, String>);

/// The handle and the attributes in the new PersistentVolumes, by their names; and the handles of
/// the new VolumeSnapshotContents.
fn new_objects(path: &Path) -> (BTreeMap<String, NewVolume>, Vec<String>) {
    let list: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (mut volumes, mut snapshots) = (BTreeMap::new(), Vec::new());
    for item in list["items"].as_array().unwrap() {
        let spec = &item["spec"];
        match item["kind"].as_str().unwrap() {
            "PersistentVolume" => {
                assert_eq!(spec["csi"]["driver"], "rbd.csi.cinderblock.dev");
                assert_eq!(spec["persistentVolumeReclaimPolicy"], "Retain");
                let attributes =
                    serde_json::from_value(spec["csi"]["volumeAttributes"].clone()).unwrap();
                let handle = spec["csi"]["volumeHandle"].as_str().unwrap().to_owned();
                let name = item["metadata"]["name"].as_str().unwrap().to_owned();
                volumes.insert(name, (handle, attributes));
            }
            "VolumeSnapshotContent" => {
                assert_eq!(spec["driver"], "rbd.csi.cinderblock.dev");
                snapshots.push(spec["source"]["snapshotHandle"].as_str().unwrap().to_owned());
            }
            _ => {}
        }
    }
    (volumes, snapshots)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_volume_is_attached_and_nothing_else() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let options = cinderblock::rbd::ImageOptions::default();
    for image in ["disk-8", "disk-9"] {
        pool.create_image(image, SIZE, &options).unwrap();
    }
    fill_with_content(&pool)("disk-8", 8);
    let program = Program::new(&lab, &namespace.name);
    program.expect(0, "adopt", &["disk-9", "--name", "nine", "--apply"]);
    // The namespace is the one of the configuration.
    let config = std::fs::read_to_string(program.path("config.yaml")).unwrap();
    let config = format!("{config}  rbd: {{radosNamespace: {}}}\n", namespace.name);
    let driver = Driver::start(&config, &["--role", "controller"]);
    let class = Class::new(&lab, &namespace.name);
    let mut field = Field { lab: &lab, class, controller: driver.controller().await };
    let attributes = [("staticVolume", "true"), ("clusterID", "lab"), ("pool", POOL)];
    let attributes: BTreeMap<_, _> =
        attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(field.content("disk-8", &attributes).await, "content of 8");
    for (image, code) in [("disk-9", Code::FailedPrecondition), ("disk-10", Code::NotFound)] {
        let status = field.publish(image, &attributes).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
    field.delete(&["disk-8".to_owned()]).await;
    assert!(pool.image_id("disk-8").unwrap().is_some(), "a static volume is never deleted");
    pool.remove_image("disk-8").unwrap();
    field.delete(&[format!("lab/{POOL}/{}/disk-9", namespace.name)]).await;
    crate::common::wait_until_settled(&*pool);
    driver.stop();
    namespace.assert_nothing_is_left();
}

/// A driver that has adopted volumes in its hands.
struct Field<'a> {
    lab: &'a Lab,
    class: Class,
    controller: ControllerClient<Channel>,
}

impl Field<'_> {
    async fn publish(
        &mut self,
        id: &str,
        attributes: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, Status> {
        let request = ControllerPublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: "node-1".to_owned(),
            volume_capability: Some(filesystem()),
            volume_context: attributes.clone(),
            secrets: self.class.secrets.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        let published = self.controller.controller_publish_volume(request).await?;
        Ok(published.into_inner().publish_context)
    }

    /// What the file `data` of a volume holds.
    async fn content(&mut self, id: &str, attributes: &BTreeMap<String, String>) -> String {
        let published = self.publish(id, attributes).await.unwrap();
        let node = OneNode::new(self.lab);
        let content = node.read(id, attributes, &published).await.unwrap();
        let request = ControllerUnpublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: "node-1".to_owned(),
            secrets: self.class.secrets.clone(),
        };
        self.controller.controller_unpublish_volume(request).await.unwrap();
        content
    }

    /// Makes a volume and gives its id.
    async fn create(
        &mut self,
        name: &str,
        source: cinderblock::csi::proto::VolumeContentSource,
    ) -> String {
        let mut request = self.class.create_volume(name, 0);
        request.capacity_range = None;
        request.volume_content_source = Some(source);
        let made = self.controller.create_volume(request).await.unwrap();
        made.into_inner().volume.unwrap().volume_id
    }

    async fn snapshot(&mut self, name: &str, of: &str) -> String {
        let request = self.class.create_snapshot(name, of);
        let made = self.controller.create_snapshot(request).await.unwrap();
        made.into_inner().snapshot.unwrap().snapshot_id
    }

    async fn delete(&mut self, ids: &[String]) {
        for id in ids {
            self.controller.delete_volume(self.class.delete_volume(id)).await.unwrap();
        }
    }

    /// Asks again while the driver itself is removing a clone of the snapshot, as callers do.
    async fn delete_snapshots(&mut self, ids: &[String]) {
        let deadline = Instant::now() + PATIENCE;
        for id in ids {
            while let Err(status) =
                self.controller.delete_snapshot(self.class.delete_snapshot(id)).await
            {
                assert!(status.code() == Code::Aborted && Instant::now() < deadline, "{status}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The image of a volume id.
fn image(id: &str) -> &str {
    id.rsplit('/').next().unwrap()
}

/// Adopts, uses everything, releases, adopts again and deletes all. `arguments` are those of
/// `adopt`.
async fn live(
    lab: &Lab,
    pool: &Arc<dyn Pool>,
    program: &Program,
    arguments: &[&str],
    images: &[String],
    released: &dyn Fn(),
) {
    let bytes: BTreeMap<_, _> =
        images.iter().map(|image| (image.clone(), read(pool, image))).collect();
    let new = program.path("new.json");
    let write = ["--write", new.to_str().unwrap()];
    let apply = [arguments, &write[..], &["--apply"]].concat();

    let planned = program.expect(3, "adopt", &[arguments, &write[..]].concat());
    assert!(planned.contains("nothing was changed") && planned.contains("will be adopted"));
    let dry = new_objects(&new);
    let said = program.expect(0, "adopt", &apply);
    assert!(said.contains("is adopted") && !said.contains("will be"), "{said}");
    let (volumes, snapshots) = new_objects(&new);
    assert_eq!((&volumes, &snapshots), (&dry.0, &dry.1));
    assert_eq!(volumes.len(), images.len(), "{volumes:?}");
    // What nothing needs was removed by the first run, and is not listed any more.
    let rows = |said: &str| {
        let rows = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        rows.filter(|row| !row.contains(" parent ")).collect::<Vec<_>>()
    };
    let again = program.expect(0, "adopt", &apply);
    assert_eq!(rows(&again), rows(&said), "a second run has nothing to do");

    assert_eq!(program.expect(0, "gc", &[]).trim(), "nothing is left half-done");
    let tree = program.expect(0, "tree", &[]);
    assert!(images.iter().all(|image| tree.contains(image)), "{tree}");

    let config = std::fs::read_to_string(program.path("config.yaml")).unwrap();
    let driver = Driver::start(&config, &["--role", "controller"]);
    let class = Class::new(lab, pool.namespace());
    let class = if pool.namespace().is_empty() { class.without("radosNamespace") } else { class };
    let mut field = Field { lab, class, controller: driver.controller().await };

    for (id, attributes) in volumes.values() {
        assert!(read(pool, image(id)) == bytes[image(id)], "{id} differs");
        let content = field.content(id, attributes).await;
        assert!(content.starts_with("content of "), "{id}: {content:?}");
    }
    // Mounting has changed their journals.
    let bytes: BTreeMap<_, _> =
        images.iter().map(|image| (image.clone(), read(pool, image))).collect();
    let mut made = Vec::new();
    for (n, (id, attributes)) in volumes.values().enumerate().step_by(3) {
        let cut = field.snapshot(&format!("new-{n}"), id).await;
        let restored = field.create(&format!("restored-{n}"), from_snapshot(&cut)).await;
        let cloned = field.create(&format!("cloned-{n}"), from_volume(id)).await;
        for copy in [&restored, &cloned] {
            assert!(read(pool, image(copy)) == bytes[image(id)], "{copy} differs from {id}");
        }
        let mut attributes = attributes.clone();
        attributes.insert("imageName".to_owned(), image(&cloned).to_owned());
        assert!(field.content(&cloned, &attributes).await.starts_with("content of "));
        made.extend([restored, cloned]);
        let refused = program.expect(3, "release", &["--apply", image(id)]);
        assert!(refused.contains(&format!("delete csi-snap-new-{n}")), "{refused}");
        field.delete_snapshots(&[cut]).await;
    }
    for (n, snapshot) in snapshots.iter().enumerate() {
        made.push(field.create(&format!("of-old-{n}"), from_snapshot(snapshot)).await);
    }
    field.delete(&made).await;
    crate::common::wait_until_settled(&**pool);

    let planned = program.expect(3, "release", &[]);
    assert!(planned.contains("will be given back"), "{planned}");
    let said = program.expect(0, "release", &["--apply"]);
    assert!(said.contains("is given back"), "{said}");
    released();
    for image in images {
        assert!(read(pool, image) == bytes[image], "{image} differs after the release");
    }
    assert_eq!(program.expect(0, "release", &["--apply"]).trim(), "nothing was adopted here");
    assert_eq!(program.expect(0, "gc", &[]).trim(), "nothing is left half-done");

    program.expect(0, "adopt", &apply);
    for (id, attributes) in volumes.values().take(2) {
        assert!(field.content(id, attributes).await.starts_with("content of "));
    }
    // Sources first, which is the harder order.
    let (volumes, snapshots) = new_objects(&new);
    let ids: Vec<_> = volumes.values().map(|(id, _)| id.clone()).collect();
    field.delete(&ids[..5]).await;
    field.delete_snapshots(&snapshots).await;
    field.delete(&ids[5..]).await;
    crate::common::wait_until_settled(&**pool);
    driver.stop();
}

fn fill_with_content(pool: &Arc<dyn Pool>) -> impl Fn(&str, u32) + use<> {
    let pool = pool.clone();
    move |image, n| fill(&pool, image, &ext4(&format!("content of {n}")), &format!("mark {n}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_volumes_of_ceph_csi_are_adopted_used_released_and_adopted_again() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let csi = CephCsi::new(pool.clone());
    let images = ten_volumes(&csi, &fill_with_content(&pool));
    let before = csi.journal();
    let program = Program::new(&lab, &namespace.name);
    let old = program.path("old.json");
    std::fs::write(&old, objects(&csi).to_string()).unwrap();
    let arguments = ["--from", "ceph-csi", "--manifests", old.to_str().unwrap()];
    let released = || assert_eq!(csi.journal(), before, "the journal after the release");
    live(&lab, &pool, &program, &arguments, &images, &released).await;
    csi.assert_journal_is_empty();
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_volumes_of_ceph_csi_are_adopted_from_a_pool_without_namespaces() {
    let lab = OwnLab::up();
    let pool = lab.connect().pool(POOL, "").unwrap();
    let csi = CephCsi::new(pool.clone());
    let images = ten_volumes(&csi, &fill_with_content(&pool));
    let before = csi.journal();
    let program = Program::new(&lab, "");
    let arguments = ["--from", "ceph-csi", "--objects-checked", "--secret", "ceph/rbd-key"];
    let released = || assert_eq!(csi.journal(), before, "the journal after the release");
    live(&lab, &pool, &program, &arguments, &images, &released).await;
    csi.assert_journal_is_empty();
    crate::common::wait_until("the pool is empty", || {
        let left = (pool.list_images().unwrap(), pool.trash_list().unwrap());
        if left.0.is_empty() && left.1.is_empty() { Ok(()) } else { Err(left) }
    });
    let objects = lab.run("rados", &["--pool", POOL, "ls"]);
    for object in objects.lines().filter(|object| object.starts_with("cinderblock.")) {
        assert!(pool.omap_list(object, "", 10).unwrap().entries.is_empty(), "{object}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_volumes_of_cinder_are_adopted_used_released_and_adopted_again() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let images = Cinder { pool: pool.clone() }.ten_volumes(&fill_with_content(&pool));
    let program = Program::new(&lab, &namespace.name);
    let arguments = ["--from", "cinder", "--secret", "ceph/rbd-key"];
    live(&lab, &pool, &program, &arguments, &images, &|| {}).await;
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_image_is_adopted_by_a_name() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let options = cinderblock::rbd::ImageOptions::default();
    pool.create_image("disk-7", SIZE, &options).unwrap();
    fill_with_content(&pool)("disk-7", 7);
    let program = Program::new(&lab, &namespace.name);
    let new = program.path("new.json");
    let arguments = ["disk-7", "--name", "seven", "--write", new.to_str().unwrap(), "--apply"];
    program.expect(0, "adopt", &arguments);
    let (volumes, _) = new_objects(&new);
    let (id, attributes) = &volumes["seven"];
    assert_eq!(*id, format!("lab/{POOL}/{}/disk-7", namespace.name));
    let config = std::fs::read_to_string(program.path("config.yaml")).unwrap();
    let driver = Driver::start(&config, &["--role", "controller"]);
    let class = Class::new(&lab, &namespace.name);
    let mut field = Field { lab: &lab, class, controller: driver.controller().await };
    assert_eq!(field.content(id, attributes).await, "content of 7");
    field.delete(std::slice::from_ref(id)).await;
    crate::common::wait_until_settled(&*pool);
    driver.stop();
    namespace.assert_nothing_is_left();
}
