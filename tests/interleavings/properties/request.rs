//! Requests to a controller, with all that is needed to ask them again.

use cinderblock::volume::catalogue;
use cinderblock::volume::{Error, Result};

use crate::lab::{Controller, Cut, Home, Wish};

/// A request.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Create(Wish),
    Delete(Home, String),
    Snapshot { home: Home, volume: String, name: String, most: usize },
    DeleteSnapshot(Cut),
    Grow(Home, String, u64),
    Publish(Home, String),
    Unpublish(Home, String),
    Start,
}

impl Request {
    /// Asks. Of a volume that was made, its record.
    pub(super) fn ask(&self, controller: &Controller) -> Result<Option<catalogue::Volume>> {
        match self {
            Request::Create(wish) => controller.create(wish).map(Some),
            Request::Delete(home, name) => controller.delete(*home, name).map(|()| None),
            Request::Snapshot { home, volume, name, most } => {
                controller.snapshot(*home, volume, name, *most).map(|_| None)
            }
            Request::DeleteSnapshot(cut) => controller.delete_snapshot(cut).map(|()| None),
            Request::Grow(home, name, blocks) => {
                controller.grow(*home, name, *blocks).map(|_| None)
            }
            Request::Publish(home, name) => controller.publish(*home, name, "node").map(|()| None),
            Request::Unpublish(home, name) => controller.unpublish(*home, name).map(|()| None),
            Request::Start => controller.recover().map(|()| None),
        }
    }

    /// The request that takes this one back.
    pub(super) fn opposite(&self, cut: impl Fn(Home, &str) -> Cut) -> Option<Request> {
        match self {
            Request::Create(wish) => Some(Request::Delete(wish.home, wish.name.clone())),
            Request::Snapshot { home, name, .. } => Some(Request::DeleteSnapshot(cut(*home, name))),
            Request::Publish(home, name) => Some(Request::Unpublish(*home, name.clone())),
            _ => None,
        }
    }

    /// The volume that this request makes, deletes or changes.
    pub(super) fn volume(&self) -> Option<(Home, &str)> {
        match self {
            Request::Create(wish) => Some((wish.home, &wish.name)),
            Request::Delete(home, name)
            | Request::Grow(home, name, _)
            | Request::Publish(home, name)
            | Request::Unpublish(home, name) => Some((*home, name)),
            _ => None,
        }
    }

    /// The snapshot that this request makes or deletes.
    pub(super) fn snapshot(&self) -> Option<(Home, &str)> {
        match self {
            Request::Snapshot { home, name, .. } => Some((*home, name)),
            Request::DeleteSnapshot(cut) => Some((cut.home, &cut.name)),
            _ => None,
        }
    }
}

/// Whether the request was refused: nothing may have changed.
pub(super) fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::NotFound(_)
            | Error::AlreadyExists(_)
            | Error::Invalid(_)
            | Error::OutOfRange(_)
            | Error::FailedPrecondition(_)
            | Error::InUse(_)
            | Error::HasSnapshots { .. }
    )
}
