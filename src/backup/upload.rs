//! From a snapshot to the objects of a restore point.
//!
//! What goes into which object is planned from the extents that differ, before a byte is read, so
//! the same snapshots give the same plan. A run that goes on after a killed one takes the objects
//! that are there for done, as long as the plan has the digest that the draft has.

use std::ops::ControlFlow;

use super::diff;
use super::manifest::{Chunk, digest};
use super::parallel;
use super::store::{Listed, Store};
use crate::rbd::{Diff, Extent, Features, Image, SnapshotId};
use crate::transfer::{Error, Job, Result, failed};

/// Bytes of an image that go into one object at most, before they are compressed.
const OBJECT: u64 = 32 << 20;

/// Extents that go into one object at most.
const EXTENTS: usize = 4096;

/// Bytes whose extents are asked for at once. Each such question opens the snapshots.
const WINDOW: u64 = 64 << 30;

/// How hard zstd tries: its own default.
const LEVEL: i32 = 3;

/// Extents of an image, in order.
type Extents = Vec<Extent>;

/// What is read, and what of it goes into which object.
pub(super) struct Plan<'a> {
    image: &'a dyn Image,
    at: SnapshotId,
    size: u64,
    from: Option<&'a str>,
    to: &'a str,
    objects: Vec<Extents>,
}

impl<'a> Plan<'a> {
    /// What differs in the snapshot `at`, which is called `to` and has `size` bytes, from the
    /// snapshot `since` of that id and name; or all that it holds.
    pub(super) fn make(
        image: &'a dyn Image,
        (at, to): (SnapshotId, &'a str),
        size: u64,
        since: Option<(SnapshotId, &'a str)>,
        job: &Job,
    ) -> Result<Plan<'a>> {
        let whole_object = image.info()?.features.contains(Features::FAST_DIFF);
        // Below a clone's hole its parent may show: what is said to be gone is read all the same.
        let is_clone = image.parent(Some(at))?.is_some();
        let mut objects = Objects::default();
        let mut offset = 0;
        while offset < size {
            job.check()?;
            let end = (offset + WINDOW).min(size);
            let query = Diff {
                at: Some(at),
                since: since.map(|(id, _)| id),
                offset,
                length: end - offset,
                include_parent: since.is_none(),
                whole_object,
            };
            let mut found: Extents = Vec::new();
            image.diff(&query, &mut |Extent { offset: start, length, exists }| {
                // Whole objects can reach beyond what was asked for.
                let (start, stop) = (start.max(offset), (start + length).min(end));
                let exists = exists || is_clone;
                if start < stop && (exists || since.is_some()) {
                    match found.last_mut() {
                        Some(last)
                            if last.offset + last.length >= start && last.exists == exists =>
                        {
                            last.length = last.length.max(stop - last.offset);
                        }
                        _ => found.push(Extent { offset: start, length: stop - start, exists }),
                    }
                }
                ControlFlow::Continue(())
            })?;
            for extent in found {
                objects.add(extent);
            }
            offset = end;
        }
        let from = since.map(|(_, name)| name);
        Ok(Plan { image, at, size, from, to, objects: objects.finish() })
    }

    /// Its digest.
    pub(super) fn digest(&self) -> String {
        let mut text = format!("{:?} {} {}\n", self.from, self.to, self.size);
        for (number, extents) in self.objects.iter().enumerate() {
            use std::fmt::Write;
            for Extent { offset, length, exists } in extents {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{number} {offset} {length} {exists}");
            }
        }
        digest(text.as_bytes())
    }

    /// Bytes that are read.
    pub(super) fn bytes(&self) -> u64 {
        let all = self.objects.iter().flatten().filter(|extent| extent.exists);
        all.map(|extent| extent.length).sum()
    }

    /// Writes the objects into `folder`, but for those in `there`.
    pub(super) fn upload(
        &self,
        store: &Store,
        folder: &str,
        there: &[Listed],
        job: &Job,
    ) -> Result<Vec<Chunk>> {
        parallel::each(self.objects.len(), job, |number| {
            let object = format!("{number:06}.zst");
            let key = format!("{folder}/{object}");
            if there.iter().any(|listed| listed.key == key)
                && let Some(stored) = store.get(&key)?
                && let Ok(stream) = decompress(&stored, longest(&self.objects[number]))
            {
                job.advance(self.data(number));
                return Ok(chunk(object, &stored, stream.len()));
            }
            let stream = self.stream(number, job)?;
            let stored = zstd::bulk::compress(&stream, LEVEL).map_err(failed("zstd"))?;
            let chunk = chunk(object, &stored, stream.len());
            store.put(&key, stored)?;
            Ok(chunk)
        })
    }

    fn data(&self, number: usize) -> u64 {
        let extents = self.objects[number].iter().filter(|extent| extent.exists);
        extents.map(|extent| extent.length).sum()
    }

    /// The part of the stream that is in an object.
    fn stream(&self, number: usize, job: &Job) -> Result<Vec<u8>> {
        let mut stream = Vec::new();
        if number == 0 {
            diff::begin(&mut stream, self.from, self.to, self.size);
        }
        let mut buffer = Vec::new();
        for Extent { offset, length, exists } in &self.objects[number] {
            if !exists {
                diff::zeros(&mut stream, *offset, *length);
                continue;
            }
            buffer.resize(usize::try_from(*length).map_err(failed("an extent"))?, 0);
            let count = self.image.read_at(Some(self.at), *offset, &mut buffer)?;
            if count != buffer.len() {
                return Err(Error::Failed(format!(
                    "the snapshot {} ends at byte {offset}, and has {} bytes",
                    self.to, self.size
                )));
            }
            diff::data(&mut stream, *offset, &buffer, self.from.is_some());
            job.advance(*length);
            job.check()?;
        }
        if number + 1 == self.objects.len() {
            diff::end(&mut stream);
        }
        Ok(stream)
    }
}

fn chunk(object: String, stored: &[u8], bytes: usize) -> Chunk {
    Chunk { object, size: stored.len() as u64, bytes: bytes as u64, blake3: digest(stored) }
}

/// The most bytes of a stream that these extents make: none is shorter than a grain of zeros, and
/// each makes a record of at most 17 bytes and its data.
fn longest(extents: &[Extent]) -> u64 {
    let data: u64 = extents.iter().filter(|one| one.exists).map(|one| one.length).sum();
    data + data / 1024 + 17 * extents.len() as u64 + 64 * 1024
}

/// Decompresses an object that holds at most `most` bytes.
pub(super) fn decompress(stored: &[u8], most: u64) -> std::io::Result<Vec<u8>> {
    let most = usize::try_from(most).map_err(std::io::Error::other)?;
    zstd::bulk::decompress(stored, most)
}

/// Extents on their way into objects.
#[derive(Default)]
struct Objects {
    done: Vec<Extents>,
    filling: Extents,
    filled: u64,
}

impl Objects {
    fn add(&mut self, extent: Extent) {
        if !extent.exists {
            self.push(extent);
            return;
        }
        let (mut offset, end) = (extent.offset, extent.offset + extent.length);
        while offset < end {
            let stop = (offset + 1).next_multiple_of(diff::LARGEST).min(end);
            self.push(Extent { offset, length: stop - offset, exists: true });
            offset = stop;
        }
    }

