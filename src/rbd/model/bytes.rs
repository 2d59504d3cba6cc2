//! Reading, writing, discarding and comparing the bytes of an image.

use std::collections::BTreeSet;

use super::data::{BLOCK, Object, chunks};
use super::state::{ImageRef, Outcome, State, Version};
use crate::rbd::{Diff, Errno, Extent, SnapshotKind};

/// Reads at `offset` of a version; short only at the end.
pub(super) fn read(version: &Version<'_>, offset: u64, buffer: &mut [u8]) -> Outcome<usize> {
    let left = version.size.saturating_sub(offset);
    let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    version.read(offset, &mut buffer[..count])?;
    Ok(count)
}

/// Changes object `number` of the head with `change`, first copying it up from the parents when it
/// is missing. In a full pool it can neither be made nor grow.
fn change_object(
    state: &mut State,
    image: &ImageRef,
    number: u64,
    change: impl FnOnce(&mut Object),
) -> Outcome<()> {
    let full = state.check_full(&image.place.pool);
    let version = state.version(image, None)?;
    let old = version.content.object(number);
    let mut new = match old {
        Some(object) => Object::clone(object),
        None => version.copied_up(number)?.unwrap_or_default(),
    };
    change(&mut new);
    if old.is_none_or(|old| old.length() < new.length()) {
        full?;
    }
    *state.header_mut(image)?.content.object_mut(number) = new;
    Ok(())
}

/// Writes all of `data` at `offset`, which is inside.
pub(super) fn write(state: &mut State, image: &ImageRef, offset: u64, data: &[u8]) -> Outcome<()> {
    let order = state.header(image)?.order;
    for (number, start, at, size) in chunks(offset, data.len() as u64, order) {
        #[expect(clippy::cast_possible_truncation, reason = "positions in a buffer in memory")]
        let piece = &data[(at - offset) as usize..(at - offset + size) as usize];
        change_object(state, image, number, |object| object.write(start, piece))?;
    }
    Ok(())
}

/// Makes `length` bytes at `offset`, which are inside, zeros.
pub(super) fn discard(
    state: &mut State,
    image: &ImageRef,
    offset: u64,
    length: u64,
) -> Outcome<()> {
    let header = state.header(image)?;
    let (size, order) = (header.size, header.order);
    for (number, start, _, length) in chunks(offset, length, order) {
        let version = state.version(image, None)?;
        let hidden = version.link.is_some_and(|link| number << order < link.overlap);
        let whole = start == 0 && (length == 1 << order || (number << order) + length == size);
        match (version.content.object(number).is_some(), hidden, whole) {
            (false, false, _) => {}
            (_, false, true) => state.header_mut(image)?.content.remove(number),
            (_, true, true) => {
                change_object(state, image, number, |object| *object = Object::default())?;
            }
            (_, _, false) => change_object(state, image, number, |object| {
                if start + length == 1 << order {
                    object.resize(start);
                } else {
                    object.zero(start, length);
                }
            })?,
        }
    }
    Ok(())
}

/// Throws away all bytes of the head from `size` on, as shrinking does before the new size is
/// written.
pub(super) fn trim(state: &mut State, image: &ImageRef, size: u64) -> Outcome<()> {
    let header = state.header_mut(image)?;
    let (number, rest) = (size >> header.order, size & ((1 << header.order) - 1));
    header.content.truncate(number + u64::from(rest > 0));
    let hidden = header.link.as_ref().is_some_and(|link| number << header.order < link.overlap);
    if rest > 0 && (hidden || header.content.object(number).is_some()) {
        change_object(state, image, number, |object| object.resize(rest))?;
    }
    Ok(())
}

/// The extents in which `newer` differs from the snapshot `query.since` of the same image, in
/// order. `ENOENT` when that is not a user snapshot, `EINVAL` when it is younger than `newer`.
pub(super) fn diff(
    newer: &Version<'_>,
    image: &ImageRef,
    state: &State,
    query: &Diff,
) -> Outcome<Vec<Extent>> {
    let end = query.offset.saturating_add(query.length).min(newer.size);
    let older = match query.since {
        None => None,
        Some(since) => {
            let snapshot = state.header(image)?.snapshots.get(&since).ok_or(Errno::ENOENT)?;
            if end <= query.offset {
                return Ok(Vec::new());
            }
            if snapshot.kind != SnapshotKind::User {
                return Err(Errno::ENOENT);
            }
            if query.at.is_some_and(|at| since > at) {
                return Err(Errno::EINVAL);
            }
            Some(state.version(image, Some(since))?)
        }
    };
    let through = query.since.is_none() && query.include_parent;
    let mut numbers: BTreeSet<u64> = if through {
        newer.used_objects()?
    } else {
        newer.content.objects().map(|(number, _)| number).collect()
    };
    if let Some(older) = &older {
        numbers.extend(older.used_objects()?);
    }
    let mut extents = Vec::new();
    for number in numbers {
        for (start, length, exists) in
            changed(newer, older.as_ref(), number, through, query.whole_object)?
        {
            let (from, to) = (start.max(query.offset), (start + length).min(end));
            if from < to {
                extents.push(Extent { offset: from, length: to - from, exists });
            }
        }
    }
    Ok(extents)
}

/// The ranges of object `number` that differ, as (offset in the image, bytes, whether data is there
/// now).
fn changed(
    newer: &Version<'_>,
    older: Option<&Version<'_>>,
    number: u64,
    through: bool,
    whole_object: bool,
) -> Outcome<Vec<(u64, u64, bool)>> {
    let base = number << newer.order;
    let now = newer.content.object(number);
    let before = older.and_then(|older| older.content.object(number));
    // librbd copies an object up for the snapshots, too, before it changes or discards it, or cuts
    // off what the head shares there.
    let shared_before = match older {
        Some(older) if before.is_none() => older.shared(number)?,
        _ => None,
    };
    let was_copied_up = now.is_some() || newer.shared(number)? != shared_before;
    let before = before
        .map(std::convert::AsRef::as_ref)
        .or(shared_before.as_ref().filter(|_| was_copied_up));
    let copied = match now {
        None if through => newer.shared(number)?,
        _ => None,
    };
    let now = now.map(std::convert::AsRef::as_ref).or(copied.as_ref());
    let whole = |exists| vec![(base, 1 << newer.order, exists)];
    Ok(match (now, before) {
        (None, None) => Vec::new(),
        (Some(now), Some(before)) if now == before => Vec::new(),
        (now, _) if whole_object => whole(now.is_some()),
        (None, Some(before)) => vec![(base, before.length(), false)],
        (Some(now), None) => vec![(base, now.length(), true)],
        (Some(now), Some(before)) => {
            let mut ranges: Vec<(u64, u64, bool)> = Vec::new();
            for start in now.changed_blocks(before).map(|block| base + block * BLOCK) {
                match ranges.last_mut() {
                    Some((last, length, _)) if *last + *length == start => *length += BLOCK,
                    _ => ranges.push((start, BLOCK, true)),
                }
            }
            ranges
        }
    })
}
