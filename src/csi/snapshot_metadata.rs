//! The snapshot metadata service: which blocks of a snapshot hold data, and which differ between
//! two, for backup tools.
//!
//! Answers are streamed as librbd finds them, through read-only opens, so that no lock is taken
//! from the client that writes the volume. Extents have variable length, come in order, never
//! overlap, and neighbours are joined. A stream begun at `starting_offset` continues an interrupted
//! one. It ends early when the caller hangs up.

use super::clusters::{Access, Clusters};
use super::controller::ControllerService;
use super::ids::SnapshotId;
use super::proto::snapshot_metadata_server::SnapshotMetadata;
use super::proto::{
    BlockMetadata, BlockMetadataType, GetMetadataAllocatedRequest, GetMetadataAllocatedResponse,
    GetMetadataDeltaRequest, GetMetadataDeltaResponse,
};
use super::rpc_log::RequestId;
use super::{deadline, validate};
use crate::rbd::{Diff, Errno, Extent, Features, ImageKey, OpenMode};
use crate::volume::{Error, State, catalogue};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Span;

/// Extents in one message when the request does not say.
const DEFAULT_RESULTS: usize = 256;
/// Extents in one message at the most, which keeps it far below 4 MiB.
const MOST_RESULTS: usize = 10_000;
/// Bytes librbd is asked about at once: it gathers all extents before it hands out the first.
const WINDOW: u64 = 64 << 30;
/// Messages that wait for a slow caller.
const QUEUE: usize = 4;

/// The snapshot metadata service, over the controller's clusters.
#[derive(Debug, Clone)]
pub struct SnapshotMetadataService {
    controller: ControllerService,
}

/// What a stream is about.
#[derive(Debug)]
struct Query {
    target: SnapshotId,
    base: Option<SnapshotId>,
    offset: u64,
    results: usize,
}

/// One message of a stream, of either RPC.
struct Batch {
    capacity: i64,
    blocks: Vec<BlockMetadata>,
}

impl SnapshotMetadataService {
    /// The service for the snapshots that `controller` makes.
    pub fn new(controller: ControllerService) -> SnapshotMetadataService {
        SnapshotMetadataService { controller }
    }

    async fn stream<T: Send + 'static>(
        &self,
        query: Query,
        time: Time,
        id: Option<RequestId>,
        secrets: &BTreeMap<String, String>,
        message: fn(Batch) -> T,
    ) -> Result<Response<ReceiverStream<Result<T, Status>>>, Status> {
        let location = query.target.location.clone();
        let credentials = self.controller.credentials(&location, secrets)?;
        let clusters: Arc<Clusters> = self.controller.clusters().clone();
        let operations = self.controller.operations();
        let permit =
            operations.stream_permit(&location.cluster, &location.pool, time.left()).await?;
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let span = Span::current();
        tokio::task::spawn_blocking(move || {
            let (_permit, _within) = (permit, span.entered());
            let send = |batch| match sender.blocking_send(Ok(message(batch))) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            };
            let walked = clusters
                .access(&location, credentials, Arc::default())
                .and_then(|access| walk(&access, &query, send));
            if let Err(status) = walked {
                // When this fails, the caller listens no more and cannot be told.
                let _ = sender.blocking_send(Err(status));
            }
        });
        // The first message, or error, decides how the call answers: a stream that never had
        // anything to say is an error at once.
        match time.next(&mut receiver).await {
            Some(Err(status)) => Err(status),
            Some(Ok(first)) => Ok(Response::new(prepend(first, receiver, time, id))),
            None => Ok(Response::new(ReceiverStream::new(receiver))),
        }
    }
}

/// How long a stream may take.
#[derive(Debug, Clone, Copy)]
struct Time {
    /// When the caller gives up, if it said so.
    end: Option<Instant>,
    /// For one message.
    each: Duration,
}

impl Time {
    fn of<T>(request: &Request<T>, each: Duration) -> Time {
        Time { end: deadline::asked(request.metadata()).map(|asked| Instant::now() + asked), each }
    }

    fn left(&self) -> Duration {
        self.end.map_or(self.each, |end| deadline::left_until(end).min(self.each))
    }

    /// The next message, within the time for it.
    async fn next<T>(
        &self,
        receiver: &mut mpsc::Receiver<Result<T, Status>>,
    ) -> Option<Result<T, Status>> {
        tokio::time::timeout(self.left(), receiver.recv()).await.unwrap_or_else(|_| {
            Some(Err(Status::deadline_exceeded(
                "waiting for Ceph; ask again, with the end of the last extent received as starting_offset",
            )))
        })
    }
}

