//! What a target holds: a folder for each image that was backed up (its series), and in it a folder
//! for each restore point.
//!
//! A series is known by the image's cluster, pool, namespace and id: an image that was deleted and
//! made anew under the same name has another one. Everything is told by the target alone.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::manifest::{DRAFT, Draft, MANIFEST, Manifest, Source, digest};
use super::store::{Listed, Store};
use crate::transfer::{Error, Result};
use crate::volume::names;

/// The object that gives a target its id.
const TARGET: &str = "cinderblock-backup.json";

/// How the ids of restore points are written, in UTC.
const TIME: &str = "%Y%m%dT%H%M%S.%3f";

/// A restore point, with the digest of its manifest.
#[derive(Debug, Clone)]
pub struct Point {
    /// The series it is in.
    pub series: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// The digest of its manifest.
    pub(super) digest: String,
}

/// A series with all that is in it.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// Its restore points, oldest first.
    pub(super) points: Vec<Point>,
    /// Restore points whose manifests cannot be read: their ids, and why.
    pub(super) unreadable: Vec<(String, String)>,
    /// The ids of restore points that have the note of one in the making still.
    pub(super) noted: Vec<String>,
    /// Restore points in the making, or that were: their ids and objects. `None` has no note that
    /// can be read, and is left of one that was removed.
    pub(super) drafts: Vec<(String, Option<Draft>, Vec<Listed>)>,
}

impl Point {
    /// What people call it: SERIES/ID.
    pub fn name(&self) -> String {
        format!("{}/{}", self.series, self.manifest.id)
    }
}

impl Series {
    /// Reads a series. Every manifest is read; no other object is.
    pub(super) fn read(store: &Store, series: &str) -> Result<Series> {
        let mut found = Series::default();
        let listed = store.list(series)?;
        let id_of = |listed: &Listed| {
            let mut parts = listed.key.splitn(3, '/').skip(1);
            parts.next().unwrap_or_default().to_owned()
        };
        for objects in listed.chunk_by(|one, other| id_of(one) == id_of(other)) {
            let id = id_of(&objects[0]);
            let key = |name: &str| format!("{series}/{id}/{name}");
            let holds = |name: &str| objects.iter().any(|object| object.key == key(name));
            if holds(MANIFEST) {
                if holds(DRAFT) {
                    found.noted.push(id.clone());
                }
                let shown = store.shown(&key(MANIFEST));
                // It was removed since it was listed.
                let Some(bytes) = store.get(&key(MANIFEST))? else { continue };
                match Manifest::parse(&bytes, &shown) {
                    Ok(manifest) if manifest.id == id => found.points.push(Point {
                        series: series.to_owned(),
                        manifest,
                        digest: digest(&bytes),
                    }),
                    Ok(manifest) => {
                        let why = format!("{shown} is that of {}", manifest.id);
                        found.unreadable.push((id, why));
                    }
                    Err(error) => found.unreadable.push((id, error.to_string())),
                }
            } else {
                let draft = if holds(DRAFT) {
                    store.get(&key(DRAFT))?.and_then(|bytes| Draft::parse(&bytes))
                } else {
                    None
                };
                found.drafts.push((id, draft, objects.to_vec()));
            }
        }
        Ok(found)
    }

    /// The restore point with this id.
    pub(super) fn point(&self, id: &str) -> Option<&Point> {
        self.points.iter().find(|point| point.manifest.id == id)
    }

    /// The restore point and those it is based on, from the newest to the full one.
    /// [`Error::Refused`] when a link is missing or is another one than it was.
    pub(super) fn chain<'a>(&'a self, point: &'a Point) -> Result<Vec<&'a Point>> {
        let mut chain = vec![point];
        let mut last = point;
        while let Some(parent) = &last.manifest.parent {
            let broken = |why: &str| {
                Error::Refused(format!(
                    "{} cannot be restored: it is an increment to {}/{}, {why}",
                    point.name(),
                    point.series,
                    parent.id
                ))
            };
            let Some(found) = self.point(&parent.id) else {
                return Err(broken(if self.unreadable.iter().any(|(id, _)| *id == parent.id) {
                    "whose manifest cannot be read"
                } else {
                    "which is missing"
                }));
            };
            if found.digest != parent.blake3 {
                return Err(broken("whose manifest was changed since"));
            }
            if last.manifest.stream.from.as_ref() != Some(&found.manifest.stream.to) {
                return Err(broken("which leads to another snapshot than it begins with"));
            }
            if chain.iter().any(|known| known.manifest.id == parent.id) {
                return Err(broken("which is based on it in turn"));
            }
            chain.push(found);
            last = found;
        }
        Ok(chain)
    }

    /// The id of the full restore point that `point` is based on, as far as the links go.
    pub(super) fn root<'a>(&'a self, point: &'a Point) -> &'a str {
        let mut id = &point.manifest.id;
        let mut next = point.manifest.parent.as_ref();
        // No chain has more links than there are restore points.
        for _ in 0..=self.points.len() {
            let Some(parent) = next else { break };
            id = &parent.id;
            next = self.point(id).and_then(|point| point.manifest.parent.as_ref());
        }
        id
    }

