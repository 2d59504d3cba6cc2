//! The snapshot that an export reads, and the clone that holds it.
//!
//! Crash points: the snapshot is cut, cloned, and the clone opened for writing, in this order. A
//! kill in between leaves a snapshot without a clone, or a clone without a watcher;
//! [`Hold::clear_earlier`] and `cinderblock gc` remove both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, Job, Result};
use crate::rbd::{
    self, Class, Errno, Image, ImageKey, ImageOptions, OpenMode, Pool, SnapshotSpec, Tolerate,
};
use crate::volume::temporary::{self, Found};
use crate::volume::{image_spec, names};

/// How often a snapshot is cut anew when another run takes it for a leftover before it is cloned.
const ATTEMPTS: usize = 5;

/// How long a killed run's watch may outlive it: Ceph gives it half a minute.
pub(super) const LINGERING: Duration = Duration::from_secs(45);

/// How often that watch is looked for.
pub(super) const LOOK: Duration = Duration::from_millis(250);

/// A snapshot that stays for as long as this is held.
#[derive(Debug)]
pub(super) struct Hold {
    pool: Arc<dyn Pool>,
    /// Its watch says that the export lives.
    clone: Box<dyn Image>,
    clone_name: String,
    image_id: String,
    snapshot: String,
}

impl Hold {
    /// Cuts a snapshot of the image's head.
    pub(super) fn cut(pool: &Arc<dyn Pool>, image: ImageKey<'_>) -> Result<Hold> {
        for _ in 0..ATTEMPTS {
            let opened = pool.open_image(image, OpenMode::ReadWrite)?;
            let (name, image_id) = (opened.name()?, opened.id()?);
            let spec = image_spec(pool.name(), pool.namespace(), &name);
            let clone_name = temporary::exporting(&name);
            let snapshot = names::clone_snapshot(&clone_name, 0);
            let refused = |error| cannot_cut(&spec, error);
            if let Err(error) = opened.create_snapshot(&snapshot) {
                let _ = temporary::drop_export_snapshot(&*opened, &snapshot);
                return Err(refused(error));
            }
            drop(opened);
            let source = SnapshotSpec {
                pool: pool.name().to_owned(),
                namespace: pool.namespace().to_owned(),
                image: name,
                snapshot: snapshot.clone(),
            };
            let cloned = pool
                .clone_image(&source, &clone_name, &ImageOptions::default())
                .and_then(|()| pool.open_image(ImageKey::Name(&clone_name), OpenMode::ReadWrite));
            match cloned {
                Ok(clone) => {
                    let pool = Arc::clone(pool);
                    return Ok(Hold { pool, clone, clone_name, image_id, snapshot });
                }
                Err(error) => {
                    remove(&**pool, &clone_name, &image_id, &snapshot)?;
                    if error.errno != Errno::ENOENT {
                        return Err(refused(error));
                    }
                }
            }
        }
        Err(Error::Failed("other runs remove the snapshot while it is cut: try again".to_owned()))
    }

    /// The image's id.
    pub(super) fn image_id(&self) -> &str {
        &self.image_id
    }

    /// The snapshot's name.
    pub(super) fn snapshot(&self) -> &str {
        &self.snapshot
    }

    /// Removes the clone and the snapshot.
    pub(super) fn release(self) -> Result<()> {
        drop(self.clone);
        remove(&*self.pool, &self.clone_name, &self.image_id, &self.snapshot)
    }

    /// Removes what exports of the image that were killed have left. Returns whether some may go
    /// on.
    pub(super) fn clear_earlier(pool: &dyn Pool, image_id: &str) -> Result<bool> {
        let image = pool.open_image(ImageKey::Id(image_id), OpenMode::ReadOnly)?;
        let mut live = false;
        for snapshot in temporary::export_snapshots(&*image)? {
            let clone = snapshot.trim_end_matches(names::CLONE_SNAPSHOT_SUFFIX);
            match temporary::clear(pool, clone)? {
                Found::Live(_) => live = true,
                Found::Nothing | Found::Finished => drop_snapshot(pool, image_id, &snapshot)?,
            }
        }
        Ok(live)
    }

    /// The same for those that seemed alive when this run began, at `since`: until a killed one's
    /// watch is surely over.
    pub(super) fn clear_lingering(
        pool: &dyn Pool,
        image_id: &str,
        since: Instant,
        job: &Job,
    ) -> Result<()> {
        while Hold::clear_earlier(pool, image_id)? && since.elapsed() < LINGERING {
            job.check()?;
            job.begin("waiting for another export of the image, which may have been killed", 0);
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

fn remove(pool: &dyn Pool, clone: &str, image_id: &str, snapshot: &str) -> Result<()> {
    temporary::clear(pool, clone)?;
    drop_snapshot(pool, image_id, snapshot)
}

/// The clone's removal takes the snapshot along if there was a clone.
fn drop_snapshot(pool: &dyn Pool, image_id: &str, snapshot: &str) -> Result<()> {
    let image = match pool.open_image(ImageKey::Id(image_id), OpenMode::ReadWrite) {
        Ok(image) => image,
        Err(error) => return Ok(Err(error).tolerate(Errno::ENOENT)?),
    };
    Ok(temporary::drop_export_snapshot(&*image, snapshot)?)
}

fn cannot_cut(spec: &str, error: rbd::Error) -> Error {
    match error.class() {
        Class::Full | Class::Refused => Error::Refused(format!(
            "no snapshot of {spec} can be cut to read it from ({error}): export a snapshot that it \
             has, as {spec}@SNAPSHOT"
        )),
        _ => error.into(),
    }
}