/// A stream of `first` and then all of `rest`. An error that comes once the call was answered has
/// the id of the request in its message too.
fn prepend<T: Send + 'static>(
    first: T,
    mut rest: mpsc::Receiver<Result<T, Status>>,
    time: Time,
    id: Option<RequestId>,
) -> ReceiverStream<Result<T, Status>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut next = Some(Ok(first));
        while let Some(message) = next {
            let message = message.map_err(|status| match &id {
                Some(id) => id.in_message_of(&status),
                None => status,
            });
            let last = message.is_err();
            if sender.send(message).await.is_err() || last {
                return;
            }
            next = time.next(&mut rest).await;
        }
    });
    ReceiverStream::new(receiver)
}

/// Walks the extents of the query and sends them in batches, until there are no more or the caller
/// listens no more.
fn walk(
    access: &Access,
    query: &Query,
    mut send: impl FnMut(Batch) -> ControlFlow<()> + Send,
) -> Result<(), Status> {
    let target = find(access, &query.target)?;
    let base = query.base.as_ref().map(|base| find(access, base)).transpose()?;
    if query.offset > target.size {
        return Err(Status::out_of_range(format!(
            "starting_offset {} is beyond the snapshot's {} bytes",
            query.offset, target.size
        )));
    }
    if base.as_ref().is_some_and(|base| base.snapshot_id > target.snapshot_id) {
        return Err(Status::invalid_argument("base_snapshot_id is newer than target_snapshot_id"));
    }
    let answer = |error| access.scope.status(&Error::Rbd(error));
    let image = access
        .volumes
        .pool()
        .open_image(ImageKey::Id(&target.image_id), OpenMode::ReadOnly)
        .map_err(answer)?;
    let whole_object = image.info().map_err(answer)?.features.contains(Features::FAST_DIFF);

    let capacity = i64::try_from(target.size).unwrap_or(i64::MAX);
    let mut blocks = Blocks { capacity, results: query.results, found: Vec::new() };
    let mut offset = query.offset;
    // An empty answer is a message too: it carries the capacity.
    let mut answered = false;
    while offset < target.size {
        let length = WINDOW.min(target.size - offset);
        let diff = Diff {
            at: Some(target.snapshot_id),
            since: base.as_ref().map(|base| base.snapshot_id),
            offset,
            length,
            include_parent: true,
            whole_object,
        };
        let mut visit = |extent: Extent| {
            let Some(batch) = blocks.add(clip(extent, offset, length)) else {
                return ControlFlow::Continue(());
            };
            answered = true;
            send(batch)
        };
        match image.diff(&diff, &mut visit) {
            Err(error) if error.errno == Errno::ECANCELED => return Ok(()),
            other => other.map_err(answer)?,
        }
        offset += length;
    }
    if !blocks.found.is_empty() || !answered {
        let _ = send(Batch { capacity, blocks: blocks.found });
    }
    Ok(())
}

fn find(access: &Access, id: &SnapshotId) -> Result<catalogue::Snapshot, Status> {
    let stored = access.answer(access.volumes.catalogue().snapshot(&id.snapshot))?;
    stored
        .map(|stored| stored.record)
        .filter(|record| record.state == State::Ready && record.image_id == id.image_id)
        .ok_or_else(|| Status::not_found(format!("the snapshot {id} does not exist")))
}

/// The part of an extent inside a window: whole objects can reach beyond it.
fn clip(extent: Extent, offset: u64, length: u64) -> Extent {
    let start = extent.offset.max(offset);
    let end = (extent.offset + extent.length).min(offset + length);
    Extent { offset: start, length: end.saturating_sub(start), ..extent }
}

/// Extents on their way into a batch, neighbours joined.
struct Blocks {
    capacity: i64,
    results: usize,
    found: Vec<BlockMetadata>,
}

impl Blocks {
    /// Takes an extent in; gives a batch when one is full and the extent begins the next. What was
    /// discarded counts as well: it reads as zeros now.
    fn add(&mut self, extent: Extent) -> Option<Batch> {
        let (Ok(byte_offset), Ok(size_bytes)) =
            (i64::try_from(extent.offset), i64::try_from(extent.length))
        else {
            return None;
        };
        if size_bytes == 0 {
            return None;
        }
        if let Some(last) = self.found.last_mut()
            && last.byte_offset + last.size_bytes == byte_offset
        {
            last.size_bytes += size_bytes;
            return None;
        }
        let full = self.found.len() == self.results;
        let batch = full
            .then(|| Batch { capacity: self.capacity, blocks: std::mem::take(&mut self.found) });
        self.found.push(BlockMetadata { byte_offset, size_bytes });
        batch
    }
}

