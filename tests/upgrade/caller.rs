//! One caller: it draws calls, asks until each is granted, and holds every answer against what it
//! knows.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cinderblock::csi::proto::controller_client::ControllerClient;
#[allow(clippy::wildcard_imports, reason = "most messages of CSI")]
use cinderblock::csi::proto::*;
use cinderblock::rbd::{ImageKey, OpenMode, Pool};
use tokio::task::block_in_place;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::common::PATIENCE;
use super::common::driver::{Class, MIB, from_snapshot, from_volume, within};
use super::common::random::Random;
use super::{Snapshots, Volumes};

/// Bytes written at the beginning of a mebibyte; the rest of it holds zeros.
pub const BLOCK: usize = 4096;

/// Volumes, and snapshots, that a caller has at most.
const MOST: usize = 5;

/// Mebibytes of a volume at most.
const LARGEST: usize = 4;

/// Seconds that one attempt may take, as with sidecars.
const ATTEMPT: u64 = 30;

/// Before asking again.
const PAUSE: Duration = Duration::from_millis(100);

/// What each mebibyte begins with: a block of this number.
type Stamps = Vec<u64>;

pub struct Caller {
    name: String,
    random: Random,
    controller: ControllerClient<Channel>,
    class: Class,
    pool: Arc<dyn Pool>,
    /// A snapshot that all callers restore, and what it holds.
    origin: Option<(String, Stamps)>,
    /// Goes up with each name and each stamp.
    count: u64,
    volumes: BTreeMap<String, (Volume, Stamps)>,
    snapshots: BTreeMap<String, (Snapshot, Stamps)>,
    pub tally: Tally,
}

