//! Whether restore points can be restored: every object of theirs is read.

use serde::Serialize;

use super::read;
use super::series::{Point, Series};
use super::store::Store;
use crate::transfer::{Error, Job, Result};

/// What is known of a restore point after it was read.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// The restore point, as SERIES/ID.
    pub point: String,
    /// Bytes that were read of its own objects.
    pub stored: u64,
    /// What is wrong with it or with one that it is based on. Nothing: it can be restored.
    pub wrong: Option<String>,
}

/// Reads the restore point SERIES/ID and those it is based on, or all those of SERIES; all of the
/// target when there is none.
pub fn verify(store: &Store, which: Option<&str>, job: &Job) -> Result<Vec<Verified>> {
    let (names, only) = match which {
        None => (store.folders()?, None),
        Some(text) => {
            let (name, id) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
            (vec![name.to_owned()], id)
        }
    };
    let mut all = Vec::new();
    for name in names {
        let series = Series::read(store, &name)?;
        if let Some(which) = which.filter(|_| series.points.is_empty() && only.is_none()) {
            return Err(nothing(store, which));
        }
        let wanted: Vec<_> = if only.is_none() {
            series.points.iter().collect()
        } else {
            let (_, index) = find(store, which.unwrap_or_default())?;
            series.points.get(index).into_iter().collect()
        };
        // Those they are based on come first, and each is read once.
        let mut links: Vec<&Point> = Vec::new();
        for point in &wanted {
            let chain = series.chain(point).unwrap_or_else(|_| vec![*point]);
            links.extend(chain);
        }
        links.sort_by(|one, other| one.manifest.id.cmp(&other.manifest.id));
        links.dedup_by(|one, other| one.manifest.id == other.manifest.id);
        let stored = links.iter().map(|point| point.manifest.stored()).sum();
        job.begin(format!("reading {name}"), stored);
        let mut bad: Vec<(String, String)> = Vec::new();
        for point in links {
            if let Err(error) = read::each(store, point, job, |_| Ok(())) {
                if matches!(error, Error::Cancelled) {
                    return Err(error);
                }
                bad.push((point.manifest.id.clone(), error.to_string()));
            }
        }
        all.extend(wanted.into_iter().map(|point| of(&series, point, &bad)));
        if only.is_none() {
            let unreadable = series.unreadable.iter().map(|(id, why)| Verified {
                point: format!("{name}/{id}"),
                stored: 0,
                wrong: Some(why.clone()),
            });
            all.extend(unreadable);
        }
    }
    all.sort_by(|one, other| one.point.cmp(&other.point));
    Ok(all)
}

fn of(series: &Series, point: &Point, bad: &[(String, String)]) -> Verified {
    let wrong = match series.chain(point) {
        Err(error) => Some(error.to_string()),
        Ok(chain) => chain.iter().find_map(|link| {
            let found = bad.iter().find(|(id, _)| *id == link.manifest.id);
            found.map(|(_, why)| why.clone())
        }),
    };
    Verified { point: point.name(), stored: point.manifest.stored(), wrong }
}

/// Finds the restore point SERIES/ID, or the newest of SERIES or SERIES/latest. Returns its series,
/// and its place there.
pub(super) fn find(store: &Store, text: &str) -> Result<(Series, usize)> {
    let (name, id) = text.split_once('/').unwrap_or((text, "latest"));
    if name.is_empty() {
        return Err(nothing(store, text));
    }
    let series = Series::read(store, name)?;
    let index = match id {
        "latest" => series.points.len().checked_sub(1),
        id => series.points.iter().position(|point| point.manifest.id == id),
    };
    if let Some(index) = index {
        return Ok((series, index));
    }
    match series.unreadable.iter().find(|(unreadable, _)| unreadable == id) {
        Some((_, why)) => Err(Error::Refused(why.clone())),
        None => Err(nothing(store, text)),
    }
}

pub(super) fn nothing(store: &Store, text: &str) -> Error {
    Error::Refused(format!(
        "there is no restore point {text:?} in {}: cinderblock backup list shows those there are",
        store.name()
    ))
}
