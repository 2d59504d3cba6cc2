//! The flattens that run in this process. They take hours, so an operation that would change an
//! image meanwhile is told at once how far its flatten is, and never waits for it. Attaching,
//! detaching and reading do not ask.

use super::{Activity, Error, Result, Volumes};
use crate::rbd::Image;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The images that are flattened, by [`Volumes::image_key`]. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Flattens(Arc<Mutex<HashMap<String, Arc<Activity>>>>);

/// A flatten that runs, until it is dropped.
#[derive(Debug)]
pub(super) struct Flattening {
    flattens: Flattens,
    image: String,
}

impl Drop for Flattening {
    fn drop(&mut self) {
        self.flattens.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.image);
    }
}

impl Volumes {
    /// Says that this operation flattens `image`, which is here. [`Error::Conflict`] when another
    /// one does.
    pub(super) fn begin_flatten(&self, image: &dyn Image) -> Result<Flattening> {
        let id = self.image_key(&image.id()?);
        let mut flattens = self.process.flattens.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(activity) = flattens.get(&id) {
            return Err(conflict(activity));
        }
        flattens.insert(id.clone(), self.activity.clone());
        Ok(Flattening { flattens: self.process.flattens.clone(), image: id })
    }

    /// Refuses the image `id` here while it is flattened, with how far that is.
    pub(super) fn refuse_while_flattened(&self, id: &str) -> Result<()> {
        let id = self.image_key(id);
        let flattens = self.process.flattens.0.lock().unwrap_or_else(PoisonError::into_inner);
        flattens.get(&id).map_or(Ok(()), |activity| Err(conflict(activity)))
    }
}

fn conflict(activity: &Activity) -> Error {
    Error::Conflict(format!("another operation is {activity}"))
}
