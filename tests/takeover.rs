//! A driver stands still in the middle of a request, another one takes its work over, and the first
//! goes on: on a real Ceph.
//!
//! The first stops right before a call that goes by a name, where a look at the record would not
//! help any more. It stands still for longer than its lease lasts. What the second has made by then
//! stays as it is, and the first finds its way back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::group_controller_client::GroupControllerClient;
use cinderblock::csi::proto::*;
use cinderblock::rbd::{ImageKey, OpenMode, Pool};
use common::driver::{Class, Driver, MIB, from_volume, lab_config, lab_config_with_own_user};
use common::scrape::MONITORED;
use common::{Lab, Namespace, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// For how long requests are repeated: some times as long as a lease lasts.
const INSIST: Duration = Duration::from_mins(5);

/// What the first driver is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// A new volume.
    Create,
    /// A clone of `a`.
    Clone,
    /// A snapshot of `a`.
    Snapshot,
    /// A snapshot of `a` and `b`.
    Group,
    /// The end of `a`, and then a new one of that name.
    Renew,
}

/// A driver, and the volumes it is asked about.
struct Controller {
    driver: Driver,
    class: Class,
}

impl Controller {
    fn volume(&self, name: &str) -> String {
        format!("lab/{}/{}/csi-{name}", common::POOL, self.class.parameters["radosNamespace"])
    }

    async fn client(&self) -> ControllerClient<Channel> {
        self.driver.controller().await
    }

    async fn create(&self, name: &str) -> Result<(), Status> {
        self.client().await.create_volume(self.class.create_volume(name, MIB)).await.map(drop)
    }

    async fn delete(&self, name: &str) -> Result<(), Status> {
        let request = self.class.delete_volume(&self.volume(name));
        self.client().await.delete_volume(request).await.map(drop)
    }

    async fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        self.client().await.delete_snapshot(self.class.delete_snapshot(id)).await.map(drop)
    }

    async fn snapshot(&self) -> Result<String, Status> {
        let request = self.class.create_snapshot("s", &self.volume("a"));
        let answer = self.client().await.create_snapshot(request).await?;
        Ok(answer.into_inner().snapshot.unwrap().snapshot_id)
    }

    async fn group(&self) -> Result<VolumeGroupSnapshot, Status> {
        let request = CreateVolumeGroupSnapshotRequest {
            name: "g".to_string(),
            source_volume_ids: vec![self.volume("a"), self.volume("b")],
            secrets: self.class.secrets.clone(),
            ..CreateVolumeGroupSnapshotRequest::default()
        };
        let mut client = GroupControllerClient::new(self.driver.channel().await);
        Ok(client.create_volume_group_snapshot(request).await?.into_inner().group_snapshot.unwrap())
    }

    async fn delete_group(&self, group: &VolumeGroupSnapshot) -> Result<(), Status> {
        let request = DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id: group.group_snapshot_id.clone(),
            snapshot_ids: group
                .snapshots
                .iter()
                .map(|snapshot| snapshot.snapshot_id.clone())
                .collect(),
            secrets: self.class.secrets.clone(),
        };
        let mut client = GroupControllerClient::new(self.driver.channel().await);
        client.delete_volume_group_snapshot(request).await.map(drop)
    }

    async fn clone_a(&self) -> Result<(), Status> {
        let request = CreateVolumeRequest {
            volume_content_source: Some(from_volume(&self.volume("a"))),
            ..self.class.create_volume("c", MIB)
        };
        self.client().await.create_volume(request).await.map(drop)
    }

    async fn begin(&self, work: Work) -> Result<(), Status> {
        match work {
            Work::Create => self.create("n").await,
            Work::Clone => self.clone_a().await,
            Work::Snapshot => self.snapshot().await.map(drop),
            Work::Group => self.group().await.map(drop),
            Work::Renew => self.delete("a").await,
        }
    }
}

/// Asks until the answer is no call for patience.
async fn insist<T>(mut ask: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let deadline = Instant::now() + INSIST;
    loop {
        match ask().await {
            Err(status)
                if matches!(
                    status.code(),
                    Code::Aborted | Code::Unavailable | Code::DeadlineExceeded
                ) && Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            answer => return answer.unwrap(),
        }
    }
}

/// The images and snapshots there, by name and id.
fn picture(pool: &dyn Pool) -> BTreeMap<String, (String, Vec<(String, u64)>)> {
    let images = pool.list_images().unwrap().into_iter();
    let of = |id: &str| {
        let image = pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly).unwrap();
        image
            .snapshots()
            .unwrap()
            .into_iter()
            .map(|snapshot| (snapshot.name, snapshot.id))
            .collect()
    };
    images.map(|image| (image.name.clone(), (image.id.clone(), of(&image.id)))).collect()
}

