//! Moving the bytes of one side to the other: block by block, several at a time.
//!
//! Promises:
//!
//! - A hole of the source is not read, and bytes that are zero are not written, where the target
//!   can have holes.
//! - What needs the bytes in order (a stream, an upload, a checksum) gets them in order.
//! - At most [`WORKERS`] blocks are in memory.
//! - The first failure, or the job's being cancelled, stops all workers before this returns.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::checksum::{Checksum, Tally, Wanted};
use super::{Error, Job, Result};

/// Bytes that are read and written at a time. A power of two. Larger ones are no quicker, and leave
/// more holes in the heap.
pub(super) const BLOCK: u64 = 1 << 20;

/// How many blocks are on their way at once. Each takes almost four times its size, in librbd for
/// the most part, so memory sets the limit.
const WORKERS: u64 = 4;

/// A run of this many zero bytes is not written.
const GRAIN: usize = 4096;

/// Zeros to compare with, to hash and to write.
pub(super) static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// The bytes of a block.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content<'a> {
    /// These bytes.
    Data(&'a [u8]),
    /// So many zeros.
    Zeros(usize),
}

impl<'a> Content<'a> {
    /// The bytes, piece by piece.
    pub(super) fn slices(self) -> impl Iterator<Item = &'a [u8]> {
        let (data, mut zeros) = match self {
            Content::Data(data) => (Some(data), 0),
            Content::Zeros(length) => (None, length),
        };
        data.into_iter().chain(std::iter::from_fn(move || {
            let length = zeros.min(ZEROS.len());
            zeros -= length;
            (length > 0).then(|| &ZEROS[..length])
        }))
    }
}

/// What can be read from anywhere in it, by several threads at once.
pub(super) trait Source: Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// How many bytes one call of [`Source::extents`] is asked for.
    fn window(&self) -> u64;

    /// The ranges in `window` that may hold other bytes than zeros, in order.
    fn extents(&self, window: Range<u64>) -> Result<Vec<Range<u64>>>;

    /// Fills `buffer` with the bytes at `offset`, which are all there.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// Where bytes come from.
pub(super) enum Input<'a> {
    /// From what can be read anywhere.
    Extents(&'a dyn Source),
    /// From what can be read once, with an unknown end. It is called so.
    Stream(Box<dyn Read + Send + 'a>, &'a str),
}

/// Where bytes go.
pub(super) trait Target: Sync {
    /// Whether [`Target::pass`] is called.
    fn is_ordered(&self) -> bool {
        false
    }

    /// Takes the next block: all bytes of the whole come by here, in order.
    fn pass(&self, _content: Content<'_>) -> Result<()> {
        Ok(())
    }

    /// Makes room for a stream that goes on to byte `end` at least.
    fn reserve(&self, _end: u64) -> Result<()> {
        Ok(())
    }

    /// Takes bytes that are not all zero, in any order and from several threads at once.
    fn write(&self, _offset: u64, _data: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// A target that only needs the checksum.
pub(super) struct Nowhere;

impl Target for Nowhere {}

/// Moves everything. Returns the number of bytes, holes included, and the checksum that is wanted.
pub(super) fn run(
    input: Input<'_>,
    target: &dyn Target,
    wanted: Wanted,
    job: &Job,
) -> Result<(u64, Option<Checksum>)> {
    let tally = wanted.tally();
    let algorithm = tally.as_ref().map(Tally::algorithm);
    let flow = Flow {
        skips_holes: tally.is_none() && !target.is_ordered(),
        source: match &input {
            Input::Extents(source) => Some(*source),
            Input::Stream(..) => None,
        },
        intake: Mutex::new(Intake::new(input)),
        turn: Mutex::new(Turn { next: 0, tally, failure: None }),
        turned: Condvar::new(),
        target,
        job,
    };
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                while let Some(step) = flow.step(algorithm, &mut buffer).transpose() {
                    if let Err(error) = step {
                        flow.fail(error);
                        return;
                    }
                }
            });
        }
    });
    let turn = flow.turn.into_inner().unwrap_or_else(PoisonError::into_inner);
    match turn.failure {
        Some(_) if job.is_cancelled() => Err(Error::Cancelled),
        Some(error) => Err(error),
        None => {
            let intake = flow.intake.into_inner().unwrap_or_else(PoisonError::into_inner);
            Ok((intake.position, turn.tally.map(Tally::finish)))
        }
    }
}

/// What the workers share.
struct Flow<'a> {
    skips_holes: bool,
    /// `None` is a stream.
    source: Option<&'a dyn Source>,
    intake: Mutex<Intake<'a>>,
    turn: Mutex<Turn>,
    turned: Condvar,
    target: &'a dyn Target,
    job: &'a Job,
}

/// Whose turn it is to pass its block on.
struct Turn {
    next: u64,
    tally: Option<Tally>,
    failure: Option<Error>,
}

/// A block that a worker has taken.
struct Taken {
    number: u64,
    offset: u64,
    length: usize,
    /// What is to be read of it; `None` when it is in the buffer already.
    extents: Option<Vec<Range<u64>>>,
}

