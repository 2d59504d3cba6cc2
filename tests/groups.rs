//! Group snapshots over the socket, on a real Ceph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cinderblock::csi::ids::{SnapshotId, VolumeId};
use cinderblock::csi::proto::group_controller_client::GroupControllerClient;
use cinderblock::csi::proto::*;
use cinderblock::rbd::{ImageKey, OpenMode, Pool};
use common::driver::{Class, Driver, MIB, from_snapshot, lab_config_with_own_user};
use common::{Lab, Namespace, wait_until};
use tonic::Code;
use tonic::transport::Channel;

/// A driver with volumes `a`, `b` and `c` in a namespace of its own.
struct Group<'a> {
    class: Class,
    driver: Driver,
    controller: controller_client::ControllerClient<Channel>,
    groups: GroupControllerClient<Channel>,
    namespace: Namespace<'a>,
    volumes: Vec<String>,
}

impl<'a> Group<'a> {
    async fn new(lab: &'a Lab) -> Group<'a> {
        let namespace = Namespace::new(lab);
        let config = lab_config_with_own_user(lab, &namespace.name);
        let driver = Driver::start(&config, &["--role", "controller", "--log-level", "trace"]);
        let mut controller = driver.controller().await;
        let class = Class::new(lab, &namespace.name);
        let mut volumes = Vec::new();
        for name in ["a", "b", "c"] {
            let created = controller.create_volume(class.create_volume(name, MIB)).await.unwrap();
            volumes.push(created.into_inner().volume.unwrap().volume_id);
        }
        let groups = GroupControllerClient::new(driver.channel().await);
        Group { class, driver, controller, groups, namespace, volumes }
    }

    fn create(&self, name: &str) -> CreateVolumeGroupSnapshotRequest {
        CreateVolumeGroupSnapshotRequest {
            name: name.to_string(),
            source_volume_ids: self.volumes.clone(),
            secrets: self.class.secrets.clone(),
            ..CreateVolumeGroupSnapshotRequest::default()
        }
    }

    async fn created(&mut self, name: &str) -> VolumeGroupSnapshot {
        let deadline = Instant::now() + Duration::from_mins(5);
        loop {
            let request = self.create(name);
            match self.groups.create_volume_group_snapshot(request).await {
                // Two clients that want the lock of one image can keep it from a third for a while.
                Err(status)
                    if matches!(status.code(), Code::Aborted | Code::DeadlineExceeded)
                        && Instant::now() < deadline => {}
                made => return made.unwrap().into_inner().group_snapshot.unwrap(),
            }
        }
    }

    fn get(&self, group: &VolumeGroupSnapshot) -> GetVolumeGroupSnapshotRequest {
        GetVolumeGroupSnapshotRequest {
            group_snapshot_id: group.group_snapshot_id.clone(),
            snapshot_ids: member_ids(group),
            secrets: self.class.secrets.clone(),
        }
    }

    fn delete(&self, group: &VolumeGroupSnapshot) -> DeleteVolumeGroupSnapshotRequest {
        DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id: group.group_snapshot_id.clone(),
            snapshot_ids: member_ids(group),
            secrets: self.class.secrets.clone(),
        }
    }

    async fn listed(&mut self) -> Vec<Snapshot> {
        let list = self
            .controller
            .list_snapshots(ListSnapshotsRequest::default())
            .await
            .unwrap()
            .into_inner();
        list.entries.into_iter().filter_map(|entry| entry.snapshot).collect()
    }

    async fn delete_volumes(&mut self) {
        for id in &self.volumes {
            self.controller.delete_volume(self.class.delete_volume(id)).await.unwrap();
        }
    }

    /// Everything is deleted: nothing must be left, and no key in the log.
    fn end(self, lab: &Lab) {
        self.namespace.assert_nothing_is_recorded();
        self.namespace.assert_empty();
        assert!(!self.driver.log().contains(lab.key.expose()), "the key is in the log");
        self.driver.stop();
    }
}