impl Caller {
    pub fn new(
        number: u64,
        random: Random,
        controller: ControllerClient<Channel>,
        class: Class,
        pool: Arc<dyn Pool>,
    ) -> Caller {
        Caller {
            name: format!("c{number}"),
            random,
            controller,
            class,
            pool,
            origin: None,
            // Stamps of two callers differ.
            count: number << 32,
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    /// The same caller restores this snapshot, too.
    #[must_use]
    pub fn with_origin(mut self, origin: &(String, Stamps)) -> Caller {
        self.origin = Some(origin.clone());
        self
    }

    /// Another caller of the same class, with nothing of its own.
    pub fn through(&self, controller: ControllerClient<Channel>) -> Caller {
        Caller::new(0, Random::new(0), controller, self.class.clone(), self.pool.clone())
    }

    /// Makes a snapshot for all callers to restore.
    pub async fn make_origin(&mut self) -> (String, Stamps) {
        let volume = self.create(None).await;
        for _ in 0..LARGEST {
            self.write(&volume);
        }
        let snapshot = self.snapshot(&volume).await;
        let stamps = self.snapshots[&snapshot].1.clone();
        (snapshot, stamps)
    }

    /// Works until `over` is set, and for so many calls after that.
    pub async fn work(mut self, over: Arc<AtomicBool>, calls: u32) -> Caller {
        while !over.load(Ordering::Relaxed) {
            self.one_call().await;
        }
        for _ in 0..calls {
            self.one_call().await;
        }
        self
    }

    async fn one_call(&mut self) {
        let volume = self.draw_volume();
        let snapshot = self.draw_snapshot();
        match (self.random.below(10), volume, snapshot) {
            (0, Some(volume), _) => self.delete_volume(&volume).await,
            (1, _, Some(snapshot)) => self.delete_snapshot(&snapshot).await,
            (2, _, _) => self.list().await,
            (3, Some(volume), _) => self.expand(&volume).await,
            (4 | 5, Some(volume), _) => self.write(&volume),
            (6, Some(volume), _) if self.snapshots.len() < MOST => {
                drop(self.snapshot(&volume).await)
            }
            (6, _, Some(snapshot)) => self.delete_snapshot(&snapshot).await,
            (7.., Some(volume), _) if self.volumes.len() >= MOST => {
                self.delete_volume(&volume).await
            }
            (7, _, Some(snapshot)) => drop(self.create(Some(Source::Snapshot(snapshot))).await),
            (8, Some(volume), _) => drop(self.create(Some(Source::Volume(volume))).await),
            _ => {
                let origin = self.origin.clone().filter(|_| self.random.once_in(2));
                drop(self.create(origin.map(|(id, _)| Source::Snapshot(id))).await);
            }
        }
    }

    fn draw_volume(&mut self) -> Option<String> {
        let ids: Vec<_> = self.volumes.keys().collect();
        if ids.is_empty() { None } else { Some(self.random.pick(&ids).clone()) }
    }

    fn draw_snapshot(&mut self) -> Option<String> {
        let ids: Vec<_> = self.snapshots.keys().collect();
        if ids.is_empty() { None } else { Some(self.random.pick(&ids).clone()) }
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    // --- calls -----------------------------------------------------------------------------------

    /// An empty volume, a clone or a restored snapshot. Gives its id.
    pub async fn create(&mut self, source: Option<Source>) -> String {
        let stamps = match &source {
            None => vec![0; 1 + usize::try_from(self.random.below(3)).unwrap()],
            Some(Source::Volume(id)) => self.volumes[id].1.clone(),
            Some(Source::Snapshot(id)) => match (self.snapshots.get(id), &self.origin) {
                (Some((_, stamps)), _) | (None, Some((_, stamps))) => stamps.clone(),
                (None, None) => panic!("{id} was never made"),
            },
        };
        let number = self.next();
        let name = format!("{}-v{number}", self.name);
        let mut request = self.class.create_volume(&name, mebibytes(&stamps));
        request.volume_content_source = source.as_ref().map(Source::content);
        self.make(request, stamps).await
    }

    /// The volume of a request, which is to hold this. Gives its id.
    pub async fn make(&mut self, request: CreateVolumeRequest, stamps: Stamps) -> String {
        let mut answers = Vec::new();
        // The same request again finds the same volume.
        for _ in 0..=self.random.below(2) {
            let answer = self.insist("CreateVolume", request.clone(), create_volume).await;
            answers.push(answer.volume.unwrap());
        }
        let volume = answers[0].clone();
        assert!(answers.iter().all(|answer| *answer == volume), "{answers:?}");
        assert!(volume.volume_id.ends_with(&format!("/csi-{}", request.name)), "{volume:?}");
        assert_eq!(volume.capacity_bytes, mebibytes(&stamps), "{volume:?}");
        assert_eq!(volume.content_source, request.volume_content_source, "{volume:?}");
        let id = volume.volume_id.clone();
        self.volumes.insert(id.clone(), (volume, stamps));
        id
    }

    /// Asks for an empty volume of a mebibyte while the OSD is dead, and is told to ask again.
    /// Gives the request.
    pub async fn ask_in_vain(&mut self) -> CreateVolumeRequest {
        let number = self.next();
        let request = self.class.create_volume(&format!("{}-v{number}", self.name), MIB);
        let answer = self.attempt("CreateVolume", request.clone(), create_volume).await;
        assert!(answer.is_none(), "a volume is made without an OSD: {answer:?}");
        request
    }

    /// Gives the snapshot's id.
    async fn snapshot(&mut self, volume: &str) -> String {
        let number = self.next();
        let name = format!("{}-s{number}", self.name);
        let request = self.class.create_snapshot(&name, volume);
        let stamps = self.volumes[volume].1.clone();
        let mut answers = Vec::new();
        for _ in 0..=self.random.below(2) {
            let call = |mut controller: Controller, request| async move {
                controller.create_snapshot(request).await
            };
            answers
                .push(self.insist("CreateSnapshot", request.clone(), call).await.snapshot.unwrap());
        }
        let snapshot = answers[0].clone();
        assert!(answers.iter().all(|answer| *answer == snapshot), "{answers:?}");
        assert_eq!(snapshot.source_volume_id, volume);
        assert_eq!(
            (snapshot.size_bytes, snapshot.ready_to_use),
            (mebibytes(&stamps), true),
            "{snapshot:?}"
        );
        let id = snapshot.snapshot_id.clone();
        self.snapshots.insert(id.clone(), (snapshot, stamps));
        id
    }

    async fn expand(&mut self, id: &str) {
        let size = (self.volumes[id].1.len() + 1).min(LARGEST);
        let wanted = i64::try_from(size).unwrap() * MIB;
        let request = ControllerExpandVolumeRequest {
            volume_id: id.to_string(),
            capacity_range: Some(CapacityRange { required_bytes: wanted, limit_bytes: 0 }),
            secrets: self.class.secrets.clone(),
            ..ControllerExpandVolumeRequest::default()
        };
        let call = |mut controller: Controller, request| async move {
            controller.controller_expand_volume(request).await
        };
        let answer = self.insist("ControllerExpandVolume", request, call).await;
        assert_eq!(answer.capacity_bytes, wanted, "{id}");
        let (volume, stamps) = self.volumes.get_mut(id).unwrap();
        volume.capacity_bytes = wanted;
        stamps.resize(size, 0);
    }

    async fn delete_volume(&mut self, id: &str) {
        let call = |mut controller: Controller, request| async move {
            controller.delete_volume(request).await
        };
        self.insist("DeleteVolume", self.class.delete_volume(id), call).await;
        self.volumes.remove(id);
    }

    async fn delete_snapshot(&mut self, id: &str) {
        let call = |mut controller: Controller, request| async move {
            controller.delete_snapshot(request).await
        };
        self.insist("DeleteSnapshot", self.class.delete_snapshot(id), call).await;
        self.snapshots.remove(id);
    }

    /// Of this caller's own volumes and snapshots, the driver lists all and no other.
    async fn list(&mut self) {
        let own = format!("csi-{}-", self.name);
        let mut volumes = self.list_volumes().await;
        volumes.retain(|id, _| id.contains(&own));
        assert_eq!(volumes, self.volumes());
        let own = format!("csi-snap-{}-", self.name);
        let mut snapshots = self.list_snapshots().await;
        snapshots.retain(|id, _| id.contains(&own));
        assert_eq!(snapshots, self.snapshots());
    }

    pub async fn list_volumes(&mut self) -> Volumes {
        let call = |mut controller: Controller, request| async move {
            controller.list_volumes(request).await
        };
        let answer = self.insist("ListVolumes", ListVolumesRequest::default(), call).await;
        assert_eq!(answer.next_token, "");
        let volumes = answer.entries.into_iter().map(|entry| entry.volume.unwrap());
        volumes.map(|volume| (volume.volume_id.clone(), listed(&volume))).collect()
    }

    pub async fn list_snapshots(&mut self) -> Snapshots {
        let secrets = self.class.secrets.clone();
        let request = ListSnapshotsRequest { secrets, ..ListSnapshotsRequest::default() };
        let call = |mut controller: Controller, request| async move {
            controller.list_snapshots(request).await
        };
        let answer = self.insist("ListSnapshots", request, call).await;
        assert_eq!(answer.next_token, "");
        let snapshots = answer.entries.into_iter().map(|entry| entry.snapshot.unwrap());
        snapshots.map(|snapshot| (snapshot.snapshot_id.clone(), snapshot)).collect()
    }

    pub async fn delete_everything(&mut self) {
        while let Some(id) = self.draw_volume() {
            self.delete_volume(&id).await;
        }
        while let Some(id) = self.draw_snapshot() {
            self.delete_snapshot(&id).await;
        }
    }

    /// Asks until it is granted.
    async fn insist<M: Clone, A, F>(
        &mut self,
        rpc: &'static str,
        message: M,
        call: impl Fn(Controller, Request<M>) -> F,
    ) -> A
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let began = Instant::now();
        loop {
            if let Some(answer) = self.attempt(rpc, message.clone(), &call).await {
                self.tally.granted(began.elapsed());
                return answer;
            }
            assert!(began.elapsed() < PATIENCE, "{rpc} is never granted");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks once. While a daemon is away the driver may say "ask again", which gives `None`, and
    /// nothing else.
    async fn attempt<M, A, F>(
        &mut self,
        rpc: &'static str,
        message: M,
        call: impl Fn(Controller, Request<M>) -> F,
    ) -> Option<A>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let status = match call(self.controller.clone(), within(ATTEMPT, message)).await {
            Ok(answer) => return Some(answer.into_inner()),
            Err(status) => status,
        };
        let cause = std::error::Error::source(&status);
        let driver_is_gone =
            cause.is_some_and(<dyn std::error::Error>::is::<tonic::transport::Error>);
        let ask_again =
            matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Aborted);
        assert!(ask_again && !driver_is_gone, "{rpc} answers {status:?}");
        self.tally.refused(rpc, &status);
        None
    }

    // --- bytes -----------------------------------------------------------------------------------

    /// Writes a block to a mebibyte of the volume.
    fn write(&mut self, id: &str) {
        let stamp = self.next();
        let number = usize::try_from(self.random.below(self.volumes[id].1.len() as u64)).unwrap();
        block_in_place(|| {
            let image =
                self.pool.open_image(ImageKey::Name(image_name(id)), OpenMode::ReadWrite).unwrap();
            image.write_at(offset(number) as u64, &block(stamp)).unwrap();
            image.flush().unwrap();
        });
        self.volumes.get_mut(id).unwrap().1[number] = stamp;
    }

    /// Every volume and snapshot holds what was written to it, and nothing else.
    pub fn assert_bytes(&self) {
        for (id, (_, stamps)) in &self.volumes {
            self.assert_holds(id, ImageKey::Name(image_name(id)), None, stamps);
        }
        for (id, (_, stamps)) in &self.snapshots {
            let (image, snapshot) = image_name(id).split_once('@').unwrap();
            self.assert_holds(id, ImageKey::Id(image), Some(snapshot), stamps);
        }
    }

    fn assert_holds(&self, id: &str, image: ImageKey<'_>, snapshot: Option<&str>, stamps: &Stamps) {
        let image = self.pool.open_image(image, OpenMode::ReadOnly).unwrap();
        let snapshots = image.snapshots().unwrap();
        let at = snapshot.map(|name| snapshots.iter().find(|found| found.name == name).unwrap().id);
        let mut bytes = vec![0xff; offset(stamps.len())];
        assert_eq!(image.read_at(at, 0, &mut bytes).unwrap(), bytes.len(), "{id} is too short");
        let mut written = vec![0; offset(stamps.len())];
        for (number, stamp) in stamps.iter().enumerate() {
            written[offset(number)..][..BLOCK].copy_from_slice(&block(*stamp));
        }
        assert!(bytes == written, "{id} does not hold what was written: {stamps:?}");
    }

    // --- what there is ---------------------------------------------------------------------------

    /// As lists tell of them.
    pub fn volumes(&self) -> Volumes {
        self.volumes.iter().map(|(id, (volume, _))| (id.clone(), listed(volume))).collect()
    }

    pub fn snapshots(&self) -> Snapshots {
        self.snapshots.iter().map(|(id, (snapshot, _))| (id.clone(), snapshot.clone())).collect()
    }
}

type Controller = ControllerClient<Channel>;

async fn create_volume(
    mut controller: Controller,
    request: Request<CreateVolumeRequest>,
) -> Result<Response<CreateVolumeResponse>, Status> {
    controller.create_volume(request).await
}

/// What a volume is made from, by its id.
pub enum Source {
    Volume(String),
    Snapshot(String),
}

impl Source {
    fn content(&self) -> VolumeContentSource {
        match self {
            Source::Volume(id) => from_volume(id),
            Source::Snapshot(id) => from_snapshot(id),
        }
    }
}

/// A list tells what a volume is, and not what its requests asked for.
fn listed(volume: &Volume) -> Volume {
    Volume { volume_context: BTreeMap::default(), ..volume.clone() }
}

fn image_name(id: &str) -> &str {
    id.rsplit('/').next().unwrap()
}

/// Where a mebibyte begins.
fn offset(number: usize) -> usize {
    number << 20
}

fn mebibytes(stamps: &Stamps) -> i64 {
    i64::try_from(stamps.len()).unwrap() * MIB
}

/// A block filled with a number.
pub fn block(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK / 8)
}

/// How calls ended.
#[derive(Debug, Default)]
pub struct Tally {
    granted: u64,
    longest: Duration,
    refused: BTreeMap<String, u64>,
}

impl Tally {
    fn granted(&mut self, after: Duration) {
        self.granted += 1;
        self.longest = self.longest.max(after);
    }

    fn refused(&mut self, rpc: &str, status: &Status) {
        *self.refused.entry(format!("{rpc} {:?}", status.code())).or_default() += 1;
    }

    pub fn add(&mut self, other: Tally) {
        self.granted += other.granted;
        self.longest = self.longest.max(other.longest);
        for (what, count) in other.refused {
            *self.refused.entry(what).or_default() += count;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused: Vec<_> =
            self.refused.iter().map(|(what, count)| format!("{what}: {count}")).collect();
        let refused = if refused.is_empty() { "never".to_string() } else { refused.join(", ") };
        write!(formatter, "{} | {refused} | {:.1}", self.granted, self.longest.as_secs_f64())
    }
}
