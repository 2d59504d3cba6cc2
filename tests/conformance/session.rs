//! One check's dealings with the driver: requests as it wants them, answers looked at for what
//! every answer must be, and everything that was made deleted at the end.

use std::any::Any;
use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::volume_capability::access_mode::Mode;
use cinderblock::csi::proto::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume,
};
use cinderblock::csi::proto::*;
use libtest_mimic::Failed;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::target::{Map, Target};

/// Bytes that any string in an answer may have.
const STRING_BYTES: usize = 128;
/// Bytes that any map in an answer may have.
const MAP_BYTES: usize = 4096;

/// Runs a check, and deletes what it made whether it failed or not.
pub async fn run(
    target: &Arc<Target>,
    name: &'static str,
    check: for<'a> fn(&'a Session) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
) -> Result<(), Failed> {
    let session = Arc::new(Session::new(target.clone()));
    let task = tokio::spawn({
        let session = session.clone();
        async move { check(&session).await }
    });
    let outcome = task.await.map_err(|error| words(error.into_panic().as_ref()));
    let cleaned =
        tokio::spawn(async move { AssertUnwindSafe(session.delete_everything()).0.await }).await;
    outcome.map_err(|words| format!("{name}: {words}"))?;
    cleaned.map_err(|error| {
        Failed::from(format!("cleaning up: {}", words(error.into_panic().as_ref())))
    })
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

pub struct Session {
    pub target: Arc<Target>,
    prefix: String,
    volumes: Mutex<Vec<String>>,
    snapshots: Mutex<Vec<String>>,
}

impl Session {
    fn new(target: Arc<Target>) -> Session {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("c{}-{number}-", std::process::id());
        Session { target, prefix, volumes: Mutex::default(), snapshots: Mutex::default() }
    }

    pub fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.target.channel.clone())
    }

    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.target.channel.clone())
    }

    pub fn secrets(&self) -> Map {
        self.target.description.secrets.clone()
    }

    pub fn size(&self) -> i64 {
        self.target.description.size
    }

    /// A name that no other session uses, with `what` in it.
    pub fn name(&self, what: &str) -> String {
        format!("{}{what}", self.prefix)
    }

    /// A request for an empty volume of the usual size under exactly this name.
    pub fn volume_named(&self, name: &str) -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: name.to_string(),
            capacity_range: Some(CapacityRange { required_bytes: self.size(), limit_bytes: 0 }),
            volume_capabilities: vec![self.mounted(Mode::SingleNodeWriter)],
            parameters: self.target.description.parameters.clone(),
            secrets: self.secrets(),
            ..CreateVolumeRequest::default()
        }
    }

    /// The same under a name of this check's own.
    pub fn new_volume(&self, what: &str) -> CreateVolumeRequest {
        self.volume_named(&self.name(what))
    }

    /// A filesystem under an access mode.
    pub fn mounted(&self, mode: Mode) -> VolumeCapability {
        let fs_type = self.target.description.fs_type.clone();
        VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume { fs_type, ..MountVolume::default() })),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    /// CreateVolume. What it made is deleted in the end.
    pub async fn create(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        self.create_within(tonic::Request::new(request)).await
    }

    /// The same with a deadline set.
    pub async fn create_within(
        &self,
        request: tonic::Request<CreateVolumeRequest>,
    ) -> Result<Volume, Status> {
        let range = request.get_ref().capacity_range;
        let source = request.get_ref().volume_content_source.clone();
        let volume = answer(self.controller().create_volume(request).await)?
            .volume
            .expect("an answer holds a volume");
        self.volumes.lock().unwrap().push(volume.volume_id.clone());
        assert!(
            !volume.volume_id.is_empty() && volume.volume_id.len() <= STRING_BYTES,
            "volume_id {volume:?}"
        );
        assert_map("volume_context", &volume.volume_context);
        for (key, secret) in &self.target.description.secrets {
            let told = secret.len() >= 16 && format!("{volume:?}").contains(secret.as_str());
            assert!(!told, "the secret {key} is in the answer");
        }
        let CapacityRange { required_bytes, limit_bytes } = range.unwrap_or_default();
        if volume.capacity_bytes != 0 {
            let fits = volume.capacity_bytes >= required_bytes;
            assert!(
                fits && (limit_bytes == 0 || volume.capacity_bytes <= limit_bytes),
                "{volume:?} for {range:?}"
            );
        }
        assert_eq!(volume.content_source, source, "the content source must be echoed");
        Ok(volume)
    }

    /// A volume of this check's own.
    pub async fn volume(&self, what: &str) -> Volume {
        self.create(self.new_volume(what)).await.unwrap()
    }

    /// A request for a snapshot under exactly this name.
    pub fn snapshot_named(&self, name: &str, volume_id: &str) -> CreateSnapshotRequest {
        CreateSnapshotRequest {
            name: name.to_string(),
            source_volume_id: volume_id.to_string(),
            parameters: self.target.description.snapshot_parameters.clone(),
            secrets: self.secrets(),
            ..CreateSnapshotRequest::default()
        }
    }

    /// CreateSnapshot. What it made is deleted in the end.
    pub async fn cut(&self, request: CreateSnapshotRequest) -> Result<Snapshot, Status> {
        let source = request.source_volume_id.clone();
        let answer = answer(self.controller().create_snapshot(request).await)?;
        let snapshot = answer.snapshot.expect("an answer holds a snapshot");
        self.snapshots.lock().unwrap().push(snapshot.snapshot_id.clone());
        let id = &snapshot.snapshot_id;
        assert!(!id.is_empty() && id.len() <= STRING_BYTES, "snapshot_id {snapshot:?}");
        assert_eq!(snapshot.source_volume_id, source);
        assert!(snapshot.creation_time.is_some() && snapshot.size_bytes >= 0, "{snapshot:?}");
        Ok(snapshot)
    }

    /// A snapshot of this check's own, ready to use.
    pub async fn snapshot(&self, what: &str, volume_id: &str) -> Snapshot {
        let request = self.snapshot_named(&self.name(what), volume_id);
        let deadline = Instant::now() + Duration::from_mins(5);
        loop {
            let snapshot = self.cut(request.clone()).await.unwrap();
            if snapshot.ready_to_use {
                return snapshot;
            }
            assert!(Instant::now() < deadline, "{snapshot:?} never becomes ready");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn delete_volume(&self, volume_id: &str) -> Result<DeleteVolumeResponse, Status> {
        let request =
            DeleteVolumeRequest { volume_id: volume_id.to_string(), secrets: self.secrets() };
        answer(self.controller().delete_volume(request).await)
    }

    pub async fn delete_snapshot(
        &self,
        snapshot_id: &str,
    ) -> Result<DeleteSnapshotResponse, Status> {
        let request =
            DeleteSnapshotRequest { snapshot_id: snapshot_id.to_string(), secrets: self.secrets() };
        answer(self.controller().delete_snapshot(request).await)
    }

    /// A request to grow a volume.
    pub fn growth(
        &self,
        volume_id: &str,
        required: i64,
        limit: i64,
    ) -> ControllerExpandVolumeRequest {
        ControllerExpandVolumeRequest {
            volume_id: volume_id.to_string(),
            capacity_range: Some(CapacityRange { required_bytes: required, limit_bytes: limit }),
            secrets: self.secrets(),
            ..ControllerExpandVolumeRequest::default()
        }
    }

    pub async fn grow(
        &self,
        request: ControllerExpandVolumeRequest,
    ) -> Result<ControllerExpandVolumeResponse, Status> {
        answer(self.controller().controller_expand_volume(request).await)
    }

    /// A request to validate the usual capability.
    pub fn validation(&self, volume_id: &str) -> ValidateVolumeCapabilitiesRequest {
        ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.to_string(),
            volume_capabilities: vec![self.mounted(Mode::SingleNodeWriter)],
            secrets: self.secrets(),
            ..ValidateVolumeCapabilitiesRequest::default()
        }
    }

    pub async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
        answer(self.controller().validate_volume_capabilities(request).await)
    }

    /// A request to publish to the node served on the socket, or one of that name.
    pub fn publication(&self, volume_id: &str) -> ControllerPublishVolumeRequest {
        ControllerPublishVolumeRequest {
            volume_id: volume_id.to_string(),
            node_id: self.target.node_id.clone().unwrap_or_else(|| "node".to_string()),
            volume_capability: Some(self.mounted(Mode::SingleNodeWriter)),
            secrets: self.secrets(),
            ..ControllerPublishVolumeRequest::default()
        }
    }

    pub async fn publish(
        &self,
        request: ControllerPublishVolumeRequest,
    ) -> Result<ControllerPublishVolumeResponse, Status> {
        let answer = answer(self.controller().controller_publish_volume(request).await)?;
        assert_map("publish_context", &answer.publish_context);
        Ok(answer)
    }

    pub async fn unpublish(
        &self,
        volume_id: &str,
        node_id: &str,
    ) -> Result<ControllerUnpublishVolumeResponse, Status> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume_id.to_string(),
            node_id: node_id.to_string(),
            secrets: self.secrets(),
        };
        answer(self.controller().controller_unpublish_volume(request).await)
    }

    /// Deletes what was made, snapshots first, the latest volume first. Answers that ask to come
    /// again are obeyed.
    async fn delete_everything(&self) {
        let snapshots: Vec<_> = self.snapshots.lock().unwrap().drain(..).collect();
        let volumes: Vec<_> = self.volumes.lock().unwrap().drain(..).rev().collect();
        for id in &snapshots {
            again(&format!("DeleteSnapshot {id}"), || self.delete_snapshot(id)).await;
        }
        for id in &volumes {
            again(&format!("DeleteVolume {id}"), || self.delete_volume(id)).await;
        }
    }
}

