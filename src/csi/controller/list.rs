//! ListVolumes and ListSnapshots: pages of the catalogue, in the pools the configuration gives the
//! driver a user for.
//!
//! A token names the last entry handed out, so what comes and goes between two pages neither hides
//! nor repeats anything else. Only what was handed out is listed: a volume being made or destroyed
//! is not, a snapshot of a deleted volume is.

use super::ControllerService;
use crate::csi::clusters::operation;
use crate::csi::deadline::left_until;
use crate::csi::ids::{Location, SnapshotId, VolumeId};
use crate::csi::operations::Class;
#[allow(clippy::wildcard_imports, reason = "most messages of the lists")]
use crate::csi::proto::*;
use crate::csi::topology;
use crate::volume::State;
use crate::volume::catalogue::{self, Catalogue, Cursor, Record};
use crate::volume::names;
use prost::Message;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// Bytes of entries in one answer at the most; clients written in Go refuse messages above 4 MiB.
const PAGE_BYTES: usize = 3 << 20;
/// Volumes whose health one answer tells of at the most.
const HEALTH_PAGE: usize = 200;
/// Records read from the catalogue at once.
const READ_AHEAD: usize = 500;

/// Where a listing goes on: in which pool, and after which record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    location: Location,
    cursor: Cursor,
}

impl Place {
    /// A token for [`Place::parse`]. A digest stands for the location, which can be long.
    pub(crate) fn token(&self) -> String {
        format!("{}.{}", short_digest(&self.location), self.cursor.token())
    }

    pub(crate) fn parse(token: &str, locations: &[Location]) -> Option<Place> {
        let (digest, cursor) = token.split_once('.')?;
        let location = locations.iter().find(|location| short_digest(location) == digest)?;
        Some(Place { location: location.clone(), cursor: Cursor::parse(cursor)? })
    }
}

fn short_digest(location: &Location) -> String {
    names::digest(&location.to_string())[..8].to_string()
}

/// One page of entries, and the token of the next.
type Page<T> = (Vec<T>, String);

/// What a page may hold.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    entries: usize,
    bytes: usize,
}

impl Bounds {
    fn of(max_entries: i32) -> Result<Bounds, Status> {
        let entries = usize::try_from(max_entries).map_err(|_| {
            Status::invalid_argument(format!("max_entries is negative: {max_entries}"))
        })?;
        Ok(Bounds { entries: if entries == 0 { usize::MAX } else { entries }, bytes: PAGE_BYTES })
    }
}

