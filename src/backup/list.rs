//! What is in a target.

use serde::Serialize;

use super::manifest::Manifest;
use super::series::Series;
use super::store::Store;
use super::verify::{find, nothing};
use crate::transfer::Result;

/// A restore point in a list.
#[derive(Debug, Clone, Serialize)]
pub struct Listing {
    /// The restore point, as SERIES/ID.
    pub point: String,
    /// The restore point that it is an increment to; a full one has none.
    pub parent: Option<String>,
    /// The image it was made of, as its spec then.
    pub image: String,
    /// The volume's id, if it was a volume.
    pub volume: Option<String>,
    /// The claim, as NAMESPACE/NAME, if Kubernetes was asked.
    pub claim: Option<String>,
    /// Seconds since 1970 when its snapshot was cut.
    pub cut: i64,
    /// The image's size in bytes.
    pub size: u64,
    /// Bytes that its own objects take.
    pub stored: u64,
    /// Why it cannot be restored, as far as the manifests tell. `verify` tells all.
    pub wrong: Option<String>,
}

/// The restore points of a target, or of one series; oldest first in each.
pub fn list(store: &Store, series: Option<&str>) -> Result<Vec<Listing>> {
    let names = match series {
        Some(name) => vec![name.to_owned()],
        None => store.folders()?,
    };
    let mut all = Vec::new();
    for name in names {
        let found = Series::read(store, &name)?;
        for point in &found.points {
            let Manifest { source, parent, size, volume, kubernetes, .. } = &point.manifest;
            all.push(Listing {
                point: point.name(),
                parent: parent.as_ref().map(|parent| format!("{name}/{}", parent.id)),
                image: crate::volume::image_spec(&source.pool, &source.namespace, &source.image),
                volume: volume.as_ref().map(|volume| volume.id.clone()),
                claim: kubernetes.as_ref().and_then(|kubernetes| kubernetes.claim.clone()),
                cut: source.cut,
                size: *size,
                stored: point.manifest.stored(),
                wrong: found.chain(point).err().map(|error| error.to_string()),
            });
        }
        for (id, why) in &found.unreadable {
            all.push(Listing {
                point: format!("{name}/{id}"),
                parent: None,
                image: String::new(),
                volume: None,
                claim: None,
                cut: 0,
                size: 0,
                stored: 0,
                wrong: Some(why.clone()),
            });
        }
    }
    match series {
        Some(name) if all.is_empty() => Err(nothing(store, name)),
        _ => Ok(all),
    }
}

/// The manifest of the restore point SERIES/ID, or of the newest one of SERIES.
pub fn show(store: &Store, point: &str) -> Result<Manifest> {
    let (mut series, index) = find(store, point)?;
    Ok(series.points.swap_remove(index).manifest)
}