    /// The newest id that was given in this series.
    pub(super) fn newest_id(&self) -> Option<&str> {
        let points = self.points.iter().map(|point| point.manifest.id.as_str());
        let others = self.unreadable.iter().map(|(id, _)| id.as_str());
        points.chain(others).chain(self.drafts.iter().map(|(id, ..)| id.as_str())).max()
    }
}

/// The target's id, which is given to it when it has none and `make`.
pub(super) fn target_id(store: &Store, make: bool) -> Result<Option<String>> {
    let read = || -> Result<Option<String>> {
        let Some(bytes) = store.get(TARGET)? else { return Ok(None) };
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let plain = |id: &&str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric());
        let id = value["id"].as_str().filter(plain);
        id.map(str::to_owned).map(Some).ok_or_else(|| {
            Error::Failed(format!("{} does not have the id of a target", store.shown(TARGET)))
        })
    };
    if let Some(id) = read()? {
        return Ok(Some(id));
    }
    if !make {
        return Ok(None);
    }
    let random = uuid::Uuid::new_v4().simple().to_string();
    let text = format!("{{\"format\": \"cinderblock-backup\", \"id\": \"{}\"}}\n", &random[..8]);
    // Another run may be first.
    store.put_new(TARGET, text.into_bytes())?;
    read()
}

/// The name of the series of the image in `source`: the one that is there, whatever the image was
/// called then, or a new one.
pub(super) fn series_of(store: &Store, source: &Source) -> Result<String> {
    let Source { fsid, pool, namespace, image, image_id, .. } = source;
    let identity = digest(format!("{fsid}\0{pool}\0{namespace}\0{image_id}").as_bytes());
    let ending = format!(".{}", &identity[..12]);
    if let Some(found) = store.folders()?.into_iter().find(|name| name.ends_with(&ending)) {
        return Ok(found);
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = names::before_silence(image, image_id).chars().map(plain).collect();
    Ok(format!("{name}{ending}"))
}

/// The id of a restore point at `now`, later than `newest`: a clock that was set back makes none
/// twice.
pub(super) fn id_after(newest: Option<&str>, now: Timestamp) -> String {
    let written = |time: Timestamp| format!("{}Z", time.strftime(TIME));
    let id = written(now);
    let Some(newest) = newest.filter(|newest| **newest >= *id) else { return id };
    let time = time_of(newest).unwrap_or(now);
    written(time.saturating_add(jiff::SignedDuration::from_millis(1)).unwrap_or(time))
}

/// The moment that an id says.
pub(super) fn time_of(id: &str) -> Option<Timestamp> {
    let text = id.strip_suffix('Z')?;
    let time = DateTime::strptime("%Y%m%dT%H%M%S%.f", text).ok()?;
    TimeZone::UTC.to_timestamp(time).ok()
}

/// The name of the snapshot that a backup cuts: the last part is the restore point's id.
pub(super) fn snapshot_name(target: &str, id: &str) -> String {
    format!("{}{target}.snap.{id}", names::BACKUP_SNAPSHOT_PREFIX)
}

/// The id of the restore point that a snapshot was cut for, if it was for this target.
pub(super) fn snapshot_point<'a>(target: &str, snapshot: &'a str) -> Option<&'a str> {
    let rest = snapshot.strip_prefix(names::BACKUP_SNAPSHOT_PREFIX)?;
    rest.strip_prefix(target)?.strip_prefix(".snap.").filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_only_grow_also_when_the_clock_is_set_back() {
        let now: Timestamp = "2026-11-30T03:15:00.123456Z".parse().unwrap();
        let id = id_after(None, now);
        assert_eq!(id, "20261130T031500.123Z");
        assert_eq!(time_of(&id).unwrap().to_string(), "2026-11-30T03:15:00.123Z");
        assert_eq!(id_after(Some(&id), now), "20261130T031500.124Z");
        assert_eq!(id_after(Some("20261231T235959.999Z"), now), "20270101T000000.000Z");
        assert_eq!(id_after(Some("20261129T235959.999Z"), now), id);
    }

    #[test]
    fn a_snapshot_tells_its_target_and_its_restore_point() {
        let name = snapshot_name("0123abcd", "20261130T031500.123Z");
        assert!(names::is_backup_snapshot(&name));
        assert_eq!(snapshot_point("0123abcd", &name), Some("20261130T031500.123Z"));
        for (target, name) in [
            ("0123abce", name.as_str()),
            ("0123abc", &name),
            ("0123abcd", "backup.0123abcd.snap."),
            ("0123abcd", "snapshot-1"),
        ] {
            assert_eq!(snapshot_point(target, name), None, "{target} {name}");
        }
    }
}
