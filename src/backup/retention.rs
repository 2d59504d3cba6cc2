//! Which restore points stay, and removing the others.
//!
//! A chain goes as a whole: the full restore point and all that are based on it, directly or not.
//! It stays as long as one of them is kept, so room becomes free when new full ones are made.
//!
//! Crash points: manifests go first, those of increments before what they are based on; so whatever
//! has a manifest can be restored. Then the objects go. Killed here, they have neither manifest nor
//! draft, and the next run removes them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::manifest::{DRAFT, MANIFEST};
use super::series::{Point, Series, time_of};
use super::store::Store;
use super::verify::find;
use crate::transfer::{Error, Job, Result};

/// Seconds after which a restore point in the making is not being made any more.
const ABANDONED: i64 = 7 * 24 * 3600;

/// Which restore points of each series are kept. Those that no rule keeps go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest.
    pub last: usize,
    /// The newest of each of so many hours that have one.
    pub hourly: usize,
    /// The newest of each of so many days (in UTC) that have one.
    pub daily: usize,
    /// The newest of each of so many weeks (from Monday) that have one.
    pub weekly: usize,
    /// The newest of each of so many months that have one.
    pub monthly: usize,
    /// The newest of each of so many years that have one.
    pub yearly: usize,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Restore points, as SERIES/ID.
    pub points: Vec<String>,
    /// Bytes that their objects took.
    pub stored: u64,
    /// Folders of what never became a restore point, or is left of one.
    pub leftovers: Vec<String>,
}

impl Keep {
    /// Whether no rule keeps anything.
    pub fn is_empty(&self) -> bool {
        *self == Keep::default()
    }

    /// The ids that are kept of `ids`, which are in order.
    fn of<'a>(&self, ids: &[&'a str]) -> BTreeSet<&'a str> {
        let mut kept: BTreeSet<_> = ids.iter().rev().take(self.last).copied().collect();
        let date = |time: Timestamp| time.to_zoned(TimeZone::UTC).date();
        let week = |date: Date| date.iso_week_date();
        let rules: [(usize, &dyn Fn(Timestamp) -> String); 5] = [
            (self.hourly, &|time| time.strftime("%Y%m%d%H").to_string()),
            (self.daily, &|time| time.strftime("%Y%m%d").to_string()),
            (self.weekly, &|time| {
                format!("{} {}", week(date(time)).year(), week(date(time)).week())
            }),
            (self.monthly, &|time| time.strftime("%Y%m").to_string()),
            (self.yearly, &|time| time.strftime("%Y").to_string()),
        ];
        for (count, period) in rules {
            let mut periods = Vec::new();
            for id in ids.iter().rev() {
                let Some(period) = time_of(id).map(period) else { continue };
                if periods.len() < count && periods.last() != Some(&period) {
                    periods.push(period);
                    kept.insert(id);
                }
            }
        }
        kept
    }
}

/// Removes the restore points that `keep` does not keep, chain by chain, and what is left of
/// others; of one series, or of all. Without `apply` nothing is removed.
///
/// [`Error::Refused`] when `keep` keeps nothing.
pub fn prune(
    store: &Store,
    series: Option<&str>,
    keep: &Keep,
    apply: bool,
    job: &Job,
) -> Result<Removed> {
    if keep.is_empty() {
        return Err(Error::Refused("no rule keeps anything: give one, as --keep-last 7".into()));
    }
    let names = match series {
        Some(name) => {
            find(store, name)?;
            vec![name.to_owned()]
        }
        None => store.folders()?,
    };
    let mut removed = Removed::default();
    for name in names {
        job.begin(format!("looking at {name}"), 0);
        let found = Series::read(store, &name)?;
        // One that cannot be read may be what others are based on.
        let ids: Vec<_> = found.points.iter().map(|point| point.manifest.id.as_str()).collect();
        let kept = keep.of(&ids);
        let is_kept = |point: &&Point| kept.contains(point.manifest.id.as_str());
        let roots: BTreeSet<_> =
            found.points.iter().filter(is_kept).map(|point| found.root(point)).collect();
        let goes = |point: &&Point| !roots.contains(found.root(point));
        let going: Vec<_> = found.points.iter().filter(goes).collect();
        remove(store, &going, apply, job, &mut removed)?;
        leftovers(store, &name, &found, apply, &mut removed)?;
    }
    Ok(removed)
}