    fn push(&mut self, extent: Extent) {
        let more = if extent.exists { extent.length } else { 0 };
        if self.filled + more > OBJECT || self.filling.len() == EXTENTS {
            self.done.push(std::mem::take(&mut self.filling));
            self.filled = 0;
        }
        self.filled += more;
        self.filling.push(extent);
    }

    /// All of them. There is one at least: it has the beginning and the end.
    fn finish(mut self) -> Vec<Extents> {
        if !self.filling.is_empty() || self.done.is_empty() {
            self.done.push(self.filling);
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_bounded_and_hold_all() {
        let mut objects = Objects::default();
        let extents = [(5, 3, true), (1 << 20, 200 << 20, true), (1 << 40, 1 << 50, false)];
        for (offset, length, exists) in extents {
            objects.add(Extent { offset, length, exists });
        }
        let small = (0..10_000).map(|number| Extent { offset: number, length: 1, exists: false });
        small.for_each(|extent| objects.add(extent));
        let done = objects.finish();
        let data: u64 = done.iter().flatten().filter(|one| one.exists).map(|one| one.length).sum();
        assert_eq!(data, 3 + (200 << 20));
        for extents in &done {
            assert!(extents.len() <= EXTENTS && longest(extents) <= 2 * OBJECT);
            assert!(extents.iter().all(|one| !one.exists || one.length <= diff::LARGEST));
        }
        assert_eq!(Objects::default().finish().len(), 1);
    }
}
