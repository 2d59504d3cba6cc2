//! Reading restore points back: every object is compared with its digest, and every record with the
//! manifest, before anything is done with it.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::diff::{self, Record};
use super::manifest::digest;
use super::parallel;
use super::ranges::Ranges;
use super::series::Point;
use super::store::Store;
use super::upload::decompress;
use crate::transfer::{Error, Job, Result};

/// The most bytes of a stream that an object may hold: what is written holds half of it.
const LARGEST: u64 = 64 << 20;

/// Something that a restore point says of an image: bytes at an offset, or so many zeros.
pub(super) type Piece<'a> = (u64, Content<'a>);

/// What is at an offset.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content<'a> {
    /// These bytes.
    Data(&'a [u8]),
    /// So many zeros.
    Zeros(u64),
}

impl Content<'_> {
    fn length(&self) -> u64 {
        match self {
            Content::Data(data) => data.len() as u64,
            Content::Zeros(length) => *length,
        }
    }
}

/// Reads all objects of a restore point, and gives each one's pieces to `visit`, in any order and
/// from several threads at once. Returns the ranges of all pieces, which do not overlap.
///
/// [`Error::Checksum`] for an object that is not as it was written, [`Error::Failed`] for one that
/// is not there or does not hold what the manifest says.
pub(super) fn each(
    store: &Store,
    point: &Point,
    job: &Job,
    visit: impl Fn(&[Piece<'_>]) -> Result<()> + Sync,
) -> Result<Vec<Range<u64>>> {
    let chunks = &point.manifest.chunks;
    let all = parallel::each(chunks.len(), job, |number| {
        let key = format!("{}/{}", point.name(), chunks[number].object);
        let stream = stream(store, point, number, &key)?;
        let shown = store.shown(&key);
        let broken = |why: String| Error::Failed(format!("{shown} {why}"));
        let pieces = pieces(point, number, &stream).map_err(broken)?;
        visit(&pieces)?;
        job.advance(chunks[number].size);
        let range = |(offset, content): &Piece<'_>| *offset..*offset + content.length();
        Ok(pieces.iter().map(range).collect::<Vec<_>>())
    })?;
    let all: Vec<_> = all.into_iter().flatten().collect();
    if all.windows(2).any(|pair| pair[0].end > pair[1].start) {
        return Err(Error::Failed(format!(
            "the objects of {} overlap or are out of order",
            store.shown(&point.name())
        )));
    }
    Ok(all)
}

/// The part of the stream that an object holds.
fn stream(store: &Store, point: &Point, number: usize, key: &str) -> Result<Vec<u8>> {
    let chunk = &point.manifest.chunks[number];
    let shown = store.shown(key);
    let Some(stored) = store.get(key)? else {
        return Err(Error::Failed(format!("{shown} is missing")));
    };
    let found = digest(&stored);
    if found != chunk.blake3 {
        return Err(Error::Checksum {
            what: shown,
            expected: format!("blake3:{}", chunk.blake3),
            found: format!("blake3:{found}"),
        });
    }
    let broken = |why: String| Error::Failed(format!("{shown} {why}"));
    if chunk.bytes > LARGEST {
        return Err(broken(format!("holds {} bytes, more than any object does", chunk.bytes)));
    }
    let stream = decompress(&stored, chunk.bytes)
        .map_err(|error| broken(format!("cannot be decompressed: {error}")))?;
    if stream.len() as u64 != chunk.bytes {
        return Err(broken(format!("holds {} bytes, not {}", stream.len(), chunk.bytes)));
    }
    Ok(stream)
}

/// What an object says of the image. An error says what is wrong with it.
fn pieces<'a>(point: &'a Point, number: usize, stream: &'a [u8]) -> Checked<Vec<Piece<'a>>> {
    let manifest = &point.manifest;
    let records = diff::records(stream, number == 0)?;
    let mut rest = &records[..];
    if number == 0 {
        let mut expected = Vec::new();
        expected.extend(manifest.stream.from.as_deref().map(Record::From));
        expected.extend([Record::To(&manifest.stream.to), Record::Size(manifest.size)]);
        rest = rest
            .strip_prefix(&expected[..])
            .ok_or("does not begin with the names and the size that the manifest has")?;
    }
    if number + 1 == manifest.chunks.len() {
        rest = rest.strip_suffix(&[Record::End]).ok_or("does not end as a stream does")?;
    }
    let mut pieces = Vec::with_capacity(rest.len());
    for record in rest {
        let (offset, content) = match record {
            Record::Data(offset, data) => (*offset, Content::Data(data)),
            Record::Zeros(offset, length) => (*offset, Content::Zeros(*length)),
            other => return Err(format!("has the record {other:?} in the middle")),
        };
        let end = offset.checked_add(content.length());
        if end.is_none_or(|end| end > manifest.size) {
            return Err(format!("has bytes beyond the image's end, at {offset}"));
        }
        pieces.push((offset, content));
    }
    Ok(pieces)
}

type Checked<T> = std::result::Result<T, String>;

/// Goes through what the newest point of a chain is made of: each byte that any of them says
/// something of comes by once, as the newest one has it. `chain` goes from the newest to the full
/// one. Returns the ranges that hold data; all others are zeros.
pub(super) fn layers(
    store: &Store,
    chain: &[&Point],
    job: &Job,
    visit: impl Fn(u64, &[u8]) -> Result<()> + Sync,
) -> Result<Ranges> {
    let (mut known, mut data) = (Ranges::default(), Ranges::default());
    // What an image has lost when it shrank does not come back when it grows.
    let mut end = u64::MAX;
    for point in chain {
        end = end.min(point.manifest.size);
        let with_data = Mutex::new(Vec::new());
        let said = each(store, point, job, |pieces| {
            for (offset, content) in pieces {
                let Content::Data(bytes) = content else { continue };
                let stop = (offset + bytes.len() as u64).min(end);
                for part in known.missing(*offset..stop) {
                    let at = |position: u64| usize::try_from(position - offset).unwrap_or(0);
                    visit(part.start, &bytes[at(part.start)..at(part.end)])?;
                    let mut all = with_data.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push(part);
                }
            }
            Ok(())
        })?;
        known.add(said);
        data.add(with_data.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
    Ok(data)
}