fn query(
    target: (&str, &str),
    base: Option<(&str, &str)>,
    starting_offset: i64,
    max_results: i32,
) -> Result<Query, Status> {
    let id = |(field, id): (&str, &str)| {
        validate::required(field, id)?;
        SnapshotId::parse(id)
            .ok_or_else(|| Status::not_found(format!("the snapshot {id:?} does not exist")))
    };
    let target = id(target)?;
    let base = base.map(id).transpose()?;
    if base
        .as_ref()
        .is_some_and(|base| base.location != target.location || base.image_id != target.image_id)
    {
        return Err(Status::invalid_argument("the two snapshots are not of one volume"));
    }
    let offset = u64::try_from(starting_offset).map_err(|_| {
        Status::out_of_range(format!("starting_offset is negative: {starting_offset}"))
    })?;
    let results = usize::try_from(max_results)
        .map_err(|_| Status::invalid_argument(format!("max_results is negative: {max_results}")))?;
    let results = if results == 0 { DEFAULT_RESULTS } else { results.min(MOST_RESULTS) };
    Ok(Query { target, base, offset, results })
}

#[tonic::async_trait]
impl SnapshotMetadata for SnapshotMetadataService {
    type GetMetadataAllocatedStream = ReceiverStream<Result<GetMetadataAllocatedResponse, Status>>;
    type GetMetadataDeltaStream = ReceiverStream<Result<GetMetadataDeltaResponse, Status>>;

    async fn get_metadata_allocated(
        &self,
        request: Request<GetMetadataAllocatedRequest>,
    ) -> Result<Response<Self::GetMetadataAllocatedStream>, Status> {
        let time = Time::of(&request, self.controller.timeout());
        let id = request.extensions().get::<RequestId>().cloned();
        let request = request.into_inner();
        let query = query(
            ("snapshot_id", &request.snapshot_id),
            None,
            request.starting_offset,
            request.max_results,
        )?;
        self.stream(query, time, id, &request.secrets, |batch| GetMetadataAllocatedResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: batch.capacity,
            block_metadata: batch.blocks,
        })
        .await
    }

    async fn get_metadata_delta(
        &self,
        request: Request<GetMetadataDeltaRequest>,
    ) -> Result<Response<Self::GetMetadataDeltaStream>, Status> {
        let time = Time::of(&request, self.controller.timeout());
        let id = request.extensions().get::<RequestId>().cloned();
        let request = request.into_inner();
        let query = query(
            ("target_snapshot_id", &request.target_snapshot_id),
            Some(("base_snapshot_id", &request.base_snapshot_id)),
            request.starting_offset,
            request.max_results,
        )?;
        self.stream(query, time, id, &request.secrets, |batch| GetMetadataDeltaResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: batch.capacity,
            block_metadata: batch.blocks,
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined_and_batches_are_full() {
        let mut blocks = Blocks { capacity: 100, results: 2, found: Vec::new() };
        let extent = |offset, length| Extent { offset, length, exists: true };
        assert!(blocks.add(extent(0, 10)).is_none());
        assert!(blocks.add(extent(10, 5)).is_none());
        assert!(blocks.add(extent(15, 0)).is_none());
        assert!(blocks.add(extent(20, 5)).is_none());
        let batch = blocks.add(extent(40, 1)).unwrap();
        let pairs: Vec<_> =
            batch.blocks.iter().map(|block| (block.byte_offset, block.size_bytes)).collect();
        assert_eq!(pairs, [(0, 15), (20, 5)]);
        assert_eq!(blocks.found.len(), 1);
    }

    #[test]
    fn whole_objects_are_clipped_to_what_was_asked_for() {
        let extent = Extent { offset: 0, length: 100, exists: true };
        assert_eq!(clip(extent, 30, 50), Extent { offset: 30, length: 50, exists: true });
        assert_eq!(clip(extent, 200, 50).length, 0);
    }

    #[test]
    fn two_snapshots_of_different_volumes_cannot_be_compared() {
        let two = query(("t", "a/b/1@s"), Some(("b", "a/b/2@s")), 0, 0).unwrap_err();
        assert_eq!(two.code(), tonic::Code::InvalidArgument);
        assert_eq!(
            query(("t", "a/b/1@s"), None, -1, 0).unwrap_err().code(),
            tonic::Code::OutOfRange
        );
        assert_eq!(query(("t", "x"), None, 0, 0).unwrap_err().code(), tonic::Code::NotFound);
        assert_eq!(query(("t", ""), None, 0, 0).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
