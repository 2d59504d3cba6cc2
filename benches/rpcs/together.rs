//! Many callers: how much of each kind a second is answered, beside as many threads that ask
//! librbd for the bare work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::rbd::{Errno, ImageKey, ImageOptions, OpenMode, SnapshotSpec, Tolerate};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::driver::{from_snapshot, from_volume};
use crate::measure::Settings;
use crate::target::{GROWN, SIZE, Target};

/// What so many callers were answered.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    /// Answers that asked the caller to try again.
    pub(crate) aborted: usize,
}

pub(crate) struct Row {
    pub(crate) rpc: &'static str,
    pub(crate) bare_calls: &'static str,
    /// By callers.
    pub(crate) rates: BTreeMap<usize, Rate>,
    pub(crate) bare: BTreeMap<usize, Rate>,
}

/// One kind of work of a driver: what is asked of it for the item of a number.
type Ask<'a> = &'a (dyn Fn(ControllerClient<Channel>, usize) -> Asked + Sync);
type Asked = std::pin::Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

pub(crate) async fn measure(target: &Target, settings: &Settings) -> Vec<Row> {
    let mut rows = Vec::new();
    for &callers in &settings.callers {
        rpcs(target, settings, callers, &mut rows).await;
        tokio::task::block_in_place(|| bare(target, settings, callers, &mut rows));
    }
    rows
}

fn row<'a>(rows: &'a mut Vec<Row>, rpc: &'static str, bare_calls: &'static str) -> &'a mut Row {
    let at = rows.iter().position(|row| row.rpc == rpc).unwrap_or_else(|| {
        rows.push(Row { rpc, bare_calls, rates: BTreeMap::new(), bare: BTreeMap::new() });
        rows.len() - 1
    });
    &mut rows[at]
}

const CREATE: (&str, &str) = ("CreateVolume, empty", "rbd_create");
const AGAIN: (&str, &str) = ("the same once more", "");
const EXPAND: (&str, &str) = ("ControllerExpandVolume", "open, rbd_resize");
const SNAPSHOT: (&str, &str) = ("CreateSnapshot, of a volume each", "open, rbd_snap_create");
const RESTORE: (&str, &str) = ("CreateVolume, all from one snapshot", "rbd_clone");
const CLONE: (&str, &str) =
    ("CreateVolume, all from one volume", "open, rbd_snap_create, rbd_clone");
const DELETE_CLONE: (&str, &str) = ("DeleteVolume, those clones", "rbd_remove");
const DELETE_RESTORED: (&str, &str) = ("DeleteVolume, those restored", "rbd_remove");
const DELETE_SNAPSHOT: (&str, &str) = ("DeleteSnapshot, those", "open, rbd_snap_remove");
const DELETE: (&str, &str) = ("DeleteVolume, empty", "rbd_remove");

/// Ids by the numbers of their items.
type Ids = Arc<std::sync::Mutex<BTreeMap<usize, String>>>;

fn id(ids: &Ids, number: usize) -> String {
    ids.lock().unwrap()[&number].clone()
}

async fn rpcs(target: &Target, settings: &Settings, callers: usize, rows: &mut Vec<Row>) {
    let client = target.client().await;
    let [volumes, snapshots, restored, cloned] = std::array::from_fn(|_| Ids::default());
    let name = |what: &str, number: usize| format!("bench-{what}-{callers}-{number}");
    let create = |what: &'static str, ids: &Ids, source| {
        let (ids, class) = (ids.clone(), target.create("", source));
        move |mut client: ControllerClient<Channel>, number: usize| -> Asked {
            let ids = ids.clone();
            let mut request = class.clone();
            request.name = format!("bench-{what}-{callers}-{number}");
            Box::pin(async move {
                let made = client.create_volume(request).await?.into_inner();
                ids.lock().unwrap().insert(number, made.volume.unwrap().volume_id);
                Ok(())
            })
        }
    };
    let delete = |ids: &Ids| {
        let (ids, class) = (ids.clone(), target.class.clone());
        move |mut client: ControllerClient<Channel>, number: usize| -> Asked {
            let request = class.delete_volume(&id(&ids, number));
            Box::pin(async move { client.delete_volume(request).await.map(drop) })
        }
    };
    let rate = async |what: (&'static str, &'static str),
                      most: usize,
                      limit: Option<Duration>,
                      ask: Ask<'_>,
                      rows: &mut Vec<Row>| {
        target.settle().await;
        let (done, rate) = ask_together(&client, callers, most, limit, ask).await;
        row(rows, what.0, what.1).rates.insert(callers, rate);
        done
    };
    let limit = Some(settings.at_most);
    let made = rate(CREATE, settings.most, limit, &create("volume", &volumes, None), rows).await;
    rate(AGAIN, made, limit, &create("volume", &volumes, None), rows).await;
    let expand = |mut client: ControllerClient<Channel>, number: usize| -> Asked {
        let request = target.expand(&id(&volumes, number));
        Box::pin(async move { client.controller_expand_volume(request).await.map(drop) })
    };
    rate(EXPAND, made, limit, &expand, rows).await;
    let cut = |mut client: ControllerClient<Channel>, number: usize| -> Asked {
        let ids = snapshots.clone();
        let volume = id(&volumes, number);
        let request = target.class.create_snapshot(&name("snapshot", number), &volume);
        Box::pin(async move {
            let cut = client.create_snapshot(request).await?.into_inner();
            ids.lock().unwrap().insert(number, cut.snapshot.unwrap().snapshot_id);
            Ok(())
        })
    };
    let cuts = rate(SNAPSHOT, made, limit, &cut, rows).await;
    let drop_snapshot = |mut client: ControllerClient<Channel>, number: usize| -> Asked {
        let request = target.class.delete_snapshot(&id(&snapshots, number));
        Box::pin(async move { client.delete_snapshot(request).await.map(drop) })
    };
    rate(DELETE_SNAPSHOT, cuts, None, &drop_snapshot, rows).await;

    // The source of the clones: one that has not grown.
    let source = create("source", &volumes, None);
    source(client.clone(), usize::MAX).await.unwrap();
    cut(client.clone(), usize::MAX).await.unwrap();
    let from = Some(from_snapshot(&id(&snapshots, usize::MAX)));
    let ask = create("restored", &restored, from);
    let made_restored = rate(RESTORE, settings.most, limit, &ask, rows).await;
    let from = Some(from_volume(&id(&volumes, usize::MAX)));
    let ask = create("cloned", &cloned, from);
    let made_cloned = rate(CLONE, settings.most / 4, limit, &ask, rows).await;
    rate(DELETE_CLONE, made_cloned, None, &delete(&cloned), rows).await;
    rate(DELETE_RESTORED, made_restored, None, &delete(&restored), rows).await;
    drop_snapshot(client.clone(), usize::MAX).await.unwrap();
    rate(DELETE, made, None, &delete(&volumes), rows).await;
    delete(&volumes)(client.clone(), usize::MAX).await.unwrap();
    target.settle().await;
}

