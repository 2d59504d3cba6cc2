//! Volumes made from golden images on a real Ceph, as a user who may only read these.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::wildcard_imports, reason = "most messages of CSI")]

mod common;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::*;
use cinderblock::rbd::{Image, ImageKey, ImageOptions, Key, OpenMode, Pool};
use common::driver::{
    Class, Driver, MIB, filesystem, from_snapshot, from_volume, lab_config, within,
};
use common::{Lab, Namespace, POOL, wait_until_settled};
use tonic::{Code, Status};

/// Bytes of a golden image here.
const SIZE: u64 = 8 << 20;
/// What it holds, at its beginning.
const CONTENT: &[u8] = b"a disk";

/// A pool with golden images, and a user who may only read there. It goes at the end.
struct Golden<'a> {
    lab: &'a Lab,
    pool: String,
    user: String,
    key: Key,
}

impl<'a> Golden<'a> {
    fn new(lab: &'a Lab, what: &str) -> Golden<'a> {
        let pool = format!("golden-{what}-{}", std::process::id());
        lab.run("ceph", &["osd", "pool", "create", &pool, "1"]);
        lab.run("rbd", &["pool", "init", &pool]);
        let osd = format!("profile rbd pool={POOL}, profile rbd-read-only pool={pool}");
        let (user, key) = lab.user(what, &["mon", "profile rbd", "osd", &osd]);
        Golden { lab, pool, user, key }
    }

    fn class(&self, namespace: &Namespace<'_>) -> Class {
        Class::new(self.lab, &namespace.name).of_user(&self.user, &self.key)
    }

    fn place(&self, namespace: &str) -> Arc<dyn Pool> {
        self.lab.connect().pool(&self.pool, namespace).unwrap()
    }

    /// Makes an image that begins with `content`, and its snapshot "v1".
    fn image(&self, namespace: &str, name: &str, content: &[u8]) {
        let place = self.place(namespace);
        place.create_image(name, SIZE, &ImageOptions::default()).unwrap();
        let image = place.open_image(ImageKey::Name(name), OpenMode::ReadWrite).unwrap();
        image.write_at(0, content).unwrap();
        image.create_snapshot("v1").unwrap();
    }

    fn location(&self, namespace: &str, name: &str, snapshot: &str) -> String {
        let namespace = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        format!("rbd://{}/{}/{namespace}{name}/{snapshot}", self.lab.fsid, self.pool)
    }

    /// All objects of the pool, with their omaps' keys: what anybody wrote there.
    fn written(&self) -> BTreeSet<String> {
        let listed = self.lab.run("rados", &["--pool", &self.pool, "--all", "ls"]);
        listed.lines().map(str::to_owned).collect()
    }

    fn end(self) {
        let name = &self.pool;
        self.lab.run("ceph", &["osd", "pool", "rm", name, name, "--yes-i-really-really-mean-it"]);
        self.lab.remove_user(&self.user);
    }
}

async fn create(driver: &Driver, request: CreateVolumeRequest) -> Result<Volume, Status> {
    let answer = driver.controller().await.create_volume(within(60, request)).await?;
    Ok(answer.into_inner().volume.unwrap())
}

async fn delete(driver: &Driver, class: &Class, volume: &Volume) {
    let request = within(60, class.delete_volume(&volume.volume_id));
    driver.controller().await.delete_volume(request).await.unwrap();
}

fn open(lab: &Lab, namespace: &Namespace<'_>, volume: &Volume) -> Box<dyn Image> {
    let name = &volume.volume_context["imageName"];
    let pool = namespace.pool(&*lab.connect());
    pool.open_image(ImageKey::Name(name), OpenMode::ReadOnly).unwrap()
}

fn assert_holds(lab: &Lab, namespace: &Namespace<'_>, volume: &Volume, content: &[u8]) {
    let mut found = vec![0; content.len()];
    open(lab, namespace, volume).read_at(None, 0, &mut found).unwrap();
    assert_eq!(found, content, "{}", volume.volume_id);
}

/// A request for a volume of `size` bytes, or of any where it is 0.
fn of_size(class: &Class, name: &str, size: u64) -> CreateVolumeRequest {
    class.create_volume(name, i64::try_from(size).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_only_read_makes_uses_and_deletes_volumes_of_golden_images() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let golden = Golden::new(&lab, "reader");
    let driver = Driver::controller_for(&lab);
    let near = namespace.name.as_str();
    for place in ["", near] {
        if !place.is_empty() {
            let arguments = ["namespace", "create", "--pool", &golden.pool, "--namespace", place];
            lab.run("rbd", &arguments);
        }
        golden.image(place, "debian 12", CONTENT);
        for (format, protected) in [("2", false), ("2", true), ("1", true)] {
            if protected && format == "2" {
                let image = golden.place(place);
                let image = image.open_image(ImageKey::Name("debian 12"), OpenMode::ReadWrite);
                image.unwrap().protect_snapshot("v1").unwrap();
            }
            // Clones of format 1 stay in one RADOS namespace.
            if format == "1" && place.is_empty() {
                continue;
            }
            let before = golden.written();
            let class = golden
                .class(&namespace)
                .with("sourceImage", &golden.location(place, "debian%2012", "v1"))
                .with("dataPool", POOL)
                .with("cloneFormat", format);
            let a = create(&driver, of_size(&class, "a", 0)).await.unwrap();
            assert_eq!(a.capacity_bytes, 8 * MIB);
            assert_eq!(a.content_source, None);
            assert_eq!(a.volume_context["contentSource"], "image");
            assert_eq!(create(&driver, of_size(&class, "a", 0)).await.unwrap(), a);
            let larger = create(&driver, of_size(&class, "larger", 2 * SIZE)).await.unwrap();
            assert_eq!(open(&lab, &namespace, &larger).info().unwrap().size, 2 * SIZE);
            let copy = of_size(&class.clone().with("maxCloneDepth", "0"), "copy", 0);
            let copy = create(&driver, copy).await.unwrap();
            assert!(open(&lab, &namespace, &copy).parent(None).unwrap().is_none());
            // A request that names its source gets that one.
            let cut = class.create_snapshot("s", &a.volume_id);
            let cut = driver.controller().await.create_snapshot(cut).await.unwrap().into_inner();
            let snapshot = cut.snapshot.unwrap().snapshot_id;
            let mut request = of_size(&class, "restored", 0);
            request.volume_content_source = Some(from_snapshot(&snapshot));
            let restored = create(&driver, request).await.unwrap();
            assert_eq!(restored.volume_context["contentSource"], "snapshot");
            let mut request = of_size(&class.clone().with("maxCloneDepth", "1"), "cloned", 0);
            request.parameters.insert("flattenTarget".to_owned(), "source".to_owned());
            request.volume_content_source = Some(from_volume(&a.volume_id));
            let cloned = create(&driver, request).await.unwrap();
            assert!(open(&lab, &namespace, &a).parent(None).unwrap().is_none(), "flattened");
            let volumes = [a, larger, copy, restored, cloned];
            for volume in &volumes {
                assert_holds(&lab, &namespace, volume, CONTENT);
            }
            for volume in &volumes {
                delete(&driver, &class, volume).await;
            }
            let request = class.delete_snapshot(&snapshot);
            driver.controller().await.delete_snapshot(request).await.unwrap();
            namespace.assert_nothing_is_recorded();
            assert_eq!(golden.written(), before);
            let image = golden.place(place);
            let image = image.open_image(ImageKey::Name("debian 12"), OpenMode::ReadOnly).unwrap();
            let snapshots = image.snapshots().unwrap();
            assert_eq!(snapshots.len(), 1, "{snapshots:?}");
            assert_eq!(snapshots[0].protected, protected);
            assert!(image.children(None).unwrap().is_empty());
        }
    }
    namespace.assert_nothing_is_left();
    golden.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_location_is_refused_with_a_message_of_its_own() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let golden = Golden::new(&lab, "locations");
    let driver = Driver::controller_for(&lab);
    golden.image("", "disk", CONTENT);
    // By its name no one would know.
    golden.image("", "disk.raw", b"QFI\xfb\0\0\0\x03");
    let fsid = &lab.fsid;
    let elsewhere = "11111111-2222-3333-4444-555555555555";
    let of_other = |pool: &str, rest: &str| format!("rbd://{fsid}/{pool}/{rest}");
    let cases = [
        ("rbd://image".to_owned(), Code::InvalidArgument, "has 1 part"),
        ("http://path/to/somewhere/else".to_owned(), Code::InvalidArgument, "does not begin with"),
        ("rbd://image/extra".to_owned(), Code::InvalidArgument, "has 2 parts"),
        ("rbd://image/".to_owned(), Code::InvalidArgument, "nothing in part 2"),
        ("rbd://fsid/pool/image/".to_owned(), Code::InvalidArgument, "nothing in part 4"),
        ("rbd://fsid/pool/image/snap/".to_owned(), Code::InvalidArgument, "nothing in part 5"),
        ("rbd://///".to_owned(), Code::InvalidArgument, "nothing in part 1"),
        ("rbd://%2F/%2F/%2F/%2F".to_owned(), Code::InvalidArgument, "in the Ceph cluster \"/\""),
        (format!("rbd://{elsewhere}/rbd/disk/v1"), Code::InvalidArgument, elsewhere),
        (of_other("no-such-pool", "disk/v1"), Code::NotFound, "no pool is named"),
        (of_other(&golden.pool, "other/v1"), Code::NotFound, "has no image \"other\""),
        (of_other(&golden.pool, "disk/v2"), Code::NotFound, "has no snapshot \"v2\""),
        (of_other(&golden.pool, "none/disk/v1"), Code::NotFound, "has no RADOS namespace \"none\""),
        (of_other(&golden.pool, "disk.raw/v1"), Code::InvalidArgument, "in the format qcow2"),
    ];
    let mut messages = BTreeSet::new();
    for (location, code, words) in &cases {
        let class = golden.class(&namespace).with("sourceImage", location);
        let status = create(&driver, of_size(&class, "a", 0)).await.unwrap_err();
        assert_eq!(status.code(), *code, "{location}: {status:?}");
        assert!(status.message().contains(words), "{location}: {status:?}");
        messages.insert(status.message().to_owned());
    }
    assert_eq!(messages.len(), cases.len());
    let class = golden.class(&namespace).with("sourceImage", &golden.location("", "disk", "v1"));
    let status = create(&driver, of_size(&class, "a", SIZE / 2)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let near = Class::new(&lab, "").of_user(&golden.user, &golden.key);
    let near = near.without("radosNamespace").with("cloneFormat", "1");
    let near = near.with("sourceImage", &golden.location("", "disk", "v1"));
    let status = create(&driver, of_size(&near, "a", 0)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let spec = format!("rbd snap protect {}/disk@v1", golden.pool);
    assert!(status.message().contains(&spec), "{status:?}");
    namespace.assert_nothing_is_recorded();

    // Another image, and none, under a name that is taken.
    golden.image("", "other", CONTENT);
    let made = create(&driver, of_size(&class, "a", 0)).await.unwrap();
    let other = class.clone().with("sourceImage", &golden.location("", "other", "v1"));
    for class in [other, class.clone().without("sourceImage")] {
        let status = create(&driver, of_size(&class, "a", 0)).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
        assert!(status.message().contains("it was made from the image rbd://"), "{status:?}");
    }
    delete(&driver, &class, &made).await;
    namespace.assert_nothing_is_left();
    golden.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_to_read_is_mended_by_the_command_in_the_message() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let golden = Golden::new(&lab, "blind");
    golden.image("", "disk", CONTENT);
    let driver = Driver::controller_for(&lab);
    let right = format!("profile rbd-read-only pool={}", golden.pool);
    let reads = format!(", allow r class-read pool={}", golden.pool);
    // Neither user may add to the list of clones. The second may read, so its clone is begun.
    let cases = [("", Code::PermissionDenied), (&*reads, Code::Aborted)];
    for (number, (more, code)) in cases.iter().enumerate() {
        let osd = format!("profile rbd pool={POOL} namespace={}{more}", namespace.name);
        let capabilities = ["mon", "profile rbd", "osd", &osd];
        let (user, key) = lab.user(&format!("blind-user-{number}"), &capabilities);
        let class = Class::new(&lab, &namespace.name).of_user(&user, &key);
        let class = class.with("sourceImage", &golden.location("", "disk", "v1"));
        for _ in 0..2 {
            let status = create(&driver, of_size(&class, "a", 0)).await.unwrap_err();
            assert_eq!(status.code(), *code, "{status:?}");
            assert!(status.message().contains(&right), "{status:?}");
        }
        let status = create(&driver, of_size(&class, "a", 0)).await.unwrap_err();
        lab.run_from_message(status.message(), "run: ").unwrap();
        let made = create(&driver, of_size(&class, "a", 0)).await.unwrap();
        assert_holds(&lab, &namespace, &made, CONTENT);
        delete(&driver, &class, &made).await;
        lab.remove_user(&user);
    }
    namespace.assert_nothing_is_left();
    golden.end();
}

/// The snapshot of a golden image goes while it has clones: librbd keeps it for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_removed_serves_its_clones_to_their_end() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let golden = Golden::new(&lab, "removed");
    golden.image("", "disk", CONTENT);
    let driver = Driver::controller_for(&lab);
    let class = golden.class(&namespace).with("sourceImage", &golden.location("", "disk", "v1"));
    let made = create(&driver, of_size(&class, "a", 0)).await.unwrap();
    lab.run("rbd", &["snap", "rm", &format!("{}/disk@v1", golden.pool)]);
    assert_holds(&lab, &namespace, &made, CONTENT);
    let status = create(&driver, of_size(&class, "b", 0)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    delete(&driver, &class, &made).await;
    namespace.assert_nothing_is_left();
    // Nothing hangs on it any more, so the administrator can remove it.
    lab.run("rbd", &["rm", "--no-progress", &format!("{}/disk", golden.pool)]);
    golden.end();
}

/// A driver in both roles, and one volume at a time on it.
struct OnNode {
    driver: Driver,
    class: Class,
    state: tempfile::TempDir,
}

impl OnNode {
    fn new(lab: &Lab, class: Class) -> OnNode {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().to_str().unwrap();
        let arguments = ["--role", "all", "--node-id", "n", "--state-dir", folder];
        let driver = Driver::start(&lab_config(lab), &arguments);
        OnNode { driver, class, state }
    }

    fn staging(&self) -> PathBuf {
        self.state.path().join("staging")
    }

    async fn stage(&self, volume: &Volume) -> Result<(), Status> {
        std::fs::create_dir_all(self.staging()).unwrap();
        let request = NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: self.staging().to_str().unwrap().to_owned(),
            volume_capability: Some(filesystem()),
            secrets: self.class.secrets.clone(),
            volume_context: volume.volume_context.clone(),
            ..NodeStageVolumeRequest::default()
        };
        let mut node = NodeClient::new(self.driver.channel().await);
        node.node_stage_volume(within(120, request)).await.map(drop)
    }

    async fn unstage(&self, volume: &Volume) {
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: self.staging().to_str().unwrap().to_owned(),
        };
        let mut node = NodeClient::new(self.driver.channel().await);
        node.node_unstage_volume(within(120, request)).await.unwrap();
    }
}

/// A node mounts what the image holds, grows it to the volume, and formats nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_mounts_what_the_image_holds_and_never_formats_it() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let golden = Golden::new(&lab, "node");
    let class = golden.class(&namespace).with("mounter", "fuse");
    let on_node = OnNode::new(&lab, class.clone());
    let driver = &on_node.driver;

    // A volume of the driver's own is filled, and its snapshot is the golden image.
    let writer = create(driver, of_size(&class, "writer", 4 * SIZE)).await.unwrap();
    on_node.stage(&writer).await.unwrap();
    std::fs::write(on_node.staging().join("release"), "12").unwrap();
    let small = nix::sys::statvfs::statvfs(&on_node.staging()).unwrap().blocks();
    on_node.unstage(&writer).await;
    let image = format!("{POOL}/{}/csi-writer", namespace.name);
    lab.run("rbd", &["snap", "create", &format!("{image}@v1")]);
    let location = format!("rbd://{}/{image}/v1", lab.fsid);
    let made = class.clone().with("sourceImage", &location);
    let larger = create(driver, of_size(&made, "larger", 16 * SIZE)).await.unwrap();
    on_node.stage(&larger).await.unwrap();
    assert_eq!(std::fs::read_to_string(on_node.staging().join("release")).unwrap(), "12");
    let grown = nix::sys::statvfs::statvfs(&on_node.staging()).unwrap().blocks();
    assert!(grown > 3 * small, "{small} blocks became {grown}");
    on_node.unstage(&larger).await;

    // One that holds nothing, and one that holds no filesystem.
    for (name, content) in [("blank", &[][..]), ("other", CONTENT)] {
        golden.image("", name, content);
        let class = class.clone().with("sourceImage", &golden.location("", name, "v1"));
        let volume = create(driver, of_size(&class, name, 0)).await.unwrap();
        let status = on_node.stage(&volume).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().contains("only a volume that was created empty"), "{status:?}");
        on_node.unstage(&volume).await;
        let mut found = vec![0; 1 << 20];
        open(&lab, &namespace, &volume).read_at(None, 0, &mut found).unwrap();
        let mut wanted = content.to_vec();
        wanted.resize(found.len(), 0);
        assert!(found == wanted, "the volume of the image {name} was written to");
        delete(driver, &class, &volume).await;
    }
    delete(driver, &class, &larger).await;
    lab.run("rbd", &["snap", "rm", &format!("{image}@v1")]);
    delete(driver, &class, &writer).await;
    on_node.driver.stop();
    namespace.assert_nothing_is_left();
    golden.end();
}