/// A device under an access mode.
pub fn block(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

/// The content of an answer, once it was seen to be one that CSI allows.
#[track_caller]
pub fn answer<T>(outcome: Result<Response<T>, Status>) -> Result<T, Status> {
    let status = match outcome {
        Ok(response) => return Ok(response.into_inner()),
        Err(status) => status,
    };
    // A sidecar takes INTERNAL for "surely not running", and nothing here breaks the backend.
    assert!(
        !matches!(status.code(), Code::Internal | Code::Unknown | Code::DataLoss),
        "{status:?}"
    );
    assert!(!status.message().is_empty(), "an error without words: {status:?}");
    assert!(status.details().is_empty(), "details must be empty: {status:?}");
    Err(status)
}

/// Sees that a request was refused with one of these codes, and gives the words.
#[track_caller]
pub fn refused<T: Debug>(what: &str, outcome: Result<T, Status>, codes: &[Code]) -> String {
    match outcome {
        Ok(answer) => panic!("{what}: expected {codes:?}, but it was granted: {answer:?}"),
        Err(status) => {
            assert!(codes.contains(&status.code()), "{what}: expected {codes:?}, not {status:?}");
            status.message().to_string()
        }
    }
}

/// Calls until the answer is one that is final.
pub async fn again<T, F: Future<Output = Result<T, Status>>>(
    what: &str,
    mut call: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + Duration::from_mins(5);
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(status) => {
                let comes_back = matches!(
                    status.code(),
                    Code::Aborted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
                );
                assert!(comes_back && Instant::now() < deadline, "{what}: {status:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[track_caller]
fn assert_map(what: &str, map: &Map) {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!(bytes <= MAP_BYTES, "{what} has {bytes} bytes: {map:?}");
}