fn member_ids(group: &VolumeGroupSnapshot) -> Vec<String> {
    group.snapshots.iter().map(|snapshot| snapshot.snapshot_id.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_lives_its_life_and_leaves_nothing() {
    let lab = Lab::from_environment();
    let mut group = Group::new(&lab).await;
    let alone = group.class.create_snapshot("alone", &group.volumes[0]);
    let alone =
        group.controller.create_snapshot(alone).await.unwrap().into_inner().snapshot.unwrap();

    let made = group.created("weekly").await;
    assert!(made.ready_to_use && made.creation_time.is_some());
    assert!(
        made.group_snapshot_id.ends_with("/group@csi-group-weekly"),
        "{}",
        made.group_snapshot_id
    );
    let sources: Vec<_> =
        made.snapshots.iter().map(|member| member.source_volume_id.clone()).collect();
    assert_eq!(sources, group.volumes);
    for member in &made.snapshots {
        assert_eq!(member.group_snapshot_id, made.group_snapshot_id);
        assert!(member.ready_to_use && member.size_bytes == MIB && member.creation_time.is_some());
    }
    // The same volumes in another order are the same request.
    let mut turned = group.create("weekly");
    turned.source_volume_ids.reverse();
    let again = group.groups.create_volume_group_snapshot(turned).await.unwrap().into_inner();
    assert_eq!(again.group_snapshot, Some(made.clone()));
    let found =
        group.groups.get_volume_group_snapshot(group.get(&made)).await.unwrap().into_inner();
    assert_eq!(found.group_snapshot, Some(made.clone()));

    let mut listed = group.listed().await;
    listed.retain(|snapshot| snapshot.snapshot_id != alone.snapshot_id);
    listed.sort_by_key(|snapshot| snapshot.source_volume_id.clone());
    assert_eq!(listed, made.snapshots);
    let one = group.class.delete_snapshot(&made.snapshots[0].snapshot_id);
    let refused = group.controller.delete_snapshot(one).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("csi-group-weekly"), "{}", refused.message());

    // Its volumes may go; what it holds can be restored all the same.
    group.delete_volumes().await;
    let restore = CreateVolumeRequest {
        volume_content_source: Some(from_snapshot(&made.snapshots[1].snapshot_id)),
        ..group.class.create_volume("restored", MIB)
    };
    let restored =
        group.controller.create_volume(restore).await.unwrap().into_inner().volume.unwrap();
    for _ in 0..2 {
        group.groups.delete_volume_group_snapshot(group.delete(&made)).await.unwrap();
    }
    assert_eq!(group.listed().await, std::slice::from_ref(&alone));
    let gone = group.groups.get_volume_group_snapshot(group.get(&made)).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    group
        .controller
        .delete_snapshot(group.class.delete_snapshot(&alone.snapshot_id))
        .await
        .unwrap();
    group.controller.delete_volume(group.class.delete_volume(&restored.volume_id)).await.unwrap();
    group.end(&lab);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_cannot_be_is_refused_and_leaves_nothing() {
    let lab = Lab::from_environment();
    let mut group = Group::new(&lab).await;
    let unlocked =
        group.class.clone().with("imageFeatures", "layering").create_volume("unlocked", MIB);
    let unlocked = group
        .controller
        .create_volume(unlocked)
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap()
        .volume_id;
    let other = Namespace::new(&lab);
    let elsewhere = Class::new(&lab, &other.name).create_volume("elsewhere", MIB);
    let elsewhere = group
        .controller
        .create_volume(elsewhere)
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap()
        .volume_id;

    let made = group.created("g").await;
    let with = |more: &str| {
        let mut request = group.create("other");
        request.source_volume_ids.push(more.to_string());
        request
    };
    let fewer = CreateVolumeGroupSnapshotRequest {
        source_volume_ids: group.volumes[..2].to_vec(),
        ..group.create("g")
    };
    let none =
        CreateVolumeGroupSnapshotRequest { source_volume_ids: Vec::new(), ..group.create("other") };
    let nobody = CreateVolumeGroupSnapshotRequest { secrets: [].into(), ..group.create("other") };
    let mut mistyped = group.create("other");
    mistyped.parameters = [("volumeGroupNamePrefx".to_string(), "x".to_string())].into();
    let missing = format!("{}-missing", group.volumes[0]);
    for (request, code, words) in [
        (fewer, Code::AlreadyExists, "use another name"),
        (none, Code::InvalidArgument, "source_volume_ids"),
        (with(&group.volumes[0]), Code::InvalidArgument, "twice"),
        (with(&missing), Code::NotFound, missing.as_str()),
        (with("no id"), Code::NotFound, "no id"),
        (
            with(&unlocked),
            Code::FailedPrecondition,
            "csi-unlocked cannot be held off, because it lacks the feature",
        ),
        (with(&elsewhere), Code::FailedPrecondition, "csi-elsewhere"),
        (mistyped, Code::InvalidArgument, "did you mean \"volumeGroupNamePrefix\""),
        (
            CreateVolumeGroupSnapshotRequest { name: String::new(), ..group.create("") },
            Code::InvalidArgument,
            "name",
        ),
    ] {
        let refused = group.groups.create_volume_group_snapshot(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(words), "{refused}");
        assert!(refused.details().is_empty());
    }
    // The configuration's own user serves requests without secrets.
    let own = group
        .groups
        .create_volume_group_snapshot(nobody)
        .await
        .unwrap()
        .into_inner()
        .group_snapshot
        .unwrap();

    for snapshot_ids in [Vec::new(), member_ids(&made)[..2].to_vec(), member_ids(&own)] {
        let get = GetVolumeGroupSnapshotRequest {
            snapshot_ids: snapshot_ids.clone(),
            ..group.get(&made)
        };
        assert_eq!(
            group.groups.get_volume_group_snapshot(get).await.unwrap_err().code(),
            Code::InvalidArgument
        );
        let delete = DeleteVolumeGroupSnapshotRequest { snapshot_ids, ..group.delete(&made) };
        let refused = group.groups.delete_volume_group_snapshot(delete).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    assert_eq!(group.listed().await.len(), 6);
    for made in [made, own] {
        group.groups.delete_volume_group_snapshot(group.delete(&made)).await.unwrap();
    }
    group.controller.delete_volume(group.class.delete_volume(&unlocked)).await.unwrap();
    group.controller.delete_volume(group.class.delete_volume(&elsewhere)).await.unwrap();
    group.delete_volumes().await;
    other.assert_nothing_is_recorded();
    other.assert_empty();
    drop(other);
    group.end(&lab);
}

/// Writes 1 to `a`, then 1 to `b`, then 1 to `c`, then 2 to `a` and so on, each acknowledged before
/// the next is sent.
struct Writer {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Writer {
    fn start(lab: &Lab, group: &Group<'_>) -> Writer {
        // Another client than the driver, as a node is.
        let pool = group.namespace.pool(&*lab.connect());
        let open = |id: &String| {
            let image = VolumeId::parse(id).unwrap().image;
            pool.open_image(ImageKey::Name(&image), OpenMode::ReadWrite).unwrap()
        };
        let images: Vec<_> = group.volumes.iter().map(open).collect();
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, done) = (stop.clone(), rounds.clone());
        let thread = thread::spawn(move || {
            for round in 1_u64.. {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                for image in &images {
                    image.write_at(0, &round.to_le_bytes()).unwrap();
                }
                done.store(round, Ordering::SeqCst);
            }
        });
        Writer { stop, rounds, thread }
    }

    /// Waits until some more rounds are written.
    fn goes_on(&self) {
        let seen = self.rounds.load(Ordering::SeqCst);
        wait_until("the writer goes on", || {
            let now = self.rounds.load(Ordering::SeqCst);
            if now > seen + 3 || self.thread.is_finished() { Ok(()) } else { Err(now) }
        });
    }

    /// Stops it, and fails when any of its writes did.
    fn finish(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

/// Cuts snapshots of `c` now and then, as a mirroring schedule or a person would.
struct Disturber {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<String>>,
    image: String,
}

impl Disturber {
    fn start(lab: &Lab, group: &Group<'_>, writer: &Writer) -> Disturber {
        let rounds = writer.rounds.clone();
        let pool = group.namespace.pool(&*lab.connect());
        let image = VolumeId::parse(&group.volumes[2]).unwrap().image;
        let opened = pool.open_image(ImageKey::Name(&image), OpenMode::ReadWrite).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut made = Vec::new();
            let mut next = 0;
            while !stopped.load(Ordering::SeqCst) {
                if rounds.load(Ordering::SeqCst) < next {
                    thread::yield_now();
                    continue;
                }
                next = rounds.load(Ordering::SeqCst) + 10;
                let name = format!("backup.{}.snap.1", made.len());
                opened.create_snapshot(&name).unwrap();
                made.push(name);
            }
            made
        });
        Disturber { stop, thread, image }
    }

    /// Stops it, and removes what it made.
    fn finish(self, pool: &dyn Pool) {
        self.stop.store(true, Ordering::SeqCst);
        let made = self.thread.join().unwrap();
        assert!(!made.is_empty(), "nothing disturbed");
        let image = pool.open_image(ImageKey::Name(&self.image), OpenMode::ReadWrite).unwrap();
        for name in made {
            image.remove_snapshot(&name).unwrap();
        }
    }
}

/// The number each member holds.
fn numbers(pool: &dyn Pool, members: &[Snapshot]) -> Vec<u64> {
    let number = |member: &Snapshot| {
        let id = SnapshotId::parse(&member.snapshot_id).unwrap();
        let image = pool.open_image(ImageKey::Id(&id.image_id), OpenMode::ReadOnly).unwrap();
        let snapshots = image.snapshots().unwrap();
        let found = snapshots.iter().find(|snapshot| snapshot.name == id.snapshot).unwrap();
        let mut bytes = [0; 8];
        image.read_at(Some(found.id), 0, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    members.iter().map(number).collect()
}

/// Whether no image holds a write that came after one which another image lacks.
fn is_one_moment(numbers: &[u64]) -> bool {
    let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
    numbers.is_sorted_by(|earlier, later| earlier >= later) && first - last <= 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_never_shows_a_later_write_without_an_earlier_one() {
    let lab = Lab::from_environment();
    let mut group = Group::new(&lab).await;
    let writer = Writer::start(&lab, &group);
    let mut cuts = Vec::new();
    for cut in 0..12 {
        writer.goes_on();
        cuts.push(group.created(&format!("cut-{cut}")).await);
    }
    // Without holding writers off the same volumes come out torn: the check would see it.
    let mut torn = Vec::new();
    for volume in &group.volumes.clone() {
        writer.goes_on();
        let request = group.class.create_snapshot(&format!("of {volume}"), volume);
        torn.push(
            group.controller.create_snapshot(request).await.unwrap().into_inner().snapshot.unwrap(),
        );
    }
    let disturber = Disturber::start(&lab, &group, &writer);
    for cut in 12..15 {
        writer.goes_on();
        cuts.push(group.created(&format!("cut-{cut}")).await);
    }
    writer.finish();
    let pool = group.namespace.pool(&*lab.connect());
    disturber.finish(&*pool);
    for cut in &cuts {
        let numbers = numbers(&*pool, &cut.snapshots);
        assert!(is_one_moment(&numbers), "{} holds {numbers:?}", cut.group_snapshot_id);
        assert!(numbers[0] > 3, "{numbers:?}");
    }
    assert!(
        !is_one_moment(&numbers(&*pool, &torn)),
        "snapshots one after another look like one moment"
    );

    for cut in &cuts {
        group.groups.delete_volume_group_snapshot(group.delete(cut)).await.unwrap();
    }
    for snapshot in &torn {
        group
            .controller
            .delete_snapshot(group.class.delete_snapshot(&snapshot.snapshot_id))
            .await
            .unwrap();
    }
    group.delete_volumes().await;
    drop(pool);
    group.end(&lab);
}