/// Removes the chain of the restore point SERIES/ID. [`Error::Refused`] when it has others in it
/// and `chain` does not say that they go as well.
pub fn delete(store: &Store, point: &str, chain: bool, job: &Job) -> Result<Removed> {
    if !point.contains('/') {
        return Err(Error::Refused(format!(
            "{point} is a series: give one restore point of it, as SERIES/ID or SERIES/latest"
        )));
    }
    job.begin(format!("looking at {point}"), 0);
    let (series, index) = find(store, point)?;
    let root = series.root(&series.points[index]);
    let going: Vec<_> = series.points.iter().filter(|one| series.root(one) == root).collect();
    if going.len() > 1 && !chain {
        return Err(Error::Refused(format!(
            "{} goes only with its whole chain, {} restore points from {} to {}: give --chain to remove them all",
            series.points[index].name(),
            going.len(),
            going[0].manifest.id,
            going[going.len() - 1].manifest.id,
        )));
    }
    let mut removed = Removed::default();
    remove(store, &going, true, job, &mut removed)?;
    Ok(removed)
}

/// Removes restore points of one series, which are in order.
fn remove(
    store: &Store,
    going: &[&Point],
    apply: bool,
    job: &Job,
    removed: &mut Removed,
) -> Result<()> {
    for point in going {
        removed.points.push(point.name());
        removed.stored += point.manifest.stored();
    }
    if !apply || going.is_empty() {
        return Ok(());
    }
    let stored = going.iter().map(|point| point.manifest.stored()).sum();
    job.begin(format!("removing restore points of {}", going[0].series), stored);
    // Those that are based on others are the younger ones.
    for point in going.iter().rev() {
        job.check()?;
        // With a note it would be taken for one in the making.
        store.remove(&format!("{}/{DRAFT}", point.name()))?;
        store.remove(&format!("{}/{MANIFEST}", point.name()))?;
    }
    for point in going {
        for object in store.list(&point.name())? {
            job.check()?;
            store.remove(&object.key)?;
            job.advance(object.size);
        }
        store.tidy(&point.name());
    }
    Ok(())
}

/// Removes what is left of restore points that were removed, and what was being made long ago.
fn leftovers(
    store: &Store,
    name: &str,
    series: &Series,
    apply: bool,
    removed: &mut Removed,
) -> Result<()> {
    let now = Timestamp::now().as_second();
    for (id, draft, objects) in &series.drafts {
        let has_note = objects.iter().any(|object| object.key.ends_with(DRAFT));
        let newest = objects.iter().map(|object| object.written).max().unwrap_or(now);
        if (draft.is_some() || has_note) && now - newest < ABANDONED {
            continue;
        }
        removed.leftovers.push(format!("{name}/{id}"));
        if !apply {
            continue;
        }
        let (notes, others): (Vec<_>, Vec<_>) =
            objects.iter().partition(|object| object.key.ends_with(DRAFT));
        for object in others.into_iter().chain(notes) {
            store.remove(&object.key)?;
        }
        store.tidy(&format!("{name}/{id}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_period_is_kept() {
        let ids = [
            "20251231T230000.000Z",
            "20260101T010000.000Z",
            "20260105T010000.000Z",
            "20260105T020000.000Z",
            "20260105T020500.000Z",
            "20260111T230000.000Z",
            "20260112T010000.000Z",
        ];
        let kept = |keep: Keep| {
            let kept = keep.of(&ids);
            ids.iter().map(|id| if kept.contains(id) { 'x' } else { '.' }).collect::<String>()
        };
        let none = Keep::default();
        assert_eq!(kept(Keep { last: 2, ..none.clone() }), ".....xx");
        assert_eq!(kept(Keep { last: 99, ..none.clone() }), "xxxxxxx");
        assert_eq!(kept(Keep { hourly: 4, ..none.clone() }), "..x.xxx");
        assert_eq!(kept(Keep { daily: 3, ..none.clone() }), "....xxx");
        // 2025-12-31 and 2026-01-01 are in the same week, of 2026.
        assert_eq!(kept(Keep { weekly: 9, ..none.clone() }), ".x...xx");
        assert_eq!(kept(Keep { monthly: 2, ..none.clone() }), "x.....x");
        assert_eq!(kept(Keep { yearly: 1, ..none.clone() }), "......x");
        assert_eq!(kept(Keep { last: 1, yearly: 2, ..none.clone() }), "x.....x");
        assert!(none.of(&ids).is_empty() && none.is_empty());
    }
}
