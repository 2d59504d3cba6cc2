//! What grows with the number of volumes, and what a driver holds after them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cinderblock::csi::proto::ListVolumesRequest;

use crate::measure::{Settings, Times, timed, timed_rpc};
use crate::target::Target;

/// Callers that make volumes meanwhile.
const CALLERS: usize = 64;
/// Times each RPC is measured at each number.
const ROUNDS: usize = 15;

/// Figures with so many volumes.
pub(crate) struct Row {
    pub(crate) volumes: usize,
    pub(crate) create: Times,
    pub(crate) delete: Times,
    /// All of them, in as many pages as the driver gives them.
    pub(crate) list: Option<Duration>,
    /// From the start of a new process to its first answer to `Probe`.
    pub(crate) start: Option<Duration>,
    pub(crate) memory: Option<Memory>,
}

/// What the driver's process has.
pub(crate) struct Memory {
    /// Anonymous memory in KiB: without the pages of libraries.
    pub(crate) anonymous: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: usize,
}

pub(crate) async fn measure(target: &Target, settings: &Settings) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut there = 0;
    let mut ids = Vec::new();
    for &volumes in &settings.volumes {
        ids.extend(fill(target, there, volumes).await);
        there = volumes;
        rows.push(row(target, volumes).await);
    }
    delete_all(target, &ids).await;
    rows
}

async fn row(target: &Target, volumes: usize) -> Row {
    let mut client = target.client().await;
    let (mut create, mut delete) = (Times::default(), Times::default());
    for round in 0..ROUNDS {
        let request = target.create(&format!("bench-one-more-{round}"), None);
        let (time, made) = timed_rpc(client.create_volume(request)).await;
        create.push(time);
        let id = made.unwrap().into_inner().volume.unwrap().volume_id;
        let (time, gone) = timed_rpc(client.delete_volume(target.class.delete_volume(&id))).await;
        delete.push(time);
        gone.unwrap();
        target.settle().await;
    }
    let list = match target.pid() {
        Some(_) => {
            let (time, listed) = timed_rpc(list(target)).await;
            assert!(listed >= volumes, "{listed} of {volumes} volumes are listed");
            Some(time)
        }
        None => None,
    };
    let start = tokio::task::block_in_place(|| {
        let (time, another) = timed(|| target.start_another());
        another.map(|_| time)
    });
    Row { volumes, create, delete, list, start, memory: target.pid().map(memory) }
}

async fn list(target: &Target) -> usize {
    let mut client = target.client().await;
    let mut request = ListVolumesRequest::default();
    let mut listed = 0;
    loop {
        let page = client.list_volumes(request.clone()).await.unwrap().into_inner();
        listed += page.entries.len();
        if page.next_token.is_empty() {
            return listed;
        }
        request.starting_token = page.next_token;
    }
}

/// Makes the volumes from number `from` up to `to`, and gives their ids.
async fn fill(target: &Target, from: usize, to: usize) -> Vec<String> {
    let client = target.client().await;
    let next = AtomicUsize::new(from);
    let caller = async || {
        let mut ids = Vec::new();
        let mut client = client.clone();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= to {
                return ids;
            }
            let request = target.create(&format!("bench-many-{number}"), None);
            let made = client.create_volume(request).await.unwrap().into_inner();
            ids.push(made.volume.unwrap().volume_id);
        }
    };
    futures_util::future::join_all((0..CALLERS).map(|_| caller())).await.concat()
}

async fn delete_all(target: &Target, ids: &[String]) {
    let client = target.client().await;
    let next = AtomicUsize::new(0);
    let caller = async || {
        let mut client = client.clone();
        while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
            client.delete_volume(target.class.delete_volume(id)).await.unwrap();
        }
    };
    futures_util::future::join_all((0..CALLERS).map(|_| caller())).await;
}

fn memory(pid: u32) -> Memory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let number = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    Memory {
        anonymous: number("RssAnon:"),
        threads: number("Threads:"),
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
    }
}