impl ControllerService {
    /// ListVolumes.
    pub(super) async fn handle_list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        let bounds = Bounds::of(request.max_entries)?;
        let locations = self.clusters.listable()?;
        let config = self.clusters.clone();
        let entry = move |location: &Location, _: &str, record: &catalogue::Volume| {
            let topology =
                config.config().clusters.get(&location.cluster).map(|cluster| &cluster.topology);
            volume_entry(record, topology.map(topology::accessible_from).unwrap_or_default())
        };
        let (entries, next_token) = self
            .list(deadline, locations, &request.starting_token, bounds, BTreeMap::new(), entry)
            .await?;
        Ok(Response::new(ListVolumesResponse { entries, next_token }))
    }

    /// ControllerListVolumeHealth, with `--enable-alpha`: of a page of volumes, those that are not
    /// well. A page looks at no more than 200, each of which is opened.
    pub(super) async fn handle_list_volume_health(
        &self,
        request: Request<ControllerListVolumeHealthRequest>,
    ) -> Result<Response<ControllerListVolumeHealthResponse>, Status> {
        if !self.alpha {
            return Err(super::not_advertised("ControllerListVolumeHealth"));
        }
        let until = Instant::now() + self.deadline(&request);
        let request = request.into_inner();
        let bounds = Bounds::of(request.max_entries)?;
        let bounds = Bounds { entries: bounds.entries.min(HEALTH_PAGE), ..bounds };
        let locations = self.clusters.listable()?;
        let ready = |_: &Location, _: &str, record: &catalogue::Volume| {
            (record.state == State::Ready).then(|| record.id.clone())
        };
        let (volumes, next_token) = self
            .list(
                left_until(until),
                locations,
                &request.starting_token,
                bounds,
                request.secrets.clone(),
                ready,
            )
            .await?;
        let mut entries = Vec::new();
        for volume in volumes {
            // One that is deleted meanwhile has no health.
            let health = self.volume_health(left_until(until), volume, &request.secrets).await?;
            entries.extend(health.filter(|health| !health.health_statuses.is_empty()));
        }
        Ok(Response::new(ControllerListVolumeHealthResponse { entries, next_token }))
    }

    /// ListSnapshots: all, those of one volume, or one. A filter that matches nothing gives an
    /// empty list.
    pub(super) async fn handle_list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        let bounds = Bounds::of(request.max_entries)?;
        if !request.snapshot_id.is_empty() {
            let found =
                self.find_snapshot(deadline, &request.snapshot_id, &request.secrets).await?;
            let wanted = |snapshot: &Snapshot| {
                request.source_volume_id.is_empty()
                    || snapshot.source_volume_id == request.source_volume_id
            };
            let entries = found.filter(wanted).map(snapshot_entry).into_iter().collect();
            return Ok(Response::new(ListSnapshotsResponse { entries, next_token: String::new() }));
        }
        let locations = match request.source_volume_id.as_str() {
            "" => self.clusters.listable()?,
            source => VolumeId::parse(source)
                .filter(|id| self.clusters.config().clusters.contains_key(&id.location.cluster))
                .map(|id| id.location)
                .into_iter()
                .collect(),
        };
        let source = request.source_volume_id.clone();
        let entry = move |location: &Location, name: &str, record: &catalogue::Snapshot| {
            let wanted = source.is_empty() || record.source_volume == source;
            (wanted && record.state == State::Ready).then(|| {
                snapshot_entry(super::snapshots::wire_snapshot(location.clone(), name, record))
            })
        };
        let (entries, next_token) = self
            .list(deadline, locations, &request.starting_token, bounds, request.secrets, entry)
            .await?;
        Ok(Response::new(ListSnapshotsResponse { entries, next_token }))
    }

    /// GetSnapshot.
    pub(super) async fn handle_get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        crate::csi::validate::required("snapshot_id", &request.snapshot_id)?;
        let snapshot = self
            .find_snapshot(deadline, &request.snapshot_id, &request.secrets)
            .await?
            .ok_or_else(|| {
                Status::not_found(format!("the snapshot {:?} does not exist", request.snapshot_id))
            })?;
        Ok(Response::new(GetSnapshotResponse { snapshot: Some(snapshot) }))
    }

    /// ControllerGetVolume.
    pub(super) async fn handle_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        crate::csi::validate::required("volume_id", &request.volume_id)?;
        let record = self.find_volume(deadline, &request.volume_id, &BTreeMap::new()).await?;
        let cluster =
            VolumeId::parse(&request.volume_id).map(|id| id.location.cluster).unwrap_or_default();
        Ok(Response::new(ControllerGetVolumeResponse {
            volume: Some(self.placed(&cluster, super::create_volume::volume(&record))),
            status: Some(controller_get_volume_response::VolumeStatus {
                published_node_ids: record
                    .published
                    .into_iter()
                    .map(|publication| publication.node)
                    .collect(),
            }),
        }))
    }

    /// The record of a volume that was handed out and has its image; else `NOT_FOUND`.
    pub(super) async fn find_volume(
        &self,
        deadline: Duration,
        volume_id: &str,
        secrets: &BTreeMap<String, String>,
    ) -> Result<catalogue::Volume, Status> {
        let id = VolumeId::parse(volume_id)
            .ok_or_else(|| Status::not_found(format!("the volume {volume_id:?} does not exist")))?;
        let credentials = self.credentials(&id.location, secrets)?;
        // Reads only, so it shares no key with the operations that change the volume.
        let operation =
            operation(Class::Attach, "reading a volume", &id.location, Vec::new(), String::new());
        self.run(operation, deadline, id.location, credentials, move |access, _| {
            Ok(access.answer(access.volumes.handed_out(&id.image))?.record)
        })
        .await
    }

    async fn find_snapshot(
        &self,
        deadline: Duration,
        snapshot_id: &str,
        secrets: &BTreeMap<String, String>,
    ) -> Result<Option<Snapshot>, Status> {
        let Some(id) = SnapshotId::parse(snapshot_id)
            .filter(|id| self.clusters.config().clusters.contains_key(&id.location.cluster))
        else {
            return Ok(None);
        };
        let credentials = self.credentials(&id.location, secrets)?;
        let operation =
            operation(Class::Attach, "reading a snapshot", &id.location, Vec::new(), String::new());
        let location = id.location.clone();
        self.run(operation, deadline, id.location, credentials, move |access, _| {
            let stored = access.answer(access.volumes.catalogue().snapshot(&id.snapshot))?;
            let matching = |record: &catalogue::Snapshot| {
                record.state == State::Ready && record.image_id == id.image_id
            };
            Ok(stored
                .map(|stored| stored.record)
                .filter(matching)
                .map(|record| super::snapshots::wire_snapshot(location, &id.snapshot, &record)))
        })
        .await
    }

    /// One page of the records in `locations` that `entry` makes an entry of.
    async fn list<R, T, F>(
        &self,
        deadline: Duration,
        locations: Vec<Location>,
        starting_token: &str,
        bounds: Bounds,
        secrets: BTreeMap<String, String>,
        entry: F,
    ) -> Result<Page<T>, Status>
    where
        R: Record,
        T: Message + Clone + 'static,
        F: Fn(&Location, &str, &R) -> Option<T> + Clone + Send + 'static,
    {
        let start = match starting_token {
            "" => None,
            token => Some(Place::parse(token, &locations).ok_or_else(|| {
                Status::aborted(format!(
                    "starting_token {token:?} is not one of this list; start again without it"
                ))
            })?),
        };
        let skipped = start.as_ref().map_or(0, |start| {
            locations
                .iter()
                .position(|location| *location == start.location)
                .unwrap_or(locations.len())
        });
        let mut cursor = start.map_or_else(Cursor::default, |start| start.cursor);
        let mut page = Vec::new();
        let mut bytes = 0;
        let until = Instant::now() + deadline;
        for location in locations.into_iter().skip(skipped) {
            let credentials = self.credentials(&location, &secrets)?;
            let left = Bounds { entries: bounds.entries - page.len(), bytes: bounds.bytes - bytes };
            let (from, entry, here) =
                (std::mem::take(&mut cursor), entry.clone(), location.clone());
            let operation =
                operation(Class::Attach, "listing", &location, Vec::new(), String::new());
            let (mut entries, more) = self
                .run(
                    operation,
                    left_until(until),
                    location.clone(),
                    credentials,
                    move |access, _| {
                        let entry = |name: &str, record: &R| entry(&here, name, record);
                        access.answer(page_of(access.volumes.catalogue(), from, left, entry))
                    },
                )
                .await?;
            bytes += entries.iter().map(T::encoded_len).sum::<usize>();
            page.append(&mut entries);
            if let Some(cursor) = more {
                return Ok((page, Place { location, cursor }.token()));
            }
        }
        Ok((page, String::new()))
    }
}

