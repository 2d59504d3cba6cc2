//! Copying an image's bytes to a new image.
//!
//! Not `rbd_copy`: with an object map (at a snapshot, or on a head whose lock it holds) librbd
//! (16.2 to 20.2) leaves out every object the image does not have itself, and so loses what a clone
//! reads from its parent. Nor can `rbd_copy` be stopped: it ignores what the progress callback
//! answers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use super::handle::Handle;
use crate::rbd::{Errno, Error, Features, ImageOptions, Progress, Result};

/// How many blocks are on the way at once, each in memory: librbd's own measure for such work is
/// ten.
const WORKERS: usize = 8;

/// What one worker reads and writes at a time, in bytes.
const BLOCK: u64 = 4 << 20;

/// A run of this many zero bytes is left out, so that the copy is as sparse as the source.
const GRAIN: usize = 4096;

/// `options`, with the source's layout where it says nothing.
pub(super) fn inherit(source: &Handle, options: &ImageOptions) -> Result<ImageOptions> {
    let info = source.info()?;
    // The higher bits librbd sets by itself, for data pools and for operations under way.
    let features = Features(info.features.0 & (2 * Features::JOURNALING.0 - 1));
    let striped = options.stripe_unit.is_none() && options.order.is_none() && info.stripe_count > 1;
    Ok(ImageOptions {
        features: options.features.or(Some(features)),
        order: options.order.or(Some(info.order)),
        stripe_unit: if striped { Some(info.stripe_unit) } else { options.stripe_unit },
        stripe_count: if striped { Some(info.stripe_count) } else { options.stripe_count },
        data_pool: options.data_pool.clone(),
        clone_format: options.clone_format,
    })
}

/// Copies all bytes of `source` to `copy`, which has the same size and reads as zeros. `ECANCELED`
/// when `progress` (in bytes) stops it.
pub(super) fn bytes(source: &Handle, copy: &Handle, progress: Progress<'_>) -> Result<()> {
    let size = source.size()?;
    let (next, stop) = (&AtomicU64::new(0), &AtomicBool::new(false));
    let (sender, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            let sender = sender.clone();
            scope.spawn(move || worker(source, copy, size, next, stop, &sender));
        }
        drop(sender);
        // However this ends, with a panic of `progress` too, the workers are not waited for in
        // vain.
        let _stop = StopWhenDropped(stop);
        let mut done = 0;
        for result in results {
            done += result?;
            if progress(done, size).is_break() {
                return Err(Error::new(
                    Errno::ECANCELED,
                    "copy",
                    format!("{} to {}", source.spec(), copy.spec()),
                ));
            }
        }
        Ok(())
    })
}

struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Copies block after block, and sends how long each was, or why it failed.
fn worker(
    source: &Handle,
    copy: &Handle,
    size: u64,
    next: &AtomicU64,
    stop: &AtomicBool,
    results: &mpsc::Sender<Result<u64>>,
) {
    let mut buffer = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let offset = next.fetch_add(BLOCK, Ordering::Relaxed);
        if offset >= size {
            return;
        }
        let length = BLOCK.min(size - offset);
        let result = block(source, copy, offset, length, &mut buffer).map(|()| length);
        // The caller listens no more after a failure or a stop.
        if results.send(result).is_err() {
            return;
        }
    }
}

fn block(
    source: &Handle,
    copy: &Handle,
    offset: u64,
    length: u64,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    // At most `BLOCK`, which fits.
    buffer.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
    let count = source.read(offset, buffer)?;
    for (start, run) in runs(&buffer[..count]) {
        copy.write(offset + start as u64, run)?;
    }
    Ok(())
}

/// The stretches of `data` between runs of zero grains, with their positions.
fn runs(data: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let is_zero = |grain: &[u8]| grain.iter().all(|&byte| byte == 0);
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

#[cfg(test)]
mod tests {
    use super::{GRAIN, runs};

    #[test]
    fn zero_grains_are_left_out() {
        let mut data = vec![0; 4 * GRAIN + 10];
        assert_eq!(runs(&data).count(), 0);
        assert_eq!(runs(&[]).count(), 0);
        data[GRAIN] = 1;
        data[3 * GRAIN - 1] = 1;
        data[4 * GRAIN + 9] = 1;
        let found: Vec<_> = runs(&data).map(|(start, run)| (start, run.len())).collect();
        assert_eq!(found, [(GRAIN, 2 * GRAIN), (4 * GRAIN, 10)]);
    }

    #[test]
    fn full_data_is_one_run() {
        let data = vec![7; 2 * GRAIN + 1];
        assert_eq!(runs(&data).collect::<Vec<_>>(), [(0, &data[..])]);
    }
}
