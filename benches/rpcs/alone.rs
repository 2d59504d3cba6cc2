//! One caller: each RPC beside the bare calls it must make, in turns.

use cinderblock::rbd::{ImageKey, ImageOptions, OpenMode, SnapshotSpec};

use crate::common::driver::{from_snapshot, from_volume};
use crate::measure::{Settings, Times, timed, timed_rpc};
use crate::target::{GROWN, SIZE, Target};

/// Times of one RPC and of the bare calls.
pub(crate) struct Row {
    pub(crate) rpc: &'static str,
    /// What librbd is asked for beside it; "" when there is nothing to compare.
    pub(crate) bare_calls: &'static str,
    pub(crate) times: Times,
    pub(crate) bare: Times,
}

#[derive(Default)]
pub(crate) struct Rows(pub(crate) Vec<Row>);

impl Rows {
    fn row(&mut self, rpc: &'static str, bare_calls: &'static str) -> &mut Row {
        let at = self.0.iter().position(|row| row.rpc == rpc).unwrap_or_else(|| {
            self.0.push(Row { rpc, bare_calls, times: Times::default(), bare: Times::default() });
            self.0.len() - 1
        });
        &mut self.0[at]
    }
}

pub(crate) async fn measure(target: &Target, settings: &Settings) -> Rows {
    let mut rows = Rows::default();
    // The first round makes connections and shared objects, and is not counted.
    for round in 0..=settings.rounds {
        let mut counted = Rows::default();
        // Neither side is always the first after the other's work.
        if round % 2 == 0 {
            bare(target, round, &mut counted);
            rpcs(target, round, &mut counted).await;
        } else {
            rpcs(target, round, &mut counted).await;
            bare(target, round, &mut counted);
        }
        if round > 0 {
            for row in counted.0 {
                let all = rows.row(row.rpc, row.bare_calls);
                row.times.quantile(0.0).into_iter().for_each(|time| all.times.push(time));
                row.bare.quantile(0.0).into_iter().for_each(|time| all.bare.push(time));
            }
        }
    }
    rows
}

const CREATE: (&str, &str) = ("CreateVolume, empty", "rbd_create");
const AGAIN: (&str, &str) = ("the same once more", "");
const EXPAND: (&str, &str) = ("ControllerExpandVolume", "open, rbd_resize");
const SNAPSHOT: (&str, &str) = ("CreateSnapshot", "rbd_snap_create");
const RESTORE: (&str, &str) = ("CreateVolume from a snapshot", "rbd_clone");
const CLONE: (&str, &str) = ("CreateVolume from a volume", "rbd_snap_create, rbd_clone");
const PUBLISH: (&str, &str) = ("ControllerPublishVolume", "");
const UNPUBLISH: (&str, &str) = ("ControllerUnpublishVolume", "");
const DELETE_CLONE: (&str, &str) = ("DeleteVolume, a clone", "rbd_remove");
const DELETE_RESTORED: (&str, &str) = ("DeleteVolume, restored from a snapshot", "rbd_remove");
const DELETE_SNAPSHOT: (&str, &str) = ("DeleteSnapshot", "rbd_snap_remove");
const DELETE: (&str, &str) = ("DeleteVolume, empty", "rbd_remove");

fn bare(target: &Target, round: usize, rows: &mut Rows) {
    let pool = &target.pool;
    let options = ImageOptions::default();
    let [image, restored, cloned] =
        ["image", "restored", "cloned"].map(|name| format!("bare-{name}-{round}"));
    let mut note = |(rpc, calls): (&'static str, &'static str), work: &mut dyn FnMut()| {
        let (time, ()) = timed(work);
        rows.row(rpc, calls).bare.push(time);
    };
    note(CREATE, &mut || pool.create_image(&image, SIZE.unsigned_abs(), &options).unwrap());
    note(EXPAND, &mut || {
        let open = pool.open_image(ImageKey::Name(&image), OpenMode::ReadWrite).unwrap();
        open.resize(GROWN.unsigned_abs(), false).unwrap();
    });
    let open = pool.open_image(ImageKey::Name(&image), OpenMode::ReadWrite).unwrap();
    let spec = |snapshot: &str| SnapshotSpec {
        pool: pool.name().to_string(),
        namespace: String::new(),
        image: image.clone(),
        snapshot: snapshot.to_string(),
    };
    note(SNAPSHOT, &mut || open.create_snapshot("s").unwrap());
    note(RESTORE, &mut || pool.clone_image(&spec("s"), &restored, &options).unwrap());
    note(CLONE, &mut || {
        open.create_snapshot("for-the-clone").unwrap();
        pool.clone_image(&spec("for-the-clone"), &cloned, &options).unwrap();
    });
    note(DELETE_CLONE, &mut || pool.remove_image(&cloned).unwrap());
    note(DELETE_RESTORED, &mut || pool.remove_image(&restored).unwrap());
    open.remove_snapshot("for-the-clone").unwrap();
    note(DELETE_SNAPSHOT, &mut || open.remove_snapshot("s").unwrap());
    drop(open);
    note(DELETE, &mut || pool.remove_image(&image).unwrap());
}

async fn rpcs(target: &Target, round: usize, rows: &mut Rows) {
    let mut client = target.client().await;
    let class = &target.class;
    let [name, restored, cloned] =
        ["volume", "restored", "cloned"].map(|name| format!("bench-{name}-{round}"));
    macro_rules! measure {
        ($row:expr, $method:ident, $request:expr) => {{
            target.settle().await;
            let request = $request;
            let (time, answer) = timed_rpc(client.$method(request)).await;
            rows.row($row.0, $row.1).times.push(time);
            answer.unwrap().into_inner()
        }};
    }
    let made = measure!(CREATE, create_volume, target.create(&name, None));
    let id = made.volume.unwrap().volume_id;
    measure!(AGAIN, create_volume, target.create(&name, None));
    measure!(EXPAND, controller_expand_volume, target.expand(&id));
    let snapshot_name = format!("bench-snapshot-{round}");
    let cut = measure!(SNAPSHOT, create_snapshot, class.create_snapshot(&snapshot_name, &id));
    let snapshot = cut.snapshot.unwrap().snapshot_id;
    let source = from_snapshot(&snapshot);
    let mut request = target.create(&restored, Some(source));
    request.capacity_range =
        Some(cinderblock::csi::proto::CapacityRange { required_bytes: GROWN, limit_bytes: 0 });
    let made = measure!(RESTORE, create_volume, request);
    let restored = made.volume.unwrap().volume_id;
    let mut request = target.create(&cloned, Some(from_volume(&id)));
    request.capacity_range =
        Some(cinderblock::csi::proto::CapacityRange { required_bytes: GROWN, limit_bytes: 0 });
    let made = measure!(CLONE, create_volume, request);
    let cloned = made.volume.unwrap().volume_id;
    measure!(PUBLISH, controller_publish_volume, target.publish(&cloned));
    measure!(UNPUBLISH, controller_unpublish_volume, target.unpublish(&cloned));
    measure!(DELETE_CLONE, delete_volume, class.delete_volume(&cloned));
    measure!(DELETE_RESTORED, delete_volume, class.delete_volume(&restored));
    measure!(DELETE_SNAPSHOT, delete_snapshot, class.delete_snapshot(&snapshot));
    measure!(DELETE, delete_volume, class.delete_volume(&id));
}