/// Has `callers` ask for the items from 0 on, each for the next one, until `most` were asked for or
/// `limit` has passed. What is aborted is asked for again. Gives how many are done.
async fn ask_together(
    client: &ControllerClient<Channel>,
    callers: usize,
    most: usize,
    limit: Option<Duration>,
    ask: Ask<'_>,
) -> (usize, Rate) {
    let next = AtomicUsize::new(0);
    let aborted = AtomicUsize::new(0);
    let begun = Instant::now();
    let caller = async || {
        while limit.is_none_or(|limit| begun.elapsed() < limit) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= most {
                return;
            }
            while let Err(status) = ask(client.clone(), number).await {
                assert!(
                    matches!(status.code(), Code::Aborted | Code::Unavailable),
                    "item {number}: {status}"
                );
                aborted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    futures_util::future::join_all((0..callers).map(|_| caller())).await;
    let done = next.into_inner().min(most);
    let aborted = aborted.into_inner();
    (done, Rate { per_second: per_second(done, begun.elapsed()), aborted })
}

#[allow(clippy::cast_precision_loss, reason = "some thousands")]
fn per_second(done: usize, time: Duration) -> f64 {
    done as f64 / time.as_secs_f64()
}

/// The same with threads in place of callers.
fn work_together(
    threads: usize,
    most: usize,
    limit: Option<Duration>,
    work: impl Fn(usize) + Sync,
) -> (usize, Rate) {
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while limit.is_none_or(|limit| begun.elapsed() < limit) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= most {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
    let done = next.into_inner().min(most);
    (done, Rate { per_second: per_second(done, begun.elapsed()), aborted: 0 })
}

fn bare(target: &Target, settings: &Settings, callers: usize, rows: &mut Vec<Row>) {
    let pool = &target.pool;
    let options = ImageOptions::default();
    let name = |what: &str, number: usize| format!("bare-{what}-{callers}-{number}");
    let open = |name: &str| pool.open_image(ImageKey::Name(name), OpenMode::ReadWrite).unwrap();
    let spec = |image: &str, snapshot: &str| SnapshotSpec {
        pool: pool.name().to_string(),
        namespace: String::new(),
        image: image.to_string(),
        snapshot: snapshot.to_string(),
    };
    let mut rate = |what: (&'static str, &'static str),
                    most: usize,
                    limit: Option<Duration>,
                    work: &(dyn Fn(usize) + Sync)| {
        let (done, rate) = work_together(callers, most, limit, work);
        row(rows, what.0, what.1).bare.insert(callers, rate);
        done
    };
    let limit = Some(settings.at_most);
    let made = rate(CREATE, settings.most, limit, &|number| {
        pool.create_image(&name("image", number), SIZE.unsigned_abs(), &options).unwrap();
    });
    rate(EXPAND, made, limit, &|number| {
        open(&name("image", number)).resize(GROWN.unsigned_abs(), false).unwrap();
    });
    let cuts = rate(SNAPSHOT, made, limit, &|number| {
        open(&name("image", number)).create_snapshot("s").unwrap();
    });
    rate(DELETE_SNAPSHOT, cuts, None, &|number| {
        open(&name("image", number)).remove_snapshot("s").unwrap();
    });
    let source = name("source", 0);
    pool.create_image(&source, SIZE.unsigned_abs(), &options).unwrap();
    open(&source).create_snapshot("s").unwrap();
    let restored = rate(RESTORE, settings.most, limit, &|number| {
        pool.clone_image(&spec(&source, "s"), &name("restored", number), &options).unwrap();
    });
    let cloned = rate(CLONE, settings.most / 4, limit, &|number| {
        let snapshot = name("for", number);
        open(&source).create_snapshot(&snapshot).unwrap();
        pool.clone_image(&spec(&source, &snapshot), &name("cloned", number), &options).unwrap();
    });
    rate(DELETE_CLONE, cloned, None, &|number| {
        pool.remove_image(&name("cloned", number)).unwrap();
    });
    rate(DELETE_RESTORED, restored, None, &|number| {
        pool.remove_image(&name("restored", number)).unwrap();
    });
    rate(DELETE, made, None, &|number| pool.remove_image(&name("image", number)).unwrap());
    let image = open(&source);
    for snapshot in image.snapshots().unwrap() {
        image.remove_snapshot(&snapshot.name).tolerate(Errno::ENOENT).unwrap();
    }
    drop(image);
    pool.remove_image(&source).unwrap();
}