/// The clients that work under leases there.
fn clients(pool: &dyn Pool) -> Vec<String> {
    let mut found = Vec::new();
    for shard in 0..16 {
        let object = format!("cinderblock.default.catalogue.{shard:02}");
        for (key, value) in pool.omap_list(&object, "lease/", 100).unwrap().entries {
            if key.starts_with("lease/") {
                let lease: serde_json::Value = serde_json::from_slice(&value).unwrap();
                let clients = lease["clients"].as_array().unwrap().iter();
                found.extend(clients.map(|client| client.as_str().unwrap().to_owned()));
            }
        }
    }
    found
}

fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
}

/// The first driver stops before its call `method`, in the middle of `work`.
async fn taken_over(work: Work, method: &str, with_snapshot: bool) {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let class = || Class::new(&lab, &namespace.name);
    let arguments = [&["--role", "controller", "--log-level", "trace"][..], &MONITORED].concat();
    let second = Controller {
        driver: Driver::start(&lab_config_with_own_user(&lab, &namespace.name), &arguments),
        class: class(),
    };
    insist(async || second.create("a").await).await;
    insist(async || second.create("b").await).await;
    let snapshot =
        if with_snapshot { Some(insist(async || second.snapshot().await).await) } else { None };

    let stop = [("CINDERBLOCK_STOP_BEFORE", method)];
    let patient = [&arguments[..], &["--rpc-timeout", "600"]].concat();
    let first =
        Controller { driver: Driver::start_in(&stop, &lab_config(&lab), &patient), class: class() };
    let pid = first.driver.pid();
    let begun = async { first.begin(work).await };
    let others = async {
        let deadline = Instant::now() + INSIST;
        while !is_stopped(pid) {
            assert!(
                Instant::now() < deadline,
                "{work:?}: it does not come to {method}: {}",
                first.driver.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let fenced = clients(&*pool);
        assert_eq!(fenced.len(), 1, "{work:?}: {fenced:?}");
        insist(async || second.begin(work).await).await;
        if work == Work::Renew {
            insist(async || second.create("a").await).await;
        }
        let blocklist = lab.run("ceph", &["osd", "blocklist", "ls"]);
        for client in &fenced {
            assert!(blocklist.contains(client), "{work:?}: {client} is not in {blocklist}");
        }
        let before = picture(&*pool);
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGCONT).unwrap();
        (before, fenced)
    };
    let (outcome, (before, fenced)) = tokio::join!(begun, others);
    let status = outcome.unwrap_err();
    assert!(
        status.message().contains("blocklisted"),
        "{work:?}: the first was not overtaken: {status}"
    );
    assert_eq!(picture(&*pool), before, "{work:?}: the first changed something afterwards");

    // It connects anew, and knows what the other has made.
    if work == Work::Renew {
        insist(async || first.create("a").await).await;
    } else {
        insist(async || first.begin(work).await).await;
    }
    assert_eq!(picture(&*pool), before, "{work:?}: the first made another one");
    let (silent, other) = (first.driver.scrape(), second.driver.scrape());
    assert!(silent.sum("ceph_reconnects_total", &[("reason", "blocklisted")]) >= 1.0, "{work:?}");
    assert!(other.sum("leases_taken_over_total", &[]) >= 1.0, "{work:?}");
    assert!(other.sum("clients_fenced_total", &[("of", "controller")]) >= 1.0, "{work:?}");
    assert!(other.sum("clients_fenced_total", &[("of", "node")]) < 1.0, "{work:?}");

    if let Some(id) = &snapshot {
        insist(async || second.delete_snapshot(id).await).await;
    }
    match work {
        Work::Create => insist(async || second.delete("n").await).await,
        Work::Clone => insist(async || second.delete("c").await).await,
        Work::Snapshot => {
            let id = insist(async || second.snapshot().await).await;
            insist(async || second.delete_snapshot(&id).await).await;
        }
        Work::Group => {
            let group = insist(async || second.group().await).await;
            insist(async || second.delete_group(&group).await).await;
        }
        Work::Renew => {}
    }
    insist(async || second.delete("a").await).await;
    insist(async || second.delete("b").await).await;
    wait_until("the images are gone", || {
        let left = picture(&*pool);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    first.driver.stop();
    second.driver.stop();
    for client in &fenced {
        lab.run("ceph", &["osd", "blocklist", "rm", client]);
    }
    namespace.assert_nothing_is_left();
}

/// All at once: each waits for half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_stood_still_changes_nothing_that_another_took_over() {
    let cases = [
        (Work::Create, "create_image", false),
        (Work::Clone, "create_snapshot", false),
        (Work::Clone, "clone_image", false),
        (Work::Snapshot, "create_snapshot", false),
        (Work::Group, "create_snapshots", false),
        (Work::Renew, "remove_image", false),
        (Work::Renew, "rename_image", true),
    ];
    let mut all = tokio::task::JoinSet::new();
    for (work, method, with_snapshot) in cases {
        all.spawn_blocking(move || {
            tokio::runtime::Handle::current().block_on(taken_over(work, method, with_snapshot));
        });
    }
    while let Some(case) = all.join_next().await {
        case.unwrap();
    }
}
