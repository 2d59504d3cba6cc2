//! The bytes of one version of an image: sparse objects of sparse blocks, cheap to keep for every
//! snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes in a block. No object is smaller (order 12), so a block never spans two.
pub(super) const BLOCK: u64 = 1 << BLOCK_ORDER;

const BLOCK_ORDER: u8 = 12;

pub(super) type Block = [u8; 1 << BLOCK_ORDER];

/// One RADOS data object. That it exists at all hides the parent's bytes below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Object {
    /// Blocks by their number in the object; absent ones are zeros.
    blocks: BTreeMap<u64, Arc<Block>>,
    /// Bytes up to the end of the last write.
    length: u64,
}

/// The objects of one version of an image, by number. A clone shares them until one side writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// `None` is empty.
    objects: Option<Arc<BTreeMap<u64, Arc<Object>>>>,
}

impl Object {
    /// Reads at `offset` of the object; what was never written is zeros.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (block, start, part) in pieces(offset, buffer.len() as u64) {
            let piece = &mut buffer[part.clone()];
            match self.blocks.get(&block) {
                Some(bytes) => piece.copy_from_slice(&bytes[start..start + part.len()]),
                None => piece.fill(0),
            }
        }
    }

    /// Writes at `offset` of the object.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        for (block, start, part) in pieces(offset, data.len() as u64) {
            let bytes = self.blocks.entry(block).or_insert_with(|| Arc::new([0; 1 << BLOCK_ORDER]));
            Arc::make_mut(bytes)[start..start + part.len()].copy_from_slice(&data[part]);
        }
        self.length = self.length.max(offset + data.len() as u64);
    }

    /// Makes `length` bytes at `offset` zeros, keeping the object.
    pub(super) fn zero(&mut self, offset: u64, length: u64) {
        for (block, start, part) in pieces(offset, length) {
            if part.len() as u64 == BLOCK {
                self.blocks.remove(&block);
            } else if let Some(bytes) = self.blocks.get_mut(&block) {
                Arc::make_mut(bytes)[start..start + part.len()].fill(0);
            }
        }
    }

    /// Cuts the object off at `length`.
    pub(super) fn truncate(&mut self, length: u64) {
        if length < self.length {
            self.resize(length);
        }
    }

    /// Cuts the object off at `length`, or grows it to that with zeros.
    pub(super) fn resize(&mut self, length: u64) {
        if length < self.length {
            self.zero(length, self.length - length);
        }
        self.length = length;
    }

    /// What `[offset, offset + length)` of this object holds, as an object. `offset` is a multiple
    /// of [`BLOCK`].
    pub(super) fn slice(&self, offset: u64, length: u64) -> Object {
        let (first, end) = (offset / BLOCK, (offset + length).div_ceil(BLOCK));
        let blocks = self
            .blocks
            .range(first..end)
            .map(|(block, bytes)| (block - first, Arc::clone(bytes)))
            .collect();
        let mut slice = Object { blocks, length: self.length.saturating_sub(offset) };
        slice.truncate(length);
        slice
    }

    /// Takes over all of `part`, moved to `offset`, which is a multiple of [`BLOCK`].
    pub(super) fn place(&mut self, part: &Object, offset: u64) {
        for (block, bytes) in &part.blocks {
            self.blocks.insert(block + offset / BLOCK, Arc::clone(bytes));
        }
        self.length = self.length.max(offset + part.length);
    }

    /// Bytes up to the end of the last write.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether every byte is zero.
    pub(super) fn is_zero(&self) -> bool {
        self.blocks.values().all(|block| block.iter().all(|byte| *byte == 0))
    }

    /// The numbers of the blocks in which two versions of an object may differ.
    pub(super) fn changed_blocks<'a>(
        &'a self,
        older: &'a Object,
    ) -> impl Iterator<Item = u64> + 'a {
        let mut blocks: Vec<u64> = self.blocks.keys().chain(older.blocks.keys()).copied().collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks.into_iter().filter(move |block| self.blocks.get(block) != older.blocks.get(block))
    }
}

impl Content {
    /// No objects at all.
    pub(super) const fn new() -> Content {
        Content { objects: None }
    }

    /// The object with this number, if it exists.
    pub(super) fn object(&self, number: u64) -> Option<&Arc<Object>> {
        self.objects.as_ref()?.get(&number)
    }

    /// The objects that exist, by number.
    pub(super) fn objects(&self) -> impl Iterator<Item = (u64, &Arc<Object>)> {
        self.objects
            .iter()
            .flat_map(|objects| objects.iter())
            .map(|(number, object)| (*number, object))
    }

    /// The object with this number to change, made when missing.
    pub(super) fn object_mut(&mut self, number: u64) -> &mut Object {
        let objects = Arc::make_mut(self.objects.get_or_insert_default());
        Arc::make_mut(objects.entry(number).or_default())
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, number: u64) {
        if let Some(objects) = &mut self.objects {
            Arc::make_mut(objects).remove(&number);
        }
    }

    /// Throws the objects from `number` on away.
    pub(super) fn truncate(&mut self, number: u64) {
        if let Some(objects) = &mut self.objects {
            Arc::make_mut(objects).split_off(&number);
        }
    }

    /// Bytes that are stored.
    pub(super) fn stored(&self) -> u64 {
        self.objects().map(|(_, object)| object.blocks.len() as u64 * BLOCK).sum()
    }
}
/// Cuts `length` bytes at `offset` at block boundaries: block number, first byte in it, range in
/// the buffer.
fn pieces(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    chunks(offset, length, BLOCK_ORDER).map(move |(block, start, at, size)| {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "positions in one block and one buffer in memory"
        )]
        let (start, at, size) = (start as usize, (at - offset) as usize, size as usize);
        (block, start, at..at + size)
    })
}

/// Cuts `length` bytes at `offset` at multiples of `1 << order`: number, first byte in it, offset,
/// bytes.
pub(super) fn chunks(
    offset: u64,
    length: u64,
    order: u8,
) -> impl Iterator<Item = (u64, u64, u64, u64)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let number = at >> order;
        let size = (((number + 1) << order).min(end)) - at;
        let piece = (number, at & ((1 << order) - 1), at, size);
        at += size;
        Some(piece)
    })
}