/// Callers at the same time.
const CALLERS: usize = 8;
/// How often they begin anew, by turns with and without the driver: each of the two meets as many
/// clones as the other.
const ROUNDS: usize = 4;
/// Volumes that each caller makes in a round, one after another.
const EACH: usize = 2;

/// All clones are made; and how many a second, beside `rbd clone` in a loop with as many callers.
#[tokio::test(flavor = "multi_thread")]
async fn many_volumes_are_made_of_one_golden_image_at_once() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let golden = Golden::new(&lab, "many");
    golden.image("", "disk", CONTENT);
    let driver = Driver::controller_for(&lab);
    let class = golden.class(&namespace).with("sourceImage", &golden.location("", "disk", "v1"));
    let (mut by_hand, mut by_driver) = (Duration::ZERO, Duration::ZERO);
    let mut made = Vec::new();
    for round in 0..ROUNDS {
        let began = Instant::now();
        clone_by_hand(&lab, &format!("{}/disk@v1", golden.pool), &namespace, round);
        by_hand += began.elapsed();
        let began = Instant::now();
        let callers = (0..CALLERS).map(|caller| {
            let (driver, class) = (&driver, &class);
            async move {
                let mut made = Vec::new();
                for number in 0..EACH {
                    let name = format!("v-{round}-{caller}-{number}");
                    made.push(create(driver, of_size(class, &name, 0)).await.unwrap());
                }
                made
            }
        });
        made.extend(futures_util::future::join_all(callers).await.concat());
        by_driver += began.elapsed();
    }
    let count = u32::try_from(CALLERS * ROUNDS * EACH).unwrap();
    let rate = |time: Duration| f64::from(count) / time.as_secs_f64();
    println!(
        "{CALLERS} callers: CreateVolume {:.0} a second, rbd clone {:.0} a second, {:.1} times as many",
        rate(by_driver),
        rate(by_hand),
        rate(by_driver) / rate(by_hand),
    );
    let image = golden.place("").open_image(ImageKey::Name("disk"), OpenMode::ReadOnly).unwrap();
    assert_eq!(image.children(None).unwrap().len(), 2 * CALLERS * ROUNDS * EACH);
    for volume in &made {
        assert_holds(&lab, &namespace, volume, CONTENT);
        delete(&driver, &class, volume).await;
    }
    let pool = namespace.pool(&*lab.connect());
    for entry in pool.list_images().unwrap() {
        pool.remove_image(&entry.name).unwrap();
    }
    wait_until_settled(&*pool);
    assert!(image.children(None).unwrap().is_empty());
    namespace.assert_nothing_is_left();
    golden.end();
}

/// `rbd clone` in a loop, by as many callers as the driver has.
fn clone_by_hand(lab: &Lab, parent: &str, namespace: &Namespace<'_>, round: usize) {
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            scope.spawn(move || {
                for number in 0..EACH {
                    let name = &namespace.name;
                    let clone = format!("{POOL}/{name}/by-hand-{round}-{caller}-{number}");
                    let arguments = ["clone", "--rbd-default-clone-format", "2", parent, &clone];
                    lab.run("rbd", &arguments);
                }
            });
        }
    });
}
