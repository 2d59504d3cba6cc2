//! What each RPC asks of RADOS, counted by the OSD: the table in `docs/operations.md`.

use cinderblock::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest,
};

use crate::common::driver::filesystem;
use crate::common::{Lab, OwnLab};
use crate::family::{BLOCK, Family};

const TABLE: &str = include_str!("../../docs/operations.md");

/// For how long nothing is served when all is done: longer than a round of this lab's monitors.
const QUIET: std::time::Duration = std::time::Duration::from_millis(600);

/// Times each RPC is measured. The OSD serves the manager too, so the least count is the RPC's own.
const TIMES: usize = 2;

/// Operations of clients that the OSD has served so far.
fn served(lab: &Lab) -> u64 {
    let counters = lab.run("ceph", &["tell", "osd.0", "perf", "dump", "osd"]);
    let counters: serde_json::Value = serde_json::from_str(&counters).unwrap();
    counters["osd"]["op"].as_u64().unwrap()
}

/// Waits until the OSD serves no more: what an answer leaves to be done is part of its RPC, and
/// waits for the monitors now and then.
async fn quiet(lab: &Lab) -> u64 {
    let mut before = served(lab);
    loop {
        tokio::time::sleep(QUIET).await;
        let now = served(lab);
        if now == before {
            return now;
        }
        before = now;
    }
}

/// The operations of each RPC, by its row of the table.
struct Counts<'a> {
    lab: &'a Lab,
    rows: Vec<(&'static str, u64)>,
}

impl Counts<'_> {
    /// Counts what one RPC asks for.
    async fn count(&mut self, row: &'static str, rpc: impl Future<Output = ()>) {
        let before = quiet(self.lab).await;
        rpc.await;
        let count = quiet(self.lab).await - before;
        match self.rows.iter_mut().find(|(name, _)| *name == row) {
            Some((_, least)) => *least = count.min(*least),
            None => self.rows.push((row, count)),
        }
    }
}

async fn expand(family: &mut Family<'_>, name: &str) {
    let request = ControllerExpandVolumeRequest {
        volume_id: family.volume_id(name),
        capacity_range: Some(CapacityRange {
            required_bytes: i64::try_from(9 * BLOCK).unwrap(),
            limit_bytes: 0,
        }),
        secrets: family.class.secrets.clone(),
        ..ControllerExpandVolumeRequest::default()
    };
    family.controller.controller_expand_volume(request).await.unwrap();
}

async fn publish(family: &mut Family<'_>, name: &str) {
    let request = ControllerPublishVolumeRequest {
        volume_id: family.volume_id(name),
        node_id: "node".to_owned(),
        volume_capability: Some(filesystem()),
        secrets: family.class.secrets.clone(),
        ..ControllerPublishVolumeRequest::default()
    };
    family.controller.controller_publish_volume(request).await.unwrap();
}

async fn unpublish(family: &mut Family<'_>, name: &str) {
    let request = ControllerUnpublishVolumeRequest {
        volume_id: family.volume_id(name),
        node_id: "node".to_owned(),
        secrets: family.class.secrets.clone(),
    };
    family.controller.controller_unpublish_volume(request).await.unwrap();
}

async fn empty(family: &mut Family<'_>, name: &str) {
    family.make(name, None, 3).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rpc_asks_for_other_than_what_the_documentation_says() {
    let lab = OwnLab::up();
    let family = &mut Family::new(&lab, "").await;
    // The first of each kind makes the objects that all share.
    empty(family, "first").await;
    family.snapshot("first", "first").await;
    family.clone_volume("first", "second").await;
    for name in ["second", "first"] {
        family.delete(name).await;
    }
    family.delete_snapshot("first").await;

    let mut counts = Counts { lab: &lab, rows: Vec::new() };
    for _ in 0..TIMES {
        counts.count("CreateVolume, empty", empty(family, "A")).await;
        counts.count("the same once more", empty(family, "A")).await;
        counts.count("CreateSnapshot", family.snapshot("A", "s")).await;
        counts.count("CreateVolume from a snapshot", family.restore("s", "B")).await;
        counts.count("CreateVolume from a volume", family.clone_volume("A", "C")).await;
        counts.count("ControllerPublishVolume", publish(family, "C")).await;
        counts.count("ControllerUnpublishVolume", unpublish(family, "C")).await;
        counts.count("DeleteVolume, a clone", family.delete("C")).await;
        counts.count("DeleteVolume, restored from a snapshot", family.delete("B")).await;
        family.snapshot("A", "t").await;
        counts.count("DeleteSnapshot", family.delete_snapshot("t")).await;
        counts.count("DeleteVolume with a snapshot", family.delete("A")).await;
        counts
            .count("DeleteSnapshot, the last of a deleted volume", family.delete_snapshot("s"))
            .await;
        family.make("D", None, 3).await.unwrap();
        counts.count("ControllerExpandVolume", expand(family, "D")).await;
        counts.count("DeleteVolume, empty", family.delete("D")).await;
    }
    for (row, count) in &counts.rows {
        println!("| {row} | {count} |");
    }
    for (row, count) in counts.rows {
        let line = TABLE.lines().find(|line| line.starts_with(&format!("| {row} |")));
        let documented =
            line.unwrap_or_else(|| panic!("no row {row:?}")).split('|').nth(2).unwrap();
        let documented: u64 = documented.trim().parse().unwrap();
        // Now and then a watch is renewed, or the manager asks for something.
        assert!(
            10 * count.abs_diff(documented) <= documented + 40,
            "{row}: {count} operations, not {documented}"
        );
    }
}