/// Entries of one pool after `from`, and where to go on when the bounds were reached with more to
/// come.
fn page_of<R: Record, T: Message>(
    catalogue: &Catalogue,
    from: Cursor,
    bounds: Bounds,
    entry: impl Fn(&str, &R) -> Option<T>,
) -> crate::volume::Result<(Vec<T>, Option<Cursor>)> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    let mut cursor = from;
    loop {
        let (records, more) = catalogue.list::<R>(&cursor, READ_AHEAD)?;
        for (name, stored) in records {
            let here = Cursor::of(&name);
            if let Some(entry) = entry(&name, &stored.record) {
                bytes += entry.encoded_len();
                if entries.len() == bounds.entries || bytes > bounds.bytes {
                    return Ok((entries, Some(cursor)));
                }
                entries.push(entry);
            }
            cursor = here;
        }
        match more {
            Some(next) => cursor = next,
            None => return Ok((entries, None)),
        }
    }
}

fn volume_entry(
    record: &catalogue::Volume,
    accessible_topology: Vec<Topology>,
) -> Option<list_volumes_response::Entry> {
    (record.state == State::Ready).then(|| list_volumes_response::Entry {
        volume: Some(Volume { accessible_topology, ..super::create_volume::volume(record) }),
        status: Some(list_volumes_response::VolumeStatus {
            published_node_ids: record
                .published
                .iter()
                .map(|publication| publication.node.clone())
                .collect(),
        }),
    })
}

fn snapshot_entry(snapshot: Snapshot) -> list_snapshots_response::Entry {
    list_snapshots_response::Entry { snapshot: Some(snapshot) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_the_place_and_nothing_else_is_one() {
        let location = |pool: &str| Location {
            cluster: "lab".to_string(),
            pool: pool.to_string(),
            namespace: String::new(),
        };
        let locations = [location("a"), location("b")];
        let place = Place { location: location("b"), cursor: Cursor::of("csi-pvc-1") };
        let token = place.token();
        assert!(token.len() <= 128);
        assert_eq!(Place::parse(&token, &locations), Some(place));
        assert_eq!(Place::parse(&token, &locations[..1]), None);
        for garbage in ["", "invalid-token", ".", "x.1.a", &token[..token.len() - 9]] {
            assert_eq!(Place::parse(garbage, &locations), None, "{garbage:?}");
        }
    }
}
