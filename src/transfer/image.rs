//! Images, as a source and as a target.

use std::ops::{ControlFlow, Range};
use std::sync::{Mutex, PoisonError};

use super::blocks::{Source, Target};
use super::{Error, Result};
use crate::rbd::{Diff, Extent, Features, Image, SnapshotId};

/// Bytes whose extents are asked for at once. Each such question opens the snapshot.
const WINDOW: u64 = 64 << 30;

/// A snapshot that is read, with what it shares with its parents.
#[derive(Debug)]
pub(super) struct ImageSource<'a> {
    image: &'a dyn Image,
    at: SnapshotId,
    size: u64,
    whole_object: bool,
}

impl<'a> ImageSource<'a> {
    /// The snapshot `at` of `image`, of `size` bytes.
    pub(super) fn new(image: &'a dyn Image, at: SnapshotId, size: u64) -> Result<ImageSource<'a>> {
        let whole_object = image.info()?.features.contains(Features::FAST_DIFF);
        Ok(ImageSource { image, at, size, whole_object })
    }
}

impl Source for ImageSource<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn window(&self) -> u64 {
        WINDOW
    }

    fn extents(&self, window: Range<u64>) -> Result<Vec<Range<u64>>> {
        let query = Diff {
            at: Some(self.at),
            since: None,
            offset: window.start,
            length: window.end - window.start,
            include_parent: true,
            whole_object: self.whole_object,
        };
        let mut extents: Vec<Range<u64>> = Vec::new();
        self.image.diff(&query, &mut |Extent { offset, length, exists }| {
            // Whole objects can reach beyond what was asked for.
            let part = offset.max(window.start)..(offset + length).min(window.end);
            if exists && part.start < part.end {
                match extents.last_mut() {
                    Some(last) if last.end >= part.start => last.end = last.end.max(part.end),
                    _ => extents.push(part),
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(extents)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let count = self.image.read_at(Some(self.at), offset, buffer)?;
        if count == buffer.len() {
            return Ok(());
        }
        Err(Error::Failed(format!("a snapshot of {} bytes ends at byte {offset}", self.size)))
    }
}

/// A new image that is written. It grows as a stream does.
#[derive(Debug)]
pub(super) struct ImageTarget<'a> {
    image: &'a dyn Image,
    size: Mutex<u64>,
}

impl<'a> ImageTarget<'a> {
    /// `image`, which has `size` bytes, all zeros.
    pub(super) fn new(image: &'a dyn Image, size: u64) -> ImageTarget<'a> {
        ImageTarget { image, size: Mutex::new(size) }
    }

    /// Ends the image at byte `size`, and makes it durable.
    pub(super) fn end(&self, size: u64) -> Result<()> {
        let mut current = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != size {
            self.image.resize(size, true)?;
            *current = size;
        }
        Ok(self.image.flush()?)
    }
}

impl Target for ImageTarget<'_> {
    fn reserve(&self, end: u64) -> Result<()> {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        if end > *size {
            let larger = end.max(*size * 2);
            self.image.resize(larger, false)?;
            *size = larger;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        Ok(self.image.write_at(offset, data)?)
    }
}