impl Flow<'_> {
    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the first failure, which stops all.
    fn fail(&self, error: Error) {
        Self::lock(&self.turn).failure.get_or_insert(error);
        self.turned.notify_all();
    }

    /// Moves one block; `None` when there is none any more, or another worker has failed.
    fn step(
        &self,
        algorithm: Option<super::Algorithm>,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<()>> {
        self.job.check()?;
        if Self::lock(&self.turn).failure.is_some() {
            return Ok(None);
        }
        let taken =
            Self::lock(&self.intake).take(self.skips_holes, self.target, self.job, buffer)?;
        let Some(Taken { number, offset, length, extents }) = taken else { return Ok(None) };
        if let (Some(extents), Some(source)) = (&extents, self.source) {
            fill(source, offset, length, extents, buffer)?;
        }
        let is_hole = extents.is_some_and(|extents| extents.is_empty());
        let is_zero = is_hole || is_zero(&buffer[..length]);
        let content =
            if is_zero { Content::Zeros(length) } else { Content::Data(&buffer[..length]) };
        if !self.skips_holes {
            let part = algorithm.map(|algorithm| Tally::part(algorithm, offset, content));
            let waits = |turn: &mut Turn| turn.next != number && turn.failure.is_none();
            let mut turn = self
                .turned
                .wait_while(Self::lock(&self.turn), waits)
                .unwrap_or_else(PoisonError::into_inner);
            if turn.failure.is_some() {
                return Ok(None);
            }
            if let (Some(tally), Some(part)) = (&mut turn.tally, &part) {
                tally.add(part, content);
            }
            self.target.pass(content)?;
            turn.next += 1;
            self.turned.notify_all();
        }
        if let Content::Data(data) = content {
            for (start, run) in runs(data) {
                self.target.write(offset + start as u64, run)?;
            }
        }
        self.job.advance(length as u64);
        Ok(Some(()))
    }
}

/// Reads a block; what is in no extent is zeros.
fn fill(
    source: &dyn Source,
    offset: u64,
    length: usize,
    extents: &[Range<u64>],
    buffer: &mut Vec<u8>,
) -> Result<()> {
    if extents.is_empty() {
        return Ok(());
    }
    buffer.resize(length, 0);
    let at = |position: u64| usize::try_from(position - offset).unwrap_or(length);
    let mut filled = 0;
    for extent in extents {
        let range = at(extent.start)..at(extent.end);
        buffer[filled..range.start].fill(0);
        filled = range.end;
        source.read(extent.start, &mut buffer[range])?;
    }
    buffer[filled..].fill(0);
    Ok(())
}

/// The side that bytes come from, and how far it is.
struct Intake<'a> {
    input: Input<'a>,
    number: u64,
    /// The next block's first byte; at the end the size.
    position: u64,
    /// What is known of the source from `position` to `known`.
    extents: VecDeque<Range<u64>>,
    known: u64,
    ended: bool,
}

impl<'a> Intake<'a> {
    fn new(input: Input<'a>) -> Intake<'a> {
        Intake { input, number: 0, position: 0, extents: VecDeque::new(), known: 0, ended: false }
    }

    /// The next block. Of a stream it is read into `buffer`.
    fn take(
        &mut self,
        skips_holes: bool,
        target: &dyn Target,
        job: &Job,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Taken>> {
        let Input::Extents(source) = self.input else { return self.read(target, buffer) };
        let size = source.size();
        while self.position < size {
            job.check()?;
            let block = self.position..(self.position + BLOCK).min(size);
            if self.known < block.end {
                // Windows are whole blocks.
                let end = (block.start + source.window()).next_multiple_of(BLOCK).min(size);
                self.extents = source.extents(block.start..end)?.into();
                self.known = end;
            }
            let extents = self.within(&block);
            self.position = block.end;
            let length = usize::try_from(block.end - block.start).unwrap_or(usize::MAX);
            if extents.is_empty() && skips_holes {
                job.advance(length as u64);
                continue;
            }
            let number = self.number;
            self.number += 1;
            return Ok(Some(Taken { number, offset: block.start, length, extents: Some(extents) }));
        }
        Ok(None)
    }

    /// The parts of the known extents in `block`. Those before its end are forgotten.
    fn within(&mut self, block: &Range<u64>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        while let Some(first) = self.extents.front() {
            if first.start >= block.end {
                break;
            }
            let part = first.start.max(block.start)..first.end.min(block.end);
            if part.start < part.end {
                parts.push(part);
            }
            if first.end > block.end {
                break;
            }
            self.extents.pop_front();
        }
        parts
    }

    fn read(&mut self, target: &dyn Target, buffer: &mut Vec<u8>) -> Result<Option<Taken>> {
        let Input::Stream(stream, name) = &mut self.input else { return Ok(None) };
        if self.ended {
            return Ok(None);
        }
        buffer.clear();
        let length = stream
            .take(BLOCK)
            .read_to_end(buffer)
            .map_err(super::error::failed(format_args!("cannot read {name}")))?;
        self.ended = (length as u64) < BLOCK;
        if length == 0 {
            return Ok(None);
        }
        let (number, offset) = (self.number, self.position);
        self.number += 1;
        self.position += length as u64;
        target.reserve(self.position)?;
        Ok(Some(Taken { number, offset, length, extents: None }))
    }
}

fn is_zero(data: &[u8]) -> bool {
    data.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// The stretches of `data` between runs of zero grains, with their positions.
fn runs(data: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut position = 0;
    std::iter::from_fn(move || {
        let grains = || data[position..].chunks(GRAIN);
        let start =
            position + grains().take_while(|grain| is_zero(grain)).map(<[u8]>::len).sum::<usize>();
        let length: usize =
            data[start..].chunks(GRAIN).take_while(|grain| !is_zero(grain)).map(<[u8]>::len).sum();
        position = start + length;
        (length > 0).then(|| (start, &data[start..position]))
    })
}
